"""What the two ends of a pair say to each other, beside the KV itself.

    receiver --PoolOffer | GroupOffer--> sender                     as soon as they are connected
    sender --Join--> receiver                                       where both then build a communicator
    sender --Claim--> receiver --Granted | Refused--> sender         once for each transfer
    sender --Landed | Coming, …--> receiver                         once for each piece
    receiver --Revoke--> sender --Drained--> receiver               where it ends early

Between Granted and the last piece, or Drained, or Broken, or the sender's death, the transfer's blocks are the
sender's to write.
"""

import msgspec
from msgspec import Struct

from ..wire.codec import Decoder
from ..wire.messages import KvPiece
from .connection import MAX_MESSAGE_BYTES
from .device_pool import Geometry

encode = msgspec.msgpack.Encoder().encode


# Receiver to sender.


class PoolOffer(Struct, frozen=True, tag="pool_offer"):
    """A pool that the sender may map and store into."""

    boot_id: str
    """Of the host: handles mean nothing elsewhere."""
    geometry: Geometry
    handle: bytes
    offset: int
    """Where the pool begins within the memory of the handle."""


class GroupOffer(Struct, frozen=True, tag="group_offer"):
    """A communicator of two that the sender may join as rank 0."""

    device_id: str
    geometry: Geometry
    blocks_a_slice: int
    """Pieces are sent in slices of so many blocks."""
    store_port: int
    """Of the TCPStore, on the host that the sender has connected to."""
    name: str


class Granted(Struct, frozen=True, tag="granted"):
    transfer_id: str
    block_ids: tuple[int, ...]
    """In the receiver's pool, one a block of the transfer."""


class Refused(Struct, frozen=True, tag="refused"):
    """The transfer is not expected, or not any more: what there is of it is to be dropped."""

    transfer_id: str


class Revoke(Struct, frozen=True, tag="revoke"):
    """Write no more of it, and say when that is so."""

    transfer_id: str


# Sender to receiver.


class Join(Struct, frozen=True, tag="join"):
    """The offer is accepted."""


class Claim(Struct, frozen=True, tag="claim"):
    transfer_id: str


class Landed(Struct, frozen=True, tag="landed"):
    """The blocks of a piece are in the pool."""

    piece: KvPiece
    tail: tuple[bytes, ...] = ()


class Coming(Struct, frozen=True, tag="coming"):
    """The blocks of a piece are what the communicator carries next; always, whatever became of the transfer."""

    piece: KvPiece
    tail: tuple[bytes, ...] = ()


class Drained(Struct, frozen=True, tag="drained"):
    """Nothing of the transfer is written any more."""

    transfer_id: str


class Broken(Struct, frozen=True, tag="broken"):
    """It cannot be sent, and nothing of it is written any more."""

    transfer_id: str
    error: str


ToSender = PoolOffer | GroupOffer | Granted | Refused | Revoke
ToReceiver = Join | Claim | Landed | Coming | Drained | Broken

decode_for_sender: Decoder[ToSender] = Decoder(ToSender, MAX_MESSAGE_BYTES)
decode_for_receiver: Decoder[ToReceiver] = Decoder(ToReceiver, MAX_MESSAGE_BYTES)
