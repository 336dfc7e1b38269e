"""What a request asks to be told about tokens: each API's fields, and how they become `SamplingParams`."""

from collections.abc import Sequence

from .errors import bad_field
from .fields import Fields
from .served import Served

LOGPROBS = ("logprobs", "prompt_logprobs")
KOBOLD_TOP = 5
"""Alternatives that KoboldCpp gives where `logprobs` is true."""


def check_logprobs(fields: Fields, served: Served) -> None:
    """Drops what asks for nothing. Raises ApiError (400) for more alternatives than this server gives."""
    for name in ("logprobs", "prompt_logprobs"):
        value = fields.sampling.get(name)
        if value is False:
            del fields.sampling[name]
        elif type(value) is int:
            check_count(value, fields.sent(name), served)


def check_count(count: int, name: str, served: Served) -> None:
    if not 0 <= count <= served.max_logprobs:
        raise bad_field(name, f"must be from 0 to {served.max_logprobs}, the limit that --max-logprobs sets")


def take_chat_logprobs(fields: Fields) -> None:
    """On chats `logprobs` is a switch, and a field of the route's own."""
    if "logprobs" in fields.sampling:
        fields.own["logprobs"] = fields.sampling.pop("logprobs")


def put_chat_logprobs(logprobs: bool, top_logprobs: int, fields: Fields, served: Served) -> None:
    """Raises ApiError (400)."""
    check_count(top_logprobs, fields.sent("top_logprobs"), served)
    if logprobs:
        fields.sampling["logprobs"] = top_logprobs
    elif top_logprobs:
        raise bad_field(fields.sent("top_logprobs"), f"needs {fields.sent('logprobs')} true")


def refuse_logprobs(fields: Fields, why: str, names: Sequence[str] = LOGPROBS) -> None:
    """Raises ApiError (400) where they are asked for; `why`: this route cannot tell them."""
    for name in names:
        if fields.sampling.get(name, False) is not False:
            raise bad_field(fields.sent(name), f"{why}; leave it out or send false", code="unsupported_field")
        fields.sampling.pop(name, None)


def put_kobold_logprobs(fields: Fields) -> None:
    """On Kobold's routes too `logprobs` is a switch; a number is how many."""
    refuse_logprobs(fields, "Kobold's answers have no place for it", ["prompt_logprobs"])
    if fields.sampling.get("logprobs") is True:
        fields.sampling["logprobs"] = KOBOLD_TOP
