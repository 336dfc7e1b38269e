"""Masks that are made together are those made one by one, whoever asks first and whatever goes wrong with one."""

import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event
from typing import Any, cast

import numpy as np
import pytest
from isthmus.decode import mask_batch
from isthmus.decode.guide import Guide
from isthmus.decode.mask_maker import MaskMaker
from isthmus.decode.token_bans import TokenBans
from isthmus.tests.decode.guided_sim import TOKENS, error_of, vocabulary
from isthmus.tests.decode.router_sim import EOS, VOCAB
from isthmus.text.grammar_compiler import GrammarCompiler, next_tokens
from isthmus.text.grammar_masks import Filled, MaskFiller, Run, allows
from isthmus.wire.sampling import Guidance, SamplingParams
from llguidance import LLMatcher

COMPILER = GrammarCompiler(vocabulary)
PATTERNS = ["(ab|c){9,20}[0-9]{3,9}", "[a-c]*", "(a1|b)+", "abc"]


def ids(text: str) -> list[int]:
    return [TOKENS.index(c.encode()) for c in text]


def matcher(pattern: str, output: str = "") -> LLMatcher:
    made = COMPILER.compile(Guidance("regex", pattern)).deep_copy()
    made.consume_tokens(ids(output))
    return made


def guide_of(masks: MaskMaker, pattern: str, output: str = "", **params: Any) -> Guide:
    asked = SamplingParams(**params)
    return Guide(matcher(pattern), TokenBans.of(asked, frozenset({EOS}), (EOS,), VOCAB), ids(output), masks)


@pytest.mark.parametrize("alone_s", [20.0, 0.0])
def test_many_masks_in_one_call(alone_s: float) -> None:
    """All in this thread, and all in others."""
    guesses_of_each = ((), ids("abc"), ids("xab"), [*ids("a"), EOS, *ids("b")])
    runs = [Run(matcher(pattern), guesses, pattern) for pattern in PATTERNS for guesses in guesses_of_each]
    words = MaskFiller(COMPILER.num_words, 3, alone_s).fill(runs).words
    assert len(words) == len(PATTERNS) * (1 + 4 + 4 + 4)
    row = 0
    for one, guesses, _ in runs:
        for index in range(1 + len(guesses)):
            after = one.deep_copy()
            if not after.consume_tokens(list(guesses[:index])):
                break
            assert np.array_equal(words[row + index], next_tokens(after, len(TOKENS)))
        row += 1 + len(guesses)
        assert np.array_equal(next_tokens(one, len(TOKENS)), words[row - 1 - len(guesses)]), "it stays where it was"


@pytest.mark.parametrize(("num_each", "helps"), [((4,), False), ((3, 1), False), ((2, 2), True), ((2, 1, 1), True)])
def test_threads_help_where_they_would_not_wait_for_each_other(num_each: tuple[int, ...], helps: bool) -> None:
    """So many copies of each grammar."""
    grammars = [matcher(pattern) for pattern in PATTERNS[: len(num_each)]]
    runs = [Run(one.deep_copy(), (), one) for one, num in zip(grammars, num_each, strict=True) for _ in range(num)]
    filled = MaskFiller(COMPILER.num_words, 3, alone_s=0.0).fill(runs)
    assert (filled.helped_s > 0) == helps
    assert len(filled.own_s) == (0 if helps else len(runs))
    assert np.array_equal(filled.words, [next_tokens(run.matcher, len(TOKENS)) for run in runs])


@pytest.mark.parametrize("works", [False, True])
def test_what_waits_does_not_take_long(works: bool) -> None:
    class Busy:
        """Instead of a matcher."""

        def unsafe_compute_mask_ptr(self, address: int, num_bytes: int) -> None:
            start_s = time.thread_time()
            while works and time.thread_time() < start_s + 0.05:
                pass
            if not works:
                time.sleep(0.05)

    filled = MaskFiller(lambda: 1, alone_s=20.0).fill([Run(cast("LLMatcher", Busy()), (), "")])
    assert (filled.own_s[0] > 0.04) == works


