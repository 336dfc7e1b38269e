"""The device's history beside decode's, which tests/decode checks against the definitions."""

from dataclasses import replace

import pytest
import torch
from isthmus.decode.history import History
from isthmus.kernels.history_step import apply_history, launch_history, ref_apply_history
from isthmus.kernels.history_table import HistoryParams, HistoryTable
from isthmus.text.breakers import Breakers
from isthmus.text.vocabulary import VocabularyBytes
from isthmus.wire.sampling import SamplingParams

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")  # Triton 3.6

VOCAB_SIZE = 12
"""The last id is one that the tokenizer does not know."""
SPELLINGS = [b"a", b"b", b"ab", b"ba", b"\n", b"a\n", b" ", b"", b"c", b"d", b"e"]
WORDS = ((3,), (0, 1), (1, 1, 2), (0, 0, 0, 5))
BLOCK = {"BLOCK": 32, "num_warps": 1}
"""Small, so that short sequences take several tiles."""

NEUTRAL = SamplingParams()
CASES = {
    "neutral": NEUTRAL,
    "dry": SamplingParams(dry_multiplier=0.8, dry_sequence_breakers=()),
    "dry from length 1, breakers": SamplingParams(
        dry_multiplier=0.8, dry_base=1.1, dry_allowed_length=1, dry_sequence_breakers=("\n", "aba")
    ),
    "dry in a range": SamplingParams(dry_multiplier=2.0, dry_range=9, dry_sequence_breakers=("\n",)),
    "n-gram": SamplingParams(no_repeat_ngram_size=3),
    "no token twice": SamplingParams(no_repeat_ngram_size=1),
    "bad words": SamplingParams(bad_words=("any",)),
    "range and slope": SamplingParams(repetition_penalty=1.3, repetition_penalty_range=7, repetition_penalty_slope=0.5),
    "slope": SamplingParams(repetition_penalty=0.7, repetition_penalty_slope=2.0),
    "all": SamplingParams(
        dry_multiplier=0.5,
        dry_sequence_breakers=("b\n",),
        no_repeat_ngram_size=4,
        bad_words=("any",),
        repetition_penalty=1.2,
        repetition_penalty_range=40,
    ),
}


class ToyPhrases:
    """Of the vocabulary `SPELLINGS`; any bad words are `WORDS`."""

    vocabulary = VocabularyBytes(SPELLINGS)

    def breakers(self, strings):
        return Breakers(strings, self.vocabulary)

    def bad_words(self, words):
        return WORDS


def history_params(params, *, repetition_first=False):
    return HistoryParams(
        dry_multiplier=params.dry_multiplier,
        dry_base=params.dry_base,
        dry_allowed_length=params.dry_allowed_length,
        dry_range=params.dry_range,
        breakers=ToyPhrases().breakers(params.dry_sequence_breakers) if params.dry_sequence_breakers else None,
        no_repeat_ngram_size=params.no_repeat_ngram_size,
        repetition_penalty=params.repetition_penalty,
        repetition_penalty_range=params.repetition_penalty_range,
        repetition_penalty_slope=params.repetition_penalty_slope,
        repetition_first=repetition_first,
        bad_words=WORDS if params.bad_words else (),
    )


def table_of(num_slots, device):
    vocabulary = ToyPhrases.vocabulary
    return HistoryTable(num_slots, VOCAB_SIZE, device, (vocabulary.offsets, vocabulary.data))


def apply_steps(row, history, *, repetition_first=False):
    """decode's steps on one row of logits."""
    row = ban(row.clone(), history.bad_words())
    for step in (penalise, subtract) if repetition_first else (subtract, penalise):
        step(row, history)
    return ban(row, history.banned())


def ban(row, ids):
    banned = row.index_fill(0, ids, -torch.inf)
    return row if (banned == -torch.inf).all() else banned


def subtract(row, history):
    ids, losses = history.dry()
    row[ids] -= losses


def penalise(row, history):
    ids, _, penalties = history.penalties()
    row[ids] = torch.where(row[ids] > 0, row[ids] / penalties, row[ids] * penalties)


def tokens_of(length, seed, num_distinct=VOCAB_SIZE):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, num_distinct, (length,), generator=generator).tolist()


