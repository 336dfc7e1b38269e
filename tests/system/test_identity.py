"""The same tokens whatever the path: transformers = aggregated = prefill and decode apart, fp32, greedy and seeded."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from isthmus.tests.local_cluster import Ask, LocalCluster
from isthmus.tests.oracle import BLOCK_SIZE, TINY, Reference, demo_reference, make_tiny
from isthmus.text.resolve import resolve
from isthmus.text.tokenizer import Tokenizer
from isthmus.wire.sampling import SamplingParams

TOPOLOGIES = {"aggregated": 0, "1P1D": 1}
SPREAD = {
    "aggregated": {"num_prefill": 0},
    "1P1D over shm": {"num_prefill": 1, "transport": "shm"},
    "1P1D over zmq": {"num_prefill": 1, "transport": "zmq"},
    "2P2D over shm": {"num_prefill": 2, "num_decode": 2, "transport": "shm"},
    "2P2D over zmq": {"num_prefill": 2, "num_decode": 2, "transport": "zmq"},
}
CHUNKS = {"16": 16, "64": 64, "whole": 512}
NUM_TOKENS = BLOCK_SIZE
"""So every output goes on in another block than it begins in."""


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reference]:
    return {name: make_tiny(name, tmp_path_factory.mktemp("model")) for name in TINY}


def asks(vocab_size: int, num_tokens: int = NUM_TOKENS) -> list[Ask]:
    """Prompts of many lengths, some that begin alike, greedy and sampled, with several choices."""
    rng = random.Random(11)
    common = [rng.randrange(vocab_size) for _ in range(100)]
    prompts = [[rng.randrange(vocab_size) for _ in range(n)] for n in (1, 15, 16, 17, 33, 150)]
    prompts += [common[:n] + [rng.randrange(vocab_size) for _ in range(7)] for n in (48, 64, 100)]
    greedy = SamplingParams(temperature=0, seed=1, max_tokens=num_tokens)
    plain = SamplingParams(temperature=1, seed=2, max_tokens=num_tokens)
    cut = SamplingParams(temperature=0.8, top_k=50, top_p=0.9, min_p=0.02, seed=3, max_tokens=num_tokens)
    return [
        Ask(prompt, params, num_choices=2 if params is plain else 1)
        for prompt in prompts
        for params in (greedy, plain, cut)
    ]


def judge(reference: Reference, questions: Sequence[Ask], answers: list[list[list[int]]]) -> None:
    for ask, outputs in zip(questions, answers, strict=True):
        assert len(outputs) == ask.num_choices
        for choice, output in enumerate(outputs):
            reference.check(ask.prompt_ids, output, ask.params, choice)


WHOLE = "llama, llama3 rope"
"""The model of which every combination of topology and chunk is run; of the others every model with every topology,
with every chunk, and every topology with every chunk."""
PATHS = [
    (name, topology, chunk)
    for i, name in enumerate(TINY)
    for j, topology in enumerate(SPREAD)
    for k, chunk in enumerate(CHUNKS)
    if name == WHOLE or (i + j + k) % len(CHUNKS) == 0
]


@pytest.mark.parametrize(("name", "topology", "chunk"), PATHS)
def test_every_path_gives_the_same_tokens(
    references: dict[str, Reference], name: str, topology: str, chunk: str
) -> None:
    reference = references[name]
    questions = asks(384)
    with LocalCluster(reference.load, **SPREAD[topology], max_num_seqs=8, max_chunk_tokens=CHUNKS[chunk]) as cluster:
        judge(reference, questions, cluster.ask(questions))  # a busy batch, prefixes shared
        again = questions[-3:]
        judge(reference, again, [cluster.ask([ask])[0] for ask in again])  # alone, everything cached
        assert sum(stats.prefix_hit_tokens for stats in cluster.stats().values()) > 0
    assert reference.num_ties <= reference.num_checked / 100


@pytest.mark.parametrize("topology", ["aggregated", "1P1D over shm", "2P2D over zmq"])
@pytest.mark.parametrize("name", ["llama, llama3 rope", "qwen3"])
def test_the_engine_for_gpus(references: dict[str, Reference], name: str, topology: str) -> None:
    """In worker loops, with steps launched ahead and padded to captured sizes; its kernels are their references."""
    reference = references[name]
    questions = asks(384)
    with LocalCluster(
        reference.load_gpu_engine, **SPREAD[topology], max_num_seqs=8, max_num_batched_tokens=64
    ) as cluster:
        judge(reference, questions, cluster.ask(questions))
        judge(reference, questions[-3:], [cluster.ask([ask])[0] for ask in questions[-3:]])
        assert set(cluster.used_blocks().values()) == {0}
    assert reference.num_ties <= reference.num_checked / 100


def test_without_prefix_cache(references: dict[str, Reference]) -> None:
    reference = references["llama, llama3 rope"]
    questions = asks(384)
    with LocalCluster(reference.load, num_prefill=1, enable_prefix_caching=False) as cluster:
        judge(reference, questions, cluster.ask(questions))
        judge(reference, questions[-3:], cluster.ask(questions[-3:]))
        assert all(stats.prefix_hit_tokens == 0 for stats in cluster.stats().values())


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_after_a_prefix_was_warmed(references: dict[str, Reference], topology: str) -> None:
    reference = references["qwen3"]
    questions = asks(384)[-6:]
    warm = Ask(questions[-1].prompt_ids[:100], SamplingParams(max_tokens=0))
    with LocalCluster(reference.load, num_prefill=TOPOLOGIES[topology], max_chunk_tokens=64) as cluster:
        assert cluster.ask([warm]) == [[[]]]
        judge(reference, questions, cluster.ask(questions))
        computes = "prefill-0" if TOPOLOGIES[topology] else "decode-0"
        assert cluster.stats()[computes].prefix_hit_tokens >= 96


@pytest.fixture(scope="module")
def demo() -> Reference:
    return demo_reference()


DEMO_PROMPTS = [
    "The capital of France is",
    "1 2 3 5 8 13 21",
    "An isthmus is a narrow strip of land that joins two larger ones. " * 5 + "The best known",
    "An isthmus is a narrow strip of land that joins two larger ones. " * 5 + "In short:",
]


DEMO_PATHS = [
    ("aggregated", "16"),
    ("1P1D over zmq", "64"),
    ("2P2D over shm", "whole"),
]
"""Every number of workers, chunk and transport once: tiny models are run on every combination."""


@pytest.mark.parametrize(("topology", "chunk"), DEMO_PATHS)
def test_the_demo_model(demo: Reference, topology: str, chunk: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(resolve(str(demo.weights), tmp_path).folder)
    greedy = SamplingParams(temperature=0, seed=1, max_tokens=16)
    sampled = SamplingParams(temperature=0.9, top_p=0.95, seed=2, max_tokens=16)
    questions = [Ask(tokenizer.encode(text), params) for text in DEMO_PROMPTS for params in (greedy, sampled)]
    with LocalCluster(demo.load, **SPREAD[topology], max_num_seqs=8, max_chunk_tokens=CHUNKS[chunk]) as cluster:
        judge(demo, questions, cluster.ask(questions))
        judge(demo, questions[-1:], cluster.ask(questions[-1:]))
    assert demo.num_ties <= demo.num_checked / 100


def test_the_judge_notices_a_wrong_token(tmp_path: Path) -> None:
    reference = make_tiny("qwen2", tmp_path)
    (ask,) = [ask for ask in asks(384) if len(ask.prompt_ids) == 33 and ask.params.temperature == 0]
    with LocalCluster(reference.load, num_prefill=0) as cluster:
        ((output,),) = cluster.ask([ask])
    reference.check(ask.prompt_ids, output, ask.params)
    wrong = [*output[:-1], (output[-1] + 1) % 384]
    with pytest.raises(AssertionError, match="token 15 of 16"):
        reference.check(ask.prompt_ids, wrong, ask.params)
