"""Thousands of random steps: tokens are the oracle's, the books add up after every step, and nothing is left."""

import random

import pytest
from isthmus.decode.ngram_proposer import NgramProposer
from isthmus.decode.speculator import EngineProposer, Proposer
from isthmus.tests.decode.router_sim import RouterSim, random_requests
from isthmus.tests.decode.speculating import speculation_of


def drive(sim: RouterSim, num_requests: int, max_prompt: int, max_tokens: int, cancel: float) -> None:
    rng = random.Random(sim.random.random())
    waiting = list(random_requests(rng, num_requests, max_prompt, max_tokens))
    requests = list(waiting)
    while waiting:
        if rng.random() < 0.4:
            sim.submit(waiting.pop())
        if rng.random() < 0.7:
            sim.place_what_fits()
        for _ in range(rng.randrange(3)):
            sim.deliver()
        if rng.random() < cancel:
            sim.cancel_something()
        sim.turn()
    sim.run()
    for request in requests:
        sim.assert_exact(request)


@pytest.mark.parametrize("overlap", [False, True], ids=["synchronous", "overlapped"])
@pytest.mark.parametrize("seed", range(6))
def test_roomy_pool(seed: int, overlap: bool) -> None:
    sim = RouterSim(num_blocks=120, seed=seed, overlap=overlap, eos_probability=0.03, fail_transfers=0.02)
    drive(sim, num_requests=60, max_prompt=40, max_tokens=20, cancel=0.1)
    assert sim.scheduler.stats().prefix_hit_tokens > 0


@pytest.mark.parametrize("overlap", [False, True], ids=["synchronous", "overlapped"])
@pytest.mark.parametrize("seed", range(10))
def test_tiny_pool_revokes_and_preempts(seed: int, overlap: bool) -> None:
    sim = RouterSim(
        num_blocks=14, seed=seed, overlap=overlap, max_num_seqs=6, watermark_blocks=seed % 3, fail_transfers=0.02
    )
    drive(sim, num_requests=40, max_prompt=20, max_tokens=30, cancel=0.05)
    assert sim.scheduler.stats().num_preemptions > 0


@pytest.mark.parametrize("overlap", [False, True], ids=["synchronous", "overlapped"])
@pytest.mark.parametrize("seed", range(4))
def test_small_chunks_without_prefix_cache(seed: int, overlap: bool) -> None:
    sim = RouterSim(
        num_blocks=60,
        block_size=1 + 2 * seed,
        seed=seed,
        overlap=overlap,
        max_num_batched_tokens=9,
        max_chunk_tokens=5,
        enable_prefix_caching=False,
        eos_probability=0.05,
        max_model_len=50,
    )
    drive(sim, num_requests=40, max_prompt=35, max_tokens=20, cancel=0.1)
    assert sim.scheduler.stats().prefix_hit_tokens == 0


@pytest.mark.parametrize("overlap", [False, True], ids=["synchronous", "overlapped"])
@pytest.mark.parametrize("seed", range(8))
def test_blocks_that_peers_write_are_nobody_elses(seed: int, overlap: bool) -> None:
    sim = RouterSim(num_blocks=16, seed=seed, overlap=overlap, max_num_seqs=6, fail_transfers=0.1, claim_transfers=0.8)
    drive(sim, num_requests=40, max_prompt=20, max_tokens=30, cancel=0.2)
    assert sim.scheduler.stats().num_preemptions > 0


@pytest.mark.parametrize("overlap", [False, True], ids=["synchronous", "overlapped"])
@pytest.mark.parametrize("proposer", [EngineProposer, NgramProposer])
@pytest.mark.parametrize("seed", range(5))
def test_guesses_change_no_token(seed: int, proposer: type[Proposer], overlap: bool) -> None:
    speculation = speculation_of(proposer, 1 + 2 * seed)
    sim = RouterSim(
        num_blocks=(14, 120)[seed % 2],
        block_size=(4, 3)[seed % 2],
        seed=seed,
        overlap=overlap,
        max_num_seqs=6,
        eos_probability=0.03,
        fail_transfers=0.02,
        token_ids=(1, 2, 3),
        speculation=speculation,
    )
    drive(sim, num_requests=40, max_prompt=20, max_tokens=30, cancel=0.05)
    assert 0 < speculation.num_accepted_tokens < speculation.num_draft_tokens
    stats = sim.scheduler.stats()
    assert (stats.num_drafts, stats.num_draft_tokens) == (speculation.num_drafts, speculation.num_draft_tokens)
    assert sum(stats.num_accepted_per_position) == stats.num_accepted_tokens == speculation.num_accepted_tokens
