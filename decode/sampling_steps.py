"""From logits to the logits a token is drawn from: a list of pure batch steps.

Order (Aphrodite's declared default): the stop tokens `min_tokens` holds
back, logit_bias, penalties, temperature, top-k, top-p, min-p. A step gets only the rows that need it, so a neutral
value leaves its row untouched to the bit. Whatever a step takes from a row (sums, order) is computed from that row
alone and in one fixed shape: a row comes out the same alone and among others. Removed tokens are −inf.

Equal logits: top-k and min-p keep every tie at the threshold, top-p keeps the lower ids.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.plan import SequenceSeed
from ..wire.sampling import SamplingParams

GREEDY_BELOW = 1e-5
MIN_TEMPERATURE = 0.01

_NUCLEUS_SIZES = (256, 4096)
"""Numbers of largest logits to look for the end of the nucleus in, before all are sorted."""


class TokenCounts:
    """Which tokens a sequence has seen, and how often each stands in its output: what penalties read.

    `ids` int64 [n], distinct, in the order of their first appearance; `counts` fp32 [n]."""

    def __init__(self, prompt_ids: Sequence[int], output_ids: Sequence[int], device: torch.device) -> None:
        self._slots = {token: slot for slot, token in enumerate(dict.fromkeys((*prompt_ids, *output_ids)))}
        capacity = 2 * len(self._slots) + 16
        self._ids = torch.zeros(capacity, dtype=torch.int64, device=device)
        self._counts = torch.zeros(capacity, dtype=torch.float32, device=device)
        self._ids[: len(self._slots)] = torch.tensor(list(self._slots), dtype=torch.int64)
        slots = torch.tensor([self._slots[token] for token in output_ids], dtype=torch.int64, device=device)
        self._counts.index_add_(0, slots, torch.ones(len(slots), device=device))

    @property
    def ids(self) -> Tensor:
        return self._ids[: len(self._slots)]

    @property
    def counts(self) -> Tensor:
        return self._counts[: len(self._slots)]

    def add(self, token: int) -> None:
        """One more of `token` in the output."""
        slot = self._slots.setdefault(token, len(self._slots))
        if slot == len(self._ids):
            self._ids = torch.cat((self._ids, torch.zeros_like(self._ids)))
            self._counts = torch.cat((self._counts, torch.zeros_like(self._counts)))
        self._ids[slot] = token
        self._counts[slot] += 1


class SequenceState:
    """What the steps read of one sequence."""

    def __init__(self, seed: SequenceSeed, device: torch.device) -> None:
        self.params: SamplingParams = seed.params
        self.key = seed.key
        self.num_output = len(seed.output_ids)
        self.stop_ids = torch.tensor(sorted(seed.stop_ids), dtype=torch.int64, device=device)
        self.bias_ids = torch.tensor(list(self.params.logit_bias), dtype=torch.int64, device=device)
        self.bias = torch.tensor(list(self.params.logit_bias.values()), dtype=torch.float32, device=device)
        prompt_ids = seed.prompt_ids if self.params.repetition_penalty != 1 else ()
        self.counts = TokenCounts(prompt_ids, seed.output_ids, device) if self.is_penalised else None

    @property
    def is_greedy(self) -> bool:
        return self.params.temperature < GREEDY_BELOW

    @property
    def is_penalised(self) -> bool:
        p = self.params
        return p.repetition_penalty != 1 or p.presence_penalty != 0 or p.frequency_penalty != 0

    def append(self, token: int) -> None:
        """`token` is now the last of the output."""
        self.num_output += 1
        if self.counts is not None:
            self.counts.add(token)


Rows = Sequence[SequenceState]


@dataclass(frozen=True, slots=True)
class Step:
    is_needed: Callable[[SequenceState], bool]
    run: Callable[[Tensor, Rows], Tensor]
    """fp32 [B, V] and the states of its rows -> fp32 [B, V]; changes neither."""


def apply_steps(logits: Tensor, rows: Rows) -> Tensor:
    """The logits, fp32 [B, V], that the rows' tokens are drawn from; `logits` itself where no step is needed."""
    for step in STEPS:
        needy = [index for index, row in enumerate(rows) if step.is_needed(row)]
        if needy and len(needy) == len(rows):
            logits = step.run(logits, rows)
        elif needy:
            index = torch.tensor(needy, device=logits.device)
            logits = logits.index_copy(0, index, step.run(logits[index], [rows[i] for i in needy]))
    return logits


def mask_stop_tokens(logits: Tensor, rows: Rows) -> Tensor:
    """−inf for the tokens that would end a row's output before `min_tokens`."""
    return _put(logits, _flat_index([row.stop_ids for row in rows], logits), -math.inf)


def add_bias(logits: Tensor, rows: Rows) -> Tensor:
    """logit_bias is added, −100 like any other value: it is no mask."""
    index = _flat_index([row.bias_ids for row in rows], logits)
    return _put(logits, index, logits.flatten()[index] + torch.cat([row.bias for row in rows]))


