"""What runs at this moment, for pages that show it: the router, its workers, and the links between them."""

from collections import Counter

from msgspec import Struct

from ..wire.messages import Capacity, WorkerStats
from .ledger import Ledger
from .rates import Link
from .sequence import WorkerId
from .states import State
from .workers import Registry, Worker


class RouterView(Struct, frozen=True):
    model: str
    """The first of the names it is served under."""
    uptime_s: float
    """Since it started, seconds."""
    num_waiting: int
    """Sequences in the queue."""
    num_running: int
    """Sequences at workers."""
    num_ended: int = 0
    """Jobs since the start, whatever became of them."""
    num_prompt_tokens: int = 0
    """Of prompts that have been computed since the start, those found in a cache included."""
    num_generation_tokens: int = 0
    """Tokens that workers have sent since the start."""
    num_workers_lost: int = 0
    """Workers that died, fell silent or stood still, since the start."""


class WorkerView(Struct, frozen=True):
    """Figures are those of its last heartbeat: 0 before it."""

    name: str
    """Unique among living workers."""
    role: str
    """prefill: it computes prompts; decode: it generates, and may compute prompts too."""
    state: str
    """loading, ready or draining."""
    heard_s: float
    """Since its last message, seconds."""
    step_age_s: float
    """Since its last step, seconds; 0 while it has nothing to do."""
    num_running: int = 0
    """Sequences that it generates; of a prefill worker, prompts that have their blocks."""
    num_waiting: int = 0
    """Sequences whose prompt is not there yet; of a prefill worker, prompts that wait for blocks."""
    num_waiting_tokens: int = 0
    """Tokens of prompts that it has accepted and not yet computed."""
    num_blocks: int = 0
    """Blocks of KV that it has room for; 0 while it loads."""
    num_blocks_used: int = 0
    """Those of them that are in use; a cached prefix that nobody uses is not."""
    max_num_seqs: int = 0
    """Sequences that it takes at once; 0 while it loads."""
    prefill_tokens_per_s: float = 0.0
    """Tokens of prompts that it computes a second, over recent steps; 0 before the first."""
    decode_step_s: float = 0.0
    """Of a step that generates, over recent ones, seconds; 0 before the first."""
    num_prefix_query_tokens: int = 0
    """Tokens of prompts that it looked up in its prefix cache, since it started."""
    num_prefix_hit_tokens: int = 0
    """Those of them that were there."""
    num_transferred_bytes: int = 0
    """Of KV that it has sent (prefill) or received (decode), since it started."""
    transfer_bytes_per_s: float = 0.0
    """Of late; 0 where none was measured."""
    num_draft_tokens: int = 0
    """Tokens that it guessed ahead, since it started."""
    num_accepted_tokens: int = 0
    """Those of them that were right."""


class LinkView(Struct, frozen=True):
    prefill: str
    """Name of the worker that sends."""
    decode: str
    """Name of the worker that receives."""
    num_moving: int
    """Prompts whose KV is being computed or moved."""
    num_transfers: int
    """Prompts whose KV has moved over it."""
    num_bytes: int
    """Of their KV."""
    bytes_per_s: float
    """Bytes of late transfers by the time that no computation hid; 0 where none was measured."""


class Topology(Struct, frozen=True):
    """What runs at this moment."""

    router: RouterView
    """The process that answers, with its queue."""
    workers: tuple[WorkerView, ...] = ()
    """All that have said hello and live; those for prefill come first."""
    links: tuple[LinkView, ...] = ()
    """Pairs of living workers between which KV has moved, or is about to."""


def take_topology(registry: Registry, ledger: Ledger, *, model: str, uptime_s: float, now: float) -> Topology:
    """Of the router's own books and its workers' last heartbeats."""
    workers = sorted(registry, key=lambda worker: (worker.hello.role != "prefill", worker.name))
    return Topology(
        router=view_router(ledger, model, uptime_s),
        workers=tuple(view_worker(worker, now) for worker in workers),
        links=view_links(workers, ledger),
    )


def view_router(ledger: Ledger, model: str, uptime_s: float) -> RouterView:
    return RouterView(
        model=model,
        uptime_s=uptime_s,
        num_waiting=len(ledger.waiting),
        num_running=ledger.num_running,
        num_ended=ledger.history.num_ended,
        num_prompt_tokens=ledger.metrics.num_prompt_tokens,
        num_generation_tokens=ledger.metrics.num_generation_tokens,
        num_workers_lost=ledger.metrics.num_workers_lost,
    )


def view_worker(worker: Worker, now: float) -> WorkerView:
    stats = worker.stats or WorkerStats(0, 0, 0, 0, 0.0, 0.0)
    capacity = worker.ready.capacity if worker.ready else Capacity(0, 0, 0, 0)
    return WorkerView(
        name=worker.name,
        role=worker.hello.role,
        state=worker.state,
        heard_s=now - worker.heard_at,
        step_age_s=worker.step_age_s,
        num_running=stats.num_running,
        num_waiting=stats.num_waiting,
        num_waiting_tokens=stats.num_waiting_tokens,
        num_blocks=capacity.num_blocks,
        num_blocks_used=stats.num_blocks_used,
        max_num_seqs=capacity.max_num_seqs,
        prefill_tokens_per_s=stats.prefill_tokens_per_s,
        decode_step_s=stats.decode_step_s,
        num_prefix_query_tokens=stats.prefix_query_tokens,
        num_prefix_hit_tokens=stats.prefix_hit_tokens,
        num_transferred_bytes=stats.transfer_bytes,
        transfer_bytes_per_s=worker.transfer_rate.value,
        num_draft_tokens=stats.num_draft_tokens,
        num_accepted_tokens=stats.num_accepted_tokens,
    )


def view_links(workers: list[Worker], ledger: Ledger) -> tuple[LinkView, ...]:
    """Those that have been used, or are about to be."""
    names = {worker.id: worker.name for worker in workers}
    moving = Counter(pair for worker in names for pair in pairs_moving(worker, ledger))
    known = ledger.rates.links
    pairs = sorted(pair for pair in moving.keys() | known.keys() if names.keys() >= {*pair})
    return tuple(view_link(names[p], names[d], moving[p, d], known.get((p, d)) or Link()) for p, d in pairs)


def pairs_moving(prefill: WorkerId, ledger: Ledger) -> list[tuple[WorkerId, WorkerId]]:
    """The worker and the decode worker of each of its placements whose KV is not all there."""
    attempts = [a for a in ledger.attempts_of(prefill) if a.prefill == prefill and a.decode is not None]
    states = (State.PREFILLING, State.RECEIVING)
    return [(prefill, a.decode) for a in attempts if a.decode and any(s.state in states for s in a.sequences.values())]


def view_link(prefill: str, decode: str, num_moving: int, link: Link) -> LinkView:
    return LinkView(prefill, decode, num_moving, link.num_transfers, link.num_bytes, link.value)
