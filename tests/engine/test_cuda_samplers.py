"""Whatever samplers a request asks for, the engine for GPUs draws what the CPU's sampler draws from the same logits:
here with the kernels' references, and on a GPU with the kernels."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from isthmus.decode.sampler import Sampler
from isthmus.engine.cuda.engine import CudaEngine
from isthmus.engine.cuda.sampler import can_draw
from isthmus.engine.plan import Draw, Plan, SequenceSeed, ShippedDraw
from isthmus.tests.decode.test_sampler_isolation import EACH, EVERYTHING, VALUES, guide
from isthmus.tests.engine import tiny
from isthmus.tests.engine.cuda_tiny import cuda_engine
from isthmus.wire.logprobs import TokenLogprobs
from isthmus.wire.noise import philox_key
from isthmus.wire.sampling import DEFAULT_ORDER, SamplingParams

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
STEPS, BATCH = 4, 8
PROMPT = (5, 6, 7, 5, 6)


def mixtures(count: int, seed: int) -> list[SamplingParams]:
    """Each with some samplers, half of them in an order of their own."""
    rng, found = random.Random(seed), []
    for _ in range(count):
        values: dict[str, Any] = {name: rng.choice(options) for name, options in VALUES.items() if rng.random() < 0.25}
        order = tuple(rng.sample(DEFAULT_ORDER, len(DEFAULT_ORDER))) if rng.random() < 0.5 else ()
        found.append(SamplingParams(dry_sequence_breakers=(), sampler_priority=order, **values))
    return found


@pytest.fixture(scope="module", params=DEVICES)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CudaEngine:
    """With a sampler for what the kernels do not do."""
    config = tiny.llama()
    weights = tiny.save(tiny.reference_model(config), tmp_path_factory.mktemp("model"))
    return cuda_engine(config, weights, request.param, sampler=Sampler(tiny.VOCAB_SIZE, request.param))


def seed_of(seq_id: int, params: SamplingParams) -> SequenceSeed:
    return SequenceSeed(seq_id, params, philox_key(5, 0, seq_id), PROMPT, (), frozenset([2, 9]))


def draws(step: int) -> list[Draw]:
    """Every third sequence is guided, every other one was rewound, and may not do again what it did."""
    bans = tuple(range(0, tiny.VOCAB_SIZE, 2 + step))
    return [Draw(i, step, i % 2, guide(i, step, tiny.VOCAB_SIZE), bans if i % 2 else ()) for i in range(BATCH)]


Drawn = tuple[int, TokenLogprobs | None, bytes]


def by_the_engine(engine: CudaEngine, params: Sequence[SamplingParams], logits: torch.Tensor) -> list[list[Drawn]]:
    for seq_id, one in enumerate(params):
        engine.admit(seed_of(seq_id, one))
    steps = []
    for step, rows in enumerate(logits):
        shipped = [engine.unpack_logits(row.numpy().view("uint8").data) for row in rows]
        parts = tuple(ShippedDraw(row, (draw,)) for row, draw in zip(shipped, draws(step), strict=True))
        steps.append(list(engine.launch(Plan(step, (), parts)).result().drawn))
    for seq_id in range(len(params)):
        engine.retire(seq_id)
    return steps


def by_the_sampler(params: Sequence[SamplingParams], logits: torch.Tensor) -> list[list[Drawn]]:
    sampler = Sampler(tiny.VOCAB_SIZE)
    for seq_id, one in enumerate(params):
        sampler.admit(seed_of(seq_id, one))
    steps = []
    for step, rows in enumerate(logits):
        samples = sampler.sample(rows.clone(), draws(step))
        steps.append(list(zip(samples.token_ids.tolist(), samples.logprobs, samples.states, strict=True)))
    return steps


def assert_same(engine: CudaEngine, params: Sequence[SamplingParams], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(STEPS, BATCH, tiny.VOCAB_SIZE, generator=generator) * 3
    logits[:, 1::4] = (logits[:, 1::4] * 2).round() / 2  # ties
    expected, got = by_the_sampler(params, logits), by_the_engine(engine, params, logits)
    for step in range(STEPS):
        for row, (one, other) in enumerate(zip(expected[step], got[step], strict=True)):
            assert one[0] == other[0], f"token {step} of {params[row]}"
            assert_near(one[1], other[1])
            assert floats(one[2]) == pytest.approx(floats(other[2]), rel=1e-4)


def assert_near(one: TokenLogprobs | None, other: TokenLogprobs | None) -> None:
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert one.chosen == pytest.approx(other.chosen, abs=1e-4)
        assert one.rank == other.rank
        assert [token for token, _ in one.top] == [token for token, _ in other.top]
        assert [value for _, value in one.top] == pytest.approx([value for _, value in other.top], abs=1e-4)


def floats(state: bytes) -> list[float]:
    return torch.frombuffer(bytearray(state), dtype=torch.float32).tolist() if state else []


@pytest.mark.parametrize("first", range(0, len(EACH), BATCH))
def test_each_sampler(engine: CudaEngine, first: int) -> None:
    params = (EACH[first:] + EACH)[:BATCH]
    assert_same(engine, params, first)


@pytest.mark.parametrize("seed", range(12))
def test_mixtures(engine: CudaEngine, seed: int) -> None:
    assert_same(engine, [*mixtures(BATCH - 1, seed), EVERYTHING], seed)


def test_few_mixtures_are_drawn_outside_of_the_kernels() -> None:
    """Processed logprobs, skewed adaptive-p, and a history that comes into play after other samplers."""
    kernels = [
        SamplingParams(dry_multiplier=1.0, no_repeat_ngram_size=3, top_p=0.5, skew=1.0),
        SamplingParams(repetition_penalty=1.2, repetition_penalty_range=64, temperature=0.5, mirostat_mode=2),
        SamplingParams(logprobs=5, min_p=0.1, xtc_probability=0.5),
        SamplingParams(repetition_penalty=1.2, sampler_priority=(*DEFAULT_ORDER[3:], *DEFAULT_ORDER[:3]), top_k=5),
    ]
    others = [
        SamplingParams(logprobs=5, logprobs_mode="processed"),
        SamplingParams(skew=1.0, adaptive_target=0.5),
        SamplingParams(dry_multiplier=1.0, top_k=5, sampler_priority=(*DEFAULT_ORDER[1:], "dry")),
    ]
    assert all(map(can_draw, kernels))
    assert not any(map(can_draw, others))
