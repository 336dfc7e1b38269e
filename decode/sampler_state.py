"""What sampling knows of one sequence: prepared at admission, so that a step gathers and computes nothing twice."""

import math
from collections.abc import Sequence
from struct import Struct
from struct import error as StructError

import torch
from torch import Tensor

from ..engine.plan import SequenceSeed
from ..engine.token_mask import allowed_words, check_ids
from ..text.phrases import Phrases
from ..wire.sampling import DEFAULT_ORDER, SamplingParams
from ..wire.sampling_order import active_steps, is_adaptive, is_greedy, order_of
from .history import History

COLUMNS = (
    "temperature",
    "dynatemp_min",
    "dynatemp_max",
    "dynatemp_exponent",
    "smoothing_factor",
    "smoothing_curve",
    "nsigma",
    "top_k",
    "top_p",
    "top_a",
    "min_p",
    "tfs",
    "eta_cutoff",
    "epsilon_cutoff",
    "typical_p",
    "xtc_threshold",
    "xtc_probability",
    "skew",
    "adaptive_target",
    "frequency_penalty",
    "presence_penalty",
)
"""Parameters that batches read as columns, fp64."""

_FLOAT, _TWO_FLOATS = Struct("<f"), Struct("<2f")


class Mirostat:
    """The largest surprise wanted of the next token, in bits; as fp32, so that a replay goes on with the same."""

    def __init__(self, params: SamplingParams, state: bytes) -> None:
        """Raises ValueError for a state of another kind."""
        self.mode, self._tau, self._eta = params.mirostat_mode, params.mirostat_tau, params.mirostat_eta
        self.mu = _unpack(_FLOAT, state or _FLOAT.pack(2 * self._tau))[0]

    def update(self, log_probability: float) -> None:
        """After a token of this logarithm of its probability."""
        surprise = -log_probability / math.log(2)
        self.mu = _unpack(_FLOAT, _FLOAT.pack(self.mu - self._eta * (surprise - self._tau)))[0]

    def pack(self) -> bytes:
        return _FLOAT.pack(self.mu)


class AdaptiveAverage:
    """The decaying average of the probabilities chosen: a weighted sum and the sum of weights, both fp32. It begins
    where it would settle if every token had the target's probability."""

    def __init__(self, params: SamplingParams, state: bytes) -> None:
        """Raises ValueError for a state of another kind."""
        self._decay = params.adaptive_decay
        weight = 1 / (1 - self._decay)
        self._sum, self._weight = _unpack(
            _TWO_FLOATS, state or _TWO_FLOATS.pack(params.adaptive_target * weight, weight)
        )

    @property
    def value(self) -> float:
        return self._sum / self._weight

    def update(self, log_probability: float) -> None:
        """After a token of this logarithm of its probability."""
        total = math.exp(log_probability) + self._decay * self._sum
        self._sum, self._weight = _unpack(_TWO_FLOATS, _TWO_FLOATS.pack(total, 1 + self._decay * self._weight))

    def pack(self) -> bytes:
        return _TWO_FLOATS.pack(self._sum, self._weight)


class SequenceState:
    """What the steps read of one sequence."""

    def __init__(
        self, seed: SequenceSeed, vocab_size: int, device: torch.device, phrases: Phrases | None = None
    ) -> None:
        """Raises ValueError where the request names a token that is not in the vocabulary, or allows none, where
        `seed.state` is that of another sampler, and what `History` raises."""
        self.params: SamplingParams = seed.params
        self.key = seed.key
        self.num_output = len(seed.output_ids)
        self.is_greedy = is_greedy(self.params)
        self.order = tuple(DEFAULT_ORDER.index(step) for step in order_of(self.params))
        self.steps = sum(1 << DEFAULT_ORDER.index(step) for step in active_steps(self.params))
        """Bit i: `DEFAULT_ORDER[i]` is not neutral."""
        self.columns = torch.tensor([float(getattr(self.params, name)) for name in COLUMNS], dtype=torch.float64)
        self.allowed = allowed_words(self.params, vocab_size)
        self.stop_ids = _ids("stop token", sorted(seed.stop_ids), vocab_size, device)
        self.bias_ids = _ids("logit_bias", list(self.params.logit_bias), vocab_size, device)
        self.bias = torch.tensor(list(self.params.logit_bias.values()), dtype=torch.float32, device=device)
        self.history = _history(seed, phrases)
        self.control = _control(self.params, seed.state)

    @property
    def state(self) -> bytes:
        """What tokens do not determine: `SequenceSeed.state` of a sequence that goes on after the last token."""
        return self.control.pack() if self.control is not None else b""

    def append(self, token: int) -> None:
        """`token` is now the last of the output."""
        self.num_output += 1
        if self.history is not None:
            self.history.append(token)

    def undo(self, count: int) -> None:
        """The last `count` tokens have not come."""
        self.num_output -= count
        if self.history is not None:
            self.history.undo(count)


def _history(seed: SequenceSeed, phrases: Phrases | None) -> History | None:
    """None where nothing is asked of it."""
    steps = active_steps(seed.params)
    if seed.params.bad_words or any(step in steps for step in ("dry", "penalties", "no_repeat_ngram")):
        return History(seed.params, seed.prompt_ids, seed.output_ids, phrases)
    return None


def _control(params: SamplingParams, state: bytes) -> Mirostat | AdaptiveAverage | None:
    if not is_greedy(params):
        if params.mirostat_mode:
            return Mirostat(params, state)
        if is_adaptive(params):
            return AdaptiveAverage(params, state)
    return None


def _ids(what: str, ids: Sequence[int], vocab_size: int, device: torch.device) -> Tensor:
    check_ids(what, ids, vocab_size)
    return torch.tensor(ids, dtype=torch.int64, device=device)


def _unpack(layout: Struct, state: bytes) -> tuple[float, ...]:
    try:
        return layout.unpack(state)
    except StructError as error:
        raise ValueError(f"a sampler state of {len(state)} bytes is not one of {layout.size}") from error
