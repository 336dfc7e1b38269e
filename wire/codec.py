"""Bytes to messages and back. Whatever does not decode raises ProtocolError and nothing else."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np

from .messages import MAX_CONTROL_BYTES, FromRouter, FromWorker, KvPiece

Message = TypeVar("Message")

encode = msgspec.msgpack.Encoder().encode


class ProtocolError(ValueError):
    """A peer sent something that is no message of this protocol."""


class Decoder(Generic[Message]):
    """Decodes one direction's messages, of at most `max_bytes` each."""

    def __init__(self, union: Any, max_bytes: int = MAX_CONTROL_BYTES):
        self._decode: Callable[[bytes | memoryview], Message] = msgspec.msgpack.Decoder(union).decode
        self._max_bytes = max_bytes

    def __call__(self, payload: bytes | memoryview) -> Message:
        size = len(payload)
        if size > self._max_bytes:
            raise ProtocolError(f"message of {size} bytes, the limit is {self._max_bytes}")
        try:
            return self._decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"undecodable message of {size} bytes: {error}") from error


decode_from_worker: Decoder[FromWorker] = Decoder(FromWorker)
decode_from_router: Decoder[FromRouter] = Decoder(FromRouter)
decode_kv_header: Decoder[KvPiece] = Decoder(KvPiece, max_bytes=1 << 16)


def pack_ids(token_ids: Sequence[int] | np.ndarray) -> bytes:
    """Token ids as little-endian int32."""
    return np.asarray(token_ids, dtype="<i4").tobytes()


def unpack_ids(payload: bytes) -> list[int]:
    """Raises ProtocolError if the length is no multiple of four."""
    if len(payload) % 4:
        raise ProtocolError(f"{len(payload)} bytes are no int32 token ids")
    ids: list[int] = np.frombuffer(payload, dtype="<i4").tolist()
    return ids
