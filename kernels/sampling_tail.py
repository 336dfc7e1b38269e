"""From logits to tokens on the device: penalties, temperature, top-k, top-p, min-p and the Gumbel-max draw.

    logits fp32 [B, V], slots int32 [B], positions int32 [B], a SamplingTable -> token int32 or int64 [B]

Rows are independent: what a row needs is read from its slot on the device, so one CUDA graph serves every mix of
parameters, and a token does not depend on its row's neighbours. Order, ties and noise are those of decode's steps
(penalties, temperature, top-k, top-p, min-p; noise of kernels/philox.py), to the bit but for top-p's sums: a token
whose cumulative probability is within 1e-6 of top_p may fall on the other side, as fp32 exponentials have it.

Two launches. `_scan`, a program for each tile of a row, reads all logits once; it draws for rows without truncation,
and for others stores the changed logits, and the largest of each GROUP ids. `_finish`, a program for each row, takes
the best of the tiles, or finds the thresholds and draws among what they leave (sampling_truncation.py). There is no
sort and no [B, V] temporary.

Asserted: contiguous logits, slots of the table or −1 (padding: token 0, nothing changed), each slot at most once.
Source: Gumbel-max (Gumbel, 1954; Maddison et al., "A* sampling", 2014); top-p: Holtzman et al., 2019.
"""

# mypy: allow-incomplete-defs

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import sampling_table
from .dispatch import launches
from .philox import gumbel_noise
from .sampling_draw import NO_TOKEN, draw_tile, largest
from .sampling_table import SamplingTable
from .sampling_truncation import draw_truncated

GROUP = 32
"""Neighbouring ids whose largest logit is kept."""
SCAN = {"TILE": 2048, "num_warps": 4}
"""One for every shape: sums are taken a tile at a time, and shall not depend on the batch."""
MIN_NUM_TILES = 64
"""One size for most vocabularies, so that few variants are compiled."""
FINISH = {"GROUPS_TILE": 2048, "TILE": 1024, "NUM_PIVOTS": 8, "num_warps": 8}
"""GROUPS_TILE groups' maxima, or TILE logits, are compared with NUM_PIVOTS numbers at once."""

_INF: tl.constexpr = tl.constexpr(float("inf"))
_IN_PROMPT: tl.constexpr = tl.constexpr(sampling_table.IN_PROMPT)
_WORDS: tl.constexpr = tl.constexpr(sampling_table.WORDS)
_TEMPERATURE: tl.constexpr = tl.constexpr(sampling_table.TEMPERATURE)
_TOP_K: tl.constexpr = tl.constexpr(sampling_table.TOP_K)
_TOP_P: tl.constexpr = tl.constexpr(sampling_table.TOP_P)
_LOG_MIN_P: tl.constexpr = tl.constexpr(sampling_table.LOG_MIN_P)
_REPETITION: tl.constexpr = tl.constexpr(sampling_table.REPETITION)
_FREQUENCY: tl.constexpr = tl.constexpr(sampling_table.FREQUENCY)
_PRESENCE: tl.constexpr = tl.constexpr(sampling_table.PRESENCE)
_KEY: tl.constexpr = tl.constexpr(sampling_table.KEY)


class TailWorkspace:
    """What the two kernels hand over, for up to `max_rows` rows; about V / 4 bytes a row."""

    def __init__(self, max_rows: int, vocab_size: int, device: torch.device | str, *, tile: int = SCAN["TILE"]) -> None:
        num_tiles, num_groups = triton.cdiv(vocab_size, tile), triton.cdiv(vocab_size, GROUP)
        self.tile = tile
        self.vocab_size = vocab_size
        self.scores = torch.empty(max_rows, num_tiles, dtype=torch.float32, device=device)
        """The best score of each tile; the largest logit in rows with truncation."""
        self.tokens = torch.empty(max_rows, num_tiles, dtype=torch.int32, device=device)
        self.sums = torch.empty(max_rows, num_tiles, dtype=torch.float32, device=device)
        """Σ e^(logit − the tile's largest), of rows with truncation."""
        self.group_max = torch.empty(max_rows, num_groups, dtype=torch.float32, device=device)
        self.live = torch.empty(max_rows, num_groups, dtype=torch.int32, device=device)


