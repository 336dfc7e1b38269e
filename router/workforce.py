"""The router's side of the talk with its workers: joins the hub, the registry and the ledger. No event loop."""

import logging
from collections.abc import Callable

from ..wire.hub import Dropped, Hub
from ..wire.messages import (
    Cancelled,
    Credit,
    Declined,
    Drain,
    Failed,
    FromRouter,
    FromWorker,
    Goodbye,
    Heartbeat,
    Hello,
    Pooled,
    Prefill,
    Prefilled,
    PromptLogprobs,
    Ready,
    Reserve,
    Reserved,
    SayHello,
    Tokens,
    Welcome,
)
from .ledger import Ledger
from .sequence import WorkerId
from .workers import Refused, Registry, Worker

log = logging.getLogger(__name__)


class Workforce:
    """Takes in what workers say, and sends what the ledger has for them. A worker that is lost, by silence, by its
    own word or because it cannot be sent to, loses its placements in the ledger at once."""

    def __init__(
        self,
        hub: Hub,
        registry: Registry,
        ledger: Ledger,
        *,
        epoch: int,
        model: str,
        heartbeat_interval_s: float,
        clock: Callable[[], float],
    ):
        self.peers: list[WorkerId] = []
        """Who gets heartbeats: replaced, never changed, since another thread reads it."""
        self._hub = hub
        self._registry = registry
        self._ledger = ledger
        self._clock = clock
        self._welcome = Welcome(router=hub.address, epoch=epoch, model=model, heartbeat_interval_s=heartbeat_interval_s)

    def receive(self) -> int:
        """Handles what has arrived, up to the hub's limit; how many messages it was."""
        arrived = self._hub.receive()
        for worker_id, message in arrived:
            self._on_message(worker_id, message)
        return len(arrived)

    def flush(self) -> int:
        """Sends the ledger's outbox; how many messages it was. A send that fails may add to the outbox."""
        num_sent = 0
        while self._ledger.outbox:
            outbox, self._ledger.outbox = self._ledger.outbox, []
            for worker_id, message in outbox:
                worker = self._registry.get(worker_id)
                if worker is not None:
                    num_sent += self._send(worker, message)
        return num_sent

    def drop_overdue(self, now: float) -> None:
        """Gives up the workers whose deadlines have passed."""
        for worker, reason in self._registry.overdue(now):
            self._lose(worker, reason)

    def drain(self, name: str) -> bool:
        """Asks a worker to finish what it has and leave; False if there is none of this name."""
        worker = next((w for w in self._registry if w.name == name), None)
        if worker is None:
            return False
        self._on_draining(worker)
        self._ledger.outbox.append((worker.id, Drain()))
        return True

    def _send(self, worker: Worker, message: FromRouter) -> bool:
        if not self._hub.send(worker.id, message):
            self._lose(worker, "its connection is gone or takes nothing more")
            return False
        if isinstance(message, Reserve):
            worker.sent += message.cost_blocks
        elif isinstance(message, Prefill):
            worker.sent += message.cost_tokens
        return True

    def _on_message(self, worker_id: WorkerId, message: FromWorker | Dropped) -> None:
        if isinstance(message, Hello):
            self._on_hello(worker_id, message)
            return
        worker = self._registry.get(worker_id)
        if worker is not None:
            worker.heard_at = self._clock()
            self._on_known(worker, message, worker.heard_at)
        elif not isinstance(message, Dropped | Goodbye):
            self._hub.send(worker_id, SayHello())

    def _on_known(self, worker: Worker, message: FromWorker | Dropped, now: float) -> None:
        match message:
            case Tokens():
                self._ledger.on_tokens(worker.id, message, now)
            case PromptLogprobs():
                self._ledger.on_prompt_logprobs(worker.id, message)
            case Pooled():
                self._ledger.on_pooled(worker.id, message)
            case Credit():
                worker.on_credit(message)
            case Heartbeat():
                worker.on_heartbeat(message)
                if worker.state == "draining":
                    self._on_draining(worker)
                self._relay(worker, message.held)
            case Reserved():
                self._ledger.on_reserved(worker.id, message)
            case Prefilled():
                self._ledger.on_prefilled(worker.id, message, now)
            case Declined():
                worker.declined = worker.declined or not message.preempted
                self._ledger.on_declined(worker.id, message, now)
            case Failed():
                self._ledger.on_failed(worker.id, message, now)
            case Cancelled():
                self._ledger.on_cancelled(worker.id, message)
            case Ready():
                self._on_ready(worker, message)
            case Goodbye():
                log.info("%s worker %s left: %s", worker.hello.role, worker.name, message.reason)
                self._remove(worker, died=False)
            case Dropped():
                self._lose(worker, message.reason)
            case _:
                raise TypeError(f"no handler for {type(message).__name__}")

    def _relay(self, worker: Worker, held: tuple[str, ...]) -> None:
        """Renews, at the decode workers that wait for this prefill worker, the leases of what it still holds."""
        waiting = {attempt.decode for attempt in self._ledger.attempts_of(worker.id)} if held else set()
        self._ledger.outbox += ((decode, Heartbeat(held=held)) for decode in waiting if decode is not None)

    def _on_hello(self, worker_id: WorkerId, message: Hello) -> None:
        known = self._registry.get(worker_id)
        if known is not None and known.ready is not None:
            self._lose(known, "it started over")
        try:
            worker = self._registry.on_hello(worker_id, message, self._clock())
        except Refused as refused:
            self._refuse(worker_id, message.worker, str(refused))
            return
        namesake = self._registry.namesake(worker)
        if namesake is not None:
            self._lose(namesake, "another worker took its name")
            self._hub.drop(namesake.id, f"another worker took the name {worker.name}: names must be unique")
        self._list_peers()
        self._send(worker, self._welcome)

    def _on_ready(self, worker: Worker, message: Ready) -> None:
        if worker.ready is not None:
            self._lose(worker, "it said Ready twice")
            self._hub.send(worker.id, SayHello())
            return
        try:
            self._registry.on_ready(worker, message)
        except Refused as refused:
            self._refuse(worker.id, worker.name, str(refused))
            return
        log.info("%s worker %s is ready", worker.hello.role, worker.name)

    def _on_draining(self, worker: Worker) -> None:
        worker.state = "draining"
        self._ledger.prefill_withdrawn(worker.id)

    def _refuse(self, worker_id: WorkerId, name: str, reason: str) -> None:
        log.warning("refusing worker %s: %s", name, reason)
        known = self._registry.get(worker_id)
        if known is not None:
            self._remove(known, died=False)
        self._hub.drop(worker_id, reason)

    def _lose(self, worker: Worker, reason: str) -> None:
        log.warning("lost %s worker %s: %s", worker.hello.role, worker.name, reason)
        self._ledger.metrics.num_workers_lost += 1
        self._remove(worker, died=True)

    def _remove(self, worker: Worker, *, died: bool) -> None:
        self._registry.remove(worker.id)
        self._list_peers()
        self._ledger.worker_lost(worker.id, self._clock(), died=died)

    def _list_peers(self) -> None:
        self.peers = [w.id for w in self._registry]
