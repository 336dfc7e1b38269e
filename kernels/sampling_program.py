"""Programs: the samplers of one sequence, in its order, as a row of numbers that kernels run.

A sequence whose samplers are temperature, top-k, top-p and min-p, in this order, needs no program: the fused tail has
them built in, with penalties before. Any other gets one: the steps that are not neutral, as codes, and their
parameters. Definitions are those of kernels/samplers.py.
"""

from struct import Struct

import triton.language as tl

from .sampling_params import DEFAULT_ORDER, SlotParams

MAX_OPS = 16
"""Codes in a row of a program; END is behind the last."""

END, DROP_MASKED, PENALTIES, TEMPERATURE, DYNATEMP, QUADRATIC = map(tl.constexpr, range(6))
NSIGMA, TOP_A, MIN_P, ETA_CUTOFF, EPSILON_CUTOFF, MIROSTAT_2 = map(tl.constexpr, range(6, 12))
"""Those that keep what is at most so far below the largest logit."""
TOP_K, TOP_P, FIND_BEST = map(tl.constexpr, range(12, 15))
"""The first two keep the best tokens, so many or of such weight; the last finds those that MIROSTAT_1 looks at."""
TFS, TYPICAL_P, XTC, MIROSTAT_1 = map(tl.constexpr, range(15, 19))

_OPS = {
    "penalties": PENALTIES,
    "nsigma": NSIGMA,
    "top_k": TOP_K,
    "top_p": TOP_P,
    "top_a": TOP_A,
    "min_p": MIN_P,
    "tfs": TFS,
    "eta_cutoff": ETA_CUTOFF,
    "epsilon_cutoff": EPSILON_CUTOFF,
    "typical_p": TYPICAL_P,
    "quadratic": QUADRATIC,
    "xtc": XTC,
}
_BUILT_IN = ("penalties", "temperature", "top_k", "top_p", "min_p")
"""What the fused tail does, in its order."""
_BEFORE_MIROSTAT = {"dry", "penalties", "no_repeat_ngram", "temperature", "quadratic"}

_LAYOUT = Struct(f"<{MAX_OPS}iiiii22d")
WORDS = _LAYOUT.size // 4
LIMIT_K, IS_SKEWED, IS_ADAPTIVE, IS_MIROSTAT = map(tl.constexpr, range(MAX_OPS, MAX_OPS + 4))
"""Columns of int32, of which the first is top-k's k."""
_NUMBERS = (
    "divisor", "dynatemp_min", "dynatemp_max", "dynatemp_exponent", "smoothing_factor", "smoothing_curve", "nsigma",
    "top_a", "min_p", "eta_cutoff", "epsilon_cutoff", "top_p", "tfs", "typical_p", "xtc_threshold", "xtc_probability",
    "skew", "mirostat_tau", "mirostat_eta", "adaptive_target", "adaptive_decay",
)  # fmt: skip
(
    DIVISOR, DYN_MIN, DYN_MAX, DYN_EXPONENT, SMOOTHING, CURVE, NUM_SIGMAS, TOP_A_FACTOR, MIN_P_SHARE, ETA, EPSILON,
    TOP_P_MASS, TFS_SHARE, TYPICAL_MASS, XTC_THRESHOLD, XTC_PROBABILITY, SKEW, TAU, RATE, TARGET, DECAY,
) = map(tl.constexpr, range((MAX_OPS + 4) // 2, (MAX_OPS + 4) // 2 + len(_NUMBERS)))  # fmt: skip
"""Columns of fp64."""


def active_steps(params: SlotParams) -> list[str]:
    """The steps that act, in order. `dry` and `no_repeat_ngram` act on the logits before they come here."""
    return [name for name in params.order or DEFAULT_ORDER if _acts(params, name)]


def needs_program(params: SlotParams) -> bool:
    """Whether the fused tail does not do for these parameters. It does wherever the largest logit is taken."""
    if params.is_greedy:
        return False
    steps = active_steps(params)
    if params.is_skewed or params.is_adaptive or params.mirostat_mode or params.is_dynamic:
        return True
    return [name for name in _BUILT_IN if name in steps] != steps


def can_run(params: SlotParams) -> bool:
    """Whether the device can do these parameters. It can all but skewed adaptive-p, whose sorted line would have to
    remember probabilities from before."""
    return params.is_greedy or not (params.is_skewed and params.is_adaptive)


def pack_program(params: SlotParams) -> bytes:
    """A row of `SamplingTable.programs`: an empty program where none is needed.

    Raises ValueError where the device cannot run it."""
    if not can_run(params):
        raise ValueError("adaptive-p and skew are not run together")
    p = params
    ops = _codes(p) if needs_program(p) else []
    assert len(ops) < MAX_OPS
    return _LAYOUT.pack(
        *(ops + [0] * MAX_OPS)[:MAX_OPS],
        *(max(p.top_k, 0), p.is_skewed, p.is_adaptive, p.mirostat_mode > 0),
        *(getattr(p, name) for name in _NUMBERS),
        0.0,
    )


def initial_state(params: SlotParams) -> tuple[float, float]:
    """What tokens do not determine, before the first: Mirostat's mu and nothing, or adaptive-p's weighted sum and total
    weight, which start where they would settle on the target."""
    if params.mirostat_mode:
        return 2 * params.mirostat_tau, 0.0
    if params.is_adaptive:
        total = 1 / (1 - params.adaptive_decay)
        return params.adaptive_target * total, total
    return 0.0, 0.0


def _codes(params: SlotParams) -> list[int]:
    temperature = DYNATEMP if params.is_dynamic else TEMPERATURE
    body = [_OPS.get(name, temperature) for name in active_steps(params)]
    if params.mirostat_mode:
        body += [MIROSTAT_2] if params.mirostat_mode == 2 else [FIND_BEST, MIROSTAT_1, TOP_K]
    return [op.value for op in (DROP_MASKED, *body)]


def _acts(params: SlotParams, name: str) -> bool:
    if params.mirostat_mode and name not in _BEFORE_MIROSTAT:
        return False
    return {
        "penalties": params.is_penalised,
        "temperature": params.is_dynamic or params.divisor != 1,
        "nsigma": params.nsigma > 0,
        "top_k": params.top_k > 0,
        "top_p": params.top_p < 1,
        "top_a": params.top_a > 0,
        "min_p": params.min_p > 0,
        "tfs": params.tfs < 1,
        "eta_cutoff": params.eta_cutoff > 0,
        "epsilon_cutoff": params.epsilon_cutoff > 0,
        "typical_p": params.typical_p < 1,
        "quadratic": params.smoothing_factor != 0,
        "xtc": params.xtc_probability > 0,
    }.get(name, False)
