"""The table of sampling parameters, read from the struct that is it: for checks, docs and clients' sliders."""

from functools import cache
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.inspect import Field, FloatType, IntType, Metadata, NoneType, StructType, Type, UnionType, type_info

from .sampling import Group, SamplingParams

HIDDEN = frozenset(["guidance"])
"""No client's names."""
KINDS = {"Float": "number", "Int": "integer", "Bool": "boolean", "Literal": "string", "Dict": "object"}


class Slider(Struct, frozen=True):
    minimum: float
    maximum: float
    step: float


class Parameter(Struct, frozen=True, omit_defaults=True):
    name: str
    kind: str
    """As in JSON: number, integer, boolean, string, object or list."""
    group: Group
    help: str
    neutral: Any
    """What it is where a route has no other default."""
    minimum: float | None = None
    exclusive_minimum: float | None = None
    maximum: float | None = None
    slider: Slider | None = None
    aliases: tuple[str, ...] = ()
    """Other clients' names."""

    @property
    def range(self) -> str:
        """In words, after "must be"; empty where it has none."""
        article = {"number": "a number", "integer": "a whole number"}.get(self.kind)
        if article is None or self.maximum is None:
            return ""
        if self.exclusive_minimum is not None:
            return f"{article} above {self.exclusive_minimum} and at most {self.maximum}"
        return f"{article} from {self.minimum} to {self.maximum}"


@cache
def parameters() -> tuple[Parameter, ...]:
    """All that clients may send, in the struct's order."""
    struct = type_info(SamplingParams)
    assert isinstance(struct, StructType)
    return tuple(_parameter(field) for field in struct.fields if field.name not in HIDDEN)


def _parameter(field: Field) -> Parameter:
    about = _metadata(field.type)
    assert about.extra is not None
    assert about.extra_json_schema is not None
    slider = about.extra["slider"]
    return Parameter(
        name=field.name,
        kind=KINDS.get(type(about.type).__name__.removesuffix("Type"), "list"),
        group=about.extra["group"],
        help=about.extra_json_schema["description"],
        neutral=_neutral(field),
        slider=None if slider is None else Slider(*slider),
        aliases=about.extra["aliases"],
        **_limits(about.type),
    )


def _metadata(kind: Type) -> Metadata:
    """Of a field's type, which may be null besides."""
    if isinstance(kind, UnionType):
        kind = next(one for one in kind.types if not isinstance(one, NoneType))
    assert isinstance(kind, Metadata)
    return kind


def _limits(kind: Type) -> dict[str, float | None]:
    if not isinstance(kind, IntType | FloatType):
        return {}
    return {"minimum": kind.ge, "exclusive_minimum": kind.gt, "maximum": kind.le}


def _neutral(field: Field) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return list(field.default) if isinstance(field.default, tuple) else field.default


TABLE: dict[str, Parameter] = {one.name: one for one in parameters()}
ALIASES: dict[str, str] = {alias: one.name for one in parameters() for alias in one.aliases}
"""Other clients' names, and ours."""
