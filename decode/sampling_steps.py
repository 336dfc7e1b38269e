"""From logits to those a token is drawn from: the samplers of kernels/samplers.py, for rows that each want their own.

Always first come masks, of guidance and of the request, a draw's bans, `min_tokens` and logit_bias; then the steps in
the request's order (Aphrodite's declared one by default); last, Mirostat or adaptive-p, and skew. A step gets only the
rows that need it, so a neutral value leaves its row untouched to the bit, and a row comes out the same alone and among
others.

What would ban the last token of a row is not done: a row always has a token to draw.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..engine.plan import Draw
from ..kernels import samplers
from ..kernels.philox import uniform_noise
from ..wire.noise import XTC
from ..wire.sampling import DEFAULT_ORDER, Step
from ..wire.sampling_order import is_dynamic
from .history import History
from .sampler_state import COLUMNS, AdaptiveAverage, Mirostat, SequenceState

_COLUMN = {name: index for index, name in enumerate(COLUMNS)}


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences that a token is drawn for, a row of logits each."""

    rows: Sequence[SequenceState]
    columns: Tensor
    """fp64 [N, len(COLUMNS)]"""
    keys: Tensor
    """int64 [N, 2]"""
    positions: Tensor
    """int64 [N], of the tokens in their outputs."""
    epochs: Tensor
    """int64 [N], of rewinding."""
    bans: Sequence[tuple[int, ...]]
    """Of each draw alone."""

    @classmethod
    def of(cls, rows: Sequence[SequenceState], draws: Sequence[Draw], device: torch.device) -> "Batch":
        """`rows` must not be empty."""
        return cls(
            rows,
            torch.stack([row.columns for row in rows]).to(device),
            torch.tensor([row.key for row in rows], device=device),
            torch.tensor([draw.position for draw in draws], device=device),
            torch.tensor([draw.epoch for draw in draws], device=device),
            [draw.bans for draw in draws],
        )

    def __getitem__(self, index: Tensor) -> "Batch":
        places = index.tolist()
        rows, bans = [self.rows[i] for i in places], [self.bans[i] for i in places]
        return Batch(rows, self.columns[index], self.keys[index], self.positions[index], self.epochs[index], bans)

    def column(self, name: str) -> Tensor:
        """fp64 [N]"""
        return self.columns[:, _COLUMN[name]]


Run = Callable[[Tensor, Batch], Tensor]
"""fp32 [N, V] and its rows -> fp32 [N, V]; changes neither."""


def on_rows(logits: Tensor, batch: Batch, needy: Sequence[int] | np.ndarray, run: Run) -> Tensor:
    """`logits` with `run` done to the rows `needy`."""
    if not len(needy):
        return logits
    if len(needy) == len(batch.rows):
        return run(logits, batch)
    index = torch.as_tensor(needy, device=logits.device)
    return logits.index_copy(0, index, run(logits[index], batch[index]))


def mask_logits(logits: Tensor, batch: Batch, guides: Sequence[np.ndarray | None]) -> Tensor:
    """What may not come is removed, then logit_bias is added. `guides`: of each row the words that guidance allows."""
    masks = [_both(guide, row.allowed) for guide, row in zip(guides, batch.rows, strict=True)]
    masked = {i: words for i, words in enumerate(masks) if words is not None}
    if masked:
        stacked = torch.from_numpy(np.stack(list(masked.values()))).to(logits.device)
        logits = on_rows(logits, batch, list(masked), lambda part, _: samplers.mask_tokens(part, stacked))
    logits = on_rows(logits, batch, [i for i, bans in enumerate(batch.bans) if bans], _ban_at_draw)
    wordy = [i for i, row in enumerate(batch.rows) if row.params.bad_words]
    logits = on_rows(logits, batch, wordy, _ban_bad_words)
    held = [i for i, row in enumerate(batch.rows) if row.num_output < row.params.min_tokens and len(row.stop_ids)]
    logits = on_rows(logits, batch, held, _hold_back_stops)
    return on_rows(logits, batch, [i for i, row in enumerate(batch.rows) if len(row.bias_ids)], _add_bias)


