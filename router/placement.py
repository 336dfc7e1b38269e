"""Where a prompt goes: a pure function over cost in seconds.

The cost of a candidate is the delay that placing the request there brings to all requests together, as far as it
differs between candidates:

    remote   (P's queued tokens + n) / P's rate  +  KV bytes / bandwidth from P to D  +  HANDOVER_S
    local    D's queued tokens / D's rate  +  n / the best rate  +  n / D's rate for every sequence that runs on D
    both     D's step time x (1 + D's sequences / its most) x EXPECTED_OUTPUT_TOKENS
             + n / D's rate if it leaves D less than a block a sequence to grow into: one will be computed twice

where n counts the tokens whose KV is needed. Rates, step times and bandwidths are measured (`snapshot`). D is not taken
to be slower than P at a prompt that it may compute: such a prompt is short, its step is spent reading weights, and a
rate measured over short prompts is low for that reason alone. So nothing that an idle D may compute is sent over the
wire to it.

A job that wants no token costs P's time alone and needs no D; where no P lives, a D computes it like any local prompt.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from .sequence import WorkerId

DEFAULT_PREFILL_TOKENS_PER_S = 1000.0
DEFAULT_DECODE_STEP_S = 0.03
DEFAULT_TRANSFER_BYTES_PER_S = 1e9
"""Until the workers have measured their own."""
EXPECTED_OUTPUT_TOKENS = 64
HANDOVER_S = 0.005
"""What a prompt that is computed elsewhere costs besides: three more messages, and a draw after it has arrived."""


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
    to_decode: Mapping[WorkerId, float] = field(default_factory=dict)
    """Bytes/s to the decode workers where that is known."""

    def bytes_per_s(self, decode: WorkerId) -> float:
        return self.to_decode.get(decode, self.transfer_bytes_per_s)


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
    bytes_per_token: float
    """Of KV, all layers."""
    local_prefill_max_tokens: int


@dataclass(frozen=True, slots=True)
class Request:
    num_tokens: int
    """Prompt and earlier output."""
    num_choices: int = 1
    prompt_only: bool = False
    """No token is wanted."""

    def skips_decode(self, snapshot: Snapshot) -> bool:
        """It goes to a prefill worker alone."""
        return self.prompt_only and bool(snapshot.prefill)


@dataclass(frozen=True, slots=True)
class Placement:
    decode: WorkerId | None
    """None: no token is wanted, and a prefill worker computes the prompt."""
    prefill: WorkerId | None
    """None: decode computes the prompt."""
    cost_blocks: int
    cost_tokens: int
    """Charged against the prefill worker's credit."""
    cost_s: float


def blocks_needed(request: Request, block_size: int) -> int:
    """Blocks of the prompt, earlier output and one more token if one is wanted, and one for each further choice's own
    tail."""
    num_tokens = request.num_tokens + (not request.prompt_only)
    return -(-num_tokens // block_size) + request.num_choices - 1


def place(snapshot: Snapshot, request: Request) -> Placement | None:
    """The cheapest candidate that has room now, ties by worker id; None if none has."""
    return min(candidates(snapshot, request), key=_rank, default=None)


def candidates(snapshot: Snapshot, request: Request) -> Iterator[Placement]:
    """What has room now."""
    return prefill_alone(snapshot, request) if request.skips_decode(snapshot) else with_decode(snapshot, request)


def prefill_alone(snapshot: Snapshot, request: Request) -> Iterator[Placement]:
    for p in snapshot.prefill:
        if p.available_tokens > 0:
            yield Placement(None, p.worker, 0, request.num_tokens, compute_cost_s(p, request))


def with_decode(snapshot: Snapshot, request: Request) -> Iterator[Placement]:
    blocks = blocks_needed(request, snapshot.block_size)
    short = request.num_tokens <= snapshot.local_prefill_max_tokens
    best_rate = max((p.tokens_per_s for p in snapshot.prefill), default=0.0)
    for d in snapshot.decode:
        if not _fits(d, request, blocks):
            continue
        base_s = decode_cost_s(d, request, blocks)
        if short or not snapshot.prefill or not d.accepts_kv:
            yield Placement(d.worker, None, blocks, 0, base_s + local_cost_s(d, request, best_rate))
        if d.accepts_kv:
            for p in snapshot.prefill:
                if p.available_tokens > 0:
                    cost_s = base_s + remote_cost_s(p, d.worker, request, snapshot.bytes_per_token)
                    yield Placement(d.worker, p.worker, blocks, request.num_tokens, cost_s)


def remote_cost_s(p: PrefillView, decode: WorkerId, request: Request, bytes_per_token: float) -> float:
    transfer_s = request.num_tokens * bytes_per_token / p.bytes_per_s(decode)
    return compute_cost_s(p, request) + transfer_s + HANDOVER_S


def compute_cost_s(p: PrefillView, request: Request) -> float:
    return (p.queued_tokens + request.num_tokens) / p.tokens_per_s


def local_cost_s(d: DecodeView, request: Request, best_rate: float) -> float:
    """Every sequence that runs on D waits while it computes the prompt."""
    own_s = request.num_tokens / max(d.tokens_per_s, best_rate)
    others_s = d.num_sequences * request.num_tokens / d.tokens_per_s
    return d.queued_tokens / d.tokens_per_s + own_s + others_s


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
    return (placement.cost_s, placement.decode or b"", placement.prefill or b"")
