"""Blocks of transfers that have ended here, which their peers may still write."""

from ..engine.block_pool import BlockPool

PATIENCE_S = 0.5
"""They come back in milliseconds; not for longer than this does a sequence wait for them."""


class Quarantine:
    def __init__(self, pool: BlockPool):
        self._pool = pool
        self._held: dict[str, tuple[list[int], float]] = {}  # transfer_id -> blocks, since when

    def __contains__(self, transfer_id: str) -> bool:
        return transfer_id in self._held

    def __bool__(self) -> bool:
        return bool(self._held)

    @property
    def blocks(self) -> list[list[int]]:
        """By transfer."""
        return [blocks for blocks, _ in self._held.values()]

    def put(self, transfer_id: str, blocks: list[int], now: float) -> None:
        self._held[transfer_id] = blocks, now

    def release(self, transfer_id: str) -> None:
        """Nobody writes them any more. Raises KeyError for a transfer that has none here."""
        blocks, _ = self._held.pop(transfer_id)
        self._pool.free(blocks)

    def ends_soon(self, now: float) -> bool:
        """For some of them."""
        return any(now - since < PATIENCE_S for _, since in self._held.values())