def sample_tail(
    logits: Tensor, slots: Tensor, positions: Tensor, table: SamplingTable, *, workspace: TailWorkspace, out: Tensor
) -> Tensor:
    """`out`, int32 or int64 [B], with one token for each row; −1 where a row has no finite largest logit.

    `logits` fp32 [B, V] are overwritten in rows with penalties or with temperature and truncation. `positions` int32
    [B] is each token's place in its output, the counter of its noise. `table.last_token`, and `table.counts` of rows
    with penalties, take the tokens up. Raises ValueError for wrong shapes, dtypes or layouts."""
    _check(logits, slots, positions, table, workspace, out)
    if not launches(logits):
        return ref_sample_tail(logits, slots, positions, table, out=out)
    return launch_tail(logits, slots, positions, table, workspace=workspace, out=out, scan=SCAN, finish=FINISH)


def launch_tail(
    logits: Tensor,
    slots: Tensor,
    positions: Tensor,
    table: SamplingTable,
    *,
    workspace: TailWorkspace,
    out: Tensor,
    scan: dict[str, int],
    finish: dict[str, int],
) -> Tensor:
    """The kernels of `sample_tail` in given configurations; the workspace must be made for `scan`'s tile."""
    assert workspace.tile == scan["TILE"]
    num_rows, vocab_size = logits.shape
    if num_rows == 0:
        return out
    w = workspace
    num_tiles, num_groups = w.scores.shape[1], w.group_max.shape[1]
    shared = (table.words, table.floats, table.doubles, table.counts, w.scores, w.tokens, w.sums, w.group_max)
    # Contracted multiply-adds would round penalties otherwise than the steps do.
    _scan[(num_tiles, num_rows)](
        logits,
        slots,
        positions,
        *shared,
        vocab_size,
        num_tiles,
        num_groups,
        GROUP=GROUP,
        enable_fp_fusion=False,
        **scan,
    )
    _finish[(num_rows,)](
        logits, slots, positions, *shared, w.live, table.last_token, out, vocab_size, num_tiles, num_groups,
        GROUP=GROUP, NUM_TILES=max(triton.next_power_of_2(num_tiles), MIN_NUM_TILES), **finish,
    )  # fmt: skip
    return out


def ref_sample_tail(logits: Tensor, slots: Tensor, positions: Tensor, table: SamplingTable, *, out: Tensor) -> Tensor:
    """`sample_tail` in plain torch, a row at a time; leaves `logits` alone."""
    for index, slot in enumerate(slots.tolist()):
        if slot < 0:
            out[index] = 0
            continue
        token = _ref_token(logits[index], slot, int(positions[index]), table)
        out[index] = token
        if token >= 0:
            table.last_token[slot] = token
            table.counts[slot, token] += _is_penalised(table.floats[slot])
    return out


def _ref_token(line: Tensor, slot: int, position: int, table: SamplingTable) -> int:
    params = table.floats[slot]
    temperature = params[sampling_table.TEMPERATURE]
    if _is_penalised(params):
        line = _ref_penalise(line, table.counts[slot], params)
    if temperature not in (0, 1):
        line = line / temperature
    if not line.max().isfinite():
        return -1
    if temperature > 0:
        line = _ref_truncate(line, params, int(table.words[slot, sampling_table.TOP_K]), table.doubles[slot])
        line = line + _ref_noise(table.words[slot], position, len(line))
    return int((line == line.max()).nonzero()[0])


def _is_penalised(params: Tensor) -> bool:
    neutral = params.new_tensor([1, 0, 0])
    return not torch.equal(params[sampling_table.REPETITION : sampling_table.PRESENCE + 1], neutral)


