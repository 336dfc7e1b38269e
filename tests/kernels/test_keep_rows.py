import pytest
import torch
from isthmus.kernels.keep_rows import keep_rows

SHAPES = [(1, 1), (3, 100), (5, 4096), (4, 40_000)]


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


@pytest.mark.interpreter
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_interpreted(shape):
    check("cpu", *shape)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [*SHAPES, (256, 128_256)], ids=str)
def test_compiled(shape):
    check("cuda", *shape)


def test_what_does_not_fit_is_refused():
    rows, places = torch.zeros(2, 8), torch.zeros(2, dtype=torch.int32)
    with pytest.raises(ValueError, match="do not fit"):
        keep_rows(rows, places, torch.zeros(2, 9))
    with pytest.raises(ValueError, match="places must be"):
        keep_rows(rows, places[:1], rows.clone())
    with pytest.raises(ValueError, match="kept must be"):
        keep_rows(rows, places, rows.double())
