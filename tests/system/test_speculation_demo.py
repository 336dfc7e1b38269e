"""The demo model in fp32 says with guesses what it says without: from n-grams and from its own first layers."""

from collections.abc import Callable
from functools import partial

import pytest
from isthmus.engine.speculation_config import SpeculationConfig
from isthmus.engine.worker import Loaded
from isthmus.tests.helpers import demo_model_path
from isthmus.tests.local_cluster import Ask, Heard, LocalCluster
from isthmus.tests.oracle import demo_reference
from isthmus.tests.system.speculating import TOPOLOGIES, assert_same, counts_of, guess_always
from isthmus.text.resolve import resolve
from isthmus.text.tokenizer import Tokenizer
from isthmus.wire.sampling import SamplingParams

METHODS = {"ngram": SpeculationConfig("ngram"), "first-layers": SpeculationConfig("first-layers", 3, num_layers=25)}
NUM_BLOCKS = 64
PROMPTS = (
    "The capital of France is",
    "An isthmus is a narrow strip of land that joins two larger ones. " * 3,
    "The red door is old. The red car is new. The blue door is new. The red",
)
SAMPLERS = (
    SamplingParams(temperature=0, seed=1, max_tokens=16, logprobs=1),
    SamplingParams(temperature=0.9, top_p=0.95, repetition_penalty=1.1, seed=2, max_tokens=16, logprobs=1),
)


@pytest.fixture(scope="module")
def load() -> Callable[..., Loaded]:
    return partial(demo_reference().load, num_blocks=NUM_BLOCKS)


@pytest.fixture(scope="module")
def asks(tmp_path_factory: pytest.TempPathFactory) -> list[Ask]:
    tokenizer = Tokenizer.from_folder(resolve(str(demo_model_path()), tmp_path_factory.mktemp("tokenizer")).folder)
    return [Ask(tokenizer.encode(text), params) for text in PROMPTS for params in SAMPLERS]


@pytest.fixture(scope="module")
def plain(load: Callable[..., Loaded], asks: list[Ask]) -> list[Heard]:
    with LocalCluster(load, num_prefill=0) as cluster:
        return cluster.hear(asks)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("method", METHODS)
def test_guesses_change_no_token(
    load: Callable[..., Loaded],
    asks: list[Ask],
    plain: list[Heard],
    method: str,
    topology: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guess_always(monkeypatch)
    config, num_prefill = METHODS[method], TOPOLOGIES[topology]
    with LocalCluster(partial(load, speculation=config), num_prefill=num_prefill, speculation=config) as cluster:
        assert_same(asks, plain, cluster.hear(asks))
        stats = counts_of(cluster)
    assert 0 < stats.num_accepted_tokens < stats.num_draft_tokens
