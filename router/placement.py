"""Where a prompt goes: a pure function over cost in seconds.

The cost of a candidate is the delay that placing the request there brings to all requests together, as far as it
differs between candidates:

    remote   (P's queued tokens + n) / P's rate  +  KV bytes / bandwidth
    local    (D's queued tokens + n) / D's rate  +  n / D's rate for every sequence that already runs on D
    both     D's step time x (1 + D's sequences / its most) x EXPECTED_OUTPUT_TOKENS
             + n / D's rate if it leaves D less than a block a sequence to grow into: one will be computed twice

where n counts the tokens whose KV is needed. Rates are the workers' own measurements.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .sequence import WorkerId

DEFAULT_PREFILL_TOKENS_PER_S = 1000.0
DEFAULT_DECODE_STEP_S = 0.03
DEFAULT_TRANSFER_BYTES_PER_S = 1e9
"""Until the workers have measured their own."""
EXPECTED_OUTPUT_TOKENS = 64


@dataclass(frozen=True, slots=True)
class PrefillView:
    """A prefill worker, as placement sees it."""

    worker: WorkerId
    available_tokens: int
    """Credit left; anything above 0 admits one more prompt, however long."""
    queued_tokens: int
    """Placed there and not yet computed."""
    tokens_per_s: float = DEFAULT_PREFILL_TOKENS_PER_S
    transfer_bytes_per_s: float = DEFAULT_TRANSFER_BYTES_PER_S


@dataclass(frozen=True, slots=True)
class DecodeView:
    """A decode worker, as placement sees it."""

    worker: WorkerId
    available_blocks: int
    num_sequences: int
    max_num_seqs: int
    queued_tokens: int = 0
    """Of prompts it computes itself, not yet begun."""
    tokens_per_s: float = DEFAULT_PREFILL_TOKENS_PER_S
    step_s: float = DEFAULT_DECODE_STEP_S
    accepts_kv: bool = True
    """Prefill workers can send to it."""
    idle: bool = False
    """It holds nothing of this router: what does not fit now never will, and the worker shall say so."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    prefill: tuple[PrefillView, ...]
    """All that take work, with credit or without."""
    decode: tuple[DecodeView, ...]
    block_size: int
    bytes_per_token: int
    """Of KV, all layers."""
    local_prefill_max_tokens: int


@dataclass(frozen=True, slots=True)
class Request:
    num_tokens: int
    """Prompt and earlier output."""
    num_choices: int = 1


@dataclass(frozen=True, slots=True)
class Placement:
    decode: WorkerId
    prefill: WorkerId | None
    """None: decode computes the prompt."""
    cost_blocks: int
    cost_tokens: int
    """Charged against the prefill worker's credit."""
    cost_s: float


def blocks_needed(request: Request, block_size: int) -> int:
    """Blocks of the prompt, earlier output and one more token, and one for each further choice's own tail."""
    return -(-(request.num_tokens + 1) // block_size) + request.num_choices - 1


def place(snapshot: Snapshot, request: Request) -> Placement | None:
    """The cheapest candidate that has room now, ties by worker id; None if none has."""
    return min(candidates(snapshot, request), key=_rank, default=None)


def candidates(snapshot: Snapshot, request: Request) -> Iterator[Placement]:
    blocks = blocks_needed(request, snapshot.block_size)
    short = request.num_tokens <= snapshot.local_prefill_max_tokens
    for d in snapshot.decode:
        if not _fits(d, request, blocks):
            continue
        base_s = decode_cost_s(d, request, blocks)
        if short or not snapshot.prefill or not d.accepts_kv:
            yield Placement(d.worker, None, blocks, 0, base_s + local_cost_s(d, request))
        if d.accepts_kv:
            for p in snapshot.prefill:
                if p.available_tokens > 0:
                    cost_s = base_s + remote_cost_s(p, request, snapshot.bytes_per_token)
                    yield Placement(d.worker, p.worker, blocks, request.num_tokens, cost_s)


def remote_cost_s(p: PrefillView, request: Request, bytes_per_token: int) -> float:
    compute_s = (p.queued_tokens + request.num_tokens) / p.tokens_per_s
    return compute_s + request.num_tokens * bytes_per_token / p.transfer_bytes_per_s


def local_cost_s(d: DecodeView, request: Request) -> float:
    """Every sequence that runs on D waits while it computes the prompt."""
    own_s = request.num_tokens / d.tokens_per_s
    return d.queued_tokens / d.tokens_per_s + own_s * (1 + d.num_sequences)


def decode_cost_s(d: DecodeView, request: Request, blocks: int) -> float:
    load_s = EXPECTED_OUTPUT_TOKENS * d.step_s * (1 + d.num_sequences / d.max_num_seqs)
    crowded = d.available_blocks - blocks < d.num_sequences + request.num_choices
    return load_s + crowded * request.num_tokens / d.tokens_per_s


def charged(snapshot: Snapshot, request: Request, placement: Placement) -> Snapshot:
    """The snapshot with the placement made."""
    local = placement.prefill is None
    decode = tuple(
        replace(
            d,
            available_blocks=d.available_blocks - placement.cost_blocks,
            num_sequences=d.num_sequences + request.num_choices,
            queued_tokens=d.queued_tokens + request.num_tokens * local,
            idle=False,
        )
        if d.worker == placement.decode
        else d
        for d in snapshot.decode
    )
    prefill = tuple(
        replace(
            p,
            available_tokens=p.available_tokens - placement.cost_tokens,
            queued_tokens=p.queued_tokens + request.num_tokens,
        )
        if p.worker == placement.prefill
        else p
        for p in snapshot.prefill
    )
    return replace(snapshot, decode=decode, prefill=prefill)


def _fits(d: DecodeView, request: Request, blocks: int) -> bool:
    if d.idle:
        return True
    return blocks <= d.available_blocks and d.num_sequences + request.num_choices <= d.max_num_seqs


def _rank(placement: Placement) -> tuple[float, WorkerId, WorkerId]:
    return (placement.cost_s, placement.decode, placement.prefill or b"")
