import pytest
import torch
from isthmus.kernels.sparse_edits import apply_edits, ref_apply_edits


def edits(num_rows, vocab_size, capacity, num_edits, device="cpu"):
    """(logits, rows, ids, values, num_edits) with distinct places; what lies past the count is out of range."""
    generator = torch.Generator().manual_seed(capacity)
    logits = torch.randn(num_rows, vocab_size, generator=generator)
    places = torch.randperm(num_rows * vocab_size, generator=generator)[:capacity]
    rows, ids = (places // vocab_size).int(), (places % vocab_size).int()
    rows[num_edits:], ids[num_edits:] = 2**30, 2**30
    values = torch.randn(capacity, generator=generator)
    values[::3] = -torch.inf
    parts = logits, rows, ids, values, torch.tensor([num_edits], dtype=torch.int32)
    return tuple(part.to(device) for part in parts)


def check_edits(device, num_rows, vocab_size, capacity, num_edits):
    expected = ref_apply_edits(*edits(num_rows, vocab_size, capacity, num_edits))
    arguments = edits(num_rows, vocab_size, capacity, num_edits, device)
    assert apply_edits(*arguments) is arguments[0]
    assert torch.equal(arguments[0].cpu(), expected)


def check_a_mask_is_set(device):
    """Whatever stood there."""
    logits = torch.tensor([[torch.inf, torch.nan, 1.0, 2.0]], device=device)
    rows, ids = torch.zeros(3, dtype=torch.int32, device=device), torch.arange(3, dtype=torch.int32, device=device)
    values = torch.full((3,), -torch.inf, device=device)
    apply_edits(logits, rows, ids, values, torch.tensor([3], dtype=torch.int32, device=device))
    assert logits.tolist() == [[-torch.inf, -torch.inf, -torch.inf, 2.0]]


SHAPES = [(3, 100, 0, 0), (3, 100, 20, 0), (3, 100, 20, 20), (4, 200, 300, 257), (4, 200, 256, 255)]
IDS = ["no capacity", "none", "all", "two blocks", "one block"]


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_reference_changes_these_places_only(shape):
    logits, rows, ids, values, num_edits = edits(*shape)
    edited = ref_apply_edits(logits, rows, ids, values, num_edits)
    n = int(num_edits)
    for row, token, value in zip(rows[:n].tolist(), ids[:n].tolist(), values[:n], strict=True):
        assert edited[row, token] == logits[row, token] + value
        edited[row, token] = logits[row, token]
    assert torch.equal(edited, logits)


@pytest.mark.interpreter
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_edits_interpreted(shape):
    check_edits("cpu", *shape)


@pytest.mark.interpreter
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_mask_is_set_interpreted():
    check_a_mask_is_set("cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [*SHAPES, (256, 128_256, 20_000, 19_999)], ids=[*IDS, "large"])
def test_edits_compiled(shape):
    check_edits("cuda", *shape)


@pytest.mark.gpu
def test_a_mask_is_set_compiled():
    check_a_mask_is_set("cuda")


@pytest.mark.parametrize("index", range(5))
def test_wrong_dtypes_are_refused(index):
    arguments = list(edits(3, 100, 20, 20))
    arguments[index] = arguments[index].to(torch.float64)
    with pytest.raises(ValueError, match="must be contiguous"):
        apply_edits(*arguments)
