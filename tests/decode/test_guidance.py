"""Guides alone, and the scheduler that waits for them: outputs follow grammars whatever happens on the way."""

import json
import random
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from isthmus.decode import mask_batch
from isthmus.decode.automaton import Ending
from isthmus.decode.guide import Guide
from isthmus.decode.mask_maker import MaskMaker
from isthmus.decode.token_bans import TokenBans
from isthmus.engine.plan import Plan
from isthmus.tests.decode.guided_sim import TOKENS, GuidedSim, error_of, guided, text_of, vocabulary
from isthmus.tests.decode.router_sim import EOS, VOCAB, Request, random_requests
from isthmus.text.grammar_compiler import GrammarCompiler, Vocabulary
from isthmus.wire.sampling import Guidance, SamplingParams
from llguidance import LLMatcher
from msgspec.structs import replace

COMPILER = GrammarCompiler(vocabulary)
MASKS = MaskMaker(COMPILER.num_words)
POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}, "y": {"enum": ["ab", 1]}},
    "required": ["x", "y"],
    "additionalProperties": False,
}
GRAMMARS = [
    ("regex", "(ab|c){9,20}[0-9]{3,9}", re.compile("(ab|c){9,20}[0-9]{3,9}").fullmatch),
    ("choice", '["ab12", "abc", "xyz"]', {"ab12", "abc", "xyz"}.__contains__),
    ("gbnf", 'root ::= "[" [a-c]{1,5} "]"', re.compile(r"\[[a-c]{1,5}\]").fullmatch),
    ("lark", 'start: "a" start "b" | "1"', re.compile("a*1b*").fullmatch),
    ("json_schema", json.dumps(POINT), lambda text: set(json.loads(text)) == {"x", "y"}),
]


def ids(text: str) -> list[int]:
    return [TOKENS.index(c.encode()) for c in text]


def guide_of(pattern: str, output: str = "", **params: Any) -> Guide:
    asked = SamplingParams(**params)
    stops = frozenset(asked.stop_token_ids) | (frozenset() if asked.ignore_eos else {EOS})
    bans = TokenBans.of(asked, stops, (EOS,), VOCAB)
    return Guide(COMPILER.compile(Guidance("regex", pattern)), bans, ids(output), MASKS)


