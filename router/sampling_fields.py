"""From a body's fields to sampling parameters: what clients say in a roundabout way, and the check of all ranges."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from ..wire.sampling import SamplingParams, Step
from ..wire.sampling_table import TABLE
from .errors import ApiError, bad_field
from .fields import Fields, convert, field_error, to_kind

ROUNDING = 1e-6
"""Between two ways to say the same temperatures."""
MAX_TEMPERATURE = 100
OFF = {"dynatemp_min": 0.0, "dynatemp_max": 0.0}


class Shorthands(Struct, frozen=True, forbid_unknown_fields=True):
    """Fields that say others. Both APIs have them."""

    dynatemp_range: (
        Annotated[
            float, Meta(ge=0, le=MAX_TEMPERATURE, description="dynatemp_min, dynatemp_max: temperature ± this; 0: off")
        ]
        | None
    ) = None
    dynamic_temperature: (
        Annotated[bool, Meta(description="false: neither dynatemp_min and dynatemp_max nor dynatemp_range counts")]
        | None
    ) = None


def sampling_params(fields: Fields, defaults: Mapping[str, Any]) -> SamplingParams:
    """`defaults`: of the route. Raises ApiError (400) naming the field that is out of its range."""
    given = {**defaults, **fields.sampling}
    if "sampler_priority" in defaults and "sampler_priority" not in fields.sampling:
        given["sampler_priority"] = with_temperature_last(given["sampler_priority"], given.get("temperature_last"))
    params = in_range(given, fields)
    params = msgspec.structs.replace(params, **dynatemp_ends(params, fields))
    if params.dynatemp_min > params.dynatemp_max:
        raise bad_field(fields.sent("dynatemp_min"), f"must not exceed {fields.sent('dynatemp_max')}")
    return params


def with_temperature_last(order: tuple[Step, ...], wanted: Any) -> tuple[Step, ...]:
    """A route's own order, where the request has none."""
    if wanted is not True:
        return order
    return (*(step for step in order if step != "temperature"), "temperature")


def in_range(given: dict[str, Any], fields: Fields) -> SamplingParams:
    try:
        return to_kind(given, SamplingParams)
    except msgspec.ValidationError as error:
        raise with_range(field_error(str(error), fields), fields) from error


def with_range(error: ApiError, fields: Fields) -> ApiError:
    """The error with the whole range in it, where it is about a number outside."""
    for name, parameter in TABLE.items():
        if error.param == fields.sent(name) and parameter.range and ", got " not in error.message:
            return bad_field(error.param, f"must be {parameter.range}")
    return error


def dynatemp_ends(params: SamplingParams, fields: Fields) -> dict[str, float]:
    """dynatemp_min and dynatemp_max, where shorthands say them. Raises ApiError (400) for a contradiction."""
    asked = convert(fields.shorthands, Shorthands, fields)
    has_ends = params.dynatemp_min != 0 or params.dynatemp_max != 0
    if asked.dynamic_temperature is False:
        return OFF
    says_ends = asked.dynatemp_range is not None or "dynatemp_max" in fields.sampling
    if asked.dynamic_temperature and not says_ends:
        raise bad_field("dynamic_temperature", "needs dynatemp_min and dynatemp_max, or dynatemp_range")
    if asked.dynatemp_range is None:
        return {}
    if not has_ends:
        return ends_around(params.temperature, asked.dynatemp_range)
    check_same(params, asked.dynatemp_range, fields)
    return {} if asked.dynatemp_range else OFF


def ends_around(temperature: float, reach: float) -> dict[str, float]:
    if reach == 0:
        return OFF
    high = temperature + reach
    if high > MAX_TEMPERATURE:
        raise bad_field("dynatemp_range", f"temperature + range must be at most {MAX_TEMPERATURE}")
    return {"dynatemp_min": max(0.0, temperature - reach), "dynatemp_max": high}


def check_same(params: SamplingParams, reach: float, fields: Fields) -> None:
    """Raises ApiError (400) unless the ends are as far apart as the range says: clients send both."""
    low, high = params.dynatemp_min, params.dynatemp_max
    cut = ends_around(params.temperature, reach)
    is_cut = abs(low - cut["dynatemp_min"]) <= ROUNDING and abs(high - cut["dynatemp_max"]) <= ROUNDING
    if abs((high - low) / 2 - reach) > ROUNDING and not is_cut:
        raise bad_field("dynatemp_range", f"contradicts {fields.sent('dynatemp_max')}")
