"""A request body taken apart: each field is understood, known to do nothing, or refused by name."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import msgspec

from ..wire.json_text import without_lone_surrogates
from ..wire.sampling_table import ALIASES, TABLE
from ..wire.sampling_values import READERS
from .errors import ApiError, bad_field
from .no_ops import NO_OPS, NOT_BUILT, WHY, asks_for_nothing

T = TypeVar("T")
MAX_EXACT = 2**53
"""Up to here floats are exact integers."""
SHORTHANDS = frozenset(["dynatemp_range", "dynamic_temperature"])
"""Ways to say other fields of sampling: see sampling_fields."""


@dataclass(slots=True)
class Fields:
    """A body's fields by what they belong to, under our names. `null` counts as left out."""

    own: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    shorthands: dict[str, Any] = field(default_factory=dict)
    sent_as: dict[str, str] = field(default_factory=dict)
    """Our name to the client's, for error messages."""
    past_context: Literal["refuse", "cut", "count"] = "refuse"
    """What becomes of more tokens than the context has room for: refused; cut to it, where only max_tokens exceeds it;
    or nothing, where the prompt is to be counted alone."""

    def sent(self, name: str) -> str:
        return self.sent_as.get(name, name)

    def put(self, name: str, sent: str, value: Any) -> None:
        """Raises ApiError if the field was already given another value under another name. Of two switches the one
        that is on counts: clients have a box for each name, and tick one."""
        group = self.sampling if name in TABLE else self.own
        value = read_value(name, sent, value)
        if name in group and isinstance(value, bool) and isinstance(group[name], bool):
            value = value or group[name]
        elif name in group and not same(group[name], value):
            raise bad_field(sent, f"contradicts {self.sent_as[name]}, another name of the same field")
        group[name] = value
        self.sent_as[name] = sent


def decode_json(raw: bytes) -> dict[str, Any]:
    """Raises ApiError (400) unless `raw` is a JSON object."""
    try:
        body = decoded(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return body


def decoded(raw: bytes) -> Any:
    """Halves of surrogate pairs are replaced where they stand alone: JavaScript's clients cut texts by halves of
    characters. Raises msgspec.MsgspecError, UnicodeDecodeError, RecursionError."""
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError:
        mended = without_lone_surrogates(raw)
        if mended == raw:
            raise
        return msgspec.json.decode(mended)


def take_apart(body: Mapping[str, Any], own: frozenset[str], aliases: Mapping[str, str]) -> Fields:
    """Sorts a body's fields. `own` are the route's besides sampling, `aliases` the route's other names of fields.

    Raises ApiError (400) naming the field that is unknown, not built and not neutral, or contradictory.
    """
    fields, unbuilt = Fields(), []
    for sent, value in body.items():
        name = aliases.get(sent) or ALIASES.get(sent, sent)
        if name in own or name in TABLE:
            if value is not None:
                fields.put(name, sent, value)
        elif name in SHORTHANDS:
            fields.shorthands[name] = value
        elif name in NOT_BUILT:
            unbuilt.append(name)
        elif name not in NO_OPS:
            raise bad_field(sent, "unknown field", code="unknown_field")
        elif value is not None:
            convert(value, NO_OPS[name].kind, at=sent)
    for name in unbuilt:
        refuse_unbuilt(name, body[name])
    return fields


def read_value(name: str, sent: str, value: Any) -> Any:
    """As our field means it. Raises ApiError (400) if it is written in no way we know."""
    if name in TABLE and TABLE[name].kind == "integer":
        value = whole(value)
    if name not in READERS:
        return value
    try:
        return READERS[name](value)
    except ValueError as error:
        raise bad_field(sent, str(error)) from None


def refuse_unbuilt(name: str, value: Any) -> None:
    """Raises ApiError unless the field, known but not built, would change nothing."""
    if asks_for_nothing(name, value):
        return
    shown = json.dumps(NOT_BUILT[name][0] if NOT_BUILT[name] else None)
    why = WHY.get(name, "not supported yet")
    raise bad_field(name, f"{why}; leave it out or send {shown}", code="unsupported_field")


def same(a: Any, b: Any) -> bool:
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def convert(value: Any, kind: type[T], fields: Fields | None = None, at: str = "") -> T:
    """`value` as `kind`; ApiError (400) naming the field if it is not one. `at` is the path of `value` itself."""
    try:
        return to_kind(value, kind)
    except msgspec.ValidationError as error:
        raise field_error(str(error), fields or Fields(), at) from error


def to_kind(value: Any, kind: type[T]) -> T:
    """`value` as `kind`. In JSON 5.0 is an integer, and clients without integers write it so; for msgspec it is none.
    Raises msgspec.ValidationError."""
    try:
        return msgspec.convert(value, kind, str_keys=True)
    except msgspec.ValidationError as error:
        if "got `float`" not in str(error):
            raise
        with suppress(msgspec.ValidationError):
            return msgspec.convert(all_whole(value), kind, str_keys=True)
        raise


def all_whole(value: Any) -> Any:
    """With `whole` of each number in it."""
    if isinstance(value, list):
        return [all_whole(item) for item in value]
    if isinstance(value, dict):
        return {name: all_whole(item) for name, item in value.items()}
    return whole(value)


def whole(value: Any) -> Any:
    """A float without a fraction as the integer it is; anything else as it came."""
    return int(value) if type(value) is float and abs(value) <= MAX_EXACT and value.is_integer() else value


def field_error(text: str, fields: Fields, at: str = "") -> ApiError:
    """msgspec's sentence, such as "Expected `int`, got `str` - at `$.n`", as a 400 that names the field."""
    reason, _, where = text.partition(" - at ")
    path = re.search(r"\$([^`]*)", where)
    inner = re.search(r" (?:required|unknown) field `([^`]*)`", reason)
    param = at + (path.group(1).replace("[...]", "") if path else "") + (f".{inner.group(1)}" if inner else "")
    head, rest = re.fullmatch(r"\.?([^.\[]*)(.*)", param, re.DOTALL).groups()  # type: ignore[union-attr]
    code = None
    if inner:
        reason = "missing" if "required" in inner.group() else "unknown field"
        code = "unknown_field" if reason == "unknown field" else None
    return bad_field(fields.sent(head) + rest, reason[:1].lower() + reason[1:], code=code)
