"""From logits to tokens on the device: penalties, temperature, top-k, top-p, min-p and the Gumbel-max draw.

    logits fp32 [B, V], slots int32 [B], positions int32 [B], a SamplingTable -> token int32 or int64 [B]

Rows are independent: what a row needs is read from its slot on the device, so one CUDA graph serves every mix of
parameters, and a token does not depend on its row's neighbours. Order, ties and noise are those of decode's steps
(penalties, temperature, top-k, top-p, min-p; noise of kernels/philox.py), to the bit but for top-p's sums: a token
whose cumulative probability is within 1e-6 of top_p may fall on the other side, as fp32 exponentials have it.

Rows with a program (sampling_program.py) are left to one more launch, sampling_program_run.py; those without return
from it at once.

Two launches for the others. `_scan`, a program for each tile of a row, reads all logits once and keeps numbers of each
GROUP ids: the largest logit, for top-p the sum of weights, and where a token may be drawn from the whole row, the
largest score, with noise known nearly. Nothing in it waits for another warp. `_finish`, a program for each row, knows
from these which groups to look into, most often one; for rows with truncation see sampling_truncation.py. There is no
sort and no [B, V] temporary, and logits are left alone.

Asserted: contiguous logits, slots of the table or −1 (padding: token 0, nothing changed), each slot at most once.
Source: Gumbel-max (Gumbel, 1954; Maddison et al., "A* sampling", 2014); top-p: Holtzman et al., 2019.
"""

# mypy: allow-incomplete-defs

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import sampling_params
from .dispatch import launches
from .philox import gumbel_noise
from .sampling_draw import draw_groups, upper_scores
from .sampling_program_ref import ref_program
from .sampling_program_run import run_programs
from .sampling_row import LOWEST_KEY, adjust_logits, is_penalised
from .sampling_table import SamplingTable
from .sampling_truncation import draw_truncated

GROUP = 32
"""Neighbouring ids that numbers are kept of."""
SCAN = {"TILE": 4096, "num_warps": 8}
FINISH = {"TILE": 2048, "CAPACITY": 1024, "num_warps": 4, "maxnreg": 255}
"""TILE logits are read at once, and CAPACITY searched in registers; a warp at least for 1024 groups. So small that two
programs share a multiprocessor; without `maxnreg`, a compiler aims at three, for which the registers do not do."""
PROGRAM = {"TILE": 4096, "CAPACITY": 2048, "num_warps": 8}
"""TILE logits are read at once, CAPACITY sorted in registers."""
MAX_CAPACITY = 2048
MIN_NUM_GROUPS = 4096
"""One size for most vocabularies, so that few variants are compiled."""
_ROW_ALIGNMENT = 64
"""Of the groups' numbers, so that they are read in wide loads."""

_INF: tl.constexpr = tl.constexpr(float("inf"))
_WORDS: tl.constexpr = tl.constexpr(sampling_params.WORDS)
_TEMPERATURE: tl.constexpr = tl.constexpr(sampling_params.TEMPERATURE)
_TOP_K: tl.constexpr = tl.constexpr(sampling_params.TOP_K)
_TOP_P: tl.constexpr = tl.constexpr(sampling_params.TOP_P)
_LOG_MIN_P: tl.constexpr = tl.constexpr(sampling_params.LOG_MIN_P)
_KEY: tl.constexpr = tl.constexpr(sampling_params.KEY)
_EPOCH: tl.constexpr = tl.constexpr(sampling_params.EPOCH)
_HAS_PROGRAM: tl.constexpr = tl.constexpr(sampling_params.HAS_PROGRAM)


