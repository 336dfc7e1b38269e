"""One option: a dataclass field with what its flag needs, and how values are read from text."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any
from urllib.parse import urlsplit, urlunsplit


def option(
    default: Any,
    help: str,
    *,
    flag: str | None = None,
    metavar: str | None = None,
    parse: Callable[[str], Any] | None = None,
    positional: bool = False,
) -> Any:
    """A field with what its flag needs. `parse` turns the given text, each of a tuple's, into a value, or raises
    ValueError saying why."""
    metadata = {"help": help, "flag": flag, "metavar": metavar, "parse": parse, "positional": positional}
    return field(default=default, metadata=metadata)


def at_least(low: int, high: int | None = None) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if value < low:
            raise ValueError(f"must be at least {low}")
        if high is not None and value > high:
            raise ValueError(f"must be at most {high}")
        return value

    return parse


def one_of(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"must be one of {', '.join(names)}")
        return text

    return parse


def seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError("must be a number of seconds, 0 or more")
    return value


def fraction(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise ValueError("must be more than 0 and at most 1")
    return value


def metrics_prefix(text: str) -> str:
    """What a metric's name may begin with: https://prometheus.io/docs/concepts/data_model/."""
    if not re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", text):
        raise ValueError("must be letters, digits, _ and :, and not begin with a digit")
    return text


def traces_url(text: str) -> str:
    """The path is OTLP's own where none is given: https://opentelemetry.io/docs/specs/otlp/#otlphttp-request."""
    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError("must be a URL such as http://127.0.0.1:4318/v1/traces")
    return text if url.path.strip("/") else urlunsplit(url._replace(path="/v1/traces"))


def nonempty(text: str) -> str:
    """As given: an unset variable of a shell must not pass for no option."""
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def nonempty_list(text: str) -> str:
    """As given; `split_list` takes it apart."""
    if not split_list((text,)):
        raise ValueError("must not be empty")
    return text


def origins(text: str) -> str:
    """As given, each `*` or as browsers send it; `split_list` takes it apart. https://www.rfc-editor.org/rfc/rfc6454#section-7"""
    for origin in split_list((text,)):
        url = urlsplit(origin)
        is_origin = url.scheme and url.netloc and origin == f"{url.scheme}://{url.netloc.lower()}"
        if origin not in ("*", "null") and not is_origin:
            raise ValueError(f"{origin} is not *, nor an origin such as https://lite.koboldai.net")
    return text


def indices(text: str) -> str:
    """`0,2`: stays text, so that it is written on a command line as it was read; `split_indices` takes it apart."""
    split_indices(text)
    return text


def split_indices(text: str) -> tuple[int, ...]:
    entries = [entry.strip() for entry in text.split(",")]
    if not all(entry.isdecimal() for entry in entries) or len({*map(int, entries)}) < len(entries):
        raise ValueError("must be different numbers such as 0,1")
    return tuple(map(int, entries))


def split_list(texts: Sequence[str]) -> tuple[str, ...]:
    """`a b`, `a,b` or, as other servers' flags have it, `["a", "b"]`."""
    found: list[str] = []
    for text in texts:
        found += _json_list(text) if text.startswith("[") else text.split(",")
    return tuple(entry.strip() for entry in found if entry.strip())


def _json_list(text: str) -> list[str]:
    try:
        found = json.loads(text)
    except ValueError:
        return [text]
    return found if all(isinstance(entry, str) for entry in found) else [text]


_BYTE_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def num_bytes(text: str) -> int:
    """`4096`, `512M`, `1.5G`, `2GiB`: binary units."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError("must be a size such as 512M or 4G")
    return int(float(match[1]) * _BYTE_UNITS[match[2].upper()])


def some_bytes(text: str) -> int:
    value = num_bytes(text)
    if value == 0:
        raise ValueError("must be more than 0")
    return value
