"""logits[r, i] = −inf where the mask of row r's slot has no bit for id i.

    logits fp32 [B, V] (contiguous, changed in place), slots int32 [B], −1 for padding, MaskTable

Rows of slots without a mask are left alone, and their programs return at once, so a captured graph serves any mix.
"""

# mypy: allow-incomplete-defs

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import launches
from .mask_staging import MaskStaging
from .samplers import mask_tokens

_TILE = 4096
_NO_MASK, _OWN_MASK = -1, -2
"""Of a slot, in place of the number of its mask."""


class SlotMask(NamedTuple):
    turn: int
    slot: int
    words: np.ndarray
    """int32 or uint32 [ceil(V / 32)]: bit i of word i // 32 for id i."""


class MaskTable:
    """Each slot may have a mask of its own, which stays, and for what is drawn next another one in each of T turns, in
    which a token of every row is drawn. That one counts, then."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device | str, num_turns: int = 1) -> None:
        self.vocab_size = vocab_size
        self.num_words = -(-vocab_size // 32)
        self.own = torch.zeros(num_slots, self.num_words, dtype=torch.int32, device=device)
        """int32 [S, ceil(V / 32)]"""
        self._owners: set[int] = set()
        self._staging = MaskStaging(num_turns * num_slots, self.num_words, device)
        self._numbers = np.full((num_turns, num_slots), _NO_MASK, np.int32)
        self._is_told = False
        """The device knows that nobody has but its own mask."""
        self.set(())

    @property
    def staged(self) -> Tensor:
        """int32 [T · S, ceil(V / 32)]"""
        return self._staging.rows

    def numbers(self, turn: int) -> Tensor:
        """int32 [S]: where in `staged` the mask of each slot is; negative if it has its own, or none."""
        num_slots = len(self.own)
        return self._staging.numbers[turn * num_slots : (turn + 1) * num_slots]

    def keep(self, slot: int, words: np.ndarray) -> None:
        """The slot's own mask, int32 [ceil(V / 32)], from the next `set` on."""
        host = torch.empty(self.num_words, dtype=torch.int32, pin_memory=self.own.is_cuda)
        host.numpy()[:] = words
        self.own[slot].copy_(host, non_blocking=True)
        self._owners.add(slot)
        self._numbers[:, slot] = _OWN_MASK
        self._is_told = False

    def clear(self, slot: int) -> None:
        """It has none of its own any more, from the next `set` on."""
        if slot in self._owners:
            self._owners.remove(slot)
            self._numbers[:, slot] = _NO_MASK
            self._is_told = False

    def set(self, masks: Sequence[SlotMask]) -> None:
        """Those of what is drawn next: others have but their own. Once a step, of which two are in flight at most.
        Ordered on the current stream, without waiting."""
        if not masks and self._is_told:
            return
        num_slots = self._numbers.shape[1]
        places = [turn * num_slots + slot for turn, slot, _ in masks]
        self._staging.upload(self._numbers.reshape(-1), places, [words for _, _, words in masks])
        self._is_told = not masks


def apply_masks(logits: Tensor, slots: Tensor, table: MaskTable, turn: int = 0) -> Tensor:
    """`logits`, changed. Raises ValueError for wrong shapes, dtypes or layouts."""
    _check(logits, slots, table)
    if not launches(logits):
        return logits.copy_(ref_apply_masks(logits, slots, table, turn))
    num_rows, vocab_size = logits.shape
    if num_rows:
        _apply[(triton.cdiv(vocab_size, _TILE), num_rows)](
            logits,
            slots,
            table.numbers(turn),
            table.staged,
            table.own,
            vocab_size,
            table.num_words,
            NO_MASK=_NO_MASK,
            TILE=_TILE,
            num_warps=8,
        )
    return logits


def ref_apply_masks(logits: Tensor, slots: Tensor, table: MaskTable, turn: int = 0) -> Tensor:
    """A copy of `logits` with the masks applied, in plain torch."""
    at = slots.long().clamp(min=0)
    number = table.numbers(turn)[at].long()
    masks = torch.where((number >= 0)[:, None], table.staged[number.clamp(min=0)], table.own[at])
    is_masked = (slots >= 0) & (number != _NO_MASK)
    return torch.where(is_masked[:, None], mask_tokens(logits, masks), logits)


@triton.jit(do_not_specialize=["num_words"], do_not_specialize_on_alignment=["slots", "numbers"])
def _apply(logits, slots, numbers, staged, own, V, num_words, NO_MASK: tl.constexpr, TILE: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    if slot < 0:
        return
    number = tl.load(numbers + slot).to(tl.int64)
    if number == NO_MASK:
        return
    mask = tl.where(number >= 0, staged + number * num_words, own + slot * num_words)
    ids = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = ids < V
    words = tl.load(mask + (ids >> 5), mask=inside, other=-1)
    tl.store(logits + row * V + ids, float("-inf"), mask=inside & (((words >> (ids & 31)) & 1) == 0))


def _check(logits: Tensor, slots: Tensor, table: MaskTable) -> None:
    if logits.dim() != 2 or logits.dtype != torch.float32 or not logits.is_contiguous():
        raise ValueError(f"logits must be contiguous fp32 [B, V], not {logits.dtype} {tuple(logits.shape)}")
    if logits.shape[1] != table.vocab_size:
        raise ValueError(f"{logits.shape[1]} logits, table for {table.vocab_size}")
    if slots.shape != logits.shape[:1] or slots.dtype != torch.int32 or not slots.is_contiguous():
        raise ValueError(f"slots must be contiguous int32 [{len(logits)}], not {slots.dtype} {tuple(slots.shape)}")
