"""A landing segment: memory of a receiver that one sender writes and nobody else, and what is said about it.

    sender --connects--> receiver --Segment, with the memfd--> sender --Landed, …--> receiver --Taken--> sender

The segment is the sender's to write for as long as the socket between them is open. So bytes that a paused sender
writes late fall into its own segment, whatever became of the transfer: they reach a pool only by `Landed` and only
while the transfer is registered.
"""

import fcntl
import mmap
import os
import socket
import struct
from typing import TypeVar

import msgspec
from msgspec import Struct

from ..wire.codec import ProtocolError
from ..wire.messages import KvPiece

SCHEME = "shm:"
MAX_MESSAGE_BYTES = 1 << 16
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid

Message = TypeVar("Message")


class Segment(Struct, frozen=True, tag="segment"):
    """First message to a sender, with the descriptor of its segment."""

    num_bytes: int


class Landed(Struct, frozen=True, tag="landed"):
    """The bytes of a piece, blocks then tail tensors, are in the segment."""

    piece: KvPiece
    offset: int
    num_bytes: int
    """Of the blocks."""
    tail_bytes: tuple[int, ...] = ()


class Taken(Struct, frozen=True, tag="taken"):
    """The bytes of the first `num_pieces` pieces announced on this connection are needed no more."""

    num_pieces: int


encode = msgspec.msgpack.Encoder().encode
_to_sender = msgspec.msgpack.Decoder(Segment | Taken)
_to_receiver = msgspec.msgpack.Decoder(Landed)


def decode_for_sender(payload: bytes) -> Segment | Taken:
    """Raises ProtocolError."""
    return _decode(_to_sender, payload)


def decode_for_receiver(payload: bytes) -> Landed:
    """Raises ProtocolError."""
    return _decode(_to_receiver, payload)


def _decode(decoder: msgspec.msgpack.Decoder[Message], payload: bytes) -> Message:
    try:
        return decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"undecodable message of {len(payload)} bytes: {error}") from error


def create_segment(num_bytes: int) -> tuple[int, mmap.mmap]:
    """(descriptor, mapping to read) of new memory, all of it present. Raises OSError if there is not as much.

    Its size is sealed, so that neither end can make the other fault.
    """
    descriptor = os.memfd_create("isthmus-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(descriptor, 0, num_bytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _seals())
        return descriptor, _map(descriptor, num_bytes, mmap.PROT_READ)
    except BaseException:
        os.close(descriptor)
        raise


def open_segment(descriptor: int, num_bytes: int) -> mmap.mmap:
    """Maps, to write, a segment that came from a peer. Raises OSError or ValueError if it is not one that stays as it
    is."""
    if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _seals() != _seals():
        raise ValueError("the segment's size is not sealed")
    if os.fstat(descriptor).st_size != num_bytes:
        raise ValueError(f"the segment has not {num_bytes} bytes")
    return _map(descriptor, num_bytes, mmap.PROT_READ | mmap.PROT_WRITE)


def _seals() -> int:
    return fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def _map(descriptor: int, num_bytes: int, protection: int) -> mmap.mmap:
    """With all its pages, so that no transfer waits for page faults."""
    return mmap.mmap(descriptor, num_bytes, mmap.MAP_SHARED | mmap.MAP_POPULATE, protection)


def peer_is_us(peer: socket.socket) -> bool:
    """Whether the process at the other end runs as the same user."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(credentials)[1] == os.getuid())


def socket_address(endpoint: str) -> bytes:
    """Of the abstract Unix socket: such a name needs no file, and ends with its process."""
    assert endpoint.startswith(SCHEME)
    return b"\0" + endpoint.removeprefix(SCHEME).encode()
