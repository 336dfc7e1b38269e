"""The life of a worker process, whatever its role: register, load, then step until told to stop."""

import logging
import queue
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from ..text.tokenizer import Tokenizer
from ..wire import log_context
from ..wire.curve import ClientKeys
from ..wire.messages import (
    PROTOCOL_VERSION,
    Cancel,
    Capacity,
    Drain,
    Fingerprint,
    FromRouter,
    FromWorker,
    Goodbye,
    Heartbeat,
    Hello,
    HelloRefused,
    Prefill,
    Ready,
    Reserve,
    Role,
    Welcome,
    WorkerStats,
)
from ..wire.worker_link import RouterLost, WorkerLink, identity
from .placement_log import PlacementLog
from .plan import Engine, Handle, Plan, Result
from .pulse import Pulse

log = logging.getLogger(__name__)

STATS_INTERVAL_S = 0.5
IDLE_WAIT_S = 0.5
SOON_S = 0.001


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, ready to run."""

    engine: Engine
    fingerprint: Fingerprint
    max_model_len: int
    tokenizer: Tokenizer | None = None
    """Of workers that draw: what constrains tokens by their text needs it."""
    whole_prompts: bool = False
    """The tokens of a prompt see those after them: it is computed in one step, and nothing of it serves another."""


Load = Callable[[str], Loaded]
"""Loads MODEL. Raises ValueError with a sentence for the user."""


class Refused(RuntimeError):
    """The router will not have this worker; says why."""


class Wake:
    """In the inbox: something other than a message has come."""


class Stop:
    """In the inbox: end now."""


class Scheduler(Protocol):
    def plan(self, now: float, in_flight: Plan | None) -> Plan | None: ...

    def apply(self, plan: Plan, result: Result, now: float) -> None: ...

    def stats(self) -> WorkerStats: ...

    def check(self) -> None: ...

    def on_drain(self) -> None: ...

    @property
    def idle(self) -> bool: ...

    @property
    def empty(self) -> bool:
        """No placement is left."""


class RoleLoop(Protocol):
    """What differs between the roles, once the model is loaded."""

    @property
    def scheduler(self) -> Scheduler: ...

    @property
    def engine(self) -> Engine: ...

    @property
    def data_endpoints(self) -> tuple[str, ...]: ...

    def on_message(self, message: FromRouter, now: float) -> None:
        """A message about placements, or a heartbeat that renews leases."""

    def poll_transfers(self, now: float) -> None:
        """Hands the transport's events to the scheduler."""

    @property
    def sending(self) -> bool:
        """Something is on its way, so that the transport must be polled again soon."""

    def stats(self) -> WorkerStats:
        """The scheduler's, with those of transfers."""

    def held(self) -> tuple[str, ...]:
        """Transfers that are still to be sent: heartbeats renew their leases."""

    def carry_out(self, send: Callable[[FromWorker], None]) -> None:
        """The scheduler's effects."""

    def restart(self, now: float) -> None:
        """The router that made the placements is gone, or a router has registered this worker: they are void."""

    def close(self) -> None: ...


MakeRole = Callable[[Loaded, str, Callable[[], None]], RoleLoop]
"""(model, worker's name and epoch, wake): `wake` may be called from any thread, when something came but a message."""


@dataclass(frozen=True, slots=True)
class Limits:
    max_num_seqs: int
    max_num_batched_tokens: int


