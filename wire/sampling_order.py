"""Which steps act on a request's logits, and in which order: decided once, for every engine."""

from .sampling import DEFAULT_ORDER, SamplingParams, Step

GREEDY_BELOW = 1e-5
_BEFORE_GREEDY: frozenset[Step] = frozenset(["dry", "penalties", "no_repeat_ngram"])
_BEFORE_MIROSTAT: frozenset[Step] = _BEFORE_GREEDY | {"temperature", "quadratic"}


def is_dynamic(params: SamplingParams) -> bool:
    """Whether the temperature follows the entropy."""
    return params.dynatemp_min != 0 or params.dynatemp_max != 0


def is_greedy(params: SamplingParams) -> bool:
    """Whether the largest logit is taken, which neither temperature nor truncation moves."""
    return params.temperature < GREEDY_BELOW and not is_dynamic(params)


def is_adaptive(params: SamplingParams) -> bool:
    """Whether adaptive-p has the last word; Mirostat has it where both are asked for."""
    return params.adaptive_target >= 0 and params.mirostat_mode == 0


def order_of(params: SamplingParams) -> tuple[Step, ...]:
    """All steps, in the request's order: its own, or the default one, in which `temperature_last` has a say."""
    if params.sampler_priority:
        return params.sampler_priority
    if params.temperature_last:
        return (*(step for step in DEFAULT_ORDER if step != "temperature"), "temperature")
    return DEFAULT_ORDER


def active_steps(params: SamplingParams) -> tuple[Step, ...]:
    """The steps that are not neutral, in order. Mirostat takes the place of truncation."""
    wanted = frozenset(DEFAULT_ORDER)
    if is_greedy(params):
        wanted = _BEFORE_GREEDY
    elif params.mirostat_mode:
        wanted = _BEFORE_MIROSTAT
    return tuple(step for step in order_of(params) if step in wanted and _acts(params, step))


def _acts(p: SamplingParams, step: Step) -> bool:
    return {
        "dry": p.dry_multiplier > 0,
        "penalties": p.repetition_penalty != 1 or p.presence_penalty != 0 or p.frequency_penalty != 0,
        "no_repeat_ngram": p.no_repeat_ngram_size > 0,
        "temperature": p.temperature != 1 or is_dynamic(p),
        "nsigma": p.nsigma > 0,
        "top_k": p.top_k > 0,
        "top_p": p.top_p < 1,
        "top_a": p.top_a > 0,
        "min_p": p.min_p > 0,
        "tfs": p.tfs < 1,
        "eta_cutoff": p.eta_cutoff > 0,
        "epsilon_cutoff": p.epsilon_cutoff > 0,
        "typical_p": p.typical_p < 1,
        "quadratic": p.smoothing_factor > 0,
        "xtc": p.xtc_probability > 0,
    }[step]
