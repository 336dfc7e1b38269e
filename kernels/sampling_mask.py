"""logits[r, i] = −inf where the mask of row r's slot has no bit for id i.

    logits fp32 [B, V] (contiguous, changed in place), slots int32 [B], −1 for padding, MaskTable

Rows of slots without a mask are left alone, and their programs return at once, so a captured graph serves any mix.
"""

# mypy: allow-incomplete-defs

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import launches
from .samplers import mask_tokens

_TILE = 4096
_SLOT_WORDS = 2
"""Of a slot's number."""


class MaskTable:
    """`masks` int32 [S, W]: which tokens may be drawn where `is_masked` int32 [S], bit i of word i // 32 for id i; of
    the W words the first ceil(V / 32) count."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device | str) -> None:
        self.vocab_size = vocab_size
        self.num_words = -(-vocab_size // 32)
        width = self.num_words + self.num_words % 2  # so that a slot's number, of 8 bytes, may stand after its mask
        self.masks = torch.zeros(num_slots, width, dtype=torch.int32, device=device)
        self.is_masked = torch.zeros(num_slots, dtype=torch.int32, device=device)
        self._masked: set[int] = set()

    def set_masks(self, slots: Sequence[int], masks: Sequence[np.ndarray]) -> None:
        """Of each slot, int32 or uint32 [ceil(V / 32)], until another is set, or none. Ordered on the current stream,
        without waiting: torch's allocator keeps the pinned memory until it is copied."""
        width = self.masks.shape[1]
        packed = torch.empty(len(slots), width + _SLOT_WORDS, dtype=torch.int32, pin_memory=self.masks.is_cuda)
        rows = packed.numpy()
        for row, slot, mask in zip(rows, slots, masks, strict=True):
            row[: self.num_words] = mask.view(np.int32)
            row[width:].view(np.int64)[0] = slot
        on_device = packed.to(self.masks.device, non_blocking=True)
        places = on_device[:, width:].view(torch.int64)[:, 0]
        self.masks.index_copy_(0, places, on_device[:, :width])
        if not self._masked.issuperset(slots):
            self._masked.update(slots)
            self.is_masked.index_fill_(0, places, 1)

    def clear_mask(self, slot: int) -> None:
        if slot in self._masked:
            self._masked.remove(slot)
            self.is_masked[slot].zero_()


def apply_masks(logits: Tensor, slots: Tensor, table: MaskTable) -> Tensor:
    """`logits`, changed. Raises ValueError for wrong shapes, dtypes or layouts."""
    _check(logits, slots, table)
    if not launches(logits):
        return logits.copy_(ref_apply_masks(logits, slots, table))
    num_rows, vocab_size = logits.shape
    if num_rows:
        _apply[(triton.cdiv(vocab_size, _TILE), num_rows)](
            logits, slots, table.masks, table.is_masked, vocab_size, table.masks.shape[1], TILE=_TILE, num_warps=8
        )
    return logits


def ref_apply_masks(logits: Tensor, slots: Tensor, table: MaskTable) -> Tensor:
    """A copy of `logits` with the masks applied, in plain torch."""
    at = slots.long().clamp(min=0)
    is_masked = (slots >= 0) & (table.is_masked[at] != 0)
    return torch.where(is_masked[:, None], mask_tokens(logits, table.masks[at, : table.num_words]), logits)


@triton.jit(do_not_specialize=["num_words"], do_not_specialize_on_alignment=["slots"])
def _apply(logits, slots, masks, is_masked, V, num_words, TILE: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    if slot < 0:
        return
    if tl.load(is_masked + slot) == 0:
        return
    ids = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = ids < V
    words = tl.load(masks + slot * num_words + (ids >> 5), mask=inside, other=-1)
    tl.store(logits + row * V + ids, float("-inf"), mask=inside & (((words >> (ids & 31)) & 1) == 0))


def _check(logits: Tensor, slots: Tensor, table: MaskTable) -> None:
    if logits.dim() != 2 or logits.dtype != torch.float32 or not logits.is_contiguous():
        raise ValueError(f"logits must be contiguous fp32 [B, V], not {logits.dtype} {tuple(logits.shape)}")
    if logits.shape[1] != table.vocab_size:
        raise ValueError(f"{logits.shape[1]} logits, table for {table.vocab_size}")
    if slots.shape != logits.shape[:1] or slots.dtype != torch.int32 or not slots.is_contiguous():
        raise ValueError(f"slots must be contiguous int32 [{len(logits)}], not {slots.dtype} {tuple(slots.shape)}")