def _ref_penalise(line: Tensor, counts: Tensor, params: Tensor) -> Tensor:
    repetition, frequency, presence = params[sampling_table.REPETITION : sampling_table.PRESENCE + 1]
    num_output = counts & (sampling_table.IN_PROMPT - 1)
    repeated = torch.where(line > 0, line / repetition, line * repetition)
    return torch.where(counts != 0, repeated - num_output * frequency - (num_output > 0) * presence, line)


def _ref_truncate(line: Tensor, params: Tensor, top_k: int, doubles: Tensor) -> Tensor:
    top_p, log_min_p = float(doubles[sampling_table.TOP_P]), params[sampling_table.LOG_MIN_P]
    best = line.max()
    if top_k > 0:
        line = line.masked_fill(line < line.topk(min(top_k, len(line))).values[-1], -math.inf)
    if top_p < 1:
        ordered, order = line.sort(descending=True, stable=True)
        sums = (ordered - best).double().exp().cumsum(0)
        num_kept = int((sums < top_p * sums[-1]).sum()) + 1
        line = line.index_fill(0, order[num_kept:], -math.inf)
    return line.masked_fill(line < best + log_min_p, -math.inf)


def _ref_noise(words: Tensor, position: int, vocab_size: int) -> Tensor:
    key = words[sampling_table.KEY : sampling_table.KEY + 2].long() & 0xFFFF_FFFF
    where = key.new_tensor([position])
    ids = torch.arange(vocab_size, device=words.device)
    return gumbel_noise(key[None], where, where * 0, ids[None], stream=0)[0]