@pytest.mark.parametrize("token_id", [0, 31, 32, 63])
def test_bits(token_id: int) -> None:
    words = np.zeros(2, np.uint32)
    assert not allows(words, token_id)
    words[token_id // 32] |= np.uint32(1 << token_id % 32)
    assert [i for i in range(64) if allows(words, i)] == [token_id]


@pytest.mark.parametrize("seed", range(4))
def test_batches_of_any_kind_and_size(seed: int) -> None:
    """Beside others, begun or asked for, alone: masks are those that the grammar alone gives."""
    rng, masks = random.Random(seed), MaskMaker(COMPILER.num_words)
    options = ({}, {"custom_token_bans": (5,)}, {"min_tokens": 4})
    outputs: list[tuple[Guide, str, list[int]]] = []
    for pattern in rng.choices(PATTERNS[:3], k=9):
        outputs.append((guide_of(masks, pattern, **rng.choice(options)), pattern, []))
    for _ in range(12):
        if rng.random() < 0.5:
            masks.begin()
        for guide, pattern, output in outputs:
            expected = next_tokens(_after(pattern, output), len(TOKENS))
            words = guide.mask().result()
            assert not (words & ~expected).any()
            (bits,) = np.unpackbits(words.view(np.uint8), bitorder="little").nonzero()
            choices = [int(bit) for bit in bits if bit != EOS]
            if choices and guide.ending is None:
                output.append(rng.choice(choices))
                guide.advance(output[-1:])
    masks.close()


def _after(pattern: str, output: Sequence[int]) -> LLMatcher:
    made = matcher(pattern)
    made.consume_tokens(list(output))
    return made


def test_one_call_for_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens taken in and guesses looked at, of all sequences."""
    calls: list[int] = []
    fill = MaskFiller.fill

    def counting(self: MaskFiller, runs: Any, **how: Any) -> Any:
        calls.append(len(runs))
        return fill(self, runs, **how)

    monkeypatch.setattr(MaskFiller, "fill", counting)
    monkeypatch.setattr(mask_batch, "SLOW_S", 60.0)  # whatever else the machine does: slow ones go alone next time
    masks = MaskMaker(COMPILER.num_words)
    guides = [guide_of(masks, "[a-c]*") for _ in range(5)]
    assert all(guide.mask().result().any() for guide in guides)
    for guide in guides:
        guide.advance(ids("a"))
        guide.look_ahead(ids("bcx"))
    for guide in guides:
        assert [guide.follow(token) is not None for token in ids("bcx")] == [True, True, False]
        guide.rollback_to(2)
        guide.advance(ids("c"))
    assert all(guide.mask().result().any() for guide in guides)
    assert calls == [5, 5, 5]
    masks.close()


def test_guesses_that_are_too_much_for_a_grammar_do_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """The output itself goes on as without them."""
    both = "start: A\nA: " + " & ".join(f"/(.*{c}.{{20}}){{10}}.*/" for c in "abcdef")
    grammar = COMPILER.compile(Guidance("regex", "[a-c]*"))
    explosive = COMPILER.compile(Guidance("lark", both))
    fill = MaskFiller.fill

    def failing(self: MaskFiller, runs: Any, **how: Any) -> Any:
        words = fill(self, runs, **how)
        for one, guesses, _ in runs:
            if guesses:
                one.consume_tokens(ids("x"))  # fails, as a grammar does that grows too large
        return words

    monkeypatch.setattr(MaskFiller, "fill", failing)
    masks = MaskMaker(COMPILER.num_words)
    bans = TokenBans.of(SamplingParams(), frozenset({EOS}), (EOS,), VOCAB)
    guide, other = Guide(grammar, bans, ids("ab"), masks), Guide(explosive, bans, (), masks)
    guide.look_ahead(ids("ab"))
    assert guide.follow(ids("a")[0]) is None
    guide.rollback_to(2)
    assert guide.ending is None
    guide.advance(ids("c"))
    assert np.array_equal(guide.mask().result(), next_tokens(matcher("[a-c]*", "abc"), len(TOKENS)))
    other.advance(ids("a"))
    assert "cannot follow its grammar" in error_of(other)
    masks.close()


def test_who_is_slow_goes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that took long puts all of it to the test; who was not slow joins the others again."""
    masks = MaskMaker(COMPILER.num_words)
    guides = [guide_of(masks, "[a-c]*") for _ in range(3)]
    sizes: list[int] = []
    slow = guides[1]._automaton.matcher
    fill, go_on = MaskFiller.fill, Event()
    go_on.set()

    def filling(self: MaskFiller, runs: Any, **how: Any) -> Any:
        sizes.append(len(runs))
        if any(one is slow for one, _, _ in runs):
            assert go_on.wait(20)
        return fill(self, runs, **how)

    monkeypatch.setattr(MaskFiller, "fill", filling)
    monkeypatch.setattr(mask_batch, "SLOW_S", -1.0)  # all are
    assert all(guide.mask().result().any() for guide in guides)
    assert sizes == [3]
    monkeypatch.setattr(mask_batch, "SLOW_S", 20.0)  # none is
    for _ in range(2):
        for guide in guides:
            guide.advance(ids("a"))
        masks.begin()
        assert all(guide.mask().result().any() for guide in guides)
    assert sizes == [3, 1, 1, 1, 3]
    guides[1]._automaton.is_slow = True
    go_on.clear()
    for guide in guides:
        guide.advance(ids("b"))
    masks.begin()
    assert guides[0].mask().result().any()
    assert [guide.holds_up for guide in guides] == [False, True, False]
    go_on.set()
    assert guides[1].mask().result().any()
    assert not guides[1].holds_up
    masks.close()


def test_work_is_done_once_whoever_asks() -> None:
    masks = MaskMaker(COMPILER.num_words)
    guides, output = [guide_of(masks, "(ab)*c") for _ in range(20)], list[int]()
    with ThreadPoolExecutor(8) as pool:
        for text in "abab":
            for guide in guides:
                guide.advance(ids(text))
            masks.begin()
            output += ids(text)
            found = [pool.submit(guide.mask().result) for guide in guides]
            expected = next_tokens(_after("(ab)*c", output), len(TOKENS))
            assert all(np.array_equal(one.result(20), expected) for one in found)
    masks.close()


def test_threads_begin_what_is_slow_or_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """All else is made by who asks, in the thread that asks."""
    monkeypatch.setattr(mask_batch, "SLOW_S", 20.0)
    masks = MaskMaker(COMPILER.num_words)
    begun: list[Any] = []
    monkeypatch.setattr(masks._pool, "submit", lambda run, **how: begun.append(partial(run, **how)))
    guides = [guide_of(masks, "[a-c]*") for _ in range(3)]
    masks.begin()
    assert len(begun) == 1
    begun[0]()
    assert all(guide.mask().is_done for guide in guides)
    guides[1]._automaton.is_slow = True
    for guide in guides:
        guide.advance(ids("a"))
    masks.begin()
    assert len(begun) == 2
    begun[1]()
    assert [guide.mask().is_done for guide in guides] == [False, True, False]
    assert guides[0].mask().result().any()
    assert guides[2].mask().is_done


@pytest.mark.parametrize(
    ("own_s", "spent_s", "helped_s", "slow", "suspects"),
    [
        ([0.0, 9.0], 9.0, 0.0, [1], []),
        ([0.0, 9.0], 9.0, 9.0, [1], [2, 3]),
        ([0.0, 0.0], 9.0, 0.0, [], [0, 1]),
        ([0.0, 0.0], 9.0, 9.0, [], [0, 1, 2, 3]),
        ([0.0, 0.0], 0.0, 0.0, [], []),
    ],
)
def test_who_takes_long_is_known_where_it_was_by_itself(
    monkeypatch: pytest.MonkeyPatch,
    own_s: list[float],
    spent_s: float,
    helped_s: float,
    slow: list[int],
    suspects: list[int],
) -> None:
    """Of those that threads have worked on together, all are suspect; so are those that a thread has worked on that
    also waited, so that it cannot be told for whom."""
    masks = MaskMaker(COMPILER.num_words)
    guides = [guide_of(masks, "[a-c]*") for _ in range(4)]
    assert all(guide.mask().result().any() for guide in guides)
    fill = MaskFiller.fill

    def filling(self: MaskFiller, runs: Any, **how: Any) -> Filled:
        return Filled(fill(self, runs, **how).words, own_s, spent_s, helped_s)

    monkeypatch.setattr(MaskFiller, "fill", filling)
    for guide in guides:
        guide._automaton.is_slow = guide._automaton.is_suspect = False
        guide.advance(ids("a"))
    assert guides[0].mask().result().any()
    assert [i for i, guide in enumerate(guides) if guide._automaton.is_slow] == slow
    assert [i for i, guide in enumerate(guides) if guide._automaton.is_suspect] == suspects
    masks.close()