def check_steps(device, *, num_steps, prompt_len, num_distinct, repetition_first=False, step=apply_history):
    """All cases in one batch, each a sequence that goes on with its own tokens; every step's logits are decode's."""
    generator = torch.Generator().manual_seed(num_steps)
    table, slots = table_of(len(CASES) + 3, device), list(range(len(CASES), 0, -1))
    prompts = [tokens_of(prompt_len + index, index, num_distinct) for index in range(len(CASES))]
    outputs = [tokens_of(index % 3, 50 + index, num_distinct) for index in range(len(CASES))]
    histories = []
    for slot, params, prompt, output in zip(slots, CASES.values(), prompts, outputs, strict=True):
        asked = history_params(params, repetition_first=repetition_first)
        table.set(slot, asked, prompt, output, len(prompt) + len(output) + num_steps)
        histories.append(History(params, prompt, output, ToyPhrases()))
    last = torch.full((len(table.rules),), 2**30, dtype=torch.int32, device=device)
    for index in range(num_steps):
        logits = torch.randn(len(CASES) + 1, VOCAB_SIZE, generator=generator)
        expected = torch.stack(
            [
                *(apply_steps(logits[i], own, repetition_first=repetition_first) for i, own in enumerate(histories)),
                logits[-1],
            ]
        )
        at = torch.tensor([*(len(output) for output in outputs), 0], dtype=torch.int32, device=device)
        rows = torch.tensor([*slots, -1], dtype=torch.int32, device=device)
        found = step(logits.to(device), rows, at, last, table)
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-6, atol=1e-6)
        for slot, output, history, token in zip(
            slots, outputs, histories, tokens_of(len(CASES), 900 + index, num_distinct), strict=True
        ):
            output.append(token)
            history.append(token)
            last[slot] = token


def in_small_blocks(logits, slots, positions, last, table):
    return launch_history(logits, slots, positions, last, table, BLOCK)


def check_equal_tokens(device, length, step=apply_history):
    """The penalty of the longest match is finite, and the same token's other matches leave no trace."""
    params = HistoryParams(dry_multiplier=1.0, dry_base=1.01)
    table = table_of(1, device)
    table.set(0, params, [5] * length, [], length + 2)
    last = torch.tensor([5], dtype=torch.int32, device=device)
    zero = torch.zeros(1, dtype=torch.int32, device=device)
    for position in range(2):
        logits = torch.ones(1, VOCAB_SIZE, device=device)
        step(logits, zero, zero + position, last, table)
        lost = 1.01 ** (length + position - 1 - 2)
        expected = torch.ones(1, VOCAB_SIZE)
        expected[0, 5] -= min(lost, 1e30)
        torch.testing.assert_close(logits.cpu(), expected)


def check_bans_leave_a_token(device, step=apply_history):
    """Where guidance allows only what a ban would take, the ban is not done."""
    for params in (HistoryParams(no_repeat_ngram_size=1), HistoryParams(bad_words=((3,), (4,)))):
        table = table_of(1, device)
        table.set(0, params, [3, 4], [], 10)
        logits = torch.full((1, VOCAB_SIZE), -torch.inf, device=device)
        logits[0, 3:5] = torch.tensor([0.5, -1.0], device=device)
        expected = logits.clone()
        zero = torch.zeros(1, dtype=torch.int32, device=device)
        step(logits, zero, zero, zero, table)
        assert torch.equal(logits, expected)


def check_a_slot_is_used_again(device, step=apply_history):
    """Nothing of the former sequence is left, nor done for an empty slot."""
    table = table_of(2, device)
    zero, last = (torch.zeros(n, dtype=torch.int32, device=device) for n in (1, 2))
    logits = torch.ones(1, VOCAB_SIZE, device=device)
    table.set(0, history_params(CASES["all"]), [1, 2, 1, 2, 1], [2, 1], 20)
    table.clear(0)
    assert torch.equal(step(logits.clone(), zero, zero + 2, last, table), logits)
    table.set(0, history_params(CASES["dry"]), [8, 9, 1, 8, 9], [], 20)
    found = step(logits.clone(), zero, zero, last, table)
    assert (found != logits).nonzero().tolist() == [[0, 1]]


