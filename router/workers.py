"""The workers this router knows: who they are, whether they live, and what they still accept.

    Hello -> Welcome -> (loads) -> Ready -> placements … -> draining -> Goodbye

No sockets, no clock. What a worker may not do raises `Refused`, with the sentence it is told.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from ..wire.messages import PROTOCOL_VERSION, Credit, Fingerprint, Heartbeat, Hello, Ready, WorkerState, WorkerStats
from .rates import Rate
from .sequence import WorkerId

FIELD_NAMES = {
    "weights": "weights",
    "tokenizer": "tokenizer",
    "rope": "rope",
    "num_layers": "number of layers",
    "vocab_size": "vocabulary size",
    "block_size": "block size",
    "layout": "KV layout",
}


class Refused(Exception):
    """This worker cannot work here; the text says why."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """After how many seconds a worker is given up."""

    silence_s: float = 10.0
    """Without any message."""
    no_progress_s: float = 120.0
    """With work to do and no step finished."""
    loading_s: float = 600.0
    """From Hello to Ready."""


@dataclass(slots=True, eq=False)
class Worker:
    """One worker in one epoch."""

    id: WorkerId
    hello: Hello
    registered_at: float
    heard_at: float
    ready: Ready | None = None
    state: WorkerState = "loading"
    stats: WorkerStats | None = None
    step_age_s: float = 0.0
    credit: Credit = field(default_factory=lambda: Credit(seen=0, free=0))
    sent: int = 0
    """Costs of all placements sent to it."""
    declined: bool = False
    """Since its last credit, which was therefore too high."""
    transfer_rate: Rate = field(default_factory=Rate)
    """Bytes/s of the transfers it sends, to whomever."""

    @property
    def name(self) -> str:
        return self.hello.worker

    @property
    def takes_work(self) -> bool:
        return self.ready is not None and self.state == "ready"

    @property
    def available(self) -> int:
        """Blocks (decode) or tokens (prefill) it still accepts; below 0 after an overdraft."""
        return 0 if self.declined else self.credit.free - (self.sent - self.credit.seen)

    def on_heartbeat(self, message: Heartbeat) -> None:
        self.step_age_s = message.step_age_s
        if self.ready is not None and message.state != "loading":
            self.state = message.state
        if message.stats is not None:
            self._measure(message.stats)
            self.stats = message.stats

    def _measure(self, stats: WorkerStats) -> None:
        before = (self.stats.transfer_bytes, self.stats.transfer_s) if self.stats else (0, 0.0)
        if stats.transfer_bytes > before[0] and stats.transfer_s > before[1]:
            self.transfer_rate.record(stats.transfer_bytes - before[0], stats.transfer_s - before[1])

    def on_credit(self, message: Credit) -> None:
        self.credit = message
        self.declined = False

    def overdue(self, now: float, deadlines: Deadlines) -> str | None:
        """Why it counts as lost, or None."""
        silent_s = now - self.heard_at
        if silent_s > deadlines.silence_s:
            return f"silent for {silent_s:.1f} s"
        if self.ready is None:
            loading_s = now - self.registered_at
            return f"not ready after {loading_s:.0f} s" if loading_s > deadlines.loading_s else None
        if self.step_age_s > deadlines.no_progress_s:
            return f"no progress for {self.step_age_s:.0f} s"
        return None


class Registry:
    """All living workers. The first that is ready sets the fingerprint that all must have, unless one is given."""

    def __init__(self, *, deadlines: Deadlines | None = None, expected: Fingerprint | None = None):
        self.expected = expected
        self._deadlines = deadlines or Deadlines()
        self._workers: dict[WorkerId, Worker] = {}

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def get(self, worker: WorkerId) -> Worker | None:
        return self._workers.get(worker)

    def remove(self, worker: WorkerId) -> None:
        self._workers.pop(worker, None)

    def taking_work(self, role: str) -> list[Worker]:
        return [w for w in self if w.hello.role == role and w.takes_work]

    def namesake(self, worker: Worker) -> Worker | None:
        """Another worker of its name: mostly an earlier epoch, of which the death went unnoticed."""
        return next((w for w in self if w.name == worker.name and w is not worker), None)

    def on_hello(self, worker: WorkerId, message: Hello, now: float) -> Worker:
        """Raises Refused. Registers the worker anew, whatever was known of it."""
        if message.protocol != PROTOCOL_VERSION:
            raise Refused(
                f"this router speaks protocol {PROTOCOL_VERSION}, the worker speaks {message.protocol}: "
                "run the same version of isthmus on both"
            )
        if message.fingerprint is not None:
            self._check(message.fingerprint)
        self._workers[worker] = Worker(worker, message, registered_at=now, heard_at=now)
        return self._workers[worker]

    def on_ready(self, worker: Worker, message: Ready) -> None:
        """Raises Refused."""
        self._check(message.fingerprint)
        if self.expected is None:
            self.expected = message.fingerprint
        worker.ready = message
        worker.state = "ready"

    def overdue(self, now: float) -> list[tuple[Worker, str]]:
        """Workers to be given up, and why."""
        found = ((w, w.overdue(now, self._deadlines)) for w in self)
        return [(worker, reason) for worker, reason in found if reason is not None]

    def _check(self, fingerprint: Fingerprint) -> None:
        if self.expected is not None:
            difference = first_difference(self.expected, fingerprint)
            if difference is not None:
                raise Refused(difference)


def first_difference(expected: Fingerprint, given: Fingerprint) -> str | None:
    """A sentence that names the first field in which they differ, with both values."""
    for name, label in FIELD_NAMES.items():
        ours, theirs = getattr(expected, name), getattr(given, name)
        if ours != theirs:
            return f"this router serves {label} {_shown(ours)}, the worker has {_shown(theirs)}"
    return None


def _shown(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
