"""Logprobs through router and workers: on every path the same, and a replay goes on with the sampler's state."""

import random
from pathlib import Path

import pytest
import torch
from isthmus.engine.fake_engine import FakeEngine
from isthmus.tests.local_cluster import Ask, Heard, LocalCluster
from isthmus.tests.oracle import make_tiny
from isthmus.tests.scripted_router import BLOCK_SIZE, VOCAB_SIZE, fake_load
from isthmus.tests.system.test_local_cluster import wait_until_unused
from isthmus.wire.logprobs import TokenLogprobs
from isthmus.wire.noise import philox_key
from isthmus.wire.sampling import SamplingParams

FAKE = FakeEngine(1, BLOCK_SIZE, VOCAB_SIZE)
TOPOLOGIES = {"aggregated": (0, 1), "1P1D": (1, 1), "2P2D": (2, 2)}


def random_ask(rng: random.Random, prefix: list[int]) -> Ask:
    prompt = prefix[: rng.randint(1, 40)] + [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(0, 30))]
    params = SamplingParams(
        seed=rng.getrandbits(60),
        max_tokens=rng.choice([0, 1, 5, 30]),
        mirostat_mode=rng.choice([0, 2]),
        logprobs=rng.choice([None, 0, 3]),
        prompt_logprobs=rng.choice([None, None, 0, 4]),
    )
    return Ask(prompt, params, rng.choice([1, 1, 2, 3]))


def check_fake(ask: Ask, heard: Heard) -> None:
    params, prompt = ask.params, list(ask.prompt_ids)
    assert params.max_tokens is not None
    for choice, (output, logprobs) in enumerate(zip(heard.outputs, heard.logprobs, strict=True)):
        key = philox_key(params.seed, 0, choice)
        assert output == FAKE.expected_tokens(prompt, key, params.max_tokens, with_state=params.mirostat_mode > 0)
        if params.logprobs is None:
            assert not logprobs
        else:
            whole = FAKE.expected_logprobs([*prompt, *output], params.logprobs)
            assert logprobs == whole[len(prompt) - 1 :]
    wanted = [] if params.prompt_logprobs is None else FAKE.expected_logprobs(prompt, params.prompt_logprobs)
    assert heard.prompt == wanted


@pytest.mark.parametrize("overlaps", [True, False], ids=["overlapping", "synchronous"])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_soak(topology: str, overlaps: bool) -> None:
    """Pools so small that answers are preempted: their second life goes on with the state of the first."""
    rng = random.Random(3)
    prefix = [rng.randrange(VOCAB_SIZE) for _ in range(40)]
    asks = [random_ask(rng, prefix) for _ in range(80)]
    num_prefill, num_decode = TOPOLOGIES[topology]
    with LocalCluster(
        fake_load(overlaps, num_blocks=34),
        num_prefill=num_prefill,
        num_decode=num_decode,
        max_num_seqs=8,
        max_num_batched_tokens=16,
    ) as cluster:
        heard = cluster.hear(asks)
        wait_until_unused(cluster)
        num_preemptions = sum(stats.num_preemptions for stats in cluster.stats().values())
    assert num_preemptions > 0 or num_decode > 1, "two pools may just be enough"
    for ask, one in zip(asks, heard, strict=True):
        check_fake(ask, one)


@pytest.mark.parametrize("gpu_engine", [False, True], ids=["engine for CPUs", "engine for GPUs"])
@pytest.mark.parametrize("topology", ["aggregated", "1P1D"])
def test_they_are_those_of_transformers(topology: str, gpu_engine: bool, tmp_path: Path) -> None:
    """A busy batch, each request's are the same to 1e-4 as of the model by itself."""
    reference = make_tiny("llama, llama3 rope", tmp_path)
    rng = random.Random(7)
    asks = [
        Ask(
            [rng.randrange(384) for _ in range(length)],
            SamplingParams(temperature=1.1, seed=length, max_tokens=8, logprobs=length % 4, prompt_logprobs=2),
            num_choices=1 + length % 2,
        )
        for length in (1, 2, 15, 16, 17, 50, 100)
    ]
    num_prefill, num_decode = TOPOLOGIES[topology]
    load = reference.load_gpu_engine if gpu_engine else reference.load
    with LocalCluster(
        load, num_prefill=num_prefill, num_decode=num_decode, max_num_seqs=8, max_num_batched_tokens=64
    ) as cluster:
        heard = cluster.hear([*asks, *asks])[len(asks) :]
        alone = [cluster.hear([ask])[0] for ask in asks[-2:]]
    for ask, one in zip([*asks, *asks[-2:]], [*heard, *alone], strict=True):
        assert ask.params.logprobs is not None
        assert len(one.prompt) == len(ask.prompt_ids) - 1
        for output, logprobs in zip(one.outputs, one.logprobs, strict=True):
            ids = [*ask.prompt_ids, *output]
            with torch.no_grad():
                expected = reference.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            rows = [*one.prompt, *logprobs]
            asked = [2] * len(one.prompt) + [ask.params.logprobs] * len(logprobs)
            targets = zip(rows, expected[:-1], ids[1:], asked, strict=True)
            for row, logits, token, num_top in targets:
                check(row, logits, token, num_top)


def check(row: TokenLogprobs, expected: torch.Tensor, token: int, num_top: int) -> None:
    assert row.chosen == pytest.approx(float(expected[token]), abs=1e-4)
    assert [logprob for _, logprob in row.top] == pytest.approx(expected.topk(num_top).values.tolist(), abs=1e-4)
    assert [float(expected[i]) for i, _ in row.top] == pytest.approx([logprob for _, logprob in row.top], abs=1e-4)
