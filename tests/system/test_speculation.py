"""Whoever guesses tokens, requests with any samplers get those that they get without guesses, on every path."""

import random
from typing import Any

import msgspec
import pytest
from isthmus.tests.decode.test_sampler_isolation import EACH, EVERYTHING
from isthmus.tests.engine.test_cuda_samplers import mixtures
from isthmus.tests.local_cluster import Ask, Heard, LocalCluster
from isthmus.tests.oracle import make_tiny
from isthmus.tests.system.speculating import METHODS, TOPOLOGIES, Models, assert_same, counts_of, guess_always
from isthmus.wire.sampling import SamplingParams

VOCAB_SIZE = 384
MAX_TOKENS = 14
MAX_NUM_SEQS = 128


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(
        make_tiny("qwen3", tmp_path_factory.mktemp("target")),
        make_tiny("llama, biases", tmp_path_factory.mktemp("other")),
    )


def loops(rng: random.Random) -> list[Ask]:
    """Prompts that repeat themselves, and so do the outputs: n-grams are found, and go on as they did."""
    found = []
    for number, period in enumerate((1, 3, 7, 20)):
        words = [rng.randrange(VOCAB_SIZE) for _ in range(period)]
        for temperature in (0.0, 0.3):
            favoured = dict.fromkeys(words, 30.0) if temperature else {}
            params = SamplingParams(
                temperature=temperature, seed=number, logit_bias=favoured, max_tokens=40, logprobs=1
            )
            found.append(Ask((words * 40)[:60], params))
    return found


@pytest.fixture(scope="module")
def asks() -> list[Ask]:
    """Each sampler alone, all of them together, mixtures, and loops."""
    rng, found = random.Random(3), []
    for index, params in enumerate([*EACH, EVERYTHING, *mixtures(24, seed=4)]):
        prompt = [rng.randrange(VOCAB_SIZE) for _ in range(rng.choice((1, 15, 16, 40)))]
        wanted: dict[str, Any] = {"seed": index + 1, "max_tokens": MAX_TOKENS, "min_tokens": 0, "logprobs": index % 4}
        if params is EVERYTHING:  # its cubic bend makes a hundred times as much of what logits differ by
            wanted["logprobs_mode"] = "raw"
        found.append(Ask(prompt, msgspec.structs.replace(params, **wanted), num_choices=1 + index % 2))
    return found + loops(rng)


@pytest.fixture(scope="module")
def plain(models: Models, asks: list[Ask]) -> list[Heard]:
    with LocalCluster(models.target.load, num_prefill=0, max_num_seqs=MAX_NUM_SEQS) as cluster:
        heard = cluster.hear(asks)
        assert counts_of(cluster).num_drafts == 0
    return heard


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("method", METHODS)
def test_guesses_change_no_token(
    models: Models, asks: list[Ask], plain: list[Heard], method: str, topology: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    guess_always(monkeypatch)
    load, config = models.load(method)
    with LocalCluster(load, num_prefill=TOPOLOGIES[topology], max_num_seqs=MAX_NUM_SEQS, speculation=config) as cluster:
        assert_same(asks, plain, cluster.hear(asks))
        stats = counts_of(cluster)
    assert len(stats.num_accepted_per_position) == config.num_tokens
    if method == "itself":  # wrong only where Mirostat or adaptive-p would have to learn of what was drawn
        assert stats.num_accepted_tokens > 0.9 * stats.num_draft_tokens
    else:
        assert 0 < stats.num_accepted_tokens < stats.num_draft_tokens


@pytest.mark.parametrize("method", ["ngram", "first-layers"])
def test_as_many_guesses_as_pay_change_no_token(
    models: Models, asks: list[Ask], plain: list[Heard], method: str
) -> None:
    """With the policy that workers have, whatever this machine's steps take."""
    load, config = models.load(method)
    some, expected = asks[-12:], plain[-12:]
    with LocalCluster(load, num_prefill=0, speculation=config) as cluster:
        for _ in range(2):
            assert_same(some, expected, cluster.hear(some))
        assert counts_of(cluster).num_drafts > 0


def test_the_engine_for_gpus(
    models: Models, asks: list[Ask], plain: list[Heard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over its kernels' references, with steps launched ahead between those that have guesses."""
    guess_always(monkeypatch)
    _, config = models.load("ngram")
    some, expected = [*asks[:6], *asks[-12:]], [*plain[:6], *plain[-12:]]
    sizes = {"max_num_seqs": 8, "max_num_batched_tokens": 64}
    with LocalCluster(models.target.load_gpu_engine, num_prefill=0, speculation=config, **sizes) as cluster:
        assert_same(some, expected, cluster.hear(some))
        assert counts_of(cluster).num_accepted_tokens > 0
