"""The table of sampling parameters, read from the struct that is it: for docs, and for clients that draw sliders.

python -m isthmus.wire.sampling_table > docs/samplers.md
"""

from functools import cache
from typing import Any

import msgspec
from msgspec.inspect import Field, FloatType, IntType, Metadata, StructType, Type, UnionType, type_info

from .sampling import ALIASES, DEFAULT_ORDER, SamplingParams
from .sampling_values import STEP_NAMES

HIDDEN = frozenset(["guidance"])
"""No client's names."""


class Parameter(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    kind: str
    """As in JSON: number, integer, boolean, string, list or object."""
    default: Any
    help: str
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: float | None = None
    aliases: tuple[str, ...] = ()


@cache
def parameters() -> tuple[Parameter, ...]:
    """All that clients may send, in the struct's order."""
    struct = type_info(SamplingParams)
    assert isinstance(struct, StructType)
    return tuple(_parameter(field) for field in struct.fields if field.name not in HIDDEN)


def _parameter(field: Field) -> Parameter:
    metadata, inner = _unwrap(field.type)
    limits = {}
    if isinstance(inner, IntType | FloatType):
        limits = {"minimum": inner.ge, "maximum": inner.le, "exclusive_minimum": inner.gt}
    return Parameter(
        field.name,
        _kind(inner),
        _default(field),
        (metadata.extra_json_schema or {}).get("description", "") if metadata else "",
        aliases=tuple(alias for alias, name in ALIASES.items() if name == field.name),
        **limits,
    )


def _unwrap(kind: Type) -> tuple[Metadata | None, Type]:
    """(metadata, the type without it and without null)."""
    if isinstance(kind, UnionType):
        kind = next(one for one in kind.types if not isinstance(one, msgspec.inspect.NoneType))
    if isinstance(kind, Metadata):
        return kind, kind.type
    return None, kind


def _kind(kind: Type) -> str:
    names = {"Float": "number", "Int": "integer", "Bool": "boolean", "Literal": "string", "Dict": "object"}
    return names.get(type(kind).__name__.removesuffix("Type"), "list")


def _default(field: Field) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return list(field.default) if isinstance(field.default, tuple) else field.default


def markdown() -> str:
    rows = [_row(one) for one in parameters()]
    orders = ", ".join(f"`{name}`" for name in DEFAULT_ORDER)
    others = ", ".join(sorted(f"`{name}`" for name in STEP_NAMES if name not in DEFAULT_ORDER))
    return f"""# Sampling parameters

Of every route that generates. A value out of range is a 400 that names the field. `GET /v1/samplers` gives this table
as JSON, with the defaults of Kobold's routes. The page is made by `python -m isthmus.wire.sampling_table`.

| parameter | type | range | default | other names | |
|---|---|---|---|---|---|
{chr(10).join(rows)}

## Order

By default: {orders}.

Masks, `min_tokens` and biases come before all; Mirostat, adaptive-p, skew and the draw after. `temperature_last` puts
temperature after XTC. `sampler_priority` lists every sampler once, by these names, by Aphrodite's 14 ids, or by other
names: {others}. `sampler_order` is KoboldCpp's list of seven ids, and Kobold's routes begin with its default,
`[6, 0, 1, 3, 4, 2, 5]`. With Mirostat, truncation is left out.

## Definitions

They are those of the methods' authors, of exllamav2, llama.cpp and transformers. Typical-p keeps the token that crosses
its threshold; top-nσ takes the standard deviation of finite logits; skew acts on descending probabilities; DRY honours
its allowed length and breakers of several tokens, without caps. Of equal logits, greedy and draws take the lowest id,
top-k and min-p keep all. A request's tokens depend on nothing but its own prompt, parameters and seed.

## Other spellings

`eta_cutoff` and `epsilon_cutoff` above 1 count ten thousandths. `dynatemp_range` r stands for `dynatemp_min` and
`dynatemp_max` at temperature ± r; 0, or `dynamic_temperature` false, switch both off. Lists may come as JSON in a
string, `custom_token_bans` as ids between commas. −1 is the whole context in `dry_range` and
`repetition_penalty_range`.
"""


def _row(one: Parameter) -> str:
    low = f"> {one.exclusive_minimum:g}" if one.exclusive_minimum is not None else ""
    low = f"≥ {one.minimum:g}" if one.minimum is not None else low
    high = f"≤ {one.maximum:g}" if one.maximum is not None and one.maximum < 2**31 - 1 else ""
    limits = ", ".join(filter(None, (low, high)))
    aliases = ", ".join(f"`{alias}`" for alias in one.aliases)
    default = msgspec.json.encode(one.default).decode().replace("|", "\\|")
    return f"| `{one.name}` | {one.kind} | {limits} | `{default}` | {aliases} | {one.help} |"


if __name__ == "__main__":
    print(markdown(), end="")
