"""Masks take away exactly the tokens whose bit is not set, in rows of slots that have one."""

import numpy as np
import pytest
import torch
from isthmus.kernels.sampling_mask import MaskTable, apply_masks, ref_apply_masks


def check(device, vocab_size, apply=apply_masks):
    """Slots 1 and 4 of 5 are masked; rows are slots 4, padding, 1, 0."""
    rng = np.random.default_rng(vocab_size)
    table = MaskTable(5, vocab_size, device)
    allowed = rng.random((2, vocab_size)) < 0.3
    words = np.zeros((2, -(-vocab_size // 32) * 4), np.uint8)
    words[:, : -(-vocab_size // 8)] = np.packbits(allowed, axis=1, bitorder="little")
    table.set_masks([4, 1], words.view(np.uint32))
    logits = torch.randn(4, vocab_size, device=device)
    slots = torch.tensor([4, -1, 1, 0], dtype=torch.int32, device=device)
    before = logits.cpu()
    after = apply(logits, slots, table).cpu()
    for row, mask in ((0, allowed[0]), (2, allowed[1])):
        assert torch.equal(after[row] == -torch.inf, torch.from_numpy(~mask))
        assert torch.equal(after[row][mask], before[row][mask])
    assert torch.equal(after[[1, 3]], before[[1, 3]])


@pytest.mark.parametrize("vocab_size", [1, 31, 100, 4099])
def test_reference(vocab_size):
    check("cpu", vocab_size, ref_apply_masks)


@pytest.mark.interpreter
@pytest.mark.parametrize("vocab_size", [1, 32, 100, 4099])
def test_interpreted(vocab_size):
    check("cpu", vocab_size)


@pytest.mark.gpu
@pytest.mark.parametrize("vocab_size", [1, 33, 4096, 49_153, 128_256])
def test_compiled(vocab_size):
    check("cuda", vocab_size)


def test_wrong_arguments_are_refused():
    table = MaskTable(2, 40, "cpu")
    slots = torch.zeros(2, dtype=torch.int32)
    with pytest.raises(ValueError, match="logits must be"):
        apply_masks(torch.zeros(2, 40, dtype=torch.float64), slots, table)
    with pytest.raises(ValueError, match="41 logits"):
        apply_masks(torch.zeros(2, 41), slots, table)
    with pytest.raises(ValueError, match="slots must be"):
        apply_masks(torch.zeros(2, 40), slots.long(), table)


@pytest.mark.parametrize("vocab_size", [70, 64])
def test_a_mask_stays_until_another_or_none_is_set(vocab_size):
    masks = MaskTable(3, vocab_size, "cpu")
    words = np.array([[5, 9, 1], [2, 0, 63]], np.uint32)[:, : -(-vocab_size // 32)]
    masks.set_masks([2, 0], words)
    masks.set_masks([2], words[1:])
    assert np.array_equal(masks.masks[[2, 0], : masks.num_words].numpy(), words[[1, 1]])
    assert masks.is_masked.tolist() == [1, 0, 1]
    masks.clear_mask(2)
    masks.clear_mask(1)  # never had one
    assert masks.is_masked.tolist() == [1, 0, 0]
    masks.set_masks([2], words[:1])
    assert masks.is_masked.tolist() == [1, 0, 1]
    assert np.array_equal(masks.masks[2, : masks.num_words].numpy(), words[0].view(np.int32))
