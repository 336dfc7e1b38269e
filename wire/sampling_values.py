"""Values of sampling parameters as other clients write them, made ours. What is out of range is left to the table.

Readers raise ValueError with a reason; the field's name is the caller's to add.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from .sampling import DEFAULT_ORDER, Step

KOBOLD_STEPS: tuple[tuple[Step, ...], ...] = (
    ("top_k",),
    ("top_a",),
    ("top_p", "min_p"),
    ("tfs",),
    ("typical_p", "eta_cutoff", "epsilon_cutoff"),
    ("temperature", "quadratic", "nsigma"),
    ("penalties", "no_repeat_ngram"),
)
"""By KoboldCpp's sampler ids. Those that have no id act where KoboldCpp has them."""
KOBOLD_ORDER = (6, 0, 1, 3, 4, 2, 5)
"""KoboldCpp's default."""

APHRODITE_STEPS: tuple[tuple[Step, ...], ...] = (
    ("top_k", "top_p"),
    ("top_a",),
    ("min_p",),
    ("tfs",),
    ("typical_p",),
    ("temperature",),
    ("penalties",),
    ("dry",),
    ("no_repeat_ngram",),
    ("nsigma",),
    ("eta_cutoff",),
    ("epsilon_cutoff",),
    ("quadratic",),
    ("xtc",),
)
"""By Aphrodite's sampler ids."""
STEP_NAMES: dict[str, tuple[Step, ...]] = {
    **{name: (name,) for name in DEFAULT_ORDER},
    "top_p_top_k": ("top_k", "top_p"),
    "top_nsigma": ("nsigma",),
    "top_n_sigma": ("nsigma",),
    "typ_p": ("typical_p",),
    "typical": ("typical_p",),
    "smoothing": ("quadratic",),
    "quadratic_sampling": ("quadratic",),
    "tfs_z": ("tfs",),
}
"""Of all clients, in lower case."""

UNITS_IN_ONE = 10_000
"""Of cutoffs above 1, as sliders mean them."""


def kobold_order(ids: Sequence[int]) -> tuple[Step, ...]:
    """All steps, from KoboldCpp's list of ids."""
    return ("dry", *(step for each in ids for step in KOBOLD_STEPS[each]), "xtc")


def order(value: Any) -> Any:
    """Of `sampler_priority`: names, Aphrodite's 14 ids or Kobold's 7, each sampler once. Empty is the default."""
    value = _parsed(value)
    if not isinstance(value, list) or not value:
        return value
    if all(type(one) is int for one in value):
        return _checked_ids(value)
    if not all(isinstance(one, str) for one in value):
        raise ValueError("must hold names of samplers, or their ids")
    unknown = [one for one in value if one.lower() not in STEP_NAMES]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no sampler; there are {', '.join(DEFAULT_ORDER)}")
    return _complete([step for one in value for step in STEP_NAMES[one.lower()]])


def _checked_ids(ids: list[int]) -> list[Step]:
    is_kobold = len(ids) <= len(KOBOLD_STEPS)
    table = KOBOLD_STEPS if is_kobold else APHRODITE_STEPS
    if sorted(ids) != list(range(len(table))):
        kind = "KoboldCpp's" if is_kobold else "Aphrodite's"
        raise ValueError(f"must hold each of {kind} samplers 0 to {len(table) - 1} once")
    return list(kobold_order(ids)) if is_kobold else [step for each in ids for step in table[each]]


def _complete(steps: list[Step]) -> list[Step]:
    missing = [step for step in DEFAULT_ORDER if step not in steps]
    twice = [step for step in DEFAULT_ORDER if steps.count(step) > 1]
    if twice:
        raise ValueError(f"has {', '.join(twice)} more than once")
    if missing:
        raise ValueError(f"must name every sampler once; missing: {', '.join(missing)}")
    return steps


def cutoff(value: Any) -> Any:
    """Of eta and epsilon: a probability, or above 1 so many ten thousandths."""
    return value / UNITS_IN_ONE if type(value) in (int, float) and value > 1 else value


def whole_if_none(value: Any) -> Any:
    """Of ranges: −1 is all, as 0."""
    return 0 if type(value) is int and value == -1 else value


def off_if_negative(value: Any) -> Any:
    """Of nsigma, which llama.cpp switches off by −1."""
    return 0.0 if type(value) in (int, float) and value == -1 else value


def ids(value: Any) -> Any:
    """A list, or numbers between commas."""
    if not isinstance(value, str):
        return value
    try:
        return [int(part) for part in value.strip(" []").split(",") if part.strip()]
    except ValueError:
        raise ValueError("must be a list of token ids, or ids between commas") from None


def strings(value: Any) -> Any:
    """A list, or one as JSON."""
    return _parsed(value)


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if not value:
        return []
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError("must be a list, or a list as JSON") from None


READERS: dict[str, Callable[[Any], Any]] = {
    "sampler_priority": order,
    "eta_cutoff": cutoff,
    "epsilon_cutoff": cutoff,
    "repetition_penalty_range": whole_if_none,
    "nsigma": off_if_negative,
    "custom_token_bans": ids,
    "allowed_token_ids": ids,
    "token_ban_ranges": strings,
    "dry_sequence_breakers": strings,
    "banned_strings": strings,
    "bad_words": strings,
}
"""By our field's name."""