def apply_steps(logits: Tensor, batch: Batch) -> Tensor:
    """`logits` itself where no step is needed."""
    orders: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(batch.rows):
        if row.steps:
            orders.setdefault(row.order, []).append(index)
    for order, members in orders.items():
        logits = on_rows(logits, batch, members, partial(_in_order, order))
    return logits


def keep_by_mirostat(logits: Tensor, batch: Batch) -> Tensor:
    """Mirostat's truncation, whose state the chosen token's probability in it moves."""
    for mode, keep in ((1, samplers.keep_mirostat_1), (2, samplers.keep_mirostat_2)):
        needy = [
            i for i, row in enumerate(batch.rows) if isinstance(row.control, Mirostat) and row.control.mode == mode
        ]
        logits = on_rows(logits, batch, needy, partial(_keep_by, keep))
    return logits


def _keep_by(keep: Callable[[Tensor, Tensor], Tensor], logits: Tensor, batch: Batch) -> Tensor:
    return keep(logits, _states(batch, "mu"))


def reshape(logits: Tensor, batch: Batch) -> Tensor:
    """Adaptive-p and skew: other probabilities for what is left."""
    adaptive = [i for i, row in enumerate(batch.rows) if isinstance(row.control, AdaptiveAverage)]
    skewed = [i for i, row in enumerate(batch.rows) if row.params.skew != 0 and not row.is_greedy]
    logits = on_rows(logits, batch, adaptive, _adapt)
    return on_rows(logits, batch, skewed, _by_columns(samplers.skew, "skew"))


def _in_order(order: Sequence[int], logits: Tensor, batch: Batch) -> Tensor:
    needs = np.array([row.steps for row in batch.rows])
    for step in order:
        logits = on_rows(logits, batch, np.flatnonzero(needs >> step & 1), _RUNS[step])
    return logits


def _both(one: np.ndarray | None, other: np.ndarray | None) -> np.ndarray | None:
    """Words of the tokens that both allow; what guidance allows, where that is none."""
    if one is None or other is None:
        words = other if one is None else one
        return None if words is None else words.view(np.int32)
    words = one.view(np.int32) & other
    return words if words.any() else one.view(np.int32)


def _ban_at_draw(logits: Tensor, batch: Batch) -> Tensor:
    return _ban(logits, [torch.tensor(ids) for ids in batch.bans])


def _hold_back_stops(logits: Tensor, batch: Batch) -> Tensor:
    """The tokens that would end a row's output before `min_tokens`."""
    return _ban(logits, [row.stop_ids for row in batch.rows])


def _add_bias(logits: Tensor, batch: Batch) -> Tensor:
    """logit_bias is added, −100 like any other value: it is no mask."""
    index = _flat_index([row.bias_ids for row in batch.rows], logits)
    return _put(logits, index, logits.flatten()[index] + torch.cat([row.bias for row in batch.rows]))


def _penalise(logits: Tensor, batch: Batch) -> Tensor:
    ids, counts, repetition = zip(*(history.penalties() for history in _histories(batch)), strict=True)
    index = _flat_index(ids, logits)
    lengths = torch.tensor([len(one) for one in ids], device=logits.device)
    frequency, presence = (
        batch.column(name).float().repeat_interleave(lengths) for name in ("frequency_penalty", "presence_penalty")
    )
    values, device = logits.flatten()[index], logits.device
    seen = torch.cat(counts).to(device), torch.cat(repetition).to(device)
    return _put(logits, index, samplers.penalise(values, *seen, frequency, presence))


def _subtract_dry(logits: Tensor, batch: Batch) -> Tensor:
    """DRY (p-e-w, 2024): what a token loses for going on with a repetition."""
    found = [history.dry() for history in _histories(batch)]
    index = _flat_index([ids for ids, _ in found], logits)
    return _put(logits, index, logits.flatten()[index] - torch.cat([lost for _, lost in found]).to(logits.device))


def _ban_repeated_ngrams(logits: Tensor, batch: Batch) -> Tensor:
    return _ban(logits, [history.banned() for history in _histories(batch)])


def _ban_bad_words(logits: Tensor, batch: Batch) -> Tensor:
    return _ban(logits, [history.bad_words() for history in _histories(batch)])


