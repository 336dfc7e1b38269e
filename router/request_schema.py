"""OpenAPI's description of request bodies, from the structs that validate them."""

from typing import Any

import msgspec

from ..wire.sampling import SamplingParams


def body_schema(request: type[msgspec.Struct]) -> dict[str, Any]:
    """`openapi_extra` for a route that takes `request`'s fields and those of `SamplingParams` in one object."""
    (own, sampling), parts = msgspec.json.schema_components([request, SamplingParams], ref_template="#/$defs/{name}")
    del own, sampling
    schema = _inlined(parts[request.__name__], parts)
    schema["properties"] |= _inlined(parts[SamplingParams.__name__], parts)["properties"]
    del schema["properties"]["guidance"]  # no client's name: see guidance_fields
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _inlined(schema: Any, parts: dict[str, Any]) -> Any:
    """`schema` with its references replaced by what they name."""
    if isinstance(schema, list):
        return [_inlined(item, parts) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(parts[schema["$ref"].removeprefix("#/$defs/")], parts)
    return {key: _inlined(value, parts) for key, value in schema.items()}
