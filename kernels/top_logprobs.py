"""Log-probabilities of drawn tokens and of the likeliest ones.

    logits fp32 [B, V], tokens int32 or int64 [B], n -> of the tokens: log softmax fp32 [B], rank int32 [B];
    of the n largest logits: ids int32 [B, n], log softmax fp32 [B, n]

log softmax(l)_t = (l_t − m) − log Σ e^(l − m), m the largest; exponentials fp32, the sum over groups and the logarithm
fp64. Equal logits are in the order of their ids: rank is 1 + the number of tokens before it in that order. A row comes
out the same in any batch.

Two launches. `_scan`, a program for each tile of a row, keeps the largest logit and the sum of each group of ids, and
counts what is before the token. `_merge`, a program for each row, lists the tokens at or above a bound that the
groups' largest logits give (sampling_search.py), little more than n of them, and counts for each of these how many are
before it.

Asserted: contiguous logits without NaN; tokens in the vocabulary, or −1 (log softmax −inf).
"""

# mypy: allow-incomplete-defs

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import launches
from .sampling_row import entry_id, key_value, order_key
from .sampling_search import bound, list_live, list_tokens, load_entries, threshold_of_many

MAX_TOP = 32
GROUP = 32
SCAN = {"TILE": 2048, "num_warps": 4}
MERGE = {"TILE": 2048, "CAPACITY": 128, "num_warps": 4}
"""TILE logits are read at once, and CAPACITY compared with each other."""
MIN_NUM_TILES, MIN_NUM_GROUPS = 64, 4096
"""One size for most vocabularies, so that few variants are compiled."""
_ROW_ALIGNMENT = 64
"""Of the groups' numbers, so that they are read in wide loads."""


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
        stride = triton.cdiv(vocab_size, GROUP * _ROW_ALIGNMENT) * _ROW_ALIGNMENT
        self.maxima = torch.empty(max_rows, stride, dtype=torch.float32, device=device)
        self.sums = torch.empty_like(self.maxima)
        self.live = torch.empty_like(self.maxima, dtype=torch.int32)
        self.num_before = torch.empty(max_rows, triton.cdiv(vocab_size, tile), dtype=torch.int32, device=device)
        self.found = torch.empty(max_rows, MERGE["CAPACITY"] + max_top, dtype=torch.int64, device=device)

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
    w = workspace
    num_tiles, stride = w.num_before.shape[1], w.maxima.shape[1]
    padded_groups = max(triton.next_power_of_2(stride), MIN_NUM_GROUPS)
    if num_rows == 0:
        return out
    shared = (logits, tokens, w.maxima, w.sums, w.num_before)
    _scan[(num_tiles, num_rows)](*shared, vocab_size, stride, num_tiles, GROUP=GROUP, **scan)
    _merge[(num_rows,)](
        *shared, w.live, w.found, out.logprobs, out.ranks, out.top_ids, out.top_logprobs,
        vocab_size, stride, num_tiles, w.found.shape[1], num_top, GROUP=GROUP,
        NUM_GROUPS=padded_groups, NUM_TILES=max(triton.next_power_of_2(num_tiles), MIN_NUM_TILES),
        **(MERGE | {"num_warps": max(MERGE["num_warps"], padded_groups // 1024)}),
    )  # fmt: skip
    return out


def ref_top_logprobs(logits: Tensor, tokens: Tensor, num_top: int, *, out: TopLogprobs | None = None) -> TopLogprobs:
    """`top_logprobs` in plain torch, in fp64."""
    if out is None:
        out = TopLogprobs.empty(len(logits), num_top, logits.device)
    logprobs = logits.double().log_softmax(-1)
    drawn = tokens.long()[:, None]
    known = drawn[:, 0] >= 0
    out.logprobs.copy_(logprobs.gather(1, drawn.clamp(min=0))[:, 0].where(known, -torch.inf))
    own = logits.gather(1, drawn.clamp(min=0))
    ids = torch.arange(logits.shape[1], device=logits.device)
    num_before = ((logits > own) | ((logits == own) & (ids < drawn))).sum(-1)
    out.ranks.copy_(num_before.where(known, logits.shape[1]) + 1)
    if num_top and len(logits):
        order = torch.stack([_largest(row, num_top) for row in logits])
        out.top_ids.copy_(order)
        out.top_logprobs.copy_(logprobs.gather(1, order))
    return out


def _largest(row: Tensor, count: int) -> Tensor:
    """Ids of the largest values of [V], the lowest first where equal: [count]. Sorts no more than it must."""
    last = row.topk(count).values[-1]
    above = (row > last).nonzero().flatten()
    ids = torch.cat((above, (row == last).nonzero().flatten()[: count - len(above)]))
    return ids[row[ids].sort(descending=True, stable=True).indices]


@triton.jit(do_not_specialize=["num_tiles"])
def _scan(
    logits, tokens, maxima, sums, num_before, V, stride, num_tiles, GROUP: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    tile, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    ids = tile * TILE + tl.arange(0, TILE)
    values = tl.load(logits + row * V + ids, mask=ids < V, other=float("-inf"))
    token = tl.load(tokens + row).to(tl.int32)
    logit = tl.load(logits + row * V + token, mask=token >= 0, other=float("-inf"))
    of_groups = tl.reshape(values, (TILE // GROUP, GROUP))
    most = tl.max(of_groups, 1)
    base = tl.where(most > float("-inf"), most, 0.0)
    group = tile * (TILE // GROUP) + tl.arange(0, TILE // GROUP)
    place, stored = row * stride + group, group * GROUP < V
    tl.store(maxima + place, most, mask=stored)
    tl.store(sums + place, tl.sum(tl.exp(of_groups - base[:, None]), 1), mask=stored)
    is_before = (values > logit) | ((values == logit) & ((ids < token) | (token < 0)) & (ids < V))
    tl.store(num_before + row * num_tiles + tile, tl.sum(is_before.to(tl.int32), 0))


@triton.jit(do_not_specialize=["num_tiles", "found_stride", "num_top"])
def _merge(
    logits, tokens, maxima, sums, num_before, live, found, logprobs, ranks, top_ids, top_logprobs,
    V, stride, num_tiles, found_stride, num_top,
    GROUP: tl.constexpr, NUM_GROUPS: tl.constexpr, NUM_TILES: tl.constexpr,
    TILE: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    group, tile = tl.arange(0, NUM_GROUPS), tl.arange(0, NUM_TILES)
    place, inside = row * stride + group, group * GROUP < V
    most = tl.load(maxima + place, mask=inside, other=float("-inf"))
    best = tl.max(most, 0)
    share = tl.load(sums + place, mask=inside, other=0.0) * tl.exp(most - best)
    log_total = tl.log(tl.sum(share.to(tl.float64), 0))
    token = tl.load(tokens + row)
    logit = tl.load(logits + row * V + token, mask=token >= 0, other=float("-inf"))
    tl.store(logprobs + row, ((logit - best).to(tl.float64) - log_total).to(tl.float32))
    before = tl.load(num_before + row * num_tiles + tile, mask=tile < num_tiles, other=0)
    tl.store(ranks + row, 1 + tl.sum(before, 0))
    if num_top > 0:
        line, found = (logits + row * V, None, None), found + row * found_stride
        keys, top = order_key(most), order_key(best)
        floor = bound(keys, tl.where(inside, 1.0, 0.0), inside, num_top, top)
        listed = (live + row * stride, list_live(keys, inside, floor, live + row * stride), tl.cdiv(V, GROUP))
        num = _list_top(line, listed, found, V, best, num_top, floor, top, CAPACITY, GROUP, TILE)
        entries = load_entries(found, num, CAPACITY)
        rank = tl.sum((entries[None, :] > entries[:, None]).to(tl.int32), 1)  # [CAPACITY]
        is_top = (tl.arange(0, CAPACITY) < num) & (rank < num_top)
        logprob = ((key_value((entries >> 32).to(tl.int32)) - best).to(tl.float64) - log_total).to(tl.float32)
        tl.store(top_ids + row * num_top + rank, entry_id(entries), mask=is_top)
        tl.store(top_logprobs + row * num_top + rank, logprob, mask=is_top)


@triton.jit
def _list_top(
    line, live, found, V, best, num_top, floor, top, CAPACITY: tl.constexpr, GROUP: tl.constexpr, TILE: tl.constexpr
):
    """How many tokens are listed, CAPACITY at most: all at or above `floor`, or, where these are too many, all above
    the `num_top`-th largest logit, and the lowest ids at it."""
    num = list_tokens(line, live, V, floor, top, found, CAPACITY, GROUP, TILE)
    if num > CAPACITY:
        last = threshold_of_many(line, live, V, best, False, num_top, floor, top, found, CAPACITY, GROUP, TILE)
        num = list_tokens(line, live, V, last + 1, top, found, CAPACITY, GROUP, TILE)  # fewer than num_top
        num += list_tokens(line, live, V, last, last, found + num, CAPACITY, GROUP, TILE)
    return tl.minimum(num, CAPACITY)


def _check(logits: Tensor, tokens: Tensor, num_top: int) -> None:
    if logits.dim() != 2 or logits.dtype != torch.float32 or not logits.is_contiguous():
        raise ValueError(f"logits must be contiguous fp32 [B, V], not {logits.dtype} {tuple(logits.shape)}")
    if tokens.shape != logits.shape[:1] or tokens.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"tokens must be int32 or int64 [{len(logits)}], not {tokens.dtype} {tuple(tokens.shape)}")
    if not 0 <= num_top <= min(MAX_TOP, logits.shape[1]):
        raise ValueError(f"num_top is {num_top}, not 0 … {min(MAX_TOP, logits.shape[1])}")