def penalise(logits: Tensor, rows: Rows) -> Tensor:
    """Repetition over prompt and output (Keskar et al., CTRL, 2019): positive logits are divided, others multiplied.
    Then OpenAI's formula over the output: logit −= count × frequency_penalty + (count > 0) × presence_penalty."""
    seen = [row.counts for row in rows if row.counts is not None]
    assert len(seen) == len(rows)
    lengths = torch.tensor([len(one.ids) for one in seen], device=logits.device)
    index = _flat_index([one.ids for one in seen], logits)
    counts = torch.cat([one.counts for one in seen])

    def per_token(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=logits.device).repeat_interleave(lengths)

    repetition = per_token([row.params.repetition_penalty for row in rows])
    frequency = per_token([row.params.frequency_penalty for row in rows])
    presence = per_token([row.params.presence_penalty for row in rows])
    values = logits.flatten()[index]
    values = torch.where(values > 0, values / repetition, values * repetition)
    return _put(logits, index, values - counts * frequency - (counts > 0) * presence)


def scale_by_temperature(logits: Tensor, rows: Rows) -> Tensor:
    """logits ÷ temperature, which is raised to 0.01 where it is lower."""
    return logits / _column([max(row.params.temperature, MIN_TEMPERATURE) for row in rows], logits)


def keep_top_k(logits: Tensor, rows: Rows) -> Tensor:
    """Tokens at or above the k-th largest logit: more than k where there are ties."""
    k = [min(row.params.top_k, logits.shape[-1]) for row in rows]
    kth = torch.stack([line.topk(n).values[-1] for line, n in zip(logits, k, strict=True)])
    return logits.masked_fill(logits < kth[:, None], -math.inf)


def keep_top_p(logits: Tensor, rows: Rows) -> Tensor:
    """The smallest set of most likely tokens whose probability reaches top_p (Holtzman et al., 2019), ordered by
    (logit descending, id ascending); the token that crosses the threshold is kept."""
    return torch.stack([_nucleus(line, row.params.top_p) for line, row in zip(logits, rows, strict=True)])


def keep_min_p(logits: Tensor, rows: Rows) -> Tensor:
    """Tokens with at least min_p × the largest probability (Nguyen et al., 2024), as logits: ≥ max + ln min_p."""
    threshold = logits.amax(dim=-1, keepdim=True) + _column([math.log(row.params.min_p) for row in rows], logits)
    return logits.masked_fill(logits < threshold, -math.inf)


STEPS = (
    Step(lambda row: row.num_output < row.params.min_tokens and len(row.stop_ids) > 0, mask_stop_tokens),
    Step(lambda row: len(row.bias_ids) > 0, add_bias),
    Step(lambda row: row.is_penalised, penalise),
    Step(lambda row: row.params.temperature != 1 and not row.is_greedy, scale_by_temperature),
    Step(lambda row: row.params.top_k > 0 and not row.is_greedy, keep_top_k),
    Step(lambda row: row.params.top_p < 1 and not row.is_greedy, keep_top_p),
    Step(lambda row: row.params.min_p > 0 and not row.is_greedy, keep_min_p),
)
"""In order. A greedy row takes the largest logit, which temperature and truncation leave where it is."""


def _nucleus(line: Tensor, top_p: float) -> Tensor:
    """fp32 [V] -> fp32 [V]. Sums are fp64 and sequential, over values in descending order."""
    largest = line.amax()
    target = top_p * _weights(line - largest).sum()
    for size in (*_NUCLEUS_SIZES, len(line)):
        top = line.topk(min(size, len(line))).values
        num_before = int((_weights(top - largest).cumsum(0) < target).sum())
        if num_before < len(top):
            return _keep_first(line, num_before + 1, top[num_before])
    return line


def _weights(below_largest: Tensor) -> Tensor:
    """e to these numbers ≤ 0, fp64. What is under e⁻¹⁰⁰ adds nothing to a sum that holds a 1; raised to that, it
    also avoids exp(−inf), which costs eight times as much on a CPU."""
    return below_largest.clamp(min=-100).double().exp()


def _keep_first(line: Tensor, num_kept: int, last: Tensor) -> Tensor:
    """The first `num_kept` in order of (logit descending, id ascending), of which the least has the logit `last`."""
    above, tied = line > last, line == last
    kept = above | (tied & (tied.cumsum(0) <= num_kept - above.sum()))
    return line.masked_fill(~kept, -math.inf)


def _column(values: list[float], like: Tensor) -> Tensor:
    """fp32 [B, 1] beside `like`."""
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]


def _flat_index(ids: list[Tensor], logits: Tensor) -> Tensor:
    """Where the tokens `ids[r]` of each row r stand in the flattened logits."""
    return torch.cat([row * logits.shape[-1] + one for row, one in enumerate(ids)])


def _put(logits: Tensor, index: Tensor, values: Tensor | float) -> Tensor:
    """A copy of `logits` with `values` at places of its flattened form."""
    flat = logits.flatten().clone()
    flat[index] = values
    return flat.view_as(logits)
