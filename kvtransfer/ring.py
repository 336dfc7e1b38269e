"""Which bytes of a landing segment are in use: areas are taken in order and given back in the same order."""

from collections import deque

ALIGNMENT = 64


class Ring:
    """Areas within `num_bytes`, each contiguous. Pure."""

    def __init__(self, num_bytes: int):
        self.num_bytes = num_bytes
        self._areas: deque[tuple[int, int]] = deque()  # (start, end), oldest first
        self._num_released = 0

    def __len__(self) -> int:
        """Areas in use."""
        return len(self._areas)

    def allocate(self, num_bytes: int) -> int | None:
        """The offset of a new area; None while there is no room. Raises ValueError if there never will be."""
        size = max(1, -(-num_bytes // ALIGNMENT)) * ALIGNMENT
        if size > self.num_bytes:
            raise ValueError(f"an area of {num_bytes} bytes does not fit a segment of {self.num_bytes}")
        start = self._find(size)
        if start is not None:
            self._areas.append((start, start + size))
        return start

    def _find(self, size: int) -> int | None:
        if not self._areas:
            return 0
        tail, head = self._areas[0][0], self._areas[-1][1]
        if head <= tail:
            return head if head + size <= tail else None
        if head + size <= self.num_bytes:
            return head
        return 0 if size <= tail else None

    def release_until(self, num_released: int) -> None:
        """The first `num_released` areas ever allocated are free. Raises ValueError if there were not so many."""
        if not self._num_released <= num_released <= self._num_released + len(self._areas):
            raise ValueError(f"{num_released} areas released, of {self._num_released + len(self._areas)} ever taken")
        while self._num_released < num_released:
            self._areas.popleft()
            self._num_released += 1
