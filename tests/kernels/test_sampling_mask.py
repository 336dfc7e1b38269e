"""Masks take away exactly the tokens whose bit is not set, in rows of slots that have one."""

import numpy as np
import pytest
import torch
from isthmus.kernels.sampling_mask import MaskTable, SlotMask, apply_masks, ref_apply_masks


def random_masks(count, vocab_size):
    """bool [count, V], and the same as words."""
    allowed = np.random.default_rng(vocab_size).random((count, vocab_size)) < 0.3
    words = np.zeros((count, -(-vocab_size // 32) * 4), np.uint8)
    words[:, : -(-vocab_size // 8)] = np.packbits(allowed, axis=1, bitorder="little")
    return allowed, words.view(np.int32)


def check(device, vocab_size, apply=apply_masks):
    """Slots 1 and 4 of 5 have a mask, 1 and 2 one of their own; rows are slots 4, padding, 1, 0, 2."""
    table = MaskTable(5, vocab_size, device, num_turns=2)
    allowed, words = random_masks(6, vocab_size)
    table.keep(1, words[4])
    table.keep(2, words[5])
    slots = torch.tensor([4, -1, 1, 0, 2], dtype=torch.int32, device=device)
    logits = torch.randn(2, 5, vocab_size, device=device)

    def drawn_from(turn):
        before = logits[turn].cpu()
        after = apply(logits[turn].clone(), slots, table, turn).cpu()
        is_out = after == -torch.inf
        assert torch.equal(after[~is_out], before[~is_out])
        return ~is_out.numpy()

    everything = np.ones(vocab_size, bool)
    own = [everything, everything, allowed[4], everything, allowed[5]]
    table.set([])
    for turn in range(2):
        assert np.array_equal(drawn_from(turn), own)
    table.set([SlotMask(0, 4, words[0]), SlotMask(0, 1, words[1]), SlotMask(1, 1, words[2])])
    assert np.array_equal(drawn_from(0), [allowed[0], everything, allowed[1], everything, allowed[5]])
    assert np.array_equal(drawn_from(1), [everything, everything, allowed[2], everything, allowed[5]])
    table.clear(2)
    table.set([SlotMask(1, 4, words[3])])
    assert np.array_equal(drawn_from(0), [everything, everything, allowed[4], everything, everything])
    assert np.array_equal(drawn_from(1), [allowed[3], everything, allowed[4], everything, everything])
    table.clear(1)
    table.clear(0)  # never had one
    table.set([])
    for turn in range(2):
        assert drawn_from(turn).all()


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


@pytest.mark.gpu
def test_masks_of_two_steps_in_flight():
    """Each draws from its own, however busy the device is."""
    vocab_size, num_steps = 49_153, 8
    table = MaskTable(4, vocab_size, "cuda")
    allowed, words = random_masks(num_steps * 4, vocab_size)
    slots, found, ends = torch.arange(4, dtype=torch.int32, device="cuda"), [], []
    logits = [torch.randn(4, vocab_size, device="cuda") for _ in range(num_steps)]
    for step in range(num_steps):
        if step > 1:
            ends[step - 2].synchronize()
        torch.cuda._sleep(2_000_000)
        table.set([SlotMask(0, slot, words[4 * step + slot]) for slot in range(4)])
        found.append(apply_masks(logits[step], slots, table) > -torch.inf)
        ends.append(torch.cuda.Event())
        ends[-1].record()
    assert np.array_equal(torch.cat(found).cpu().numpy(), allowed)
