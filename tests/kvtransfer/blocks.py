"""Blocks whose bytes say whose they are, and pools that notice what must not happen to them."""

from collections.abc import Mapping

from isthmus.kvtransfer.transport import Piece

BLOCK = 1024


def content(transfer_id: str, block: int) -> bytes:
    """No two blocks are alike, whatever their transfers are."""
    return f"{transfer_id}:{block}|".encode().ljust(BLOCK, bytes([block % 251]))


class Source:
    """The sender's side of a transfer: reading it after `gone` is set fails the test."""

    def __init__(self, transfer_id: str):
        self.transfer_id = transfer_id
        self.gone = False

    def read(self, first_block: int, num_blocks: int, out: memoryview | None) -> memoryview:
        assert not self.gone, f"{self.transfer_id} is read after its end"
        payload = b"".join(content(self.transfer_id, first_block + i) for i in range(num_blocks))
        if out is None:
            return memoryview(payload)
        assert len(out) == len(payload)
        out[:] = payload
        return out

    def piece(
        self, first_block: int, num_blocks: int, last: bool = False, tail: Mapping[str, bytes] | None = None
    ) -> Piece:
        views = {name: memoryview(tensor) for name, tensor in (tail or {}).items()}
        block_ids = self.place(first_block, num_blocks)
        return Piece(first_block, num_blocks, BLOCK, self.read, last, views, block_ids)

    def place(self, first_block: int, num_blocks: int) -> list[int]:
        """Their ids in the sender's pool, where there is one."""
        return []


class Target:
    """The receiver's side: storing after `gone` is set, twice, or other bytes than the transfer's fails the test."""

    def __init__(self, transfer_id: str, num_blocks: int):
        self.transfer_id = transfer_id
        self.blocks: list[bytes | None] = [None] * num_blocks
        self.gone = False

    def store(self, first_block: int, num_blocks: int, payload: memoryview) -> None:
        assert not self.gone, f"{self.transfer_id} is stored after its end"
        if len(payload) != num_blocks * BLOCK:
            raise ValueError(f"{len(payload)} bytes for {num_blocks} blocks")
        for i in range(num_blocks):
            assert self.blocks[first_block + i] is None, "stored twice"
            self.blocks[first_block + i] = bytes(payload[i * BLOCK : (i + 1) * BLOCK])

    @property
    def whole(self) -> bool:
        return self.blocks == [content(self.transfer_id, block) for block in range(len(self.blocks))]
