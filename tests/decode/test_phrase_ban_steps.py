"""The scheduler with banned phrases: held tokens, rewinds, and all that may come between them."""

import random
import re
import string
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from isthmus.engine.plan import Plan, Result
from isthmus.tests.decode.guided_sim import TOKENS, text_of
from isthmus.tests.decode.phrase_sim import PhraseSim, has_phrase
from isthmus.tests.decode.router_sim import EOS, Request, random_requests
from isthmus.wire.messages import Tokens
from isthmus.wire.sampling import Guidance, SamplingParams
from msgspec.structs import replace

PATTERN = "[a-e]{10,30}[0-9]{2,5}"


def random_phrases(rng: random.Random) -> tuple[str, ...]:
    """So many that one is met every few tokens; long ones that begin like them are held back for."""
    pairs = rng.sample([a + b for a in string.ascii_lowercase for b in string.ascii_lowercase], 120)
    return (*pairs, *(pair[0] + rng.choice("xyz123") * 4 for pair in pairs[:40]), *rng.sample("ABCDEFG", 2))


def banning_requests(rng: random.Random, count: int) -> Iterator[Request]:
    for request in random_requests(rng, count, 20, 20):
        params = request.params
        if params.max_tokens and rng.random() < 0.8:
            params = replace(params, banned_strings=random_phrases(rng))
        if params.banned_strings and rng.random() < 0.3:
            params = replace(params, mirostat_mode=2)
        if params.banned_strings and rng.random() < 0.3:
            guidance = Guidance("regex", PATTERN)
            phrases = ("ab", "cde", "EE", "b1", "3")
            params = replace(params, guidance=guidance, max_tokens=60, min_tokens=0, banned_strings=phrases)
        yield Request(request.prompt, params, request.num_choices, request.remote)


def drive(sim: PhraseSim, requests: Sequence[Request]) -> None:
    for request in requests:
        sim.submit(request)
    for _ in range(80):
        sim.place_what_fits()
        sim.deliver()
        sim.turn()
        if sim.random.random() < 0.1:
            sim.cancel_something()
    sim.run(200_000)


def num_rewinds(sim: PhraseSim) -> int:
    return max((draw.epoch for plan in sim.plans for draw in plan.draws), default=0)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_random_steps(seed: int, overlap: bool) -> None:
    """Few blocks: sequences are preempted with tokens held back, and go on as if nothing had been."""
    rng = random.Random(seed)
    sim = PhraseSim(num_blocks=20, watermark_blocks=0, seed=seed, overlap=overlap, max_num_seqs=8, eos_probability=0.01)
    sim.fail_transfers = 0.05
    requests = list(banning_requests(rng, 40))
    drive(sim, requests)
    assert not sim.failures
    assert sim.scheduler.stats().num_preemptions > 0
    assert num_rewinds(sim) > 3
    calm = PhraseSim(num_blocks=100, eos_probability=0.01, enable_prefix_caching=False)
    for request in requests:
        for output in request.outputs.values():
            assert not has_phrase(output, request.params.banned_strings)
        if request.params.guidance is None:
            sim.assert_exact(request)
            continue
        alone = calm.submit(replace_prompt(request))
        calm.run()
        for choice, output in request.outputs.items():
            whole = alone.outputs[choice]
            assert output == (whole if choice in request.finished else whole[: len(output)])
            if choice in request.finished and output[-1:] == [EOS]:
                assert re.fullmatch(PATTERN, text_of(output))


def replace_prompt(request: Request) -> Request:
    return Request(request.prompt, request.params, request.num_choices)


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("prompt_len", [1, 7, 8, 9])
def test_first_token_taken_back(prompt_len: int, remote: bool) -> None:
    """The prompt's last token is computed again: in a copy, where its block is full and others read it."""
    found = 0
    for seed in range(12):
        sim = PhraseSim(num_blocks=64, block_size=4, seed=seed)
        prompt = list(range(1, prompt_len + 1))
        params = SamplingParams(seed=seed, max_tokens=6, banned_strings=tuple("abcdefghijklmnopqrs"), ignore_eos=True)
        request = sim.submit(Request(prompt, params, 3, remote))
        sim.run()
        sim.assert_exact(request)
        again = [draw for plan in sim.plans for draw in plan.draws if draw.position == 0 and draw.epoch]
        copies = sum(len(plan.copies) for plan in sim.plans)
        shared = prompt_len % 4 == 0
        assert copies == (len({draw.seq_id for draw in again}) if shared else 2)
        found += bool(again)
    assert found > 6


