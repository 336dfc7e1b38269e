import pytest
import torch
from isthmus.kernels.begin_step import begin_step, ref_begin_step

SIZES = [(1, 64), (7, 1030), (16, 2048)]


def check(device: str, num_tokens: int, hidden_size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(num_tokens)
    embedding = torch.randn(50, hidden_size, dtype=dtype)
    rows = torch.randperm(num_tokens + 3, dtype=torch.int32)[:num_tokens]
    rows[1::4] = -1
    token_ids = torch.randint(-1, 50, (num_tokens,), dtype=torch.int32)
    token_ids[0] = -1
    new_indices = torch.randint(-1, 5, (num_tokens,), dtype=torch.int32)
    new_blocks = torch.randint(100, 200, (num_tokens,), dtype=torch.int32)
    last_tokens = torch.randint(0, 50, (num_tokens + 3,), dtype=torch.int32)
    tables = torch.full((num_tokens + 3, 5), -7, dtype=torch.int32)
    arguments = (token_ids, rows, new_indices, new_blocks, last_tokens)
    expected_tables = tables.clone()
    expected = ref_begin_step(*arguments, expected_tables, embedding)
    out = torch.full((num_tokens, hidden_size), float("nan"), dtype=dtype, device=device)
    moved = tables.to(device)
    a, b, c, d, e = (tensor.to(device) for tensor in arguments)
    begin_step(a, b, c, d, e, moved, embedding.to(device), out=out)
    assert torch.equal(out.cpu(), expected)
    assert torch.equal(moved.cpu(), expected_tables)
    assert not out[rows.to(device) < 0].any()


@pytest.mark.interpreter
@pytest.mark.parametrize(("num_tokens", "hidden_size"), SIZES)
def test_interpreted(num_tokens: int, hidden_size: int) -> None:
    check("cpu", num_tokens, hidden_size, torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("num_tokens", "hidden_size"), [*SIZES, (512, 4096)])
def test_compiled(num_tokens: int, hidden_size: int, dtype: torch.dtype) -> None:
    check("cuda", num_tokens, hidden_size, dtype)


def test_the_reference_takes_the_token_drawn_last() -> None:
    embedding, tables = torch.eye(6), torch.zeros(2, 3, dtype=torch.int32)
    a, b, c, d, e = torch.tensor([[-1, 2], [1, 0], [-1, 2], [9, 8], [3, 5]], dtype=torch.int32).unbind(0)
    x = begin_step(a, b, c, d, e, tables, embedding)
    assert x.argmax(-1).tolist() == [5, 2]
    assert tables.tolist() == [[0, 0, 8], [0, 0, 0]]


def test_a_wrong_shape_is_refused() -> None:
    ints = torch.zeros(2, dtype=torch.int32)
    with pytest.raises(ValueError, match="rows is"):
        begin_step(ints, ints[:1], ints, ints, ints, torch.zeros(2, 1, dtype=torch.int32), torch.eye(3))
