"""Workers played by a test, on a real socket: they say what the script says."""

import asyncio
import time
from collections import deque
from contextlib import asynccontextmanager

import zmq
from isthmus.router.core import RouterCore
from isthmus.router.job import Job
from isthmus.router.workers import Deadlines
from isthmus.wire.codec import decode_from_router, encode
from isthmus.wire.hub import Hub
from isthmus.wire.messages import (
    PROTOCOL_VERSION,
    Cancel,
    Cancelled,
    Capacity,
    Credit,
    Fingerprint,
    Heartbeat,
    Hello,
    Prefill,
    Prefilled,
    Ready,
    Reserve,
    Reserved,
    TokenRow,
    Tokens,
    Welcome,
)
from isthmus.wire.sampling import SamplingParams
from isthmus.wire.worker_link import identity

MODEL = Fingerprint(weights="w1", tokenizer="t1", rope="r1", num_layers=2, vocab_size=100, block_size=16)
CAPACITY = Capacity(num_blocks=64, max_num_seqs=8, max_num_batched_tokens=512, max_model_len=1024)
PATIENCE_S = 5.0


async def until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.001)


class Peer:
    """One end of a DEALER socket: `expect` gives the next message of a type, others are kept for later."""

    def __init__(self, context, address, worker="d0", role="decode", epoch=1):
        self.hello = Hello(protocol=PROTOCOL_VERSION, role=role, worker=worker, epoch=epoch)
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, identity(self.hello))
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(address)
        self._kept = deque()

    def send(self, *messages):
        for message in messages:
            self.send_bytes(encode(message))

    def send_bytes(self, *frames):
        self._socket.send_multipart(frames)

    async def expect(self, kind):
        found = []
        await until(lambda: self._take(kind, found))
        return found[0]

    def received(self, kind):
        """Messages of this type that have come and were not expected yet."""
        self._read()
        return [m for m in self._kept if isinstance(m, kind)]

    def _take(self, kind, found):
        self._read()
        message = next((m for m in self._kept if isinstance(m, kind)), None)
        if message is not None:
            self._kept.remove(message)
            found.append(message)
        return message is not None

    def _read(self):
        while self._socket.poll(0):
            message = decode_from_router(self._socket.recv())
            if not isinstance(message, Heartbeat):
                self._kept.append(message)

    async def register(self, *, fingerprint=MODEL, endpoints=("tcp://data",), free=60):
        self.send(self.hello)
        welcome = await self.expect(Welcome)
        self.send(Ready(fingerprint, CAPACITY, endpoints), Credit(0, free))
        return welcome

    async def reserve(self, *, cached=0, transfer_id=""):
        """Grants the next reservation."""
        message = await self.expect(Reserve)
        self.send(Reserved(message.placement, cached, transfer_id))
        return message

    async def prefill(self):
        """Computes the next prompt."""
        message = await self.expect(Prefill)
        self.send(Prefilled(message.placement, 0, 0.01, 100))
        return message

    def emit(self, placement, position, *ids, choice=0, finish=None):
        self.send(Tokens((TokenRow(placement, choice, position, ids, finish),)))

    async def acknowledge(self):
        """Answers the next cancel."""
        message = await self.expect(Cancel)
        self.send(Cancelled(message.placement, message.choice))
        return message

    def close(self):
        self._socket.close()


class Stage:
    """A core and the peers of one test."""

    def __init__(self, core, hub, context):
        self.core = core
        self.crashes = []
        self.address = hub.address
        self._hub = hub
        self._context = context
        self._peers = []

    def peer(self, worker="d0", role="decode", epoch=1):
        self._peers.append(Peer(self._context, self.address, worker, role, epoch))
        return self._peers[-1]

    async def decode(self, worker="d0", **given):
        peer = self.peer(worker)
        await peer.register(**given)
        await self.ready(worker)
        return peer

    async def prefill(self, worker="p0", free=1000):
        peer = self.peer(worker, "prefill")
        await peer.register(endpoints=(), free=free)
        await self.ready(worker)
        return peer

    async def ready(self, worker):
        await until(lambda: any(w.name == worker and w.available > 0 for w in self.core.registry))

    async def gone(self, worker):
        await until(lambda: all(w.name != worker for w in self.core.registry))

    async def unreachable(self, peer):
        """ZeroMQ has noticed that the peer closed."""
        await until(lambda: not self._hub.send(identity(peer.hello), Heartbeat()))

    async def empty(self):
        await until(lambda: self.core.ledger.is_empty)

    def close(self):
        for peer in self._peers:
            peer.close()


@asynccontextmanager
async def stage(**given):
    """A running core; local prefill is off, so that a prefill worker is used where there is one."""
    hub, context = Hub("tcp://127.0.0.1:*"), zmq.Context()
    crashes = []
    values = {"local_prefill_max_tokens": 0, "heartbeat_interval_s": 0.05, "deadlines": Deadlines(silence_s=30)}
    core = RouterCore(hub, model="demo", on_crash=crashes.append, **{**values, **given})
    core.start()
    built = Stage(core, hub, context)
    try:
        yield built
    finally:
        core.close()
        built.close()
        hub.close()
        context.term()
    assert crashes == []


def job(request_id="r1", *, num_tokens=40, num_choices=1):
    return Job(request_id, 0, list(range(num_tokens)), num_choices, SamplingParams(seed=7), (2,))


async def collect(stream):
    """All tokens by choice, and the finish reasons."""
    tokens, reasons = {}, {}
    while arrived := await stream.next():
        for new in arrived:
            tokens.setdefault(new.choice, []).extend(new.token_ids)
            if new.finish_reason is not None:
                reasons[new.choice] = new.finish_reason
    return tokens, reasons
