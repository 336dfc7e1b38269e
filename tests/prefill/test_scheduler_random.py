"""Thousands of random steps: what was sent is what decode needs, the books add up, and nothing is left."""

import random

import pytest
from isthmus.tests.prefill.prefill_sim import VOCAB, PrefillSim
from isthmus.wire.messages import Prefilled


def random_prompt(rng: random.Random, stem: list[int]) -> list[int]:
    length = rng.randint(1, len(stem))
    shared = rng.randint(0, length)
    return stem[:shared] + [rng.randrange(VOCAB) for _ in range(length - shared)]


@pytest.mark.parametrize("overlap", [False, True], ids=["synchronous", "overlapped"])
@pytest.mark.parametrize("seed", range(12))
def test_random_steps(seed: int, overlap: bool) -> None:
    rng = random.Random(seed)
    sim = PrefillSim(
        num_blocks=rng.choice([12, 40, 100]),
        block_size=rng.choice([1, 4, 5]),
        overlap=overlap,
        seed=seed,
        max_num_seqs=rng.randint(1, 5),
        max_num_batched_tokens=rng.randint(2, 40),
        max_chunk_tokens=rng.choice([1, 7, 100]),
        enable_prefix_caching=seed % 3 > 0,
    )
    size = sim.pool.block_size
    stem = [rng.randrange(VOCAB) for _ in range(min(80, sim.pool.num_blocks * size))]
    num_submitted = 0
    while num_submitted < 60:
        if sim.available > 0 and rng.random() < 0.5:
            prompt = random_prompt(rng, stem)
            if rng.random() < 0.2:
                sim.submit(prompt, sends=False)
            else:
                sim.submit(prompt, rng.randint(0, (len(prompt) - 1) // size) * size)
            num_submitted += 1
        for work in sim.in_transit:
            if rng.random() < 0.005:
                sim.scheduler.on_send_failed(work.transfer_id, "connection lost", sim.now)
            elif work.logits is not None and rng.random() < 0.3:
                sim.sent(work)
        if sim.works and rng.random() < 0.02:
            sim.cancel(rng.choice(list(sim.works.values())))
        sim.turn()
    sim.run()
    done = [work for work in sim.works.values() if isinstance(work.answer, Prefilled)]
    assert len(done) > 20
    assert all(work.answer is not None for work in sim.works.values())
    kept = [work for work in done if not work.sends]
    assert kept
    assert not any(work.pieces or work.answer.transfer_bytes for work in kept)
    for work in done:
        if work.sends:
            sim.assert_exact(work)