def allowed(guide: Guide) -> str:
    words = guide.mask().result()
    assert len(words) == -(-VOCAB // 32)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[:VOCAB]
    return " ".join("$" if i == EOS else TOKENS[i].decode() for i in bits.nonzero()[0])


def test_masks_follow_the_output() -> None:
    guide = guide_of("ab?1")
    seen = [allowed(guide)]
    for token in ids("ab1"):
        guide.advance([token])
        seen.append(allowed(guide))
    assert seen == ["a ab a1", "b 1", "1", "$"]
    assert guide.ending is None


def test_a_guide_is_made_anew_from_the_output_and_rolled_back() -> None:
    guide = guide_of("(ab)+c", "abab")
    assert allowed(guide) == "a c ab"
    guide.rollback_to(len(ids("abab")) - 3)
    assert allowed(guide) == "b"
    guide.advance(ids("bc"))
    assert allowed(guide) == "$"
    guide.rollback_to(guide.num_tokens - 1)
    assert allowed(guide) == "a c ab"


def test_a_guide_follows_guesses_as_far_as_they_are_allowed() -> None:
    guide = guide_of("(ab)+c", "ab")
    (a,), (b,), (c,) = ids("a"), ids("b"), ids("c")
    assert guide.follow(b) is None
    masks = [guide.follow(token) for token in (a, b, c)]
    assert all(mask is not None and mask.result().any() for mask in masks)
    assert allowed(guide) == "$"
    assert guide.follow(a) is None, "nothing follows the end"
    guide.rollback_to(len(ids("ab")) + 1)
    assert allowed(guide) == "b"


@pytest.mark.parametrize("guesses", ["ab", "abc", "abxc", "x", ""])
@pytest.mark.parametrize("num_followed", [0, 1, 2, 3])
@pytest.mark.parametrize("num_kept", [0, 1, 2, 3])
def test_looking_ahead_is_following_sooner(guesses: str, num_followed: int, num_kept: int) -> None:
    """Whatever is followed of it, and kept of that."""
    plain, ahead = guide_of("(ab)+c", "ab"), guide_of("(ab)+c", "ab")
    ahead.look_ahead(ids(guesses))
    count = 0
    for token in ids(guesses)[:num_followed]:
        one, other = plain.follow(token), ahead.follow(token)
        assert (one is None) == (other is None)
        if one is None or other is None:
            break
        assert np.array_equal(one.result(), other.result())
        count += 1
    for guide in (plain, ahead):
        guide.rollback_to(len(ids("ab")) + min(num_kept, count))
    assert allowed(plain) == allowed(ahead)
    assert (plain.ending, plain.num_tokens) == (ahead.ending, ahead.num_tokens)
    rest = ids("abc"[min(num_kept, count) :])
    for guide in (plain, ahead):
        guide.advance(rest)
    assert allowed(plain) == allowed(ahead) == "$"


def test_bans_and_minimum() -> None:
    assert allowed(guide_of("[a-d]", custom_token_bans=(*ids("b"), *ids("c")))) == "a d"
    assert allowed(guide_of("[a-d]", allowed_token_ids=tuple(ids("cx")))) == "c"
    assert allowed(guide_of("a*", "a")) == "$ a"
    assert allowed(guide_of("a*", "a", min_tokens=2)) == "a"
    assert allowed(guide_of("a*", "a", ignore_eos=True)) == "a"


@pytest.mark.parametrize("params", [{"ignore_eos": True}, {"min_tokens": 5}, {"custom_token_bans": (EOS,)}])
def test_a_grammar_that_has_ended_is_finished(params: dict[str, Any]) -> None:
    guide = guide_of("ab", "a", **params)
    assert allowed(guide) == "b"
    assert guide.ending is None
    guide.advance(ids("b"))
    assert guide.ending == Ending(None)
    assert len(allowed(guide).split()) > 30  # what is drawn does not count


def test_bans_that_leave_nothing_are_an_error() -> None:
    guide = guide_of("ab", "a", custom_token_bans=tuple(ids("b")))
    assert "bans every one" in error_of(guide)


def test_a_token_that_the_grammar_does_not_have_is_an_error() -> None:
    guide = guide_of("ab", "x")
    assert "cannot follow its grammar" in error_of(guide)
    assert len(allowed(guide).split()) > 30


def test_work_that_explodes_is_an_error() -> None:
    stops = frozenset({EOS})
    bans = TokenBans.of(SamplingParams(), stops, (EOS,), VOCAB)
    both = "start: A\nA: " + " & ".join(f"/(.*{c}.{{20}}){{10}}.*/" for c in "abcdef")
    guide = Guide(COMPILER.compile(Guidance("lark", both)), bans, ids("a"), MASKS)
    assert "cannot follow its grammar" in error_of(guide)


# The scheduler.


class HeldCompiler(GrammarCompiler):
    """Waits until it is let go on."""

    def __init__(self, load: Callable[[], Vocabulary]):
        super().__init__(load)
        self.released = threading.Event()

    def compile(self, guidance: Guidance) -> LLMatcher:
        assert self.released.wait(20)
        return super().compile(guidance)


def guided_requests(rng: random.Random, count: int) -> Sequence[tuple[Request, Any]]:
    requests = []
    for request in random_requests(rng, count, 20, 20):
        if rng.random() < 0.3 or request.params.max_tokens == 0:
            requests.append((request, None))
            continue
        kind, spec, fits = rng.choice(GRAMMARS)
        params = guided(kind, spec, seed=rng.randrange(2**40), ignore_eos=rng.random() < 0.3)
        params = replace(params, min_tokens=rng.choice([0, 0, 5]))
        requests.append((Request(request.prompt, params, request.num_choices, request.remote), fits))
    return requests


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_random_steps(seed: int, overlap: bool) -> None:
    """Few blocks: sequences are preempted, and their guides made anew from the output."""
    rng = random.Random(seed)
    sim = GuidedSim(num_blocks=20, watermark_blocks=0, seed=seed, overlap=overlap, max_num_seqs=8, fail_transfers=0.05)
    requests = guided_requests(rng, 40)
    for request, _ in requests:
        sim.submit(request)
    for _ in range(60):
        sim.place_what_fits()
        sim.deliver()
        sim.turn()
        if rng.random() < 0.1:
            sim.cancel_something()
    sim.run(200_000)
    assert sim.scheduler.stats().num_preemptions > 0
    assert not sim.failures
    for request, fits in requests:
        sim.assert_exact(request)
        complete = [request.outputs[i] for i, row in request.finished.items() if row.finish_reason == "stop"]
        assert fits is None or all(fits(text_of(output)) for output in complete), complete


def drawing_beside_ten(spec: str) -> tuple[list[Plan], list[set[int]]]:
    """Plans, and who draws in them: sequence 0 within a grammar, ten others without."""
    sim = GuidedSim(num_blocks=96, overlap=True, max_num_seqs=12)
    request = sim.submit(Request([1, 2, 3], guided("regex", spec)))
    for number in range(10):
        sim.submit(Request([4, 5, 6 + number], SamplingParams(seed=2, max_tokens=30)))
    sim.run()
    sim.assert_exact(request)
    return sim.plans, [{draw.seq_id for draw in plan.draws} for plan in sim.plans]


def test_within_a_grammar_a_step_is_planned_while_the_one_before_it_is_in_flight() -> None:
    """Its mask is asked for later."""
    plans, drawing = drawing_beside_ten("a{20}")
    assert all(0 in draws for draws in drawing[1:20])
    assert all(plan.waits_for_tokens for plan in plans[1:20])


def test_not_so_within_one_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others need not wait for its masks."""
    monkeypatch.setattr(mask_batch, "SLOW_S", -1.0)
    plans, drawing = drawing_beside_ten("a{20}")
    overlapped = [(before, now) for before, now in list(pairwise(drawing))[2:] if 1 in now]
    assert not any(0 in now and 0 in before for before, now in overlapped)
    assert not any(plan.waits_for_tokens for plan in plans[2:])
    assert sum(1 in draws for draws in drawing[:31]) == 30, "another is in every step"


def test_nobody_waits_for_one_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few others there are, and though its masks are there in time."""
    monkeypatch.setattr(mask_batch, "SLOW_S", -1.0)
    monkeypatch.setattr(Guide, "holds_up", False)
    sim = GuidedSim(num_blocks=64, overlap=True)
    sim.submit(Request([1, 2, 3], guided("regex", "a{50}")))
    other = sim.submit(Request([4, 5, 6], SamplingParams(seed=2, max_tokens=30)))
    num_turns = 0
    while not other.finished:
        sim.place_what_fits()
        sim.turn()
        num_turns += 1
    assert num_turns <= 34, "it was in every step"
    sim.run()


@pytest.mark.parametrize("max_tokens", [5, 60])
def test_a_grammar_that_ends_while_a_step_after_it_is_in_flight(max_tokens: int) -> None:
    """By itself, without a token for it: of what was computed meanwhile nothing stays."""
    sim = GuidedSim(num_blocks=64, block_size=2, overlap=True)
    request = sim.submit(Request([1, 2, 3], guided("regex", "a{5,6}", ignore_eos=True, max_tokens=max_tokens)))
    again = [sim.submit(Request([1, 2, 3], guided("regex", "[ab]{7}", seed=seed, ignore_eos=True))) for seed in (1, 2)]
    sim.run()
    for one in (request, *again):
        sim.assert_exact(one)
        is_cut = len(one.outputs[0]) == one.params.max_tokens
        assert one.finished[0].finish_reason == ("length" if is_cut else "stop")


def test_others_run_while_a_grammar_is_compiled() -> None:
    compiler = HeldCompiler(vocabulary)
    sim = GuidedSim(num_blocks=64, compiler=compiler)
    sim.awaits_grammars = False
    waiting = sim.submit(Request([1, 2, 3], guided("regex", "[a-c]{3}")))
    other = sim.submit(Request([4, 5, 6], SamplingParams(seed=2, max_tokens=10)))
    for _ in range(15):
        sim.place_what_fits()
        sim.turn()
    assert other.finished
    assert not waiting.outputs[0]
    assert not sim.scheduler.idle
    compiler.released.set()
    wait([sim.guides._grammars.get(waiting.params.guidance)], 20)
    sim.run()
    assert re.fullmatch("[a-c]{3}", text_of(waiting.outputs[0]))


def test_a_grammar_that_takes_too_long_fails_alone() -> None:
    compiler = HeldCompiler(vocabulary)
    sim = GuidedSim(num_blocks=64, compiler=compiler)
    sim.awaits_grammars = False
    slow = sim.submit(Request([1, 2, 3], guided("regex", "a"), num_choices=2))
    other = sim.submit(Request([4, 5, 6], SamplingParams(seed=2, max_tokens=120)))
    sim.run(400)
    compiler.released.set()
    assert [(request, "too long" in error) for request, error in sim.failures] == [(slow, True)]
    assert other.finished


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize(
    ("params", "error"),
    [
        (guided("regex", "("), "unclosed group"),
        (guided("regex", "ab", custom_token_bans=(2, 44)), "bans every one"),
        (
            guided("lark", "start: A\nA: " + " & ".join(f"/(.*{c}.{{20}}){{10}}.*/" for c in "abcdef")),
            "follow its grammar",
        ),
    ],
    ids=["syntax", "bans", "work"],
)
def test_failures_are_the_requests_own(params: SamplingParams, error: str, remote: bool) -> None:
    sim = GuidedSim(num_blocks=64, overlap=True)
    bad = sim.submit(Request([1, 2, 3, 4, 5], params, num_choices=3, remote=remote))
    others = [sim.submit(Request([4, 5, 6], guided("regex", "[a-z]{5}", seed=i))) for i in range(3)]
    sim.run()
    ((failed, reason),) = sim.failures
    assert failed is bad
    assert error in reason
    for request in others:
        sim.assert_exact(request)
        assert request.finished


def test_a_worker_without_a_tokenizer_refuses() -> None:
    sim = GuidedSim(num_blocks=64)
    sim.scheduler._reservations._guides = None
    sim.submit(Request([1], guided("regex", "a")))
    sim.run()
    assert "tokenizer" in sim.failures[0][1]
