"""Any mixture of samplers through router and workers: a request's tokens and logprobs are the same alone, among 32
others, where prefill is apart, and from the engine for GPUs (its kernels are their references here)."""

import asyncio
import random
from dataclasses import replace

import msgspec
import pytest
from isthmus.router.job import JobError
from isthmus.tests.engine.test_cuda_samplers import mixtures
from isthmus.tests.local_cluster import Ask, Heard, LocalCluster
from isthmus.tests.oracle import Reference, make_tiny
from isthmus.wire.sampling import BanRange, SamplingParams

NUM_REQUESTS, NUM_TOKENS = 33, 10


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return make_tiny("qwen3", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def asks() -> list[Ask]:
    rng, found = random.Random(3), []
    for index, params in enumerate(mixtures(NUM_REQUESTS, seed=4)):
        prompt = [rng.randrange(384) for _ in range(rng.choice((1, 15, 16, 40)))]
        wanted = {"seed": index + 1, "max_tokens": NUM_TOKENS, "min_tokens": 0, "logprobs": index % 4}
        found.append(Ask(prompt, msgspec.structs.replace(params, **wanted), num_choices=1 + index % 2))
    return found


@pytest.fixture(scope="module")
def alone(reference: Reference, asks: list[Ask]) -> list[Heard]:
    with LocalCluster(reference.load, num_prefill=0) as cluster:
        return [cluster.hear([ask])[0] for ask in asks]


def assert_same(asks: list[Ask], expected: list[Heard], heard: list[Heard]) -> None:
    for ask, one, other in zip(asks, expected, heard, strict=True):
        assert one.outputs == other.outputs, ask.params
        for ours, theirs in zip(one.logprobs, other.logprobs, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert a.chosen == pytest.approx(b.chosen, abs=1e-4)
                assert [value for _, value in a.top] == pytest.approx([value for _, value in b.top], abs=1e-4)


@pytest.mark.parametrize("num_prefill", [0, 1], ids=["aggregated", "1P1D"])
def test_a_request_among_others(reference: Reference, asks: list[Ask], alone: list[Heard], num_prefill: int) -> None:
    with LocalCluster(reference.load, num_prefill=num_prefill, max_num_seqs=64) as cluster:
        assert_same(asks, alone, cluster.hear(asks))
        assert set(cluster.used_blocks().values()) == {0}


def test_a_request_on_the_engine_for_gpus(reference: Reference, asks: list[Ask], alone: list[Heard]) -> None:
    with LocalCluster(reference.load_gpu_engine, num_prefill=0, max_num_seqs=8, max_num_batched_tokens=64) as cluster:
        assert_same(asks, alone, cluster.hear(asks))


def test_choices_and_prompts_of_one_request_differ(reference: Reference) -> None:
    """And each comes again with the same seed."""
    ask = Ask([5, 6, 7], msgspec.structs.replace(mixtures(1, seed=9)[0], temperature=1.5, seed=7, max_tokens=12), 3)
    plain = replace(ask, params=msgspec.structs.replace(ask.params, allowed_token_ids=(), top_k=0, min_tokens=0))
    with LocalCluster(reference.load, num_prefill=0) as cluster:
        first, second = cluster.ask([plain])[0], cluster.ask([plain])[0]
    assert first == second
    assert len({tuple(output) for output in first}) == 3


def test_a_request_that_the_engine_refuses_fails_alone(
    reference: Reference, asks: list[Ask], alone: list[Heard]
) -> None:
    bad = Ask([5, 6], SamplingParams(seed=1, max_tokens=8, allowed_token_ids=(5000,)), 2)
    with LocalCluster(reference.load, num_prefill=0, max_num_seqs=64) as cluster:
        refused = asyncio.run_coroutine_threadsafe(cluster._hear(99, bad), cluster.loop)
        assert_same(asks, alone, cluster.hear(asks))
        with pytest.raises(JobError, match="allowed_token_ids 5000 is not in the vocabulary"):
            refused.result(10)
        assert_same(asks[:1], alone[:1], cluster.hear(asks[:1]))
        assert set(cluster.used_blocks().values()) == {0}


@pytest.mark.parametrize("topology", ["aggregated", "1P1D", "engine for GPUs"])
def test_ranges_of_bans_act_where_they_say(reference: Reference, topology: str) -> None:
    """Tokens that would have come are banned from output token 2 to 4, and from the first on."""
    load = reference.load_gpu_engine if topology == "engine for GPUs" else reference.load
    sizes = {"max_num_seqs": 8, "max_num_batched_tokens": 64}
    params = SamplingParams(temperature=0, seed=1, max_tokens=8)
    with LocalCluster(load, num_prefill=int(topology == "1P1D"), **sizes) as cluster:
        ((free,),) = cluster.ask([Ask([5, 6, 7], params)])
        ranges = (BanRange((free[0],), 0, 1), BanRange(tuple({*free}), 2, 3))
        banned = msgspec.structs.replace(params, token_ban_ranges=ranges)
        ((output,),) = cluster.ask([Ask([5, 6, 7], banned)])
    assert output[0] != free[0]
    assert not {*output[2:5]} & {*free}
    assert len(output) == 8
