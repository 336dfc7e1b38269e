import torch
from isthmus.engine.attention import _by_head, _by_products, _grouped, chunk_mask
from isthmus.engine.span import Span


def visible(span: Span, window: int | None) -> list[list[int]]:
    """The positions that each token sees."""
    mask = chunk_mask(span, window, torch.float32)
    assert mask is not None
    assert set(mask.unique().tolist()) <= {0.0, float("-inf")}
    return [[span.first_visible(window) + i for i, value in enumerate(row) if value == 0] for row in mask.tolist()]


def test_a_later_chunk_sees_all_before_each_token() -> None:
    assert visible(Span(2, 3, ()), None) == [[0, 1, 2, 3], [0, 1, 2, 3, 4]]


def test_a_window_hides_what_is_further_back() -> None:
    assert visible(Span(3, 0, ()), 2) == [[0], [0, 1], [1, 2]]
    assert visible(Span(2, 5, ()), 3) == [[3, 4, 5], [4, 5, 6]]


def test_plain_causal_needs_no_mask() -> None:
    assert chunk_mask(Span(4, 0, ()), None, torch.float32) is None
    assert chunk_mask(Span(4, 0, ()), 4, torch.float32) is None
    assert chunk_mask(Span(4, 0, ()), 3, torch.float32) is not None


def test_a_single_token_attends_alike_in_all_ways() -> None:
    torch.manual_seed(0)
    queries, (keys, values) = torch.randn(1, 3, 4, 16), torch.randn(2, 1, 3, 700, 16)
    expected = (queries.double() @ keys.double().mT / 4).softmax(-1) @ values.double()
    for way in (_by_head, _by_products, _grouped):
        torch.testing.assert_close(way(queries, keys, values).double(), expected, rtol=1e-5, atol=1e-5)