def test_others_go_on_while_a_draw_waits_for_its_text() -> None:
    sim = PhraseSim(num_blocks=96, overlap=True, max_num_seqs=12)
    sim.submit(Request([1, 2, 3], SamplingParams(seed=1, max_tokens=12, banned_strings=("zzz",))))
    for number in range(10):
        sim.submit(Request([4, 5, 6 + number], SamplingParams(seed=2, max_tokens=30)))
    sim.run()
    drawing = [{draw.seq_id for draw in plan.draws} for plan in sim.plans]
    overlapped = [(before, now) for before, now in pairwise(drawing) if 1 in now]  # later ones wait for each other
    assert not any(0 in now and 0 in before for before, now in overlapped)
    assert sum(1 in draws for draws in drawing[:31]) == 30


def test_rows_hold_what_was_held_back() -> None:
    a, b, x = (TOKENS.index(c) for c in (b"a", b"b", b"x"))
    sim = PhraseSim(num_blocks=64)
    sim.engine._pick = lambda history, key, position, banned: [a, b, x, a, b][position]  # type: ignore[method-assign]
    params = SamplingParams(seed=1, max_tokens=5, banned_strings=("abc", "bxab!"), logprobs=2)
    request = sim.submit(Request([1, 2, 3], params))
    sim.run()
    rows = [row for message in sim.messages if isinstance(message, Tokens) for row in message.rows]
    assert [(row.position, row.token_ids, row.finish_reason) for row in rows] == [
        (0, (a,), None),
        (1, (b, x, a, b), "length"),
    ]
    told = [one for row in rows for one in row.logprobs]
    assert told == sim.engine.expected_logprobs([*request.prompt, *request.outputs[0]], 2)[2:]


def test_nothing_held_back_is_in_the_prefix_cache() -> None:
    """Blocks are committed when the token after them is released."""
    sim = PhraseSim(num_blocks=64, block_size=2, seed=3)
    a, b = TOKENS.index(b"a"), TOKENS.index(b"b")
    sim.engine._pick = lambda history, key, position, banned: b if a in banned else a  # type: ignore[method-assign]
    params = SamplingParams(seed=1, max_tokens=11, banned_strings=("aaaaaaaaa",), ignore_eos=True)
    request = sim.submit(Request([1, 2, 3], params))
    for _ in range(12):
        sim.place_what_fits()
        sim.turn()
        for sequence in sim.scheduler._placed.running:
            released = len(request.prompt) + len(request.outputs[0])
            assert sequence.num_committed * 2 < max(released, len(request.prompt))
    sim.run()
    assert text_of(request.outputs[0]) == "bbbaaaaaaaa"
    sim.assert_exact(request)


@pytest.mark.parametrize("remote", [False, True])
def test_a_request_that_can_only_write_a_phrase_fails_alone(remote: bool) -> None:
    sim = PhraseSim(num_blocks=64)
    guidance = Guidance("choice", '["abc"]')
    bad = sim.submit(
        Request([1, 2, 3], SamplingParams(guidance=guidance, banned_strings=("bc",), max_tokens=9), 2, remote)
    )
    others = list(banning_requests(random.Random(5), 5))
    for request in others:
        sim.submit(request)
    sim.run()
    assert [(request, "no token" in error) for request, error in sim.failures] == [(bad, True)]
    for request in others:
        assert len(request.finished) == request.num_choices


def test_cancel_after_a_rewind() -> None:
    """Between the step that took a token back and the one that goes on, the sampling state is still the old one."""
    sim = PhraseSim(num_blocks=64)
    params = SamplingParams(seed=1, max_tokens=40, banned_strings=tuple("abcdefghijklm"))
    request = sim.submit(Request([1, 2, 3], params))
    apply = sim.scheduler.apply
    cancelled = []

    def cancel_then(plan: Plan, result: Result, now: float) -> None:
        apply(plan, result, now)
        if any(sequence.rewound for sequence in sim.scheduler._placed.running):
            sim.cancel(request)
            cancelled.append(request)

    sim.scheduler.apply = cancel_then  # type: ignore[method-assign]
    sim.run()
    assert cancelled


def test_a_worker_without_a_tokenizer_refuses() -> None:
    sim = PhraseSim(num_blocks=64)
    sim.scheduler._reservations._phrase_bans = None
    sim.submit(Request([1], SamplingParams(banned_strings=("a",), max_tokens=3)))
    sim.run()
    ((_, error),) = sim.failures
    assert "banned_strings" in error