@triton.jit(do_not_specialize=["num_tiles", "num_groups"])
def _scan(
    logits, slots, positions, words, floats, doubles, counts, scores, tokens, sums, group_max,
    V, num_tiles, num_groups, GROUP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    tile, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    quads = tile * (TILE // 4) + tl.arange(0, TILE // 4)
    ids = tile * TILE + tl.arange(0, TILE)
    inside = ids < V
    line = logits + row * V + ids
    values = tl.load(line, mask=inside, other=-_INF)  # first of all: the longest wait
    slot = tl.load(slots + row).to(tl.int64)
    if slot < 0:
        return
    params = floats + slot * _WORDS
    temperature = tl.load(params + _TEMPERATURE)
    is_penalised, is_scaled = _is_penalised_row(params), (temperature != 0) & (temperature != 1)
    if is_penalised:
        values = _penalise(values, tl.load(counts + slot * V + ids, mask=inside, other=0), params)
    if is_scaled:
        values = tl.div_rn(values, temperature)
    values = tl.where(values < _INF, values, _INF)  # NaN is +inf from here on: what a broken row is known by
    place = row * num_tiles + tile
    if _is_truncated_row(params, words + slot * _WORDS, doubles + slot * (_WORDS // 2)):
        if is_penalised | is_scaled:
            tl.store(line, values, mask=inside)
        of_groups = tl.max(tl.reshape(values, (TILE // GROUP, GROUP)), 1)
        group = tile * (TILE // GROUP) + tl.arange(0, TILE // GROUP)
        tl.store(group_max + row * num_groups + group, of_groups, mask=group < num_groups)
        most = tl.max(of_groups, 0)
        tl.store(scores + place, most)
        tl.store(sums + place, tl.sum(tl.exp(values - tl.where(tl.abs(most) < _INF, most, 0.0)), 0))
    elif temperature == 0:
        score, token = largest(values, ids)
        tl.store(scores + place, score)
        tl.store(tokens + place, token)
    else:
        key = words + slot * _WORDS + _KEY
        score, token = draw_tile(values, quads, tl.load(positions + row), tl.load(key), tl.load(key + 1), TILE)
        tl.store(scores + place, score)
        tl.store(tokens + place, token)


@triton.jit(do_not_specialize=["num_tiles", "num_groups"])
def _finish(
    logits, slots, positions, words, floats, doubles, counts, scores, tokens, sums, group_max, live, last_token, out,
    V, num_tiles, num_groups,
    GROUP: tl.constexpr, NUM_TILES: tl.constexpr, GROUPS_TILE: tl.constexpr, TILE: tl.constexpr,
    NUM_PIVOTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    if slot < 0:
        tl.store(out + row, 0)
        return
    params, ints = floats + slot * _WORDS, words + slot * _WORDS
    top_p = doubles + slot * (_WORDS // 2)
    tile = tl.arange(0, NUM_TILES)
    place = row * num_tiles + tile
    score = tl.load(scores + place, mask=tile < num_tiles, other=-_INF)
    best = tl.max(score, 0)
    token = tl.full((), -1, tl.int32)
    if tl.abs(best) < _INF:
        if _is_truncated_row(params, ints, top_p):
            share = tl.load(sums + place, mask=tile < num_tiles, other=0.0).to(tl.float64)
            total = tl.sum(share * tl.exp(score - best).to(tl.float64), 0)
            token = draw_truncated(
                logits + row * V, group_max + row * num_groups, live + row * num_groups, num_groups, V, best, total,
                tl.load(ints + _TOP_K), tl.load(top_p + _TOP_P), tl.load(params + _LOG_MIN_P),
                tl.load(positions + row), tl.load(ints + _KEY), tl.load(ints + _KEY + 1),
                GROUP, GROUPS_TILE, TILE, NUM_PIVOTS,
            )  # fmt: skip
        else:
            winner = tl.load(tokens + place, mask=tile < num_tiles, other=NO_TOKEN)
            token = tl.min(tl.where(score == best, winner, NO_TOKEN), 0)
        tl.store(last_token + slot, token)
        if _is_penalised_row(params):
            count = counts + slot * V + token
            tl.store(count, tl.load(count) + 1)
    tl.store(out + row, token)


@triton.jit
def _penalise(values, counts, params):
    """Repetition over prompt and output, then frequency and presence over the output, of fp32 [TILE]."""
    repetition = tl.load(params + _REPETITION)
    num_output = counts & (_IN_PROMPT - 1)
    repeated = tl.where(values > 0, tl.div_rn(values, repetition), values * repetition)
    present = tl.where(num_output > 0, tl.load(params + _PRESENCE), 0.0)
    penalised = repeated - num_output.to(tl.float32) * tl.load(params + _FREQUENCY) - present
    return tl.where(counts != 0, penalised, values)


@triton.jit
def _is_penalised_row(params):
    changes = tl.load(params + _FREQUENCY) != 0
    return (tl.load(params + _REPETITION) != 1) | changes | (tl.load(params + _PRESENCE) != 0)


@triton.jit
def _is_truncated_row(params, ints, doubles):
    truncates = (tl.load(ints + _TOP_K) > 0) | (tl.load(doubles + _TOP_P) < 1.0)
    truncates = truncates | (tl.load(params + _LOG_MIN_P) > -_INF)
    return truncates & (tl.load(params + _TEMPERATURE) != 0)


def _check(
    logits: Tensor, slots: Tensor, positions: Tensor, table: SamplingTable, workspace: TailWorkspace, out: Tensor
) -> None:
    if logits.dim() != 2 or logits.dtype != torch.float32 or not logits.is_contiguous():
        raise ValueError(f"logits must be contiguous fp32 [B, V], not {logits.dtype} {tuple(logits.shape)}")
    num_rows, vocab_size = logits.shape
    if not vocab_size == table.vocab_size == workspace.vocab_size:
        raise ValueError(f"{vocab_size} logits, table for {table.vocab_size}, workspace for {workspace.vocab_size}")
    if num_rows > len(workspace.scores):
        raise ValueError(f"{num_rows} rows in a workspace for {len(workspace.scores)}")
    for name, tensor, dtypes in (
        ("slots", slots, (torch.int32,)),
        ("positions", positions, (torch.int32,)),
        ("out", out, (torch.int32, torch.int64)),
    ):
        if tensor.shape != (num_rows,) or tensor.dtype not in dtypes or not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous {dtypes} [{num_rows}], not {tensor.dtype} {tensor.shape}")
