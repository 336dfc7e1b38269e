"""200 JSON schemas such as applications send, in 20 families of growing difficulty: more properties, deeper nesting,
tighter bounds. Texts are bounded, so that outputs of a model that knows nothing end."""

from collections.abc import Callable, Iterator
from typing import Any

Schema = dict[str, Any]
NUM_LEVELS = 10
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]


def text(max_length: int = 12, **rest: Any) -> Schema:
    return {"type": "string", "maxLength": max_length, **rest}


def whole(low: int = 0, high: int = 100) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def record(properties: Schema, *optional: str, **rest: Any) -> Schema:
    required = [name for name in properties if name not in optional]
    closed = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {**closed, **rest}


def array(items: Schema, low: int = 0, high: int = 3) -> Schema:
    return {"type": "array", "items": items, "minItems": low, "maxItems": high}


def person(n: int) -> Schema:
    extra = {f"{word}_name": text(6 + n) for word in WORDS[:n]}
    return record({"name": text(10 + n), "age": whole(0, 120), "email": {"type": "string", "format": "email"}, **extra})


def order(n: int) -> Schema:
    item = record({"sku": {"type": "string", "pattern": f"^[A-Z]{{3}}-[0-9]{{{n + 1}}}$"}, "quantity": whole(1, 10**n)})
    return record({"id": whole(1, 10**6), "items": array(item, 1, n + 1), "paid": {"type": "boolean"}})


def tool_call(n: int) -> Schema:
    calls = [
        record({"name": {"const": f"get_{word}"}, "arguments": record({word: text(8), "limit": whole(1, 9)}, "limit")})
        for word in WORDS[: n + 1]
    ]
    return {"anyOf": calls}


def classification(n: int) -> Schema:
    labels = [f"{word} {i}" for i in range(n + 1) for word in WORDS]
    return record({"label": {"enum": labels}, "confidence": {"type": "number", "minimum": 0, "maximum": 1}})


def tree(n: int) -> Schema:
    """References that come back to themselves, as deep as their own levels let them."""
    definitions: Schema = {"node0": record({"value": whole()})}
    for i in range(1, n + 2):
        child = {"$ref": f"#/$defs/node{i - 1}"}
        definitions[f"node{i}"] = record({"value": whole(), "children": array(child, 0, 2)}, "children")
    return {"$defs": definitions, "$ref": f"#/$defs/node{n + 1}"}


def linked(n: int) -> Schema:
    """A list of unbounded length: null ends it."""
    node = record({"head": text(3 + n), "tail": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/list"}]}})
    return {"$defs": {"list": node}, "$ref": "#/$defs/list"}


def calendar(n: int) -> Schema:
    kinds = ["date", "time", "date-time", "duration"]
    times = {f"{WORDS[i]}_at": {"type": "string", "format": kinds[i % len(kinds)]} for i in range(n + 1)}
    return record({"title": text(), **times})


def network(n: int) -> Schema:
    kinds = ["ipv4", "uuid", "hostname", "ipv6"]
    return record({word: {"type": "string", "format": kinds[i % 4]} for i, word in enumerate(WORDS[: n + 1])})


def geometry(n: int) -> Schema:
    number = {"type": "number", "minimum": -180, "maximum": 180}
    point = {"type": "array", "prefixItems": [number, number], "items": False, "minItems": 2}
    return record({"type": {"const": "LineString"}, "coordinates": array(point, 2, n + 2)})


def matrix(n: int) -> Schema:
    return array(array(whole(-n, n * n + 1), n + 1, n + 1), 1, n + 1)


def optional_settings(n: int) -> Schema:
    settings = {f"{word}_{i}": whole() for i in range(n + 1) for word in WORDS[:3]}
    return record(settings, *settings)


def nullable(n: int) -> Schema:
    fields: Schema = {word: {"type": ["string", "null"], "maxLength": 4 + n} for word in WORDS[: n + 1]}
    return record(fields | {"count": {"anyOf": [whole(), {"type": "null"}]}})


def dictionary(n: int) -> Schema:
    return {"type": "object", "additionalProperties": whole(0, 10**n), "maxProperties": 3}


def patterns(n: int) -> Schema:
    shapes = [
        r"^\d{3}-\d{4}$",
        "^#[0-9a-f]{6}$",
        "^v[0-9]+\\.[0-9]{1,2}$",
        "^(GET|PUT|POST) /[a-z]{1,9}$",
        "^[A-Z][a-z]{0,8}$",
    ]
    fields = {word: {"type": "string", "pattern": shapes[i % len(shapes)]} for i, word in enumerate(WORDS[: n + 1])}
    return record(fields)


def discriminated(n: int) -> Schema:
    shapes = [record({"kind": {"const": word}, f"{word}_size": whole(1, 9), "note": text(5)}, "note") for word in WORDS]
    return record({"shapes": array({"anyOf": shapes[: n + 1]}, 1, 3)})


def merged(n: int) -> Schema:
    names = WORDS[: n + 1]
    parts = [{"type": "object", "properties": {word: text(6)}, "required": [word]} for word in names]
    return {"allOf": parts, "properties": {word: {} for word in names}, "additionalProperties": False}


def survey(n: int) -> Schema:
    answer = {"anyOf": [{"type": "boolean"}, whole(1, 5), text(8), {"type": "null"}]}
    return record({f"q{i}": answer for i in range(1, n + 2)} | {"comment": text(20)}, "comment")


def invoice(n: int) -> Schema:
    line = record(
        {"what": text(8), "net": {"type": "number", "minimum": 0, "maximum": 10**n}, "tax": {"enum": [0, 7, 19]}}
    )
    address = record(
        {"street": text(9), "zip": {"type": "string", "pattern": "^[0-9]{5}$"}, "country": {"enum": ["DE", "FR"]}}
    )
    return record(
        {"number": {"type": "string", "pattern": "^R[0-9]{4,8}$"}, "to": address, "lines": array(line, 1, n + 1)}
    )


def config(n: int) -> Schema:
    """Nested n + 1 deep."""
    inner: Schema = record({"enabled": {"type": "boolean"}, "level": {"enum": ["debug", "info", "error"]}})
    for word in WORDS[: n + 1]:
        inner = record({word: inner, "port": whole(1, 65535)}, "port")
    return inner


def unicode_labels(n: int) -> Schema:
    labels = ["größe", "naïve", "数量", "имя", "🙂", 'say "hi"', "back\\slash", "tab\there", "a/b", "é" * 3][: n + 1]
    return record({"label": {"enum": labels}, labels[-1]: whole(), "ok": {"const": True}})


FAMILIES: list[Callable[[int], Schema]] = [
    person,
    order,
    tool_call,
    classification,
    tree,
    linked,
    calendar,
    network,
    geometry,
    matrix,
    optional_settings,
    nullable,
    dictionary,
    patterns,
    discriminated,
    merged,
    survey,
    invoice,
    config,
    unicode_labels,
]


def schemas() -> Iterator[tuple[str, Schema]]:
    """(name, schema), 200 of them, the easiest of all families first."""
    for level in range(NUM_LEVELS):
        for family in FAMILIES:
            yield f"{family.__name__}-{level}", family(level)
