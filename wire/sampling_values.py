"""Values of sampling parameters as other clients write them, made ours. What is out of range is left to the table.

Readers raise ValueError with a reason; the field's name is the caller's to add.
"""

from collections.abc import Callable
from typing import Any

from .sampler_lists import order, read_json

UNITS_IN_ONE = 10_000
"""Of cutoffs above 1, as sliders mean them."""
VLLM_MODES = ("raw_logprobs", "processed_logprobs")


def cutoff(value: Any) -> Any:
    """Of eta and epsilon: a probability, or above 1 so many ten thousandths."""
    if not is_number(value) or value <= 1:
        return value
    if value > UNITS_IN_ONE:
        raise ValueError(f"must be from 0 to 1, or in units of {1 / UNITS_IN_ONE:g} above 1 and at most {UNITS_IN_ONE}")
    return value / UNITS_IN_ONE


def whole_if_none(value: Any) -> Any:
    """Of ranges: −1 is all, as 0."""
    return 0 if type(value) is int and value == -1 else value


def off_if_negative(value: Any) -> Any:
    """Of nsigma, which llama.cpp switches off by −1."""
    return 0.0 if is_number(value) and value == -1 else value


def ids(value: Any) -> Any:
    """A list, or numbers between commas."""
    if not isinstance(value, str):
        return value
    try:
        return [int(part) for part in value.strip(" []").split(",") if part.strip()]
    except ValueError:
        raise ValueError("must be a list of token ids, or ids between commas") from None


def biases(value: Any) -> Any:
    """An object, or a list of [id, bias] each."""
    if not isinstance(value, list):
        return value
    pairs = [one for one in value if isinstance(one, list) and len(one) == 2 and type(one[0]) is int]
    if len(pairs) < len(value):
        raise ValueError("must be an object of biases by token id, or a list of [id, bias]")
    if len({token_id for token_id, _ in pairs}) < len(pairs):
        raise ValueError("has a token id more than once")
    return dict(pairs)


def strings(value: Any) -> Any:
    """A list, or one as JSON."""
    return read_json(value) if isinstance(value, str) else value


def breakers(value: Any) -> Any:
    """As `strings`, or between commas, in JSON's quotes or none. Empty ones, as empty input fields make them, break
    nothing."""
    if isinstance(value, str):
        value = read_json(value) if value.lstrip().startswith("[") else between_commas(value)
    return [one for one in value if one != ""] if isinstance(value, list) else value


def between_commas(text: str) -> Any:
    try:
        return read_json(f"[{text}]")
    except ValueError:
        return [part.strip(" ") for part in text.split(",")]


def without_unit(value: Any) -> Any:
    """Of logprobs_mode: vLLM says what it is of with what it is."""
    return value.removesuffix("_logprobs") if value in VLLM_MODES else value


def is_number(value: Any) -> bool:
    return type(value) in (int, float)


READERS: dict[str, Callable[[Any], Any]] = {
    "sampler_priority": order,
    "eta_cutoff": cutoff,
    "epsilon_cutoff": cutoff,
    "repetition_penalty_range": whole_if_none,
    "dry_range": whole_if_none,
    "nsigma": off_if_negative,
    "logit_bias": biases,
    "custom_token_bans": ids,
    "allowed_token_ids": ids,
    "token_ban_ranges": strings,
    "dry_sequence_breakers": breakers,
    "banned_strings": strings,
    "bad_words": strings,
    "logprobs_mode": without_unit,
}
"""By our field's name."""

JSON_LIST = {"type": "string", "pattern": r"^\s*(\[|$)", "description": "a list as JSON"}
COMMA_LIST = {
    "type": "string",
    "pattern": r"^[ \[\]]*([0-9]+ *(, *[0-9]+ *)*)?[ \[\]]*$",
    "description": "ids between commas",
}
UNITS = {"type": "number", "exclusiveMinimum": 1, "maximum": UNITS_IN_ONE, "description": "in units of 1e-4"}
PAIR = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
OTHER_FORMS: dict[str, tuple[dict[str, Any], ...]] = {
    "sampler_priority": (
        {"type": "array", "items": {"type": ["string", "integer"]}, "description": "other servers' names or ids"},
        {"type": "string", "description": "such a list as JSON, or llama.cpp's letters"},
    ),
    "eta_cutoff": (UNITS,),
    "epsilon_cutoff": (UNITS,),
    "repetition_penalty_range": ({"const": -1, "description": "all"},),
    "nsigma": ({"const": -1, "description": "off"},),
    "logit_bias": ({"type": "array", "items": PAIR, "description": "[id, bias] each"},),
    "custom_token_bans": (COMMA_LIST,),
    "allowed_token_ids": (COMMA_LIST,),
    "token_ban_ranges": (JSON_LIST,),
    "dry_sequence_breakers": (
        {"type": "array", "items": {"type": "string", "maxLength": 40}, "description": "empty ones are left out"},
        {"type": "string", "description": "a list as JSON, or breakers between commas"},
    ),
    "banned_strings": (JSON_LIST,),
    "bad_words": (JSON_LIST,),
    "logprobs_mode": ({"enum": [*VLLM_MODES], "description": "vLLM's names of the same"},),
}
"""What readers take besides what the table says, as JSON schemas."""