def _histories(batch: Batch) -> list[History]:
    found = [row.history for row in batch.rows if row.history is not None]
    assert len(found) == len(batch.rows)
    return found


def _scale(logits: Tensor, batch: Batch) -> Tensor:
    dynamic = [i for i, row in enumerate(batch.rows) if is_dynamic(row.params)]
    fixed = [i for i, row in enumerate(batch.rows) if not is_dynamic(row.params)]
    logits = on_rows(logits, batch, dynamic, _by_columns(samplers.scale_dynamically, *_DYNAMIC))
    return on_rows(logits, batch, fixed, _by_columns(samplers.scale, "temperature"))


def _exclude_top_choices(logits: Tensor, batch: Batch) -> Tensor:
    ids = torch.zeros_like(batch.positions)[:, None]
    coin = uniform_noise(batch.keys, batch.positions, batch.epochs, ids, stream=XTC).squeeze(1)
    acts = coin < batch.column("xtc_probability")
    return samplers.exclude_top_choices(logits, batch.column("xtc_threshold"), acts)


def _adapt(logits: Tensor, batch: Batch) -> Tensor:
    return samplers.adapt(logits, batch.column("adaptive_target"), _states(batch, "value"))


def _keep_top_k(logits: Tensor, batch: Batch) -> Tensor:
    return samplers.keep_top_k(logits, batch.column("top_k").clamp(max=logits.shape[-1]).long())


def _by_columns(sampler: Callable[..., Tensor], *names: str) -> Run:
    """`sampler`, with the columns `names` as its parameters."""
    return lambda logits, batch: sampler(logits, *(batch.column(name) for name in names))


_DYNAMIC = ("dynatemp_min", "dynatemp_max", "dynatemp_exponent")
STEPS: dict[Step, Run] = {
    "dry": _subtract_dry,
    "penalties": _penalise,
    "no_repeat_ngram": _ban_repeated_ngrams,
    "temperature": _scale,
    "nsigma": _by_columns(samplers.keep_nsigma, "nsigma"),
    "top_k": _keep_top_k,
    "top_p": _by_columns(samplers.keep_top_p, "top_p"),
    "top_a": _by_columns(samplers.keep_top_a, "top_a"),
    "min_p": _by_columns(samplers.keep_min_p, "min_p"),
    "tfs": _by_columns(samplers.keep_tail_free, "tfs"),
    "eta_cutoff": _by_columns(samplers.keep_above_eta, "eta_cutoff"),
    "epsilon_cutoff": _by_columns(samplers.keep_above_epsilon, "epsilon_cutoff"),
    "typical_p": _by_columns(samplers.keep_typical, "typical_p"),
    "quadratic": _by_columns(samplers.bend, "smoothing_factor", "smoothing_curve"),
    "xtc": _exclude_top_choices,
}
_RUNS = [STEPS[step] for step in DEFAULT_ORDER]


def _states(batch: Batch, name: str) -> Tensor:
    """A number that each row's control holds, fp64 [N]."""
    values = [getattr(row.control, name) for row in batch.rows]
    return torch.tensor(values, dtype=torch.float64, device=batch.columns.device)


def _ban(logits: Tensor, ids: Sequence[Tensor]) -> Tensor:
    """Removes the tokens `ids[r]` of each row r, unless nothing were left of it."""
    banned = _put(logits, _flat_index(ids, logits), -math.inf)
    is_empty = banned.amax(dim=-1, keepdim=True) == -math.inf
    return torch.where(is_empty, logits, banned) if bool(is_empty.any()) else banned


def _flat_index(ids: Sequence[Tensor], logits: Tensor) -> Tensor:
    """Where the tokens `ids[r]` of each row r stand in the flattened logits."""
    return torch.cat([row * logits.shape[-1] + one for row, one in enumerate(ids)]).to(logits.device)


def _put(logits: Tensor, index: Tensor, values: Tensor | float) -> Tensor:
    """A copy of `logits` with `values` at places of its flattened form."""
    flat = logits.flatten().clone()
    flat[index] = values
    return flat.view_as(logits)
