"""Orders of samplers as clients list them, in the names or ids of several servers, made the order of our steps.

A server without a name for one of our samplers has it act beside a similar one. Names that place nothing may be left
out: what they stand for acts with another name, or after all lists.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .json_text import loads
from .sampling import DEFAULT_ORDER, Step

Names = Mapping[str, tuple[Step, ...]]

OURS: Names = {step: (step,) for step in DEFAULT_ORDER}
APHRODITE: Names = {
    "top_p_top_k": ("top_k", "top_p"),
    "top_a": ("top_a",),
    "min_p": ("min_p",),
    "tfs": ("tfs",),
    "typical_p": ("typical_p",),
    "temperature": ("temperature",),
    "penalties": ("penalties",),
    "dry": ("dry",),
    "no_repeat_ngram": ("no_repeat_ngram",),
    "top_nsigma": ("nsigma",),
    "eta_cutoff": ("eta_cutoff",),
    "epsilon_cutoff": ("epsilon_cutoff",),
    "quadratic": ("quadratic",),
    "xtc": ("xtc",),
}
"""In the order of its ids."""
LLAMA_CPP: Names = {
    "penalties": ("penalties", "no_repeat_ngram"),
    "dry": ("dry",),
    "top_n_sigma": ("nsigma",),
    "top_k": ("top_k",),
    "typ_p": ("tfs", "typical_p", "eta_cutoff", "epsilon_cutoff"),
    "top_p": ("top_p",),
    "min_p": ("top_a", "min_p"),
    "xtc": ("xtc",),
    "temperature": ("temperature", "quadratic"),
    "adaptive_p": (),
}
LLAMA_CPP_LETTERS = {
    "e": "penalties",
    "d": "dry",
    "s": "top_n_sigma",
    "k": "top_k",
    "y": "typ_p",
    "p": "top_p",
    "m": "min_p",
    "x": "xtc",
    "t": "temperature",
    "a": "adaptive_p",
}
TEXTGEN: Names = {
    "repetition_penalty": ("penalties",),
    "presence_penalty": (),
    "frequency_penalty": (),
    "dry": ("dry",),
    "top_n_sigma": ("nsigma",),
    "temperature": ("temperature",),
    "dynamic_temperature": (),
    "quadratic_sampling": ("quadratic",),
    "top_k": ("top_k",),
    "top_p": ("top_p",),
    "typical_p": ("typical_p",),
    "epsilon_cutoff": ("epsilon_cutoff",),
    "eta_cutoff": ("eta_cutoff",),
    "tfs": ("tfs",),
    "top_a": ("top_a",),
    "min_p": ("min_p",),
    "adaptive_p": (),
    "mirostat": (),
    "xtc": ("xtc",),
    "encoder_repetition_penalty": (),
    "no_repeat_ngram": ("no_repeat_ngram",),
}
"""Text-generation-webui's."""
KOBOLD: tuple[tuple[Step, ...], ...] = (
    ("top_k",),
    ("top_a",),
    ("top_p", "min_p"),
    ("tfs",),
    ("typical_p", "eta_cutoff", "epsilon_cutoff"),
    ("temperature", "quadratic", "nsigma"),
    ("penalties", "no_repeat_ngram"),
)
"""By KoboldCpp's ids."""
KOBOLD_ORDER = (6, 0, 1, 3, 4, 2, 5)
"""KoboldCpp's default."""
NAMES: dict[str, Names] = {"ours": OURS, "aphrodite": APHRODITE, "llama.cpp": LLAMA_CPP, "textgen": TEXTGEN}
ANY: Names = {name: steps for names in reversed(NAMES.values()) for name, steps in names.items()}


def kobold_order(ids: Sequence[int]) -> tuple[Step, ...]:
    """All steps, from KoboldCpp's list of ids. Those that have no id act where KoboldCpp has them."""
    return ("dry", *(step for each in ids for step in KOBOLD[each]), "xtc")


def order(value: Any) -> Any:
    """The steps of a list of names or ids, or of one written as JSON, or of llama.cpp's letters; an empty list stays
    one, the default. Raises ValueError unless each sampler is there once."""
    value = _as_list(value) if isinstance(value, str) else value
    if not isinstance(value, list) or not value:
        return value
    if all(type(one) is int for one in value):
        return _of_ids(value)
    if all(isinstance(one, str) for one in value):
        return _of_names([one.lower() for one in value])
    raise ValueError("must hold names of samplers, or their ids")


def _as_list(text: str) -> Any:
    if text and set(text) <= LLAMA_CPP_LETTERS.keys():
        return [LLAMA_CPP_LETTERS[letter] for letter in text]
    return read_json(text)


def read_json(text: str) -> Any:
    """The list that a string holds as JSON; an empty string holds an empty one. Raises ValueError."""
    try:
        return loads(text) if text.strip() else []
    except (ValueError, RecursionError):
        raise ValueError("must be a list, or a list as JSON") from None


def _of_ids(ids: list[int]) -> list[Step]:
    is_kobold = len(ids) <= len(KOBOLD)
    table, whose = (KOBOLD, "KoboldCpp's") if is_kobold else (tuple(APHRODITE.values()), "Aphrodite's")
    known = range(len(table))
    if unknown := [each for each in ids if each not in known]:
        raise ValueError(f"{unknown[0]} is none of {whose} ids, 0 to {len(table) - 1}")
    _check_once(ids, [each for each in known if each not in ids], whose)
    return list(kobold_order(ids)) if is_kobold else [step for each in ids for step in table[each]]


def _of_names(names: list[str]) -> list[Step]:
    if unknown := [name for name in names if name not in ANY]:
        raise ValueError(f"{unknown[0]!r} is no sampler; there are {', '.join(DEFAULT_ORDER)}")
    table = next((one for one in NAMES.values() if one.keys() >= set(names)), ANY)
    steps = [step for name in names for step in table[name]]
    _check_once(names, [], "the")
    _check_once(steps, [step for step in DEFAULT_ORDER if step not in steps], "the")
    return steps


def _check_once(given: Sequence[int | str], missing: Sequence[int | str], whose: str) -> None:
    twice = sorted(str(one) for one, count in Counter(given).items() if count > 1)
    if twice:
        raise ValueError(f"has {', '.join(twice)} more than once")
    if missing:
        raise ValueError(f"must have each of {whose} samplers once; missing: {', '.join(map(str, missing))}")
