"""Which slot of the device's tables each sequence has, and the blocks that the device knows of it.

Rows 0 … num_slots − 1 of `block_tables` belong to admitted sequences, which keep theirs and tell the device of new
blocks alone. The rows after them are for one step's chunks of prompts, in two halves that steps use in turn: one is
written while the step before may still read the other.
"""

from collections.abc import Sequence

import torch

from ..plan import Row
from .runtime import Runtime


class Sequences:
    def __init__(self, runtime: Runtime, num_slots: int, max_chunks: int, *, num_blocks: int, block_size: int) -> None:
        """At most `max_chunks` chunks in a step, `num_blocks` blocks in a sequence."""
        self.num_slots, self._max_chunks, self._block_size = num_slots, max_chunks, block_size
        num_rows = num_slots + 2 * max_chunks
        self.block_tables = torch.zeros(num_rows, num_blocks, dtype=torch.int32, device=runtime.device)
        self._host = runtime.pinned(num_rows, num_blocks)
        self._numpy = self._host.numpy()
        self._free = list(range(num_slots - 1, -1, -1))
        self._slots: dict[int, int] = {}
        self._known: list[list[int]] = [[] for _ in range(num_slots)]
        """Blocks of each slot that the device has been told of."""
        self.taken: list[int] = []
        """Blocks that are new in the step that is being launched, or are begun in it."""
        self.first_rows: list[Row] = []
        """Of the step that is being launched, those of sequences of which the device knew no block."""

    def admit(self, seq_id: int) -> int:
        """Its slot."""
        assert seq_id not in self._slots
        slot = self._slots[seq_id] = self._free.pop()
        self._known[slot] = []
        return slot

    def retire(self, seq_id: int) -> int:
        slot = self._slots.pop(seq_id)
        self._free.append(slot)
        return slot

    @property
    def num_admitted(self) -> int:
        return len(self._slots)

    def __contains__(self, seq_id: int) -> bool:
        """Whether it is admitted."""
        return seq_id in self._slots

    def reading_from(self, row: Row) -> list[int]:
        """Slots whose sequences have the block of the token before the row, too: it goes on where they have been."""
        if not row.start:
            return []
        index = (row.start - 1) // self._block_size
        block = row.block_table[index]
        return [slot for slot in self._slots.values() if self._known[slot][index : index + 1] == [block]]

    def blocks(self, slot: int) -> Sequence[int]:
        """That the device knows of it; of a sequence that has been retired, until the slot is taken."""
        return self._known[slot]

    def slot(self, seq_id: int) -> int:
        return self._slots[seq_id]

    def begin_step(self) -> None:
        """Another one is launched, of which nothing is known yet."""
        self.taken.clear()
        self.first_rows.clear()

    def new_block(self, slot: int, row: Row) -> tuple[int, int]:
        """(index in its table, block) of the one block that the device does not know yet, for the step to store; else
        (−1, 0). More than one are uploaded here. The last blocks may be others than before: wrong guesses give theirs
        back."""
        known, table = self._known[slot], row.block_table
        if row.start % self._block_size == 0:  # maybe one that was given back, and was another's meanwhile
            self.taken.append(table[row.start // self._block_size])
        if len(known) == len(table) and known[-1] == table[-1]:
            return -1, 0
        del known[len(table) :]
        while known and known[-1] != table[len(known) - 1]:
            known.pop()
        first = len(known)
        known += table[first:]
        self.taken += table[first:]
        if not first:
            self.first_rows.append(row)
        if len(known) > first + 1:
            self._upload(slot, table, first)
        return (first, table[first]) if len(known) == first + 1 else (-1, 0)

    def chunk_row(self, step_parity: int, index: int, row: Row) -> int:
        """The row of `block_tables` that chunk `index` of a step has, uploaded."""
        assert index < self._max_chunks, "more chunks in a step than the engine was made for"
        place = self.num_slots + step_parity * self._max_chunks + index
        self._upload(place, row.block_table, 0)
        return place

    def _upload(self, place: int, table: Sequence[int], first: int) -> None:
        end = len(table)
        self._numpy[place, first:end] = table[first:end]
        self.block_tables[place, first:end].copy_(self._host[place, first:end], non_blocking=True)
