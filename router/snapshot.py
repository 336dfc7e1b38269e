"""From what workers last said to what placement weighs."""

import re

from ..wire.messages import Fingerprint, WorkerStats
from .ledger import Ledger
from .metrics import WorkerGauges
from .placement import (
    DEFAULT_DECODE_STEP_S,
    DEFAULT_PREFILL_TOKENS_PER_S,
    DEFAULT_TRANSFER_BYTES_PER_S,
    DecodeView,
    PrefillView,
    Snapshot,
)
from .states import State
from .workers import Registry, Worker


def take_snapshot(registry: Registry, ledger: Ledger, *, local_prefill_max_tokens: int) -> Snapshot | None:
    """None before any worker has been ready."""
    if registry.expected is None:
        return None
    prefill, decode = registry.taking_work("prefill"), registry.taking_work("decode")
    default_rate = fallback_rate([*prefill, *decode])
    return Snapshot(
        prefill=tuple(view_prefill(w, ledger, default_rate) for w in prefill),
        decode=tuple(view_decode(w, ledger, default_rate) for w in decode),
        block_size=registry.expected.block_size,
        bytes_per_token=kv_bytes_per_token(registry.expected),
        local_prefill_max_tokens=local_prefill_max_tokens,
    )


def view_prefill(worker: Worker, ledger: Ledger, default_rate: float) -> PrefillView:
    attempts = [a for a in ledger.attempts_of(worker.id) if a.prefill == worker.id]
    held = sum(a.num_tokens for a in attempts if a.prefill_waits)
    return PrefillView(
        worker=worker.id,
        available_tokens=worker.available - held,
        queued_tokens=held + sum(a.num_tokens for a in attempts if a.prefill_busy),
        tokens_per_s=measured_rate(worker.stats) or default_rate,
        transfer_bytes_per_s=measured_bandwidth(worker.stats) or DEFAULT_TRANSFER_BYTES_PER_S,
    )


def view_decode(worker: Worker, ledger: Ledger, default_rate: float) -> DecodeView:
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
        tokens_per_s=measured_rate(worker.stats) or default_rate,
        step_s=(worker.stats.decode_step_s if worker.stats else 0.0) or DEFAULT_DECODE_STEP_S,
        accepts_kv=bool(worker.ready.data_endpoints),
        idle=not attempts and worker.credit.seen == worker.sent and worker.available > 0,
    )


def measured_rate(stats: WorkerStats | None) -> float:
    return stats.prefill_tokens_per_s if stats else 0.0


def measured_bandwidth(stats: WorkerStats | None) -> float:
    return stats.transfer_bytes / stats.transfer_s if stats and stats.transfer_s > 0 else 0.0


def fallback_rate(workers: list[Worker]) -> float:
    """Of a worker that has not computed a prompt yet: the best that another one has measured."""
    return max((measured_rate(w.stats) for w in workers), default=0.0) or DEFAULT_PREFILL_TOKENS_PER_S


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
        kv_cache_usage=stats.num_blocks_used / num_blocks if num_blocks else 0.0,
        prefix_cache_queries=stats.prefix_query_tokens,
        prefix_cache_hits=stats.prefix_hit_tokens,
        num_transferred_bytes=stats.transfer_bytes,
    )
