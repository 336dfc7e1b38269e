"""Random steps with guesses, grammars and banned phrases together, on the fake engine: tokens are the oracle's, the
books add up after every step, and nothing is left."""

import random
from typing import Any

import pytest
from isthmus.decode.speculator import EngineProposer
from isthmus.tests.decode.phrase_sim import PhraseSim, has_phrase
from isthmus.tests.decode.router_sim import Request
from isthmus.tests.decode.speculating import speculation_of
from isthmus.tests.decode.test_guidance import guided_requests
from isthmus.tests.decode.test_phrase_ban_steps import banning_requests, drive, num_rewinds
from isthmus.wire.sampling import SamplingParams


def guessing(num_blocks: int, num_tokens: int = 5, **options: Any) -> PhraseSim:
    speculation = speculation_of(EngineProposer, num_tokens)
    return PhraseSim(num_blocks=num_blocks, speculation=speculation, **options)


@pytest.mark.parametrize("overlap", [False, True], ids=["synchronous", "overlapped"])
@pytest.mark.parametrize("seed", range(6))
def test_banned_phrases(seed: int, overlap: bool) -> None:
    """Guesses that were right are taken back in the middle, and sequences preempted."""
    rng = random.Random(seed)
    sim = guessing(20, 1 + 2 * seed, watermark_blocks=0, seed=seed, overlap=overlap, eos_probability=0.01)
    sim.fail_transfers = 0.05
    requests = list(banning_requests(rng, 60))
    drive(sim, requests)
    assert not sim.failures
    assert num_rewinds(sim) > 3
    stats = sim.scheduler.stats()
    assert stats.num_preemptions > 0
    assert 0 < stats.num_accepted_tokens < stats.num_draft_tokens
    plain = PhraseSim(num_blocks=100, eos_probability=0.01, enable_prefix_caching=False)
    for request in requests:
        assert not any(has_phrase(one, request.params.banned_strings) for one in request.outputs.values())
        if request.params.guidance is None:
            sim.assert_exact(request)
        else:
            assert_beginnings(request, plain)


def assert_beginnings(request: Request, plain: PhraseSim) -> None:
    """What was said before it was cancelled, if it was, is what is said without guesses."""
    alone = plain.submit(Request(request.prompt, request.params, request.num_choices))
    plain.run()
    for choice, output in request.outputs.items():
        whole = alone.outputs[choice]
        assert output == (whole if choice in request.finished else whole[: len(output)])


@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
@pytest.mark.parametrize("num_tokens", [1, 5, 16])
@pytest.mark.parametrize("prompt_len", [1, 7, 8, 9])
def test_first_tokens_taken_back(prompt_len: int, num_tokens: int, remote: bool) -> None:
    """The next row has the prompt's last token and guesses: the block of one may go, those of the others must come."""
    found = 0
    for seed in range(12):
        sim = guessing(64, num_tokens, seed=seed)
        params = SamplingParams(seed=seed, max_tokens=12, banned_strings=tuple("abcdefghijklmnopqrs"), ignore_eos=True)
        request = sim.submit(Request(list(range(1, prompt_len + 1)), params, 3, remote))
        sim.run()
        sim.assert_exact(request)
        found += any(draw.position == 0 and draw.epoch for plan in sim.plans for draw in plan.draws)
        assert sim.scheduler.stats().num_draft_tokens > 0
    assert found > 6


@pytest.mark.parametrize("overlap", [False, True], ids=["synchronous", "overlapped"])
@pytest.mark.parametrize("seed", range(6))
def test_grammars(seed: int, overlap: bool) -> None:
    """Guesses that a grammar does not let come end a row early; others are followed, and taken back if wrong."""
    sim = guessing(20, 1 + 2 * seed, watermark_blocks=0, seed=seed, overlap=overlap, fail_transfers=0.05)
    requests = [request for request, _ in guided_requests(random.Random(seed), 40)]
    drive(sim, requests)
    for request in requests:
        sim.assert_exact(request)
    stats = sim.scheduler.stats()
    assert 0 < stats.num_accepted_tokens < stats.num_draft_tokens
