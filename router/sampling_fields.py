"""From a body's fields to sampling parameters: what clients say in a roundabout way, and the check of all ranges."""

from collections.abc import Mapping
from typing import Any

from ..wire.sampling import SamplingParams
from .errors import bad_field
from .fields import Fields, convert


def sampling_params(fields: Fields, defaults: Mapping[str, Any]) -> SamplingParams:
    """`defaults`: of the route. Raises ApiError (400) naming the field that is out of its range."""
    given = {**defaults, **fields.sampling}
    params = convert(given | _dynatemp(fields, given), SamplingParams, fields)
    if params.dynatemp_min > params.dynatemp_max:
        raise bad_field(fields.sent("dynatemp_min"), f"must not exceed {fields.sent('dynatemp_max')}")
    return params


def _dynatemp(fields: Fields, given: Mapping[str, Any]) -> dict[str, Any]:
    """dynatemp_min and dynatemp_max, where dynatemp_range says them (temperature − range to temperature + range), or
    where it or dynamic_temperature says that there are none."""
    reach, is_on = fields.shaping.get("dynatemp_range"), fields.shaping.get("dynamic_temperature")
    if is_on is not None and type(is_on) is not bool:
        raise bad_field("dynamic_temperature", "expected `bool`")
    if reach is not None and (type(reach) not in (int, float) or not 0 <= reach <= 100):
        raise bad_field("dynatemp_range", "expected a number from 0 to 100")
    if is_on is False or reach == 0:
        return {"dynatemp_min": 0.0, "dynatemp_max": 0.0}
    if reach is None or given.get("dynatemp_min") or given.get("dynatemp_max"):
        return {}
    temperature = given.get("temperature", 1.0)
    if type(temperature) not in (int, float):
        return {}  # which is the error to tell
    return {"dynatemp_min": max(0.0, temperature - reach), "dynatemp_max": temperature + reach}
