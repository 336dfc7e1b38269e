"""Free block ids, kept as maximal ascending runs: attention over one contiguous run needs no gather."""


class FreeRuns:
    """A set of block ids in which taking and adding cost O(1) per run touched; nothing scans the pool."""

    def __init__(self, num_blocks: int):
        self._end: dict[int, int] = {}  # first block of a run -> one past its last
        self._first: dict[int, int] = {}  # one past the last block of a run -> its first
        # Bucket k holds the first blocks of runs of 2^(k-1) … 2^k - 1 blocks.
        self._buckets: list[dict[int, None]] = [{} for _ in range(num_blocks.bit_length() + 1)]
        self._num_blocks = 0
        self._insert(0, num_blocks)

    def __len__(self) -> int:
        return self._num_blocks

    def blocks(self) -> list[int]:
        """All of them, ascending within a run. O(pool): for checks."""
        return [block for first, end in self._end.items() for block in range(first, end)]

    def add(self, block_id: int) -> None:
        first, end = block_id, block_id + 1
        if block_id in self._first:
            first = self._first[block_id]
            self._remove(first)
        if end in self._end:
            right = end
            end = self._end[right]
            self._remove(right)
        self._insert(first, end)

    def take(self, num_blocks: int, after: int | None = None) -> list[int]:
        """`num_blocks` ids (as many must be free), in as few ascending runs as is cheap, the first going on from
        `after` where that block is free."""
        assert num_blocks <= len(self)
        taken: list[int] = []
        while len(taken) < num_blocks:
            taken += self._take_run(num_blocks - len(taken), after)
            after = taken[-1]
        return taken

    def _take_run(self, wanted: int, after: int | None) -> range:
        first = self._largest() if after is None or after + 1 not in self._end else after + 1
        size = self._end[first] - first
        count = min(wanted, size)
        # A new run begins halfway into the free one, so that both it and what lies before it can grow.
        at = first if first == 0 or first - 1 == after else first + (size - count) // 2
        self._cut(first, at, at + count)
        return range(at, at + count)

    def _largest(self) -> int:
        return next(iter(next(bucket for bucket in reversed(self._buckets) if bucket)))

    def _cut(self, first: int, start: int, stop: int) -> None:
        end = self._end[first]
        self._remove(first)
        if first < start:
            self._insert(first, start)
        if stop < end:
            self._insert(stop, end)

    def _insert(self, first: int, end: int) -> None:
        self._end[first] = end
        self._first[end] = first
        self._buckets[(end - first).bit_length()][first] = None
        self._num_blocks += end - first

    def _remove(self, first: int) -> None:
        end = self._end.pop(first)
        del self._first[end]
        del self._buckets[(end - first).bit_length()][first]
        self._num_blocks -= end - first
