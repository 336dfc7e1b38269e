"""EAGLE heads in clusters: the same tokens on every path, and as many right guesses behind a prefill worker."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from isthmus.engine.config import ModelConfig
from isthmus.engine.eagle.config import EagleConfig
from isthmus.engine.speculation_config import SpeculationConfig
from isthmus.engine.worker import Loaded
from isthmus.launch.eagle_head import Head, fingerprint_with_head
from isthmus.router.workers import Refused, Registry
from isthmus.tests.engine.eagle_models import CONFIG, Headed, ignorant, knowing
from isthmus.tests.engine.tiny import VOCAB_SIZE
from isthmus.tests.local_cluster import Ask, Heard, LocalCluster
from isthmus.tests.oracle import Reference
from isthmus.tests.router.edge import EOS, byte_tokenizer
from isthmus.tests.system import test_guidance as guidance
from isthmus.tests.system.speculating import TOPOLOGIES, assert_same, counts_of, guess_always
from isthmus.text.tokenizer import Tokenizer
from isthmus.wire.messages import PROTOCOL_VERSION, Capacity, Hello, Ready, Role, WorkerStats
from isthmus.wire.sampling import SamplingParams
from msgspec.structs import replace as replace_struct

NUM_GUESSES = 3
MAX_TOKENS = 10
HALF_WRONG = 0.3
"""How wrong a head is that is right about every other time."""
HEADS: dict[str, Callable[[Path], Headed]] = {
    "ignorant, EAGLE-1": partial(ignorant, "eagle"),
    "ignorant, EAGLE-3": partial(ignorant, "eagle3"),
    "half right": partial(knowing, wrong=HALF_WRONG),
    "right": knowing,
}
SAMPLERS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.8, top_p=0.95, logprobs=2),
    SamplingParams(temperature=1.0, repetition_penalty=1.2, min_p=0.01),
)


@pytest.fixture(scope="module", params=HEADS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def headed(name: str, tmp_path_factory: pytest.TempPathFactory) -> Headed:
    return HEADS[name](tmp_path_factory.mktemp("headed"))


@pytest.fixture(scope="module")
def expected(headed: Headed) -> list[Heard]:
    with LocalCluster(load_of(headed), num_prefill=0, max_num_seqs=64) as cluster:
        return cluster.hear(asks())


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    guess_always(monkeypatch)


def config_of(headed: Headed) -> SpeculationConfig:
    return SpeculationConfig("eagle", NUM_GUESSES, str(headed.head))


def load_of(headed: Headed, **options: object) -> Callable[[str], Loaded]:
    return partial(Reference(headed.reference, headed.weights, CONFIG).load, **options)


def asks() -> list[Ask]:
    """Prompts around block boundaries, some of which begin alike."""
    rng, found = random.Random(5), []
    begin = [rng.randrange(VOCAB_SIZE) for _ in range(32)]
    for index, length in enumerate((1, 15, 16, 17, 40)):
        prompt = [rng.randrange(VOCAB_SIZE) for _ in range(length)]
        for number, params in enumerate(SAMPLERS):
            wanted = replace_struct(params, seed=10 * index + number, max_tokens=MAX_TOKENS)
            found.append(Ask(prompt, wanted, num_choices=1 + number % 2))
            if number == index % len(SAMPLERS):
                found.append(Ask(begin + prompt, wanted))
    return found


def guessing(headed: Headed, questions: list[Ask], topology: str, **options: object) -> tuple[list[Heard], WorkerStats]:
    """Asked one after another, so that every step's guesses are the same on every run."""
    config = config_of(headed)
    load = load_of(headed, speculation=config)
    with LocalCluster(load, num_prefill=TOPOLOGIES[topology], speculation=config, **options) as cluster:
        heard = [cluster.hear([ask])[0] for ask in questions]
        return heard, counts_of(cluster)


def share(stats: WorkerStats) -> float:
    return stats.num_accepted_tokens / stats.num_draft_tokens


def test_every_path_says_the_same(name: str, headed: Headed, expected: list[Heard]) -> None:
    """And as many guesses are right behind a prefill worker, from the first step on: what the head needs has come."""
    questions, counts = asks(), {}
    for topology in TOPOLOGIES:
        heard, counts[topology] = guessing(headed, questions, topology)
        assert_same(questions, expected, heard)
    here, there = counts["aggregated"], counts["1P1D"]
    assert here.num_drafts > 0
    assert there.num_draft_tokens == here.num_draft_tokens
    assert there.num_accepted_per_position == here.num_accepted_per_position
    if name == "right":
        assert share(here) > 0.95
    elif name == "half right":
        assert 0.3 < share(here) < 0.9
    else:
        assert share(here) < 0.2


@pytest.mark.parametrize("name", ["ignorant, EAGLE-3", "half right"], indirect=True, scope="module")
def test_all_at_once_over_tcp(headed: Headed, expected: list[Heard]) -> None:
    """In small chunks and with a pool that is too small for all: what was preempted is computed again."""
    questions, config = asks(), config_of(headed)
    load = load_of(headed, speculation=config, num_blocks=24)
    sizes = {"max_num_seqs": 16, "max_num_batched_tokens": 48, "transport": "zmq"}
    with LocalCluster(load, num_prefill=1, local_prefill_max_tokens=20, speculation=config, **sizes) as cluster:
        for _ in range(2):  # the second time finds what the first left in the prefix caches
            assert_same(questions, expected, cluster.hear(questions))
        counts_of(cluster)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_grammars(headed: Headed, topology: str) -> None:
    small = byte_tokenizer()
    tokenizer = Tokenizer(
        small._backend, special_tokens=small.special_tokens, eos_ids=small.eos_ids, vocab_size=VOCAB_SIZE
    )
    some = [ask for ask, _ in guidance.asks() if ask.params.guidance.kind in ("regex", "choice", "lark")]

    def run(num_prefill: int, speculation: SpeculationConfig | None = None) -> tuple[list[list[list[int]]], int]:
        load = load_of(headed, speculation=speculation)
        spelling = lambda model: replace(load(model), tokenizer=tokenizer)  # noqa: E731
        with LocalCluster(spelling, num_prefill=num_prefill, speculation=speculation, max_num_seqs=64) as cluster:
            return cluster.ask(some, eos_ids=(EOS,)), counts_of(cluster).num_draft_tokens

    expected, num_plain = run(0)
    said, num_guessed = run(TOPOLOGIES[topology], config_of(headed))
    assert said == expected
    assert num_plain == 0 < num_guessed


def test_workers_with_a_head_and_those_without_are_kept_apart(headed: Headed) -> None:
    """Whichever comes first, and whatever its role."""
    plain = load_of(headed)("").fingerprint
    config = EagleConfig.from_folder(headed.head, ModelConfig.from_hf(CONFIG))
    with_head, with_another = (fingerprint_with_head(plain, Head(config, name), "float32") for name in ("1234", "5678"))
    for first, second in ((plain, with_head), (with_head, plain), (with_head, with_another)):
        registry, capacity = Registry(), Capacity(8, 4, 64, 128)
        roles: tuple[Role, Role] = ("decode", "prefill")
        workers = [registry.on_hello(role.encode(), Hello(PROTOCOL_VERSION, role, role, 1), now=0.0) for role in roles]
        registry.on_ready(workers[0], Ready(first, capacity, ("tcp://d0",)))
        with pytest.raises(Refused, match=r"this router serves weights .*, the worker has "):
            registry.on_ready(workers[1], Ready(second, capacity, ()))
