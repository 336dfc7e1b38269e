"""A router's core and its workers in threads of this process, over real sockets: all but HTTP and supervision."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from isthmus.decode import worker as decode
from isthmus.engine.speculation_config import SpeculationConfig
from isthmus.engine.worker import Loaded, Worker
from isthmus.prefill import worker as prefill
from isthmus.router.core import RouterCore
from isthmus.router.job import Job
from isthmus.wire.hub import Hub
from isthmus.wire.logprobs import TokenLogprobs
from isthmus.wire.messages import Pooling, WorkerStats
from isthmus.wire.sampling import SamplingParams

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ask:
    prompt_ids: Sequence[int]
    params: SamplingParams
    num_choices: int = 1
    cancel_after: int | None = None
    """Tokens after which the client leaves."""
    salt: bytes = b""


@dataclass
class Heard:
    """By choice: tokens and what was told of them; and of the prompt, before the first token."""

    outputs: list[list[int]]
    logprobs: list[list[TokenLogprobs]]
    prompt: list[TokenLogprobs] = field(default_factory=list)


class LocalCluster:
    """Entered, it has a router and ready workers; `ask` runs jobs, all at once."""

    def __init__(
        self,
        load: Callable[[str], Loaded],
        *,
        num_prefill: int,
        num_decode: int = 1,
        max_num_seqs: int = 16,
        max_num_batched_tokens: int = 512,
        max_chunk_tokens: int | None = None,
        enable_prefix_caching: bool = True,
        local_prefill_max_tokens: int = 0,
        transport: str | None = None,
        speculation: SpeculationConfig | None = None,
    ):
        self.hub = Hub("tcp://127.0.0.1:*")
        self.loop = asyncio.new_event_loop()
        self._loop_thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.crashes: list[BaseException] = []
        self._local_prefill_max_tokens = local_prefill_max_tokens
        makers: list[tuple[str, int, Callable[..., Worker]]] = [
            ("prefill", i, prefill.make_worker) for i in range(num_prefill)
        ]
        makers += [("decode", i, decode.make_worker) for i in range(num_decode)]
        only: dict[str, Any] = {"speculation": speculation}
        if transport is not None:
            only["transports"] = (transport,)
        self.workers: dict[str, Worker] = {
            f"{role}-{i}": make(
                name=f"{role}-{i}",
                router_address=self.hub.address,
                model=None,
                load=load,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens,
                max_chunk_tokens=max_chunk_tokens,
                enable_prefix_caching=enable_prefix_caching,
                **(only if role == "decode" else {}),
            )
            for role, i, make in makers
        }
        self._threads = {
            name: threading.Thread(target=self._run, args=(w,), daemon=True) for name, w in self.workers.items()
        }

    def __enter__(self) -> "LocalCluster":
        self._loop_thread.start()
        self.core: RouterCore = self._call(self._start())
        for thread in self._threads.values():
            thread.start()
        try:
            self._call(self._wait_until_ready())
        except BaseException:
            self._close_all()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_all()
        if error is None:
            assert not self.crashes, self.crashes

    def _close_all(self) -> None:
        for worker in self.workers.values():
            worker.stop()
        for thread in self._threads.values():
            thread.join(20)
        asyncio.run_coroutine_threadsafe(self._close(), self.loop).result(60)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._loop_thread.join(20)
        self.loop.close()
        self.hub.close()

    def ask(self, asks: Sequence[Ask], eos_ids: tuple[int, ...] = ()) -> list[list[list[int]]]:
        """Tokens of each choice of each job; all jobs run at the same time."""

        async def all_of_them() -> list[list[list[int]]]:
            return await asyncio.gather(*(self._one(i, ask, eos_ids) for i, ask in enumerate(asks)))

        return self._call(all_of_them())

    def hear(self, asks: Sequence[Ask]) -> list["Heard"]:
        """All that is told of each job; all jobs run at the same time."""

        async def all_of_them() -> list[Heard]:
            return await asyncio.gather(*(self._hear(i, ask) for i, ask in enumerate(asks)))

        return self._call(all_of_them())

    def pool(self, prompts: Sequence[Sequence[int]], pooling: Pooling) -> list[np.ndarray]:
        """The vector of each prompt; all are asked for at the same time."""

        async def one(index: int, prompt: Sequence[int]) -> np.ndarray:
            params = SamplingParams(seed=1, max_tokens=0)
            stream = self.core.submit(Job(f"job-{index}", 0, prompt, 1, params, (), pooling))
            while await stream.next():
                pass
            return np.frombuffer(stream.pooled, "<f4")

        async def all_of_them() -> list[np.ndarray]:
            return await asyncio.gather(*(one(i, prompt) for i, prompt in enumerate(prompts)))

        return self._call(all_of_them())

    def used_blocks(self) -> dict[str, int]:
        """Of each worker, as its scheduler knows them now."""
        return {name: stats.num_blocks_used for name, stats in self.stats().items()}

    def stats(self) -> dict[str, WorkerStats]:
        """Of each worker, by name, as its scheduler knows them now."""
        roles = {name: worker.role for name, worker in self.workers.items()}
        return {name: role.scheduler.stats() for name, role in roles.items() if role is not None}

    def _call(self, coroutine: Coroutine[Any, Any, Value]) -> Value:
        """Raises what a worker has died of, rather than wait for its answers."""
        running, end_s = asyncio.run_coroutine_threadsafe(coroutine, self.loop), time.monotonic() + 60
        while not running.done() and not self.crashes and time.monotonic() < end_s:
            wait((running,), timeout=0.05)
        if self.crashes and not running.done():
            running.cancel()
            raise self.crashes[0]
        return running.result(0)

    async def _start(self) -> RouterCore:
        core = RouterCore(
            self.hub,
            model="model",
            on_crash=self.crashes.append,
            local_prefill_max_tokens=self._local_prefill_max_tokens,
        )
        core.start()
        return core

    async def _wait_until_ready(self) -> None:
        while sum(len(self.core.registry.taking_work(role)) for role in ("prefill", "decode")) < len(self.workers):
            assert not self.crashes, self.crashes
            await asyncio.sleep(0.005)

    async def _close(self) -> None:
        self.core.close()

    def _run(self, worker: Worker) -> None:
        try:
            worker.run()
        except BaseException as error:
            self.crashes.append(error)

    async def _one(self, index: int, ask: Ask, eos_ids: tuple[int, ...]) -> list[list[int]]:
        job = Job(f"job-{index}", 0, ask.prompt_ids, ask.num_choices, ask.params, eos_ids, salt=ask.salt)
        stream = self.core.submit(job)
        outputs: list[list[int]] = [[] for _ in range(ask.num_choices)]
        while new := await stream.next():
            for tokens in new:
                outputs[tokens.choice] += tokens.token_ids
            if ask.cancel_after is not None and sum(map(len, outputs)) >= ask.cancel_after:
                stream.cancel()
                break
        return outputs

    async def _hear(self, index: int, ask: Ask) -> Heard:
        stream = self.core.submit(Job(f"job-{index}", 0, ask.prompt_ids, ask.num_choices, ask.params, ()))
        heard = Heard([[] for _ in range(ask.num_choices)], [[] for _ in range(ask.num_choices)])
        while new := await stream.next():
            heard.prompt = list(stream.prompt_logprobs)
            for tokens in new:
                heard.outputs[tokens.choice] += tokens.token_ids
                heard.logprobs[tokens.choice] += tokens.logprobs
        return heard
