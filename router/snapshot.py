"""From what workers last said to what placement weighs."""

import re
from dataclasses import dataclass

from ..wire.messages import Fingerprint, WorkerStats
from ..wire.worker_link import name_in
from .ledger import Ledger
from .metrics import LinkGauges, WorkerGauges
from .placement import (
    DEFAULT_DECODE_STEP_S,
    DEFAULT_PREFILL_TOKENS_PER_S,
    DEFAULT_TRANSFER_BYTES_PER_S,
    DecodeView,
    PrefillView,
    Snapshot,
)
from .rates import Link
from .sequence import WorkerId
from .states import State
from .workers import Registry, Worker


def take_snapshot(registry: Registry, ledger: Ledger, *, local_prefill_max_tokens: int) -> Snapshot | None:
    """None before any worker has been ready."""
    if registry.expected is None:
        return None
    prefill, decode = registry.taking_work("prefill"), registry.taking_work("decode")
    assumed = Assumed.from_measured(prefill, decode)
    return Snapshot(
        prefill=tuple(view_prefill(w, ledger, assumed) for w in prefill),
        decode=tuple(view_decode(w, ledger, assumed) for w in decode),
        block_size=registry.expected.block_size,
        bytes_per_token=ledger.rates.bytes_per_token or kv_bytes_per_token(registry.expected),
        local_prefill_max_tokens=local_prefill_max_tokens,
    )


@dataclass(frozen=True, slots=True)
class Assumed:
    """What a worker that has not measured its own is taken for: the best of the others, so that it is tried."""

    tokens_per_s: float
    step_s: float
    transfer_bytes_per_s: float

    @classmethod
    def from_measured(cls, prefill: list[Worker], decode: list[Worker]) -> "Assumed":
        steps_s = [w.stats.decode_step_s for w in decode if w.stats and w.stats.decode_step_s > 0]
        return cls(
            max((measured_rate(w.stats) for w in [*prefill, *decode]), default=0.0) or DEFAULT_PREFILL_TOKENS_PER_S,
            min(steps_s, default=DEFAULT_DECODE_STEP_S),
            max((w.transfer_rate.value for w in prefill), default=0.0) or DEFAULT_TRANSFER_BYTES_PER_S,
        )


def view_prefill(worker: Worker, ledger: Ledger, assumed: Assumed) -> PrefillView:
    attempts = [a for a in ledger.attempts_of(worker.id) if a.prefill == worker.id]
    held = sum(a.num_tokens for a in attempts if a.prefill_waits)
    return PrefillView(
        worker=worker.id,
        available_tokens=worker.available - held,
        queued_tokens=held + sum(a.num_tokens for a in attempts if a.prefill_busy),
        tokens_per_s=measured_rate(worker.stats) or assumed.tokens_per_s,
        transfer_bytes_per_s=worker.transfer_rate.value or assumed.transfer_bytes_per_s,
        to_decode=ledger.rates.from_prefill(worker.id),
    )


def view_decode(worker: Worker, ledger: Ledger, assumed: Assumed) -> DecodeView:
    assert worker.ready is not None
    attempts = [a for a in ledger.attempts_of(worker.id) if a.decode == worker.id]
    running = [s for a in attempts for s in a.sequences.values()]
    computing = (State.RESERVED, State.PREFILLING)
    local = [a for a in attempts if a.prefill is None and any(s.state in computing for s in a.sequences.values())]
    return DecodeView(
        worker=worker.id,
        available_blocks=worker.available,
        num_sequences=len(running),
        max_num_seqs=worker.ready.capacity.max_num_seqs,
        queued_tokens=sum(a.num_tokens for a in local),
        tokens_per_s=measured_rate(worker.stats) or assumed.tokens_per_s,
        step_s=(worker.stats.decode_step_s if worker.stats else 0.0) or assumed.step_s,
        accepts_kv=bool(worker.ready.data_endpoints),
        idle=not attempts and worker.credit.seen == worker.sent and worker.available > 0,
    )


def measured_rate(stats: WorkerStats | None) -> float:
    return stats.prefill_tokens_per_s if stats else 0.0


def kv_bytes_per_token(fingerprint: Fingerprint) -> int:
    """Keys and values of every layer."""
    return sum(
        2 * len(group.layer_ids) * group.num_kv_heads * group.head_dim * dtype_bytes(group.dtype)
        for group in fingerprint.layout
    )


def dtype_bytes(dtype: str) -> int:
    """From the number in its name: 4 of float32, 2 of bf16, 1 of fp8_e4m3. 1 where there is none."""
    bits = re.search(r"\d+", dtype)
    return max(1, int(bits.group()) // 8) if bits else 1


def worker_gauges(worker: Worker) -> WorkerGauges:
    stats = worker.stats or WorkerStats(0, 0, 0, 0, 0.0, 0.0)
    num_blocks = worker.ready.capacity.num_blocks if worker.ready else 0
    return WorkerGauges(
        worker=worker.name,
        role=worker.hello.role,
        num_running=stats.num_running,
        num_waiting=stats.num_waiting,
        block_size=worker.ready.fingerprint.block_size if worker.ready else 0,
        num_blocks=num_blocks,
        kv_cache_usage=stats.num_blocks_used / num_blocks if num_blocks else 0.0,
        prefix_cache_queries=stats.prefix_query_tokens,
        prefix_cache_hits=stats.prefix_hit_tokens,
        num_transferred_bytes=stats.transfer_bytes,
        transfer_s=stats.transfer_s,
        num_expired_leases=stats.num_expired_leases,
        num_drafts=stats.num_drafts,
        num_draft_tokens=stats.num_draft_tokens,
        num_accepted_tokens=stats.num_accepted_tokens,
        num_accepted_per_position=stats.num_accepted_per_position,
    )


def link_gauges(pair: tuple[WorkerId, WorkerId], link: Link) -> LinkGauges:
    prefill, decode = map(name_in, pair)
    return LinkGauges(prefill, decode, link.num_transfers, link.num_bytes, link.value)
