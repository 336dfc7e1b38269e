"""A row's program in plain torch: the steps of kernels/samplers.py, as the packed row tells them."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from . import samplers, sampling_params
from . import sampling_program as program
from .gumbel_draw import draw_tokens
from .philox import uniform_noise
from .samplers_rows import log_probability
from .sampling_table import SamplingTable

_DRAW, _XTC_COIN = 0, 1
"""Streams of noise (wire/noise.py)."""

Sampler = Callable[..., Tensor]

_STEPS: dict[int, tuple[Sampler, tuple[int, ...]]] = {
    op.value: (run, tuple(column.value for column in columns))
    for op, run, *columns in (
        (program.TEMPERATURE, samplers.scale, program.DIVISOR),
        (program.DYNATEMP, samplers.scale_dynamically, program.DYN_MIN, program.DYN_MAX, program.DYN_EXPONENT),
        (program.QUADRATIC, samplers.bend, program.SMOOTHING, program.CURVE),
        (program.NSIGMA, samplers.keep_nsigma, program.NUM_SIGMAS),
        (program.TOP_A, samplers.keep_top_a, program.TOP_A_FACTOR),
        (program.MIN_P, samplers.keep_min_p, program.MIN_P_SHARE),
        (program.ETA_CUTOFF, samplers.keep_above_eta, program.ETA),
        (program.EPSILON_CUTOFF, samplers.keep_above_epsilon, program.EPSILON),
        (program.TOP_P, samplers.keep_top_p, program.TOP_P_MASS),
        (program.TFS, samplers.keep_tail_free, program.TFS_SHARE),
        (program.TYPICAL_P, samplers.keep_typical, program.TYPICAL_MASS),
    )
}
"""code -> what is done, and the columns of its parameters."""


def ref_program(line: Tensor, slot: int, position: int, table: SamplingTable) -> int:
    """The token that the program of a slot draws from fp32 `line` [V], −1 where no largest logit is finite. The slot's
    state follows it, its counts and last token do not."""
    if not line.max().isfinite():
        return -1
    return _Run(slot, position, table).choose(line[None])


class _Run:
    def __init__(self, slot: int, position: int, table: SamplingTable) -> None:
        self.table, self.slot = table, slot
        self.words, self.numbers, self.state = table.programs[slot], table.numbers[slot], table.states[slot]
        row = table.words[slot].long() & 0xFFFF_FFFF
        where = row.new_tensor([position])
        key = row[sampling_params.KEY : sampling_params.KEY + 2][None]
        self.counter = key, where, row[sampling_params.EPOCH][None]

    def choose(self, logits: Tensor) -> int:
        for op in self.words[1 : program.MAX_OPS].tolist():
            if op == program.END.value:
                break
            logits = self._step(op, logits)
        if not logits.max().isfinite():
            return -1
        token = draw_tokens(self._reshape(logits), *self.counter, stream=_DRAW)
        self._follow(float(log_probability(logits, token)))
        return int(token)

    def _step(self, op: int, logits: Tensor) -> Tensor:
        match op:
            case program.TOP_K.value if self._flag(program.IS_MIROSTAT):
                return samplers.keep_mirostat_1(logits, self.state[:1].double())
            case program.TOP_K.value:
                return samplers.keep_top_k(logits, self.words[program.LIMIT_K.value].long()[None])
            case program.FIND_BEST.value | program.MIROSTAT_1.value:
                return logits  # parts of the above
            case program.MIROSTAT_2.value:
                return samplers.keep_mirostat_2(logits, self.state[:1].double())
            case program.PENALTIES.value:
                return self._penalise(logits)
            case program.XTC.value:
                return self._exclude_top_choices(logits)
        run, columns = _STEPS[op]
        return run(logits, *(self._number(column) for column in columns))

    def _penalise(self, logits: Tensor) -> Tensor:
        counts = self.table.counts[self.slot]
        params = self.table.floats[self.slot, sampling_params.REPETITION : sampling_params.PRESENCE + 1]
        num_output = counts & (sampling_params.IN_PROMPT - 1)
        return torch.where(counts != 0, samplers.penalise(logits[0], num_output, *params), logits[0])[None]

    def _exclude_top_choices(self, logits: Tensor) -> Tensor:
        ids = torch.zeros_like(self.counter[1])[:, None]
        coin = uniform_noise(*self.counter, ids, stream=_XTC_COIN)[0]
        acts = coin < self._number(program.XTC_PROBABILITY.value)
        return samplers.exclude_top_choices(logits, self._number(program.XTC_THRESHOLD.value), acts)

    def _reshape(self, logits: Tensor) -> Tensor:
        if self._flag(program.IS_ADAPTIVE):
            average = (self.state[0].double() / self.state[1].double())[None]
            logits = samplers.adapt(logits, self._number(program.TARGET.value), average)
        if self._flag(program.IS_SKEWED):
            logits = samplers.skew(logits, self._number(program.SKEW.value))
        return logits

    def _follow(self, log_p: float) -> None:
        number = self.numbers.tolist()
        first, second = self.state.tolist()
        if self._flag(program.IS_MIROSTAT):
            surprise = -log_p / math.log(2)
            self.state[0] = first - number[program.RATE.value] * (surprise - number[program.TAU.value])
        if self._flag(program.IS_ADAPTIVE):
            decay = number[program.DECAY.value]
            self.state[0], self.state[1] = math.exp(log_p) + decay * first, 1 + decay * second

    def _flag(self, column: "program.tl.constexpr") -> bool:
        return bool(self.words[column.value])

    def _number(self, column: int) -> Tensor:
        return self.numbers[column][None]
