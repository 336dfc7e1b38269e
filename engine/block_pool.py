"""Who holds which KV block, and which blocks hold a known prefix. Ids only, no tensors.

A block is in exactly one of three states, and `check()` proves it:

    free ──allocate──> referenced ──last free, no hash──> free
                        │      ▲
     last free, hashed  ▼      │ match
                       evictable ──evicted by allocate──> referenced by another
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from .free_runs import FreeRuns


class BlockPool:
    """Reference counts and a hash-chained prefix cache over `num_blocks` blocks of `block_size` tokens.

    Whoever uses a block holds a reference: a sequence, a transfer, a pending copy. Cached blocks that nobody
    references are evicted least recently used first.
    """

    def __init__(self, num_blocks: int, block_size: int, enable_prefix_caching: bool = True):
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a pool of {num_blocks} blocks of {block_size} tokens")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._references = [0] * num_blocks
        self._free = FreeRuns(num_blocks)
        self._evictable: dict[int, None] = {}  # least recently used first
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` could give now, evictable ones included."""
        return len(self._free) + len(self._evictable)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """The cached blocks of the longest known prefix of `hashes`, each with one reference more."""
        matched: list[int] = []
        for digest in hashes:
            if digest not in self._block_of:
                break
            matched.append(self._block_of[digest])
        for block in matched:
            self._evictable.pop(block, None)
            self._references[block] += 1
        return matched

    def allocate(self, num_blocks: int, after: int | None = None) -> list[int] | None:
        """Blocks with one reference each, going on from block `after` where that is free; None if there are not
        so many."""
        if num_blocks > self.num_free:
            return None
        for _ in range(num_blocks - len(self._free)):
            self._evict()
        blocks = self._free.take(num_blocks, after)
        for block in blocks:
            self._references[block] = 1
        return blocks

    def share(self, block_ids: Iterable[int]) -> None:
        """One reference more for blocks that have one."""
        for block in block_ids:
            assert self._references[block] > 0, f"block {block} is not in use"
            self._references[block] += 1

    def free(self, block_ids: Sequence[int]) -> None:
        """Gives back one reference to each. The last block goes first, so that a prefix outlives its suffix."""
        for block in reversed(block_ids):
            assert self._references[block] > 0, f"block {block} is freed twice"
            self._references[block] -= 1
            if self._references[block] == 0:
                self._let_go(block)

    def commit(self, block_id: int, digest: bytes) -> None:
        """The KV of this referenced block is complete and is that of `digest`. A second block with the same digest
        stays out of the cache."""
        assert self._references[block_id] > 0, f"block {block_id} is not in use"
        if not self.enable_prefix_caching or digest in self._block_of:
            return
        assert block_id not in self._hash_of, f"block {block_id} was committed as something else"
        self._hash_of[block_id] = digest
        self._block_of[digest] = block_id

    def check(self, tables: Iterable[Iterable[int]] | None = None) -> None:
        """Every block is in exactly one state. With `tables`, all there are, its references are their entries.
        Raises AssertionError. O(pool)."""
        states = Counter([*self._free.blocks(), *self._evictable])
        states.update(block for block, count in enumerate(self._references) if count)
        assert sorted(states.items()) == [(block, 1) for block in range(self.num_blocks)], "a block in no or two states"
        assert self._block_of == {digest: block for block, digest in self._hash_of.items()}, (
            "the cache contradicts itself"
        )
        assert all((block in self._evictable) == (not self._references[block]) for block in self._hash_of)
        assert self._evictable.keys() <= self._hash_of.keys(), "an evictable block without a hash"
        if tables is not None:
            held = Counter(block for table in tables for block in table)
            counts = {block: count for block, count in enumerate(self._references) if count}
            assert held == counts, f"references {counts}, held {dict(held)}"

    def _let_go(self, block: int) -> None:
        if block in self._hash_of:
            self._evictable[block] = None
        else:
            self._free.add(block)

    def _evict(self) -> None:
        block = next(iter(self._evictable))
        del self._evictable[block]
        del self._block_of[self._hash_of.pop(block)]
        self._free.add(block)
