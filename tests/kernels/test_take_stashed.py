import pytest
import torch
from isthmus.kernels.take_stashed import NOWHERE, states_before, take_stashed

NUM_SLOTS, NUM_BLOCKS, BLOCK_SIZE = 6, 64, 4
LENGTHS = [1, 5, 8]
RUNS = {0: (range(1, 3),), 2: (range(7, 40),), 3: (range(1),), 4: (range(10, 13), range(20, 22))}
"""Positions that were left of each sequence, one after the other: of the second more than any ring holds."""


def rings(length):
    """Positions and tokens of each slot, and of the ring that is nobody's."""
    positions = torch.full((NUM_SLOTS + 1, length), NOWHERE, dtype=torch.int32)
    tokens = torch.zeros_like(positions)
    for slot, runs in RUNS.items():
        for position in (p for run in runs for p in run):
            positions[slot, position % length], tokens[slot, position % length] = position, 100 * slot + position
    return positions, tokens


def check(device, length, slots, dtype=torch.float32):
    generator = torch.Generator().manual_seed(length)
    positions, tokens = rings(length)
    tables = torch.randperm(NUM_BLOCKS, generator=generator)[: NUM_SLOTS * 10].view(NUM_SLOTS, 10).to(torch.int32)
    kept_positions = torch.full((NUM_BLOCKS + 1,), NOWHERE, dtype=torch.int32)
    for slot in (0, 2, 4):  # the states before what was left of these are there
        before = min(p for p in positions[slot].tolist() if p >= 0) - 1
        kept_positions[tables[slot, before // BLOCK_SIZE]] = before
    hidden = torch.randn(len(slots) * length, 24, generator=generator).to(dtype)
    kept = torch.randn(NUM_BLOCKS + 1, 24, generator=generator).to(dtype)
    given = torch.tensor(slots, dtype=torch.int32, device=device)
    tokens, there, tables_there, kept_there = (
        one.clone().to(device) for one in (tokens, positions, tables, kept_positions)
    )
    taken = take_stashed(given, tokens, there, tables_there, kept_there, BLOCK_SIZE)
    before = states_before(hidden.to(device), taken.sources, kept.to(device)).cpu()
    assert taken.slots.tolist() == [NUM_SLOTS if slot < 0 else slot for slot in slots]
    left = positions.clone()
    for index, slot in enumerate(slots):
        places = {p: at for at, p in enumerate(positions[slot].tolist()) if p >= 0} if slot >= 0 else {}
        left[slot] = NOWHERE
        for at in range(length):
            place, position = index * length + at, int(positions[slot, at])
            row, own, token, kept_at = (int(part[place]) for part in (*taken[1:4], taken.kept_at))
            if position not in places:
                assert (row, own, kept_at) == (-1, 0, NUM_BLOCKS)
                assert not before[place].any()
                continue
            assert (row, own, token) == (slot, position, 100 * slot + position)
            block = int(tables[slot, position // BLOCK_SIZE])
            is_last = position + 1 not in places or (position + 1) % BLOCK_SIZE == 0
            assert kept_at == (block if is_last else NUM_BLOCKS)
            expected = torch.zeros(24, dtype=dtype)
            if position - 1 in places:
                expected = hidden[index * length + places[position - 1]]
            elif (
                position
                and int(kept_positions[source := int(tables[slot, (position - 1) // BLOCK_SIZE])]) == position - 1
            ):
                expected = kept[source]
            assert torch.equal(before[place], expected)
    assert torch.equal(there.cpu()[:NUM_SLOTS], left[:NUM_SLOTS])


SLOTS = [[0], [2, -1, 4, 3], [5, 1, 0, 2, 3, 4, -1, -1]]


@pytest.mark.parametrize("slots", SLOTS, ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_reference(length, slots):
    check("cpu", length, slots)


@pytest.mark.interpreter
@pytest.mark.parametrize("slots", SLOTS, ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_interpreted(length, slots):
    check("cpu", length, slots)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("slots", SLOTS, ids=str)
@pytest.mark.parametrize("length", [*LENGTHS, 128])
def test_compiled(length, slots, dtype):
    check("cuda", length, slots, dtype)


def test_what_is_wrong_is_refused():
    ints, table = torch.zeros(2, dtype=torch.int32), torch.zeros(2, 3, dtype=torch.int32)
    with pytest.raises(ValueError, match="int64"):
        take_stashed(ints.long(), table, table, table, ints, 4)
    with pytest.raises(ValueError, match="positions"):
        take_stashed(ints, table, table[:1], table, ints, 4)
    with pytest.raises(ValueError, match="beside"):
        states_before(torch.zeros(2, 8), ints, torch.zeros(2, 9))
