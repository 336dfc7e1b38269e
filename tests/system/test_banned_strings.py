"""Banned phrases through router and workers: none in any output, and the same tokens on every path."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from isthmus.engine.fake_engine import FakeEngine
from isthmus.engine.worker import Loaded
from isthmus.router.job import JobError
from isthmus.tests.local_cluster import Ask, LocalCluster
from isthmus.tests.oracle import SMALL, make_tiny
from isthmus.tests.router.edge import EOS, byte_tokenizer
from isthmus.tests.scripted_router import BLOCK_SIZE, FAKE, VOCAB_SIZE
from isthmus.text.detokenizer import Detokenizer
from isthmus.text.tokenizer import Tokenizer
from isthmus.wire.sampling import Guidance, SamplingParams
from isthmus.wire.worker_link import name_in

BYTES = byte_tokenizer()
TOPOLOGIES = {"aggregated": {"num_prefill": 0}, "1P1D": {"num_prefill": 1}}
NUM_ASKS = 16


def tokenizer(vocab_size: int) -> Tokenizer:
    return Tokenizer(BYTES._backend, special_tokens=BYTES.special_tokens, eos_ids=BYTES.eos_ids, vocab_size=vocab_size)


TOKENIZER = tokenizer(VOCAB_SIZE)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Loaded]:
    reference = make_tiny("qwen3", tmp_path_factory.mktemp("model"))
    return lambda model: replace(reference.load(model), tokenizer=tokenizer(SMALL["vocab_size"]))


def fake(**options: Any) -> Callable[[str], Loaded]:
    """Draws letters, spaces and what may be a part of a character."""
    alphabet = [*TOKENIZER.encode("etaoin shrdlu ETAOIN", add_special_tokens=False), 3, 4, EOS]

    def load(model: str) -> Loaded:
        engine = FakeEngine(400, BLOCK_SIZE, VOCAB_SIZE, token_ids=alphabet, **options)
        return Loaded(engine, FAKE, max_model_len=128, tokenizer=TOKENIZER)

    return load


def phrases(rng: random.Random) -> tuple[str, ...]:
    """Of letters in either case, white space and a character of several bytes: many short ones, a few long ones."""
    letters = "abcdefghijklmnopqrstuvwxyz .,é"
    found = ["".join(rng.choices(letters + letters.upper(), k=rng.choice([1, 2, 2, 2, 3]))) for _ in range(200)]
    return (*found, *(phrase * 3 for phrase in found[:20]), "\ufffd\ufffd")


def asks(seed: int, count: int, **params: Any) -> list[Ask]:
    rng = random.Random(seed)
    found = []
    for number in range(count):
        prompt = [rng.randrange(256) for _ in range(rng.choice([1, 3, 4, 8, 15, 16, 30]))]
        given = {"temperature": rng.choice([0.0, 0.7, 1.5]), "seed": number, "max_tokens": 30, **params}
        given |= rng.choice(
            [{}, {"mirostat_mode": 2}, {"repetition_penalty": 1.2}, {"min_tokens": 20}, {"logprobs": 1}]
        )
        found.append(Ask(prompt, SamplingParams(banned_strings=phrases(rng), **given), rng.choice([1, 1, 2, 3])))
    return found


def text_of(ask: Ask, output: list[int]) -> str:
    """As clients see it."""
    detokenizer = Detokenizer(TOKENIZER, ask.prompt_ids)
    return detokenizer.push(output) + detokenizer.flush()


def assert_clean(questions: list[Ask], answers: list[list[list[int]]]) -> None:
    for ask, outputs in zip(questions, answers, strict=True):
        for output in outputs:
            text = text_of(ask, output).casefold()
            assert not [phrase for phrase in ask.params.banned_strings if phrase.casefold() in text]


@pytest.mark.parametrize("load", ["tiny", "fake"])
def test_no_output_has_a_phrase_and_every_path_gives_the_same(load: str, request: pytest.FixtureRequest) -> None:
    questions = asks(1, NUM_ASKS, ignore_eos=load == "fake")
    free = Ask([7, 8, 9], SamplingParams(seed=3, max_tokens=40))
    make = request.getfixturevalue("tiny") if load == "tiny" else fake()
    answers = []
    for topology in TOPOLOGIES.values():
        with LocalCluster(make, **topology, max_num_seqs=60) as cluster:
            *together, unbound = cluster.ask([*questions, free], eos_ids=(EOS,))
            alone = [cluster.ask([ask], eos_ids=(EOS,))[0] for ask in questions[:6]]
            assert alone == together[:6]
            assert cluster.ask([free], eos_ids=(EOS,))[0] == unbound
            assert set(cluster.used_blocks().values()) == {0}
            answers.append(together)
    assert_clean(questions, answers[0])
    assert answers[0] == answers[1]
    unbanned = [replace(ask, params=msgspec.structs.replace(ask.params, banned_strings=())) for ask in questions]
    with LocalCluster(make, num_prefill=0, max_num_seqs=60) as cluster:
        free_answers = cluster.ask(unbanned, eos_ids=(EOS,))
    assert sum(a != b for a, b in zip(free_answers, answers[0], strict=True)) > NUM_ASKS / 2


def test_logprobs_are_those_of_the_tokens_released(tiny: Callable[[str], Loaded]) -> None:
    """What is told of each token is what is told of it after the same tokens without a ban."""
    params = SamplingParams(seed=5, max_tokens=20, banned_strings=phrases(random.Random(3)), logprobs=2)
    with LocalCluster(tiny, num_prefill=0) as cluster:
        (heard,) = cluster.hear([Ask([65, 66, 67], params)])
        output = heard.outputs[0]
        assert len(heard.logprobs[0]) == len(output) == 20
        told = SamplingParams(prompt_logprobs=2, max_tokens=1, seed=1)
        (again,) = cluster.hear([Ask([65, 66, 67, *output], told)])
    for one, other in zip(heard.logprobs[0], again.prompt[2:], strict=True):
        assert one.chosen == pytest.approx(other.chosen, abs=1e-3)
        assert [token for token, _ in one.top] == [token for token, _ in other.top]


def test_a_lost_worker_changes_no_answer() -> None:
    """Two decode workers, of which one goes while a request runs there that has been rewound."""
    questions = asks(7, 30, ignore_eos=True)
    with LocalCluster(fake(), num_prefill=0, max_num_seqs=60) as cluster:
        calm = cluster.ask(questions, eos_ids=(EOS,))
    with LocalCluster(fake(step_s=0.005), num_prefill=1, num_decode=2, max_num_seqs=60) as cluster:
        replays = count_replays(cluster)
        stop_after_a_rewind(cluster)
        assert cluster.ask(questions, eos_ids=(EOS,)) == calm
        assert any(epoch for _, epoch in replays)
    assert_clean(questions, calm)


def stop_after_a_rewind(cluster: LocalCluster) -> None:
    """The first decode worker of which the router hears tokens after a rewind, with most of the output to come."""
    extend = cluster.core.ledger._extend
    stopped = []

    def note(sequence: Any, row: Any, now: float) -> None:
        extend(sequence, row, now)
        if sequence.epoch and len(sequence.output) < 15 and sequence.is_open and not stopped:
            stopped.append(sequence.attempt.decode)
            cluster.workers[name_in(stopped[0])].stop()

    cluster.core.ledger._extend = note  # type: ignore[method-assign]


def count_replays(cluster: LocalCluster) -> list[tuple[int, int]]:
    """(tokens it had, rewinds before) of every sequence that lost its worker in the middle, as that happens."""
    found: list[tuple[int, int]] = []
    requeue = cluster.core.ledger._requeue

    def note(sequence: Any) -> None:
        if sequence.output:
            found.append((len(sequence.output), sequence.epoch))
        requeue(sequence)

    cluster.core.ledger._requeue = note  # type: ignore[method-assign]
    return found


def test_an_impossible_request_is_a_400(tiny: Callable[[str], Loaded]) -> None:
    params = SamplingParams(guidance=Guidance("choice", '["yes"]'), banned_strings=("ES",), max_tokens=5)
    with LocalCluster(tiny, num_prefill=0) as cluster, pytest.raises(JobError, match="banned_strings") as caught:
        cluster.ask([Ask([1, 2], params)])
    assert caught.value.status == 400
