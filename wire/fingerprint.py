"""Whether two workers may exchange KV, and a sentence about it if not."""

from hashlib import blake2b

import msgspec

from .messages import Fingerprint

NAMES = {
    "weights": "weights",
    "tokenizer": "tokenizer",
    "rope": "rotary embedding",
    "num_layers": "number of layers",
    "vocab_size": "vocabulary size",
    "block_size": "block size",
    "layout": "KV layout",
}


def mismatch(expected: Fingerprint, given: Fingerprint) -> str | None:
    """None if they agree, else what differs, with both values."""
    differing = [
        f"{name} {_short(getattr(given, field))} where this router serves {_short(getattr(expected, field))}"
        for field, name in NAMES.items()
        if getattr(expected, field) != getattr(given, field)
    ]
    return "the worker has another model: " + "; ".join(differing) if differing else None


def digest(*parts: bytes) -> str:
    """A short name for these bytes: 128-bit BLAKE2b over each part and its length, in hex."""
    state = blake2b(digest_size=16)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.hexdigest()


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return digest(msgspec.msgpack.encode(value))[:12]
    return str(value)
