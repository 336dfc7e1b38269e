import pytest
import torch
from isthmus.kernels.keep_rows import keep_rows
from isthmus.kernels.stash_rows import Stash, stash_rows

SHAPES = [(1, 1), (3, 100), (5, 4096), (4, 40_000)]
STREAMS = [(1, 16), (3, 1100)]
"""That are left in the same launch, and their columns."""


def stash_of(streams, num_tokens, device):
    num_streams, width = streams
    generator = torch.Generator().manual_seed(num_streams)
    values = list(torch.randn(num_streams, num_tokens, width, generator=generator).to(device))
    numbers = torch.arange(num_tokens, dtype=torch.int32, device=device)
    rows = torch.where(numbers == 1, -1, numbers)
    ring = torch.full((num_tokens, 4, num_streams * width), 9.0, device=device)
    tokens, positions = (torch.full((num_tokens, 4), -7, dtype=torch.int32, device=device) for _ in range(2))
    return Stash(values, numbers - 1, rows, numbers + 6, numbers + 500, ring, tokens, positions)


def check_both(device, shape, streams):
    """What the two do apart."""
    num_rows, width = shape
    rows = torch.randn(num_rows, width, generator=torch.Generator().manual_seed(0)).to(device)
    places = torch.arange(num_rows - 1, -1, -1, dtype=torch.int32, device=device) - 1
    kept, stash = torch.full((num_rows, width), 7.0, device=device), stash_of(streams, num_rows, device)
    expected, other = kept.clone(), stash_of(streams, num_rows, device)
    keep_rows(rows, places, expected)
    stash_rows(other)
    keep_rows(rows, places, kept, stash)
    assert torch.equal(kept, expected)
    assert all(torch.equal(one, two) for one, two in zip(stash[5:8], other[5:8], strict=True))
    assert (stash.ring[0] != 9).any()


def check(device, num_rows, width):
    rows = torch.randn(num_rows, width, generator=torch.Generator().manual_seed(0)).to(device)
    places = torch.tensor([-1 if row % 3 == 1 else num_rows - row for row in range(num_rows)], dtype=torch.int32)
    kept = torch.full((num_rows + 2, width), 7.0, device=device)
    expected = kept.clone()
    for row, place in enumerate(places.tolist()):
        if place >= 0:
            expected[place] = rows[row]
    keep_rows(rows, places.to(device), kept)
    assert torch.equal(kept, expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reference(shape):
    check("cpu", *shape)


@pytest.mark.parametrize("streams", STREAMS, ids=str)
def test_reference_of_both(streams):
    check_both("cpu", (5, 100), streams)


@pytest.mark.interpreter
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_interpreted(shape):
    check("cpu", *shape)


@pytest.mark.interpreter
@pytest.mark.parametrize("streams", STREAMS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (4, 40_000)], ids=str)
def test_interpreted_both(shape, streams):
    check_both("cpu", shape, streams)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [*SHAPES, (256, 128_256)], ids=str)
def test_compiled(shape):
    check("cuda", *shape)


@pytest.mark.gpu
@pytest.mark.parametrize("streams", STREAMS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (33, 49_152)], ids=str)
def test_compiled_both(shape, streams):
    check_both("cuda", shape, streams)


def test_what_does_not_fit_is_refused():
    rows, places = torch.zeros(2, 8), torch.zeros(2, dtype=torch.int32)
    with pytest.raises(ValueError, match="do not fit"):
        keep_rows(rows, places, torch.zeros(2, 9))
    with pytest.raises(ValueError, match="places must be"):
        keep_rows(rows, places[:1], rows.clone())
    with pytest.raises(ValueError, match="kept must be"):
        keep_rows(rows, places, rows.double())
    with pytest.raises(ValueError, match="3 tokens are to be left of 2 rows"):
        keep_rows(rows, places, rows.clone(), stash_of((1, 8), 3, "cpu"))