@pytest.mark.parametrize("repetition_first", [False, True], ids=["dry first", "repetition first"])
@pytest.mark.parametrize("num_distinct", [VOCAB_SIZE, 2], ids=["many", "two tokens"])
def test_reference(num_distinct, repetition_first):
    check_steps(
        "cpu",
        num_steps=40,
        prompt_len=5,
        num_distinct=num_distinct,
        repetition_first=repetition_first,
        step=ref_apply_history,
    )


def test_reference_of_special_cases():
    check_equal_tokens("cpu", 100, ref_apply_history)
    check_bans_leave_a_token("cpu", ref_apply_history)
    check_a_slot_is_used_again("cpu", ref_apply_history)


@pytest.mark.interpreter
@pytest.mark.parametrize("repetition_first", [False, True], ids=["dry first", "repetition first"])
@pytest.mark.parametrize(("num_distinct", "prompt_len"), [(VOCAB_SIZE, 0), (2, 30)], ids=["many", "two tokens"])
def test_steps_interpreted(num_distinct, prompt_len, repetition_first):
    check_steps(
        "cpu",
        num_steps=6,
        prompt_len=prompt_len,
        num_distinct=num_distinct,
        repetition_first=repetition_first,
        step=in_small_blocks,
    )


@pytest.mark.interpreter
def test_special_cases_interpreted():
    check_equal_tokens("cpu", 100, in_small_blocks)
    check_bans_leave_a_token("cpu", in_small_blocks)
    check_a_slot_is_used_again("cpu", in_small_blocks)


@pytest.mark.gpu
@pytest.mark.parametrize("step", [apply_history, in_small_blocks], ids=["large tiles", "small tiles"])
@pytest.mark.parametrize("num_distinct", [VOCAB_SIZE, 2], ids=["many", "two tokens"])
@pytest.mark.parametrize("prompt_len", [0, 31, 5000])
def test_steps_compiled(prompt_len, num_distinct, step):
    check_steps("cuda", num_steps=40, prompt_len=prompt_len, num_distinct=num_distinct, step=step)


@pytest.mark.gpu
def test_special_cases_compiled():
    for length in (100, 1024, 32_768):
        check_equal_tokens("cuda", length)
    check_bans_leave_a_token("cuda")
    check_a_slot_is_used_again("cuda")


@pytest.mark.gpu
def test_a_graph_serves_sequences_that_come_later():
    device = torch.device("cuda")
    table = table_of(2, device)
    logits = torch.ones(2, VOCAB_SIZE, device=device)
    slots, positions = torch.arange(2, dtype=torch.int32, device=device), torch.zeros_like(logits[:, 0]).int()
    last = torch.zeros(2, dtype=torch.int32, device=device)
    apply_history(logits, slots, positions, last, table)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        apply_history(logits, slots, positions, last, table)
    table.set(1, history_params(CASES["dry"]), [8, 9, 1, 8, 9], [], 20)
    graph.replay()
    assert (logits != 1).nonzero().tolist() == [[1, 1]]


@pytest.mark.parametrize("index", range(4))
def test_wrong_dtypes_are_refused(index):
    table = table_of(2, "cpu")
    arguments = [torch.ones(1, VOCAB_SIZE), *(torch.zeros(n, dtype=torch.int32) for n in (1, 1, 2))]
    arguments[index] = arguments[index].to(torch.float64)
    logits, slots, positions, last_tokens = arguments
    with pytest.raises(ValueError, match="must be contiguous"):
        apply_history(logits, slots, positions, last_tokens, table)


def test_tokens_that_cannot_be_held_are_refused():
    table = table_of(1, "cpu")
    with pytest.raises(ValueError, match="9 tokens in a sequence of 8"):
        table.set(0, history_params(CASES["dry"]), [1] * 9, [], 8)
    with pytest.raises(ValueError, match="bad_words"):
        table.set(0, replace(HistoryParams(), bad_words=((VOCAB_SIZE,),)), [1], [], 8)


def test_what_asks_for_nothing_takes_no_memory():
    table = table_of(1, "cpu")
    table.set(0, history_params(NEUTRAL), [1], [], 1_000_000)
    assert table.held == {}
    table.set(0, history_params(CASES["dry"]), [1], [], 1000)
    assert table.held[0].memory.nbytes < 21_000
