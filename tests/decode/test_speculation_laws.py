"""In bf16, where logits of one position and of several at once are not the same to the bit: tokens that come with
guesses follow the same law as those that come without."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from isthmus.decode.sampler import Sampler
from isthmus.decode.speculation import Speculation
from isthmus.decode.speculator import EngineProposer
from isthmus.engine.guesses import Guesses
from isthmus.engine.plan import Engine
from isthmus.engine.speculation_config import SpeculationConfig
from isthmus.tests.decode.speculating import Ask, decode, speculation_of
from isthmus.tests.decode.test_sampler_laws import critical_value
from isthmus.tests.engine.cuda_tiny import cuda_engine
from isthmus.tests.engine.tiny import VOCAB_SIZE, engine_of, llama, prompt, reference_model, save
from isthmus.wire.sampling import SamplingParams

NUM_REQUESTS, NUM_CHOICES = 48, 64
NUM_TOKENS = 4
"""The first without guesses, three in the step after it."""
SIGMAS = 5.0
"""How far the statistic may lie from what is expected: beyond it once in three million times."""

Counts = Counter[tuple[int, ...]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(reference_model(llama()), tmp_path_factory.mktemp("model"))


def engine_on(device: str, checkpoint: Path) -> Engine:
    """Its first layer guesses."""
    if device == "cuda":
        sizes: dict[str, Any] = {"num_blocks": 512, "max_num_seqs": 64}
        return cuda_engine(llama(), checkpoint, device, dtype=torch.bfloat16, draft=1, captured=False, **sizes)
    speculation = SpeculationConfig("first-layers", num_layers=1)
    options: dict[str, Any] = {"dtype": "bfloat16", "num_blocks": 512, "speculation": speculation}
    return engine_of(llama(), checkpoint, sampler=Sampler(VOCAB_SIZE), **options)


def outputs(engine: Engine, first_seed: int, speculation: Speculation | None = None) -> Counts:
    """How often each output came, of many seeds after one prompt."""
    wanted = {"temperature": 1.3, "top_k": 3, "max_tokens": NUM_TOKENS, "ignore_eos": True}
    seeds = range(first_seed, first_seed + NUM_REQUESTS)
    asks: list[Ask] = [(prompt(9), SamplingParams(seed=seed, **wanted), NUM_CHOICES) for seed in seeds]
    return Counter(tuple(one) for made in decode(engine, asks, speculation) for one in made.values())


def statistic(one: Counts, other: Counts) -> tuple[float, int]:
    """(chi-square of two samples of the same size being of one law, its degrees of freedom); what came rarely counts
    together."""
    totals = one + other
    common = [key for key, count in totals.items() if count >= 20]
    pairs = [(one[key], other[key]) for key in common]
    rest = one.total() - sum(a for a, _ in pairs), other.total() - sum(b for _, b in pairs)
    pairs += [rest] if sum(rest) else []
    return sum((a - b) ** 2 / (a + b) for a, b in pairs), len(pairs) - 1


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_tokens_follow_the_same_law(device: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, speculation = engine_on(device, checkpoint), speculation_of(EngineProposer)
    plain, guessed = outputs(engine, 0), outputs(engine, 10_000, speculation)
    assert plain.total() == guessed.total() == NUM_REQUESTS * NUM_CHOICES
    assert speculation.num_drafts >= guessed.total()
    assert 0.1 < speculation.num_accepted_tokens / speculation.num_draft_tokens < 0.9
    value, degrees = statistic(plain, guessed)
    assert degrees > 20
    assert value < critical_value(degrees, SIGMAS)
    if device == "cuda":
        return
    # It would be noticed if draws after wrong guesses counted. (A GPU does not even make them.)
    monkeypatch.setattr(Guesses, "reaches", lambda self, index, last_drawn: index <= len(self.token_ids))
    value, degrees = statistic(plain, outputs(engine, 20_000, speculation_of(EngineProposer)))
    assert value > critical_value(degrees, 2 * SIGMAS)
