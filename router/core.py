"""The router's core on the event loop: queue, placement and workers behind `Core`.

Everything happens in `_cycle`: take what has arrived, decide, send. It runs when the socket wakes the loop, after each
submission and once a tick, and again as long as it received or sent anything, since a zmq descriptor signals only once.
Heartbeats leave from a thread of their own, so that a busy loop is not taken for a dead router.
"""

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator

from ..wire.hub import Hub
from ..wire.messages import Fingerprint
from .dispatch import Waiting, decide
from .job import Job, JobError, no_text
from .ledger import Ledger
from .metrics import Gauges, Metrics
from .metrics_page import MetricsPage
from .page import DEFAULT_PREFIX
from .placement import Placement, Request, blocks_needed
from .sequence import Entry, Sequence
from .snapshot import link_gauges, take_snapshot, worker_gauges
from .stream import JobStream
from .timelines import Timeline, take_timelines
from .topology import Topology, take_topology
from .waiting import group_of
from .workers import Deadlines, Registry
from .workforce import Workforce

log = logging.getLogger(__name__)


class RouterCore:
    """Implements `Core` over a hub, which stays the caller's to close. `start` and `close` on the event loop.

    Workers are told to load `model` (metrics call it `served_name`) and must have the fingerprint `expected`, or that
    of the first one ready. At most `max_waiting` sequences queue; a job fails whose first token takes longer than
    `request_timeout_s`. A model that does not generate (`generates`) gives vectors of prompts alone. `on_crash` is
    called with an exception of the core itself, which then does nothing more.
    """

    def __init__(
        self,
        hub: Hub,
        *,
        model: str,
        served_name: str | None = None,
        on_crash: Callable[[Exception], None],
        expected: Fingerprint | None = None,
        max_waiting: int = 1024,
        request_timeout_s: float | None = None,
        local_prefill_max_tokens: int = 256,
        max_bypass_s: float = 5.0,
        heartbeat_interval_s: float = 1.0,
        deadlines: Deadlines | None = None,
        metrics_prefix: str = DEFAULT_PREFIX,
        generates: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        deadlines = deadlines or Deadlines()
        epoch = secrets.randbits(63)
        metrics = Metrics()
        self.registry = Registry(deadlines=deadlines, expected=expected)
        self.ledger = Ledger(router_epoch=epoch, metrics=metrics, request_timeout_s=request_timeout_s)
        self._workforce = Workforce(
            hub,
            self.registry,
            self.ledger,
            epoch=epoch,
            model=model,
            heartbeat_interval_s=heartbeat_interval_s,
            clock=clock,
        )
        self._hub = hub
        self._model = served_name or model
        self._started_at = clock()
        self._page = MetricsPage(metrics, self._gauges, model=self._model, prefix=metrics_prefix)
        self._on_crash = on_crash
        self._generates = generates
        self._max_waiting = max_waiting
        self._local_prefill_max_tokens = local_prefill_max_tokens
        self._max_bypass_s = max_bypass_s
        self._heartbeat_interval_s = heartbeat_interval_s
        self._tick_s = min(0.25, deadlines.silence_s / 8)
        self._clock = clock
        self._scheduled = False
        self._closed = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="router-heart", daemon=True)

    def submit(self, job: Job) -> JobStream:
        if self._closed.is_set():
            raise JobError(503, "the server is shutting down")
        now = self._clock()
        self._check_fits(job)
        num_waiting = len(self.ledger.waiting)
        if num_waiting + job.num_choices > self._max_waiting:
            retry_after_s = self.ledger.throughput.seconds_for(num_waiting, now)
            raise JobError(503, f"{num_waiting} requests are waiting already", retry_after_s=retry_after_s)
        stream = JobStream(stop=self._stop, cancel=self._cancel, clock=self._clock)
        stream.entry = self.ledger.submit(job, stream, now)
        self._schedule()
        return stream

    @property
    def ready(self) -> bool:
        return not self._closed.is_set() and bool(self.registry.taking_work("decode" if self._generates else "prefill"))

    def metrics(self) -> bytes:
        return self._page.render()

    def topology(self) -> Topology:
        now = self._clock()
        return take_topology(self.registry, self.ledger, model=self._model, uptime_s=now - self._started_at, now=now)

    def timelines(self) -> list[Timeline]:
        return take_timelines(self.ledger, self._clock())

    def drain_worker(self, name: str) -> bool:
        """Asks a worker to finish what it has and leave; False if there is none of this name."""
        found = self._workforce.drain(name)
        self._schedule()
        return found

    def fail_all(self, error: JobError) -> None:
        """Ends every open job with this error."""
        if self._closed.is_set():
            return
        for entry in self.ledger.entries():
            self.ledger.fail(entry, error, self._clock())
        self._schedule()

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._hub.fileno(), self._cycle)
        self._timer = self._loop.call_later(self._tick_s, self._tick)
        self._heart.start()
        self._schedule()

    def close(self) -> None:
        """Ends what still runs, tells the workers, and leaves the hub alone from now on."""
        if not self._closed.is_set():
            self.fail_all(JobError(503, "the server is shutting down"))
            self._workforce.flush()
            self._closed.set()
        self._timer.cancel()
        self._loop.remove_reader(self._hub.fileno())
        self._heart.join()

    def _schedule(self) -> None:
        if not self._scheduled and not self._closed.is_set():
            self._scheduled = True
            self._loop.call_soon(self._cycle)

    def _cycle(self) -> None:
        self._scheduled = False
        if self._closed.is_set():
            return
        try:
            active = self._exchange()
        except Exception as error:
            self._crash(error)
            return
        if active:
            self._schedule()

    def _exchange(self) -> int:
        """Messages received and sent."""
        count = self._workforce.receive() + self._workforce.flush()
        if self.ledger.waiting:
            self._dispatch()
            count += self._workforce.flush()
        return count

    def _tick(self) -> None:
        now = self._clock()
        try:
            self._workforce.drop_overdue(now)
            self.ledger.expire(now)
        except Exception as error:
            self._crash(error)
            return
        self._schedule()
        self._timer = self._loop.call_later(self._tick_s, self._tick)

    def _crash(self, error: Exception) -> None:
        log.critical("the router's core failed", exc_info=error)
        self._closed.set()
        for entry in self.ledger.entries():
            entry.sink.fail(JobError(500, "internal error"))
        self._on_crash(error)

    def _beat(self) -> None:
        while not self._closed.wait(self._heartbeat_interval_s):
            self._hub.beat(self._workforce.peers)
            self._loop.call_soon_threadsafe(self._schedule)

    def _dispatch(self) -> None:
        snapshot = take_snapshot(self.registry, self.ledger, local_prefill_max_tokens=self._local_prefill_max_tokens)
        if snapshot is None:
            return
        now = self._clock()
        heads: list[Sequence] = []
        max_choices = max((d.max_num_seqs for d in snapshot.decode), default=self._max_waiting)
        waiting = self._waiting(heads, max_choices, now)
        prompt_only = self.ledger.waiting.num_prompt_only > 0
        decisions = decide(waiting, snapshot, now=now, max_bypass_s=self._max_bypass_s, prompt_only=prompt_only)
        for ticket in decisions.passed:
            heads[ticket].passed_since = heads[ticket].passed_since or now
        for ticket, worker in decisions.held.items():
            heads[ticket].held = worker
        for ticket, placement in decisions.placed:
            self._place(heads[ticket], placement, max_choices, now)

    def _waiting(self, heads: list[Sequence], max_choices: int, now: float) -> Iterator[Waiting]:
        """The queue as dispatch sees it; tickets are indices into `heads`, which grows as it is read."""
        for head in self.ledger.waiting.heads(now):
            request = Request(head.num_tokens, len(group_of(head, max_choices)), head.entry.job.prompt_only)
            heads.append(head)
            yield Waiting(len(heads) - 1, request, head.passed_since, head.held)

    def _place(self, head: Sequence, placement: Placement, max_choices: int, now: float) -> None:
        self.ledger.place(
            head,
            decode=placement.decode,
            prefill=placement.prefill,
            data_endpoint=self._data_endpoint(placement),
            cost_blocks=placement.cost_blocks,
            max_choices=max_choices,
            now=now,
        )

    def _data_endpoint(self, placement: Placement) -> str:
        """Where the prefill worker sends the KV; empty if it does not."""
        if placement.decode is None or placement.prefill is None:
            return ""
        worker = self.registry.get(placement.decode)
        assert worker is not None
        assert worker.ready is not None
        return worker.ready.data_endpoints[0]

    def _stop(self, entry: Entry, choice: int) -> None:
        self.ledger.stop(entry, choice, self._clock())
        self._schedule()

    def _cancel(self, entry: Entry) -> None:
        self.ledger.cancel(entry, self._clock())
        self._schedule()

    def _check_fits(self, job: Job) -> None:
        """Raises JobError if not even one choice of it fits into an empty decode worker, or the model cannot do it."""
        if job.pooling is None and not self._generates:
            raise no_text(self._model)
        if self.registry.expected is None or (job.prompt_only and self.registry.taking_work("prefill")):
            return
        sizes = [w.ready.capacity.num_blocks for w in self.registry.taking_work("decode") if w.ready is not None]
        request = Request(len(job.prompt_ids), prompt_only=job.prompt_only)
        needed = blocks_needed(request, self.registry.expected.block_size)
        if sizes and needed > max(sizes):
            raise JobError(400, f"the prompt needs {needed} blocks of KV cache, the largest worker has {max(sizes)}")

    def _gauges(self) -> Gauges:
        workers = tuple(worker_gauges(w) for w in self.registry)
        links = tuple(link_gauges(pair, link) for pair, link in self.ledger.rates.links.items())
        return Gauges(self.ledger.num_running, len(self.ledger.waiting), workers, links)
