"""Log-probabilities of drawn tokens and of the likeliest ones.

    logits fp32 [B, V], tokens int32 or int64 [B], n -> of the tokens: log softmax fp32 [B], rank int32 [B];
    of the n largest logits: ids int32 [B, n], log softmax fp32 [B, n]

log softmax(l)_t = (l_t − m) − log Σ e^(l − m), m the largest; exponentials fp32, the sum over tiles and the logarithm
fp64. Equal logits are in the order of their ids: rank is 1 + the number of tokens before it in that order. A row comes
out the same in any batch.

Two launches: each tile's statistics and its largest logits, then a row's. A tile's largest are found as int64 keys, the
logit's order-preserving integer above the inverted id, by Triton's bitonic top-k.

Asserted: contiguous logits without NaN; tokens in the vocabulary, or −1 (log softmax −inf).
"""

# mypy: allow-incomplete-defs

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import launches
from .sampling_search import key_value, order_key

MAX_TOP = 32
SCAN = {"TILE": 2048, "num_warps": 4}
MIN_NUM_TILES = 64
"""One size for most vocabularies, so that few variants are compiled."""
_LOWEST: tl.constexpr = tl.constexpr(-(2**63))


@dataclass(frozen=True, slots=True)
class TopLogprobs:
    """What `top_logprobs` gives, for `B` rows."""

    logprobs: Tensor
    """fp32 [B], of the tokens."""
    ranks: Tensor
    """int32 [B], of the tokens, from 1."""
    top_ids: Tensor
    """int32 [B, n], most likely first."""
    top_logprobs: Tensor
    """fp32 [B, n]."""

    @classmethod
    def empty(cls, num_rows: int, num_top: int, device: torch.device | str) -> "TopLogprobs":
        return cls(
            torch.empty(num_rows, dtype=torch.float32, device=device),
            torch.empty(num_rows, dtype=torch.int32, device=device),
            torch.empty(num_rows, num_top, dtype=torch.int32, device=device),
            torch.empty(num_rows, num_top, dtype=torch.float32, device=device),
        )


class LogprobWorkspace:
    """What the two kernels hand over, for up to `max_rows` rows and `max_top` of the likeliest tokens."""

    def __init__(
        self, max_rows: int, vocab_size: int, max_top: int, device: torch.device | str, *, tile: int = SCAN["TILE"]
    ) -> None:
        self.tile, self.vocab_size, self.max_top = tile, vocab_size, max_top
        num_tiles = triton.cdiv(vocab_size, tile)
        self.maxima = torch.empty(max_rows, num_tiles, dtype=torch.float32, device=device)
        self.sums = torch.empty_like(self.maxima)
        self.num_before = torch.empty_like(self.maxima, dtype=torch.int32)
        self.keys = torch.empty(max_rows, num_tiles, _width(max_top), dtype=torch.int64, device=device)

    def fits(self, num_rows: int, vocab_size: int, num_top: int) -> bool:
        return num_rows <= len(self.maxima) and vocab_size == self.vocab_size and num_top <= self.max_top


def top_logprobs(
    logits: Tensor,
    tokens: Tensor,
    num_top: int,
    *,
    workspace: LogprobWorkspace | None = None,
    out: TopLogprobs | None = None,
) -> TopLogprobs:
    """Nothing is allocated where `workspace` and `out` are given.

    Raises ValueError for wrong shapes, dtypes or layouts, and where not 0 ≤ num_top ≤ min(32, V)."""
    _check(logits, tokens, num_top)
    num_rows, vocab_size = logits.shape
    if out is None:
        out = TopLogprobs.empty(num_rows, num_top, logits.device)
    if not launches(logits):
        return ref_top_logprobs(logits, tokens, num_top, out=out)
    if workspace is None:
        workspace = LogprobWorkspace(num_rows, vocab_size, num_top, logits.device)
    if not workspace.fits(num_rows, vocab_size, num_top):
        raise ValueError(f"the workspace is too small for {num_top} of {tuple(logits.shape)}")
    return launch_top_logprobs(logits, tokens, num_top, workspace=workspace, out=out, scan=SCAN)


def launch_top_logprobs(
    logits: Tensor,
    tokens: Tensor,
    num_top: int,
    *,
    workspace: LogprobWorkspace,
    out: TopLogprobs,
    scan: dict[str, int],
) -> TopLogprobs:
    """The kernels of `top_logprobs` in a given configuration; the workspace must be made for its tile."""
    assert workspace.tile == scan["TILE"]
    num_rows, vocab_size = logits.shape
    num_tiles, width, w = workspace.maxima.shape[1], _width(num_top), workspace
    if num_rows == 0:
        return out
    shared = (logits, tokens, w.maxima, w.sums, w.num_before, w.keys)
    _scan[(num_tiles, num_rows)](*shared, vocab_size, num_tiles, TOP=width, **scan)
    _merge[(num_rows,)](
        *shared, out.logprobs, out.ranks, out.top_ids, out.top_logprobs, vocab_size, num_tiles, num_top,
        TOP=width, NUM_TILES=max(triton.next_power_of_2(num_tiles), MIN_NUM_TILES), num_warps=4,
    )  # fmt: skip
    return out


