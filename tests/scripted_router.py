"""A router that does as a test says, over a real hub; and workers in threads, with the fake engine."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from isthmus.decode import worker as decode
from isthmus.engine.fake_engine import FakeEngine
from isthmus.engine.worker import Loaded, Worker
from isthmus.prefill import worker as prefill
from isthmus.wire.codec import pack_ids
from isthmus.wire.hub import Hub
from isthmus.wire.messages import Choice, Fingerprint, FromRouter, Hello, Ready, Reserve, Welcome
from isthmus.wire.sampling import SamplingParams

Message = TypeVar("Message")

BLOCK_SIZE = 4
VOCAB_SIZE = 1000
FAKE = Fingerprint("fake", "fake", "none", 1, VOCAB_SIZE, BLOCK_SIZE)


class ScriptedRouter:
    def __init__(self) -> None:
        self.hub = Hub("tcp://127.0.0.1:*")
        self.peers: dict[str, bytes] = {}
        self._unread: list[tuple[bytes, object]] = []

    def expect(self, kind: type[Message], worker: str | None = None, timeout_s: float = 10.0) -> Message:
        """The next message of this kind (from this worker); others stay unread."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self._unread += self.hub.receive()
            for index, (peer, message) in enumerate(self._unread):
                if isinstance(message, kind) and worker in (None, peer.decode().split("#")[0]):
                    del self._unread[index]
                    return message
            time.sleep(0.001)
        raise AssertionError(f"no {kind.__name__} came, but {[m for _, m in self._unread][-5:]}")

    def all_unread(self, kind: type[Message]) -> list[Message]:
        """What has come of this kind by now."""
        self._unread += self.hub.receive()
        found = [message for _, message in self._unread if isinstance(message, kind)]
        self._unread = [item for item in self._unread if not isinstance(item[1], kind)]
        return found

    def welcome(self, worker: str, model: str = "model") -> Ready:
        """Answers the worker's Hello; its Ready."""
        hello = self.expect(Hello, worker)
        self.peers[worker] = f"{worker}#{hello.epoch:016x}".encode()
        self.send(worker, Welcome("r", 1, model, 0.05))
        return self.expect(Ready, worker)

    def send(self, worker: str, message: FromRouter) -> None:
        assert self.hub.send(self.peers[worker], message)


class WorkerThread:
    def __init__(self, worker: Worker):
        self.worker = worker
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.worker.run()
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        self.worker.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()


def fake_load(overlaps: bool = True, num_blocks: int = 64, step_s: float = 0.0) -> Callable[[str], Loaded]:
    def load(model: str) -> Loaded:
        engine = FakeEngine(num_blocks, BLOCK_SIZE, VOCAB_SIZE, overlaps=overlaps, step_s=step_s)
        return Loaded(engine, FAKE, max_model_len=128)

    return load


def make_worker(role: str, router: ScriptedRouter, load: Callable[[str], Loaded], name: str | None = None) -> Worker:
    makers: dict[str, Callable[..., Worker]] = {"decode": decode.make_worker, "prefill": prefill.make_worker}
    make = makers[role]
    return make(
        name=name or role,
        router_address=router.hub.address,
        model=None,
        load=load,
        max_num_seqs=8,
        max_num_batched_tokens=16,
    )


def reserve(placement: int, prompt: list[int], remote: bool = False, num_choices: int = 1, **params: object) -> Reserve:
    return Reserve(
        placement=placement,
        request_id=f"request-{placement}",
        prompt=pack_ids(prompt),
        choices=tuple(Choice(index) for index in range(num_choices)),
        params=SamplingParams(**{"seed": 7, "max_tokens": 10, **params}),
        prompt_index=0,
        cost_blocks=-(-(len(prompt) + 1) // BLOCK_SIZE) + num_choices - 1,
        remote=remote,
    )
