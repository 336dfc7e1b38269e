"""Router core, prefill and decode workers together, with the fake engine, whose tokens prove every block they read."""

import logging
import random
import time

import pytest
from isthmus.engine.fake_engine import FakeEngine
from isthmus.tests.local_cluster import Ask, LocalCluster
from isthmus.tests.scripted_router import BLOCK_SIZE, VOCAB_SIZE, fake_load
from isthmus.wire.noise import philox_key
from isthmus.wire.sampling import SamplingParams

ORACLE = FakeEngine(1, BLOCK_SIZE, VOCAB_SIZE)
TOPOLOGIES = {"aggregated": (0, 1), "1P1D": (1, 1), "2P2D": (2, 2)}


def expected(ask: Ask) -> list[list[int]]:
    assert ask.params.max_tokens is not None
    return [
        ORACLE.expected_tokens(list(ask.prompt_ids), philox_key(ask.params.seed, 0, choice), ask.params.max_tokens)
        for choice in range(ask.num_choices)
    ]


def random_ask(rng: random.Random, prefixes: list[list[int]]) -> Ask:
    prompt = rng.choice(prefixes)[: rng.randint(1, 60)] + [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 30))]
    num_tokens = 0 if rng.random() < 0.1 else rng.randint(1, 30)
    params = SamplingParams(seed=rng.getrandbits(60), max_tokens=num_tokens)
    cancel_after = rng.randint(1, 10) if rng.random() < 0.3 else None
    return Ask(prompt, params, rng.choice([1, 1, 1, 2, 3]), cancel_after)


@pytest.mark.parametrize("overlaps", [True, False], ids=["overlapping", "synchronous"])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_soak(topology: str, overlaps: bool) -> None:
    """Small pools, shared prefixes, clients that leave: right tokens, and nothing left behind."""
    rng = random.Random(5)
    prefixes = [[rng.randrange(VOCAB_SIZE) for _ in range(60)] for _ in range(3)]
    asks = [random_ask(rng, prefixes) for _ in range(150)]
    num_prefill, num_decode = TOPOLOGIES[topology]
    with LocalCluster(
        fake_load(overlaps, num_blocks=80),
        num_prefill=num_prefill,
        num_decode=num_decode,
        max_num_seqs=8,
        max_num_batched_tokens=16,
    ) as cluster:
        outputs = cluster.ask(asks)
        wait_until_unused(cluster)
    for ask, output in zip(asks, outputs, strict=True):
        wanted = expected(ask)
        if ask.cancel_after is None:
            assert output == wanted
        else:
            assert all(tokens == whole[: len(tokens)] for tokens, whole in zip(output, wanted, strict=True))


@pytest.mark.parametrize(("num_prefill", "computes"), [(1, "prefill-0"), (0, "decode-0")])
def test_a_warmed_prefix_is_found_again(num_prefill: int, computes: str) -> None:
    """`max_tokens` 0: nothing is sent, no token is made, and the next prompt that begins so is computed from there."""
    prefix = [7 * i % VOCAB_SIZE for i in range(40)]
    warm, ask = Ask(prefix, SamplingParams(max_tokens=0), 2), Ask([*prefix, 1, 2], SamplingParams(seed=3, max_tokens=5))
    with LocalCluster(fake_load(), num_prefill=num_prefill, max_num_batched_tokens=16) as cluster:
        assert cluster.ask([warm]) == [[[], []]]
        wait_until_unused(cluster)
        stats = cluster.stats()
        assert (stats[computes].prefix_query_tokens, stats[computes].prefix_hit_tokens) == (40, 0)
        assert sum(each.prefix_query_tokens for each in stats.values()) == 40
        assert sum(each.transfer_bytes for each in stats.values()) == 0
        assert cluster.ask([ask]) == [expected(ask)]
        assert cluster.stats()[computes].prefix_hit_tokens == 40
        wait_until_unused(cluster)


@pytest.mark.parametrize("num_prefill", [1, 0])
def test_prompts_under_other_salts_share_nothing(num_prefill: int) -> None:
    prompt = [5 * i % VOCAB_SIZE for i in range(40)]
    hits = []
    with LocalCluster(fake_load(), num_prefill=num_prefill, max_num_batched_tokens=16) as cluster:
        for salt in (b"", b"a", b"b", b"a"):
            ask = Ask(prompt, SamplingParams(seed=3, max_tokens=5), salt=salt)
            assert cluster.ask([ask]) == [expected(ask)]
            wait_until_unused(cluster)
            hits.append(sum(stats.prefix_hit_tokens for stats in cluster.stats().values()))
    assert hits[:3] == [0, 0, 0]
    assert hits[3] >= 36, "all whole blocks before the last token"


def test_stages_and_rates_are_measured_where_kv_moves() -> None:
    asks = [Ask([i] * 50, SamplingParams(seed=i, max_tokens=20)) for i in range(1, 6)]
    with LocalCluster(fake_load(num_blocks=200), num_prefill=1) as cluster:
        cluster.ask(asks)
        wait_until_unused(cluster)
        (prefill,) = cluster.core.registry.taking_work("prefill")
        (decode,) = cluster.core.registry.taking_work("decode")
        ledger = cluster.core.ledger
        assert ledger.rates.from_prefill(prefill.id)[decode.id] > 0
        num_bytes = cluster.stats()["prefill-0"].transfer_bytes
        assert ledger.rates.bytes_per_token == pytest.approx(num_bytes / 250)
        metrics = ledger.metrics
        assert (metrics.queue_s.count, metrics.prefill_s.count, metrics.decode_s.count) == (5, 5, 5)
        assert 1 <= metrics.transfer_s.count <= 5, "of a very short answer it may be heard of too late"
        stages_s = metrics.queue_s.sum + metrics.prefill_s.sum + metrics.transfer_s.sum
        assert stages_s == pytest.approx(metrics.ttft_s.sum)


def wait_until_unused(cluster: LocalCluster) -> None:
    deadline = time.monotonic() + 10
    while any(cluster.used_blocks().values()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(cluster.used_blocks().values()) == {0}


def test_what_workers_log_of_a_request_names_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "isthmus.engine.placement_log")
    with LocalCluster(fake_load(), num_prefill=1) as cluster:
        cluster.ask([Ask([1, 2, 3], SamplingParams(seed=1, max_tokens=3))])
    told = [record.getMessage().split()[2] for record in caplog.records]
    assert sorted(told) == ["Prefill", "Reserve", "computed", "reserved,"]
    assert {record.getMessage().split()[1] for record in caplog.records} == {"job-0:"}
    assert {vars(record)["request_id"] for record in caplog.records} == {"job-0"}