def _width(num_top: int) -> int:
    """Keys kept of a tile: a power of two, and two at least, as tl.topk finds no single one."""
    return triton.next_power_of_2(max(num_top, 2))


def ref_top_logprobs(logits: Tensor, tokens: Tensor, num_top: int, *, out: TopLogprobs | None = None) -> TopLogprobs:
    """`top_logprobs` in plain torch, in fp64 and by sorting."""
    if out is None:
        out = TopLogprobs.empty(len(logits), num_top, logits.device)
    logprobs = logits.double().log_softmax(-1)
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    drawn = tokens.long()[:, None]
    known = drawn[:, 0] >= 0
    out.logprobs.copy_(logprobs.gather(1, drawn.clamp(min=0))[:, 0].where(known, -torch.inf))
    out.ranks.copy_((order == drawn).int().argmax(-1).where(known, logits.shape[1]) + 1)
    out.top_ids.copy_(order[:, :num_top])
    out.top_logprobs.copy_(logprobs.gather(1, order[:, :num_top]))
    return out


@triton.jit(do_not_specialize=["num_tiles"])
def _scan(
    logits, tokens, maxima, sums, num_before, keys, V, num_tiles, TOP: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    tile, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    ids = tile * TILE + tl.arange(0, TILE)
    values = tl.load(logits + row * V + ids, mask=ids < V, other=float("-inf"))
    token = tl.load(tokens + row).to(tl.int32)
    logit = tl.load(logits + row * V + token, mask=token >= 0, other=float("-inf"))
    place = row * num_tiles + tile
    most = tl.max(values, 0)
    tl.store(maxima + place, most)
    tl.store(sums + place, tl.sum(tl.exp(values - tl.where(most > float("-inf"), most, 0.0)), 0))
    is_before = (values > logit) | ((values == logit) & ((ids < token) | (token < 0)) & (ids < V))
    tl.store(num_before + place, tl.sum(is_before.to(tl.int32), 0))
    key = (order_key(values).to(tl.int64) << 32) | ((~ids).to(tl.int64) & 0xFFFF_FFFF)
    largest = tl.topk(tl.where(ids < V, key, _LOWEST), TOP)
    tl.store(keys + place * TOP + tl.arange(0, TOP), largest)


@triton.jit(do_not_specialize=["num_tiles", "num_top"])
def _merge(
    logits, tokens, maxima, sums, num_before, keys, logprobs, ranks, top_ids, top_logprobs, V, num_tiles, num_top,
    TOP: tl.constexpr, NUM_TILES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    tile = tl.arange(0, NUM_TILES)
    place, inside = row * num_tiles + tile, tile < num_tiles
    most = tl.load(maxima + place, mask=inside, other=float("-inf"))
    best = tl.max(most, 0)
    share = tl.load(sums + place, mask=inside, other=0.0) * tl.exp(most - best)
    log_total = tl.log(tl.sum(share.to(tl.float64), 0))
    token = tl.load(tokens + row)
    logit = tl.load(logits + row * V + token, mask=token >= 0, other=float("-inf"))
    tl.store(logprobs + row, ((logit - best).to(tl.float64) - log_total).to(tl.float32))
    tl.store(ranks + row, 1 + tl.sum(tl.load(num_before + place, mask=inside, other=0), 0))
    entry = tl.arange(0, NUM_TILES * TOP)
    key = tl.load(keys + row * num_tiles * TOP + entry, mask=entry < num_tiles * TOP, other=_LOWEST)
    largest = tl.topk(key, TOP)
    rank = tl.arange(0, TOP)
    value = key_value((largest >> 32).to(tl.int32))
    tl.store(top_ids + row * num_top + rank, (~largest).to(tl.int32), mask=rank < num_top)
    logprob = ((value - best).to(tl.float64) - log_total).to(tl.float32)
    tl.store(top_logprobs + row * num_top + rank, logprob, mask=rank < num_top)


def _check(logits: Tensor, tokens: Tensor, num_top: int) -> None:
    if logits.dim() != 2 or logits.dtype != torch.float32 or not logits.is_contiguous():
        raise ValueError(f"logits must be contiguous fp32 [B, V], not {logits.dtype} {tuple(logits.shape)}")
    if tokens.shape != logits.shape[:1] or tokens.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"tokens must be int32 or int64 [{len(logits)}], not {tokens.dtype} {tuple(tokens.shape)}")
    if not 0 <= num_top <= min(MAX_TOP, logits.shape[1]):
        raise ValueError(f"num_top is {num_top}, not 0 … {min(MAX_TOP, logits.shape[1])}")
