"""The forms in which a request may give its prompts."""

from typing import Any

from .errors import bad_field
from .fields import convert, whole

TOKEN_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
PROMPT = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
        TOKEN_IDS,
        {"type": "array", "items": TOKEN_IDS, "minItems": 1},
    ]
}


def split_prompts(given: Any, param: str) -> list[str] | list[list[int]]:
    """The prompts of the four forms that field `param` can have: a string, strings, token ids, lists of token ids.
    Raises ApiError (400) if it has none of them, or one is empty."""
    if isinstance(given, str):
        prompts: list[Any] = [given]
    elif not isinstance(given, list):
        raise bad_field(param, "must be a string, a list of strings, token ids, or a list of lists of token ids")
    elif is_token_ids(given):
        prompts = [convert(given, list[int], at=param)]
    elif given and isinstance(given[0], list):
        prompts = convert(given, list[list[int]], at=param)
    else:
        prompts = convert(given, list[str], at=param)
    if not prompts:
        raise bad_field(param, "must not be empty")
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise bad_field(param if prompt is given else f"{param}[{index}]", "must not be empty")
    return prompts


def is_token_ids(given: Any) -> bool:
    """Whether it is one prompt, as token ids, not a list of prompts."""
    return isinstance(given, list) and bool(given) and isinstance(whole(given[0]), int)