class TailWorkspace:
    """What the two kernels hand over, for up to `max_rows` rows; about V / 2 bytes a row."""

    def __init__(self, max_rows: int, vocab_size: int, device: torch.device | str) -> None:
        self.vocab_size = vocab_size
        stride = triton.cdiv(vocab_size, GROUP * _ROW_ALIGNMENT) * _ROW_ALIGNMENT
        self.scores = torch.empty(max_rows, stride, dtype=torch.float32, device=device)
        """At or a little above the best score of each group, in rows that a token is drawn from the whole of."""
        self.maxima = torch.empty_like(self.scores)
        """The largest logit of each group, in rows with truncation."""
        self.sums = torch.empty_like(self.scores)
        """Σ e^(logit − the group's largest), in rows with top-p and no top-k."""
        self.live = torch.empty_like(self.scores, dtype=torch.int32)
        self.found = torch.empty(max_rows, MAX_CAPACITY, dtype=torch.int64, device=device)
        self.ids = torch.empty(max_rows, vocab_size, dtype=torch.int32, device=device)
        """Of the tokens that a program has left."""
        self.states = torch.zeros(max_rows, 2, device=device)


def sample_tail(
    logits: Tensor, slots: Tensor, positions: Tensor, table: SamplingTable, *, workspace: TailWorkspace, out: Tensor
) -> Tensor:
    """`out`, int32 or int64 [B], with one token for each row of `logits` fp32 [B, V]; −1 where a row has no finite
    largest logit.

    `positions` int32 [B] is each token's place in its output, the counter of its noise. `table.last_token`, and
    `table.counts` of rows with penalties, take the tokens up. Logits of rows with a program are overwritten, and their
    states after the token are in `workspace.states` fp32 [B, 2] too.

    Raises ValueError for wrong shapes, dtypes or layouts."""
    _check(logits, slots, positions, table, workspace, out)
    if not launches(logits):
        return ref_sample_tail(logits, slots, positions, table, out=out, states=workspace.states)
    launch_tail(logits, slots, positions, table, workspace=workspace, out=out, scan=SCAN, finish=FINISH)
    return launch_programs(logits, slots, positions, table, workspace=workspace, out=out, config=PROGRAM)


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
    """The kernels of `sample_tail` for rows without a program, in given configurations."""
    num_rows, vocab_size = logits.shape
    if num_rows == 0:
        return out
    w = workspace
    stride = w.scores.shape[1]
    padded_groups = max(triton.next_power_of_2(stride), MIN_NUM_GROUPS)
    shared = (table.words, table.floats, table.doubles, table.counts, w.scores, w.maxima, w.sums)
    # Contracted multiply-adds would round penalties otherwise than the steps do.
    _scan[(triton.cdiv(vocab_size, scan["TILE"]), num_rows)](
        logits, slots, positions, *shared, vocab_size, stride, GROUP=GROUP, enable_fp_fusion=False, **scan
    )
    _finish[(num_rows,)](
        logits, slots, positions, *shared, w.live, w.found, table.last_token, out, vocab_size, stride,
        w.found.shape[1], GROUP=GROUP, NUM_GROUPS=padded_groups,
        enable_fp_fusion=False, **(finish | {"num_warps": max(finish["num_warps"], padded_groups // 1024)}),
    )  # fmt: skip
    return out


def launch_programs(
    logits: Tensor,
    slots: Tensor,
    positions: Tensor,
    table: SamplingTable,
    *,
    workspace: TailWorkspace,
    out: Tensor,
    config: dict[str, int],
) -> Tensor:
    """The kernel of `sample_tail` for rows with a program, in a given configuration."""
    num_rows, vocab_size = logits.shape
    if num_rows == 0:
        return out
    w, t = workspace, table
    stride = w.scores.shape[1]
    run_programs[(num_rows,)](
        logits, w.ids, slots, positions, t.words, t.floats, t.counts, t.programs, t.numbers, t.states,
        w.maxima, w.live, w.found, t.last_token, out, w.states, vocab_size, stride, w.found.shape[1],
        GROUP=GROUP, NUM_GROUPS=max(triton.next_power_of_2(stride), MIN_NUM_GROUPS), enable_fp_fusion=False, **config,
    )  # fmt: skip
    return out


def ref_sample_tail(
    logits: Tensor,
    slots: Tensor,
    positions: Tensor,
    table: SamplingTable,
    *,
    out: Tensor,
    states: Tensor | None = None,
) -> Tensor:
    """`sample_tail` in plain torch, a row at a time."""
    for index, slot in enumerate(slots.tolist()):
        if slot < 0:
            out[index] = 0
            continue
        has_program = bool(table.words[slot, sampling_params.HAS_PROGRAM])
        token = (ref_program if has_program else _ref_token)(logits[index], slot, int(positions[index]), table)
        out[index] = token
        if states is not None and has_program:
            states[index] = table.states[slot]
        if token >= 0:
            table.last_token[slot] = token
            table.counts[slot, token] += _is_penalised(table.floats[slot])
    return out


def _ref_token(line: Tensor, slot: int, position: int, table: SamplingTable) -> int:
    params = table.floats[slot]
    temperature = params[sampling_params.TEMPERATURE]
    if _is_penalised(params):
        line = _ref_penalise(line, table.counts[slot], params)
    if temperature not in (0, 1):
        line = line / temperature
    if not line.max().isfinite():
        return -1
    if temperature > 0:
        line = _ref_truncate(line, params, int(table.words[slot, sampling_params.TOP_K]), table.doubles[slot])
        line = line + _ref_noise(table.words[slot], position, len(line))
    return int((line == line.max()).nonzero()[0])


def _is_penalised(params: Tensor) -> bool:
    neutral = params.new_tensor([1, 0, 0])
    return not torch.equal(params[sampling_params.REPETITION : sampling_params.PRESENCE + 1], neutral)


def _ref_penalise(line: Tensor, counts: Tensor, params: Tensor) -> Tensor:
    repetition, frequency, presence = params[sampling_params.REPETITION : sampling_params.PRESENCE + 1]
    num_output = counts & (sampling_params.IN_PROMPT - 1)
    repeated = torch.where(line > 0, line / repetition, line * repetition)
    return torch.where(counts != 0, repeated - num_output * frequency - (num_output > 0) * presence, line)


def _ref_truncate(line: Tensor, params: Tensor, top_k: int, doubles: Tensor) -> Tensor:
    top_p, log_min_p = float(doubles[sampling_params.TOP_P]), params[sampling_params.LOG_MIN_P]
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
    key = words[sampling_params.KEY : sampling_params.KEY + 2].long() & 0xFFFF_FFFF
    where = key.new_tensor([position])
    ids = torch.arange(vocab_size, device=words.device)
    epoch = words[sampling_params.EPOCH].long()[None] & 0xFFFF_FFFF
    return gumbel_noise(key[None], where, epoch, ids[None], stream=0)[0]


@triton.jit(do_not_specialize_on_alignment=["slots", "positions"])
def _scan(
    logits, slots, positions, words, floats, doubles, counts, scores, maxima, sums, V, stride,
    GROUP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    tile, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    ids = tile * TILE + tl.arange(0, TILE)
    inside = ids < V
    values = tl.load(logits + row * V + ids, mask=inside, other=-_INF)  # first of all: the longest wait
    slot = tl.load(slots + row).to(tl.int64)
    if slot < 0:
        return
    params, ints = floats + slot * _WORDS, words + slot * _WORDS
    if tl.load(ints + _HAS_PROGRAM) != 0:
        return
    is_truncated, is_nucleus, is_greedy = _needs(params, ints, doubles + slot * (_WORDS // 2))
    values = adjust_logits(values, (logits, counts + slot * V, params), ids, inside)
    group = tile * (TILE // GROUP) + tl.arange(0, TILE // GROUP)
    place, stored = row * stride + group, group * GROUP < V
    if is_truncated | is_greedy:
        most = _of_groups(values, GROUP, TILE)  # [TILE / GROUP]
        tl.store(tl.where(is_greedy, scores, maxima) + place, most, mask=stored)
        if is_nucleus:
            base = tl.where(tl.abs(most) < _INF, most, 0.0)
            weights = tl.exp(tl.reshape(values, (TILE // GROUP, GROUP)) - base[:, None])
            tl.store(sums + place, tl.sum(weights, 1), mask=stored)
    if is_nucleus | (not (is_truncated | is_greedy)):
        noise = _noise(positions + row, ints)
        quads = tile * (TILE // 4) + tl.arange(0, TILE // 4)
        upper = upper_scores(values, quads, noise, TILE)
        tl.store(scores + place, _of_groups(upper, GROUP, TILE), mask=stored)


@triton.jit(do_not_specialize_on_alignment=["slots", "positions", "out"])
def _finish(
    logits, slots, positions, words, floats, doubles, counts, scores, maxima, sums, live, found, last_token, out,
    V, stride, found_stride,
    GROUP: tl.constexpr, NUM_GROUPS: tl.constexpr, TILE: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, NUM_GROUPS)
    first = row * stride
    place, inside = first + group, group * GROUP < V
    reach = tl.load(scores + place, mask=inside, other=-_INF)  # before it is known whether they are of this step
    slot = tl.load(slots + row).to(tl.int64)
    if slot < 0:
        tl.store(out + row, 0)
        return
    params, ints = floats + slot * _WORDS, words + slot * _WORDS
    if tl.load(ints + _HAS_PROGRAM) != 0:
        return
    is_truncated, is_nucleus, is_greedy = _needs(params, ints, doubles + slot * (_WORDS // 2))
    noise = _noise(positions + row, ints)
    line = (logits + row * V, counts + slot * V, params)
    token, logit = tl.full((), -1, tl.int32), tl.full((), 0.0, tl.float32)
    is_drawn = is_nucleus | (is_truncated == 0)
    if is_drawn & (tl.abs(tl.max(reach, 0)) < _INF):
        all_kept = (LOWEST_KEY, LOWEST_KEY, V)
        token, logit = draw_groups(line, reach, all_kept, V, noise, is_greedy, GROUP)
    if is_truncated:
        best = tl.max(tl.load(maxima + place, mask=inside, other=-_INF), 0)
        if tl.abs(best) < _INF:
            limits = (
                tl.load(ints + _TOP_K),
                tl.load(doubles + slot * (_WORDS // 2) + _TOP_P),
                tl.load(params + _LOG_MIN_P),
            )
            token = draw_truncated(
                line,
                (maxima + first, sums + first, scores + first, live + first, found + row * found_stride),
                tl.cdiv(V, GROUP), V, best, limits, noise, token, logit, GROUP, NUM_GROUPS, TILE, CAPACITY,
            )  # fmt: skip
    if token >= 0:
        tl.store(last_token + slot, token)
        if is_penalised(params):
            count = counts + slot * V + token
            tl.store(count, tl.load(count) + 1)
    tl.store(out + row, token)


@triton.jit
def _needs(params, ints, doubles):
    """(is truncated, is truncated by top-p without top-k, is greedy) of a slot."""
    temperature = tl.load(params + _TEMPERATURE)
    has_top_k, has_top_p = tl.load(ints + _TOP_K) > 0, tl.load(doubles + _TOP_P) < 1.0
    is_truncated = has_top_k | has_top_p | (tl.load(params + _LOG_MIN_P) > -_INF)
    is_drawn = temperature != 0
    return is_truncated & is_drawn, has_top_p & (has_top_k == 0) & is_drawn, temperature == 0


@triton.jit
def _noise(position, ints):
    return tl.load(position), tl.load(ints + _EPOCH), tl.load(ints + _KEY), tl.load(ints + _KEY + 1)


@triton.jit
def _of_groups(values, GROUP: tl.constexpr, TILE: tl.constexpr):
    return tl.max(tl.reshape(values, (TILE // GROUP, GROUP)), 1)


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