class Worker:
    """One worker process. `run` returns when it was told to stop, and raises Refused if the router refuses it."""

    def __init__(
        self,
        *,
        role: Role,
        name: str,
        router_address: str,
        model: str | None,
        load: Load,
        make_role: MakeRole,
        limits: Limits,
        on_ready: Callable[[], None] = lambda: None,
        keys: ClientKeys | None = None,
        router_silence_s: float = 10.0,
    ):
        self._model = model
        self._load = load
        self._make_role = make_role
        self._limits = limits
        self._on_ready = on_ready
        self._pulse = Pulse()
        self._hello = Hello(PROTOCOL_VERSION, role, name, secrets.randbits(63))
        self._link = WorkerLink(router_address, self._hello, self._pulse.beat, keys=keys, silence_s=router_silence_s)
        self._loaded: Loaded | None = None
        self.role: RoleLoop | None = None
        self._placements = PlacementLog()
        self._stopping = False
        self._stats_due = 0.0
        self._checked = False

    def stop(self) -> None:
        """From a signal handler or another thread."""
        self._link.inbox.put(Stop())

    def run(self) -> None:
        self._link.start()
        try:
            while self.role is None and not self._stopping:
                self._register(self._link.inbox.get())
            if self.role is not None:
                self._loop(self.role)
            self._link.send(Goodbye("drained" if self._pulse.state == "draining" else "told to stop"))
        finally:
            self._link.close()
            if self.role is not None:
                self.role.close()

    def _register(self, message: object) -> None:
        match message:
            case Welcome():
                self._on_welcome(message)
            case HelloRefused(reason=reason):
                raise Refused(reason)
            case RouterLost(reason=reason):
                log.warning("router lost: %s", reason)
            case Stop():
                self._stopping = True
            case Wake():
                pass
            case _:
                raise AssertionError(f"not expected before Ready: {message}")

    def _on_welcome(self, welcome: Welcome) -> None:
        if self.role is None:
            self._loaded = self._load(self._model or welcome.model)
            epoch = identity(self._hello).decode()
            self.role = self._make_role(self._loaded, epoch, lambda: self._link.inbox.put(Wake()))
        assert self._loaded is not None
        loaded, role = self._loaded, self.role
        self._pulse.state = "ready"
        capacity = Capacity(
            loaded.engine.num_blocks,
            self._limits.max_num_seqs,
            self._limits.max_num_batched_tokens,
            loaded.max_model_len,
        )
        self._link.send(Ready(loaded.fingerprint, capacity, role.data_endpoints))
        role.restart(now())
        role.carry_out(self._send)
        self._on_ready()

    def _loop(self, role: RoleLoop) -> None:
        step: Handle | None = None
        wait_s = 0.0
        while not (self._stopping or (self._pulse.state == "draining" and role.scheduler.empty)):
            messages = self._drain(wait_s)
            for message in messages:
                self._on_message(role, message)
            role.poll_transfers(now())
            plan = role.scheduler.plan(now(), step.plan if step else None)
            role.carry_out(self._send)
            if plan:
                self._pulse.working()
            ahead = role.engine.launch(plan) if plan else None
            done = [handle for handle in (step, None if role.engine.overlaps else ahead) if handle]
            for handle in done:
                role.scheduler.apply(handle.plan, handle.result(), now())
            role.carry_out(self._send)
            step = ahead if role.engine.overlaps else None
            resting = not (plan or done)
            self._report(role, resting, quiet=wait_s == IDLE_WAIT_S and not messages)
            soon = role.sending or not role.scheduler.idle
            wait_s = 0.0 if not resting else SOON_S if soon else IDLE_WAIT_S

    def _send(self, message: FromWorker) -> None:
        self._placements.sent(message)
        self._link.send(message)

    def _drain(self, wait_s: float) -> list[object]:
        """What has come, waiting up to `wait_s` for the first."""
        inbox = self._link.inbox
        messages: list[object] = []
        with suppress(queue.Empty):
            if wait_s:
                messages.append(inbox.get(timeout=wait_s))
            while True:
                messages.append(inbox.get_nowait())
        return messages

    def _on_message(self, role: RoleLoop, message: object) -> None:
        match message:
            case RouterLost(reason=reason):
                log.warning("router lost: %s; dropping its placements", reason)
                role.restart(now())
                role.carry_out(lambda message: None)
            case Drain():
                self._pulse.state = "draining"
                role.scheduler.on_drain()
            case Reserve() | Prefill():
                self._placements.received(message)
                with log_context.about(message.request_id):
                    role.on_message(message, now())
            case Cancel() | Heartbeat():
                role.on_message(message, now())
            case _:
                self._register(message)

    def _report(self, role: RoleLoop, resting: bool, quiet: bool) -> None:
        """Keeps heartbeats true, and proves the books once whenever nothing has happened for a while."""
        if not resting:
            self._checked = False
        elif quiet and not self._checked:
            role.scheduler.check()
            self._checked = True
        self._pulse.held = role.held()
        if resting:
            self._pulse.idle()
        if resting or now() >= self._stats_due:
            self._stats_due = now() + STATS_INTERVAL_S
            self._pulse.stats = role.stats()


def now() -> float:
    return time.monotonic()
