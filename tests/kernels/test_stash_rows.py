import pytest
import torch
from isthmus.kernels.stash_rows import Stash, stash_rows

SHAPES = [(1, 1, 1, 16), (1, 3, 0, 1024), (5, 2, 64, 40), (33, 3, 0, 1100), (33, 1, 128, 2500)]
"""Tokens, streams, columns of the ring before those that are written, columns of a stream."""
NUM_SLOTS, LENGTH = 40, 7


def check(device, shape, dtype=torch.float32):
    num_tokens, num_streams, first_column, width = shape
    generator = torch.Generator().manual_seed(num_tokens)
    wider = torch.randn(num_streams, num_tokens, 2 * width, generator=generator).to(device, dtype)
    streams = [stream[:, :width] for stream in wider]
    end_column = first_column + num_streams * width
    slots = torch.randperm(NUM_SLOTS, generator=generator)[:num_tokens].to(torch.int32)
    slots[1::3] = -1
    positions = torch.randint(0, 1000, (num_tokens,), generator=generator, dtype=torch.int32)
    token_ids = torch.arange(100, 100 + num_tokens, dtype=torch.int32)
    token_ids[::2] = -1
    last_tokens = torch.arange(500, 500 + NUM_SLOTS, dtype=torch.int32)
    ring = torch.full((NUM_SLOTS, LENGTH, end_column + 3), 9.0, dtype=dtype, device=device)
    tokens, kept = (torch.full((NUM_SLOTS, LENGTH), -7, dtype=torch.int32, device=device) for _ in range(2))
    expected, expected_tokens, expected_kept = ring.clone(), tokens.clone(), kept.clone()
    for t, (slot, position) in enumerate(zip(slots.tolist(), positions.tolist(), strict=True)):
        if slot >= 0:
            place = slot, position % LENGTH
            expected[place][first_column:end_column] = torch.cat([stream[t] for stream in streams])
            expected_tokens[place] = 500 + slot if t % 2 == 0 else 100 + t
            expected_kept[place] = position
    token_ids, slots, positions, last_tokens = (one.to(device) for one in (token_ids, slots, positions, last_tokens))
    stash_rows(Stash(streams, token_ids, slots, positions, last_tokens, ring, tokens, kept, first_column))
    assert torch.equal(ring, expected)
    assert torch.equal(tokens, expected_tokens)
    assert torch.equal(kept, expected_kept)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reference(shape):
    check("cpu", shape)


@pytest.mark.interpreter
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_interpreted(shape):
    check("cpu", shape)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_compiled(shape, dtype):
    check("cuda", shape, dtype)


def test_what_does_not_fit_is_refused():
    rows, x = torch.zeros(2, dtype=torch.int32), torch.zeros(2, 8)
    ring, ints = torch.zeros(2, 4, 16), torch.zeros(2, 4, dtype=torch.int32)
    with pytest.raises(ValueError, match="rows is"):
        stash_rows(Stash([x], rows, rows[:1], rows, rows, ring, ints, ints))
    with pytest.raises(ValueError, match="do not fit"):
        stash_rows(Stash([x, x], rows, rows, rows, rows, ring, ints, ints, 1))
    with pytest.raises(ValueError, match="do not fit"):
        stash_rows(Stash([x, x, x], rows, rows, rows, rows, ring, ints, ints))
    with pytest.raises(ValueError, match="do not fit"):
        stash_rows(Stash([x.double()], rows, rows, rows, rows, ring, ints, ints))


@pytest.mark.parametrize("num_streams", [0, 4])
def test_too_many_streams_or_none_are_refused(num_streams):
    rows, ints = torch.zeros(2, dtype=torch.int32), torch.zeros(2, 4, dtype=torch.int32)
    with pytest.raises(ValueError, match=f"{num_streams} streams"):
        stash_rows(Stash([torch.zeros(2, 8)] * num_streams, rows, rows, rows, rows, torch.zeros(2, 4, 64), ints, ints))


X = torch.zeros(2, 8)
UNLIKE = {
    "shape": [X, X[:, :4]],
    "dtype": [X, X.double()],
    "stride": [X, torch.zeros(2, 16)[:, :8]],
    "rows": [torch.zeros(8, 2).T] * 2,
}


@pytest.mark.parametrize("streams", UNLIKE.values(), ids=UNLIKE.keys())
def test_streams_that_are_not_alike_are_refused(streams):
    rows, ints = torch.zeros(2, dtype=torch.int32), torch.zeros(2, 4, dtype=torch.int32)
    with pytest.raises(ValueError, match="not alike"):
        stash_rows(Stash(streams, rows, rows, rows, rows, torch.zeros(2, 4, 64), ints, ints))
