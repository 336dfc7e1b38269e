import pytest
import torch
from isthmus.kernels.top_logprobs import LogprobWorkspace, TopLogprobs, ref_top_logprobs, top_logprobs

# Triton 3.6 turns a loop's bounds into ints in a way that newer versions of numpy deprecate.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

TOLERANCE = 2e-6
"""Absolute, on log-probabilities of a few tens."""


def randn(*shape, seed=0, scale=3.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def rows_of(vocab_size, num_rows):
    """Plain rows, then one with every logit twice and more, one half removed, one all equal, one far from 0."""
    logits = randn(num_rows + 4, vocab_size)
    logits[num_rows] = (logits[num_rows] * 2).round()
    logits[num_rows + 1, : vocab_size // 2] = -torch.inf
    logits[num_rows + 2] = 0.5
    logits[num_rows + 3] -= 200.0
    return logits


def filled(num_rows, num_top, device):
    out = TopLogprobs.empty(num_rows, num_top, device)
    for tensor in (out.logprobs, out.top_logprobs):
        tensor.fill_(torch.nan)
    for tensor in (out.ranks, out.top_ids):
        tensor.fill_(-7)
    return out


def check_against_sorting(device, vocab_size, num_top, logits, dtype=torch.int64):
    num_rows = len(logits)
    tokens = torch.randint(0, vocab_size, (num_rows,), generator=torch.Generator().manual_seed(1))
    tokens[0] = logits[0].argmax()
    tokens = tokens.to(dtype)
    expected = ref_top_logprobs(logits, tokens, num_top)
    out = filled(num_rows, num_top, device)
    workspace = LogprobWorkspace(num_rows + 1, vocab_size, max(num_top, 4), device)
    given = top_logprobs(logits.to(device), tokens.to(device), num_top, workspace=workspace, out=out)
    assert given is out
    assert torch.equal(out.top_ids.cpu(), expected.top_ids)
    assert torch.equal(out.ranks.cpu(), expected.ranks)
    assert_close(out.logprobs, expected.logprobs)
    assert_close(out.top_logprobs, expected.top_logprobs)


def assert_close(got, expected):
    torch.testing.assert_close(got.cpu(), expected, rtol=3e-7, atol=TOLERANCE)


def check_no_token(device):
    """−1 stands where nothing was drawn."""
    logits = randn(2, 50)
    out = top_logprobs(logits.to(device), torch.tensor([-1, 4], device=device), 3)
    assert out.logprobs[0] == -torch.inf
    assert out.ranks[0] == 51
    assert_close(out.top_logprobs, ref_top_logprobs(logits, torch.tensor([0, 4]), 3).top_logprobs)


def test_reference_on_three_tokens():
    logits = torch.tensor([[0.0, 2.0, 2.0]])
    out = ref_top_logprobs(logits, torch.tensor([2]), 2)
    assert out.ranks.tolist() == [2]
    assert out.top_ids.tolist() == [[1, 2]]
    total = logits.exp().sum()
    assert_close(out.logprobs, (2 - total.log())[None])


@pytest.mark.interpreter
@pytest.mark.parametrize(("vocab_size", "num_top"), [(1, 1), (37, 5), (2049, 0), (2049, 20)])
def test_interpreted(vocab_size, num_top):
    check_against_sorting("cpu", vocab_size, num_top, rows_of(vocab_size, 1))


@pytest.mark.interpreter
@pytest.mark.parametrize(
    ("num_rows", "vocab_size", "num_top"), [(1, 50, 2), (2, 51, 2), (2, 50, 1)], ids=["rows", "vocabulary", "top"]
)
def test_a_small_workspace_is_refused(num_rows, vocab_size, num_top):
    workspace = LogprobWorkspace(num_rows, vocab_size, num_top, "cpu")
    with pytest.raises(ValueError, match="the workspace is too small"):
        top_logprobs(torch.zeros(2, 50), torch.zeros(2).int(), 2, workspace=workspace)


@pytest.mark.interpreter
def test_no_token_interpreted():
    check_no_token("cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("num_top", [0, 1, 5, 20, 32])
@pytest.mark.parametrize("vocab_size", [33, 2048, 2049, 49_152, 128_256])
def test_compiled(vocab_size, num_top):
    check_against_sorting("cuda", vocab_size, num_top, rows_of(vocab_size, 9), dtype=torch.int32)


@pytest.mark.gpu
@pytest.mark.parametrize("vocab_size", [2, 3, 49_153])
def test_odd_vocabularies_compiled(vocab_size):
    check_against_sorting("cuda", vocab_size, 1, rows_of(vocab_size, 3))


@pytest.mark.gpu
def test_no_token_compiled():
    check_no_token("cuda")


@pytest.mark.parametrize(
    ("logits", "tokens", "num_top", "message"),
    [
        (torch.zeros(2, 5, dtype=torch.float16), torch.zeros(2, dtype=torch.int64), 1, "logits must be"),
        (torch.zeros(5, 2).T, torch.zeros(2, dtype=torch.int64), 1, "logits must be"),
        (torch.zeros(2, 5), torch.zeros(3, dtype=torch.int64), 1, "tokens must be"),
        (torch.zeros(2, 5), torch.zeros(2), 1, "tokens must be"),
        (torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64), 6, "num_top is 6, not 0 … 5"),
        (torch.zeros(2, 50), torch.zeros(2, dtype=torch.int64), 33, "num_top is 33, not 0 … 32"),
        (torch.zeros(2, 50), torch.zeros(2, dtype=torch.int64), -1, "num_top is -1"),
    ],
)
def test_wrong_arguments_are_refused(logits, tokens, num_top, message):
    with pytest.raises(ValueError, match=message):
        top_logprobs(logits, tokens, num_top)
