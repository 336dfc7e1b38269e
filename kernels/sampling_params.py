"""The parameters one sequence is sampled with, and their packed form that every kernel of the tail reads."""

import math
from dataclasses import dataclass
from struct import Struct

GREEDY_BELOW = 1e-5
MIN_TEMPERATURE = 0.01

DEFAULT_ORDER = (
    "dry", "penalties", "no_repeat_ngram", "temperature", "nsigma", "top_k", "top_p", "top_a", "min_p", "tfs",
    "eta_cutoff", "epsilon_cutoff", "typical_p", "quadratic", "xtc",
)  # fmt: skip

IN_PROMPT = 1 << 30
"""The bit of a count that says: this token stands in the prompt."""

LAYOUT = Struct("<dfiffffIIii16x")
"""top_p, temperature, top_k, log_min_p, repetition, frequency, presence, key, epoch, whether there is a program."""
WORDS = LAYOUT.size // 4
TOP_P = 0
"""Column of fp64; the others are columns of 4 bytes."""
TEMPERATURE, TOP_K, LOG_MIN_P, REPETITION, FREQUENCY, PRESENCE, KEY = range(2, 9)
EPOCH, HAS_PROGRAM = 10, 11


@dataclass(frozen=True, slots=True)
class SlotParams:
    """Neutral by default. Names, ranges and meaning as in the request; `top_k` ≤ 0 is off."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    key: tuple[int, int] = (0, 0)
    epoch: int = 0
    """Of the noise: how often the sequence was rewound."""
    order: tuple[str, ...] = ()
    """Names of all samplers; empty is `DEFAULT_ORDER`."""
    dynatemp_min: float = 0.0
    dynatemp_max: float = 0.0
    dynatemp_exponent: float = 1.0
    smoothing_factor: float = 0.0
    smoothing_curve: float = 1.0
    nsigma: float = 0.0
    top_a: float = 0.0
    tfs: float = 1.0
    typical_p: float = 1.0
    eta_cutoff: float = 0.0
    epsilon_cutoff: float = 0.0
    xtc_threshold: float = 0.1
    xtc_probability: float = 0.0
    skew: float = 0.0
    mirostat_mode: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    adaptive_target: float = -1.0
    adaptive_decay: float = 0.9

    @property
    def is_dynamic(self) -> bool:
        return self.dynatemp_min != 0 or self.dynatemp_max != 0

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW and not self.is_dynamic

    @property
    def is_penalised(self) -> bool:
        return self.repetition != 1 or self.frequency != 0 or self.presence != 0

    @property
    def is_skewed(self) -> bool:
        return self.skew != 0

    @property
    def is_adaptive(self) -> bool:
        """Mirostat chooses instead where both are asked for."""
        return self.adaptive_target >= 0 and not self.mirostat_mode

    @property
    def divisor(self) -> float:
        """What logits are divided by, if not by a dynamic temperature."""
        return max(self.temperature, MIN_TEMPERATURE)

    def pack(self, *, has_program: bool) -> bytes:
        """As a row of `SamplingTable.words`. Greedy is temperature 0, min_p its logarithm: the threshold on logits."""
        return LAYOUT.pack(
            self.top_p,
            0.0 if self.is_greedy else self.divisor,
            max(self.top_k, 0),
            math.log(self.min_p) if self.min_p > 0 else -math.inf,
            self.repetition,
            self.frequency,
            self.presence,
            *self.key,
            self.epoch,
            has_program,
        )
