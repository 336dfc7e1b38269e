"""What requests ask for beside samplers, with guesses and without: grammars, banned phrases, ends, limits of guesses;
clients that leave, and a pool that is too small for all."""

import random
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import pytest
from isthmus.decode.sequence import Sequence
from isthmus.engine.speculation_config import SpeculationConfig
from isthmus.engine.worker import Loaded
from isthmus.tests.local_cluster import Ask, LocalCluster
from isthmus.tests.oracle import make_tiny
from isthmus.tests.router.edge import EOS
from isthmus.tests.system import test_banned_strings as phrases
from isthmus.tests.system import test_guidance as guidance
from isthmus.tests.system.speculating import (
    METHODS,
    NUM_TOKENS,
    TOPOLOGIES,
    Models,
    counts_of,
    guess_always,
)
from isthmus.text.grammar_masks import MaskFiller
from isthmus.wire.messages import WorkerStats
from isthmus.wire.sampling import Guidance, SamplingParams

TOKENIZER = guidance.TOKENIZER
ALL_PATHS = [(method, topology) for method in METHODS for topology in TOPOLOGIES]
SOME_PATHS = [("ngram", "aggregated"), ("first-layers", "1P1D"), ("itself", "aggregated"), ("itself", "1P1D")]
Outputs = list[list[list[int]]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(
        make_tiny("qwen3", tmp_path_factory.mktemp("target")),
        make_tiny("llama, biases", tmp_path_factory.mktemp("other")),
    )


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    guess_always(monkeypatch)


def spelling(load: Callable[..., Loaded]) -> Callable[[str], Loaded]:
    """With a tokenizer, which grammars and phrases need."""
    return lambda model: replace(load(model), tokenizer=TOKENIZER)


def plainly(models: Models, asks: list[Ask], **options: Any) -> Outputs:
    load = spelling(partial(models.target.load, **options))
    with LocalCluster(load, num_prefill=0, max_num_seqs=128) as cluster:
        return cluster.ask(asks, eos_ids=(EOS,))


def guessing(models: Models, asks: list[Ask], method: str, topology: str = "aggregated") -> tuple[Outputs, WorkerStats]:
    load, config = models.load(method)
    with LocalCluster(
        spelling(load), num_prefill=TOPOLOGIES[topology], max_num_seqs=128, speculation=config
    ) as cluster:
        return cluster.ask(asks, eos_ids=(EOS,)), counts_of(cluster)


def guided_asks() -> list[Ask]:
    """Also one whose end says its beginning again, which n-grams find."""
    found = [ask for ask, _ in guidance.asks()]
    for temperature in (0.0, 1.0):
        again = Guidance("regex", "([a-d]{6} ){6}end")
        params = SamplingParams(guidance=again, temperature=temperature, seed=3, max_tokens=80)
        found.append(Ask(TOKENIZER.encode("dad bad cab " * 4, add_special_tokens=False), params))
    return found


@pytest.fixture(scope="module")
def guided(models: Models) -> Outputs:
    return plainly(models, guided_asks())


@pytest.mark.parametrize(("method", "topology"), ALL_PATHS)
def test_grammars(models: Models, guided: Outputs, method: str, topology: str) -> None:
    outputs, stats = guessing(models, guided_asks(), method, topology)
    assert outputs == guided
    assert 0 < stats.num_accepted_tokens <= stats.num_draft_tokens
    for (ask, fits), answers in zip(guidance.asks(), outputs, strict=False):
        assert all(fits(TOKENIZER.decode(output)) for output in answers), ask.params
    assert all(re.match("([a-d]{6} )+", TOKENIZER.decode(output)) for (output,) in outputs[-2:])


def test_grammars_on_the_engine_for_gpus(models: Models, guided: Outputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses are made on the device, and those of all rows are held against their grammars together."""
    num_masks: list[int] = []
    fill = MaskFiller.fill

    def counting(self: MaskFiller, runs: Any, **how: Any) -> Any:
        num_masks.append(sum(1 + len(guesses) for _, guesses, _ in runs))
        return fill(self, runs, **how)

    monkeypatch.setattr(MaskFiller, "fill", counting)
    load = spelling(partial(models.target.load_gpu_engine, guesses=True))
    config, sizes = SpeculationConfig("first-layers", NUM_TOKENS), {"max_num_seqs": 8, "max_num_batched_tokens": 64}
    with LocalCluster(load, num_prefill=0, speculation=config, **sizes) as cluster:
        assert cluster.ask(guided_asks()[-8:], eos_ids=(EOS,)) == guided[-8:]
        stats = counts_of(cluster)
    assert stats.num_accepted_tokens > 100
    assert max(num_masks) > 8 * NUM_TOKENS / 2


@pytest.fixture(scope="module")
def banned(models: Models) -> Outputs:
    return plainly(models, phrases.asks(1, phrases.NUM_ASKS))


@pytest.mark.parametrize(("method", "topology"), SOME_PATHS)
def test_banned_strings(
    models: Models, banned: Outputs, method: str, topology: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewinds: list[int] = []
    accept = Sequence._accept_all

    def note(self: Sequence, made: list[Any]) -> Any:
        before = self.num_output
        rows = accept(self, made)
        if self.rewound:
            rewinds.append(before + len(made) - self.num_output)
        return rows

    monkeypatch.setattr(Sequence, "_accept_all", note)
    asks = phrases.asks(1, phrases.NUM_ASKS)
    outputs, stats = guessing(models, asks, method, topology)
    assert outputs == banned
    phrases.assert_clean(asks, outputs)
    if method == "itself":
        assert max(rewinds) > 2, "no rewind took back guesses that were right"
        assert stats.num_accepted_tokens > 0


def stopping_asks(models: Models) -> list[Ask]:
    """Requests that end at tokens in the middle of what they would have said, or are held back from it."""
    rng, found = random.Random(5), []
    prompts = [[rng.randrange(384) for _ in range(12)] for _ in range(4)] + [[7, 8, 9] * 12] * 2
    free = [SamplingParams(temperature=t, seed=1, max_tokens=30, ignore_eos=True) for t in (0.0, 0.8)]
    said = plainly(models, [Ask(prompt, params) for prompt in prompts for params in free])
    for number, ((output,), (prompt, params)) in enumerate(
        zip(said, [(prompt, params) for prompt in prompts for params in free], strict=True)
    ):
        stop = output[3 + number]
        for min_tokens in (0, 5 + number, 30):
            wanted = {"stop_token_ids": (stop,), "min_tokens": min_tokens, "logprobs": 1, "ignore_eos": False}
            found.append(Ask(prompt, msgspec.structs.replace(params, **wanted)))
        for max_tokens in (1, 2, 3, 5, 8):
            found.append(Ask(prompt, msgspec.structs.replace(params, max_tokens=max_tokens)))
    return found


@pytest.fixture(scope="module")
def stopping(models: Models) -> tuple[list[Ask], Outputs]:
    asks = stopping_asks(models)
    return asks, plainly(models, asks)


@pytest.mark.parametrize(("method", "topology"), SOME_PATHS)
def test_ends(models: Models, stopping: tuple[list[Ask], Outputs], method: str, topology: str) -> None:
    asks, expected = stopping
    outputs, stats = guessing(models, asks, method, topology)
    assert outputs == expected
    assert stats.num_accepted_tokens > 0
    ended = [output for ask, (output,) in zip(asks, outputs, strict=True) if output[-1] in ask.params.stop_token_ids]
    assert len(ended) > 10
    for ask, (output,) in zip(asks, outputs, strict=True):
        assert ask.params.max_tokens is not None
        assert ask.params.min_tokens <= len(output) <= ask.params.max_tokens
        stops = {*ask.params.stop_token_ids} if ask.params.ignore_eos else {*ask.params.stop_token_ids, EOS}
        assert not stops & {*output[:-1]}


@pytest.mark.parametrize("limit", [0, 1, 3, 16, None])
def test_a_request_may_have_fewer_guesses(models: Models, limit: int | None) -> None:
    params = SamplingParams(temperature=0.8, seed=5, max_tokens=30, num_speculative_tokens=limit, ignore_eos=True)
    asks = [Ask([5, 6, 7], params)]
    outputs, stats = guessing(models, asks, "itself")
    assert outputs == plainly(models, asks)
    expected = NUM_TOKENS if limit is None else min(limit, NUM_TOKENS)
    assert len(stats.num_accepted_per_position) == expected
    assert stats.num_draft_tokens <= expected * stats.num_drafts


def test_who_wants_no_guesses_gets_none_beside_others(models: Models) -> None:
    params = SamplingParams(temperature=0.8, seed=5, max_tokens=30, ignore_eos=True)
    quiet = msgspec.structs.replace(params, num_speculative_tokens=0)
    asks = [Ask([5, 6, 7], params), Ask([5, 6, 7], quiet), Ask([8, 9], quiet, num_choices=2)]
    outputs, stats = guessing(models, asks, "itself")
    assert outputs == plainly(models, asks)
    assert outputs[0] == outputs[1]
    assert 0 < stats.num_draft_tokens < 30


def leaving_asks() -> list[Ask]:
    rng = random.Random(8)
    prompts = [[rng.randrange(384) for _ in range(20)] for _ in range(12)] + [[1, 2, 3] * 9] * 4
    params = SamplingParams(temperature=0.5, max_tokens=40, ignore_eos=True)
    return [
        Ask(prompt, msgspec.structs.replace(params, seed=number), 1 + number % 2)
        for number, prompt in enumerate(prompts)
    ]


@pytest.fixture(scope="module")
def stayed(models: Models) -> Outputs:
    return plainly(models, leaving_asks())


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("method", ["ngram", "itself"])
def test_clients_that_leave(models: Models, stayed: Outputs, method: str, topology: str) -> None:
    """In the middle of what was guessed; what they heard is the beginning of what they would have heard."""
    asks = leaving_asks()
    leaving = [replace(ask, cancel_after=None if i % 3 == 0 else 1 + 2 * i) for i, ask in enumerate(asks)]
    load, config = models.load(method)
    with LocalCluster(load, num_prefill=TOPOLOGIES[topology], speculation=config, max_num_seqs=64) as cluster:
        heard = cluster.ask(leaving)
        assert cluster.ask(asks[:3]) == stayed[:3]  # by now, whatever was cancelled has ended
        assert counts_of(cluster).num_draft_tokens > 0
    for ask, outputs, whole in zip(leaving, heard, stayed, strict=True):
        for output, full in zip(outputs, whole, strict=True):
            assert output == (full if ask.cancel_after is None else full[: len(output)])


def crowding_asks() -> list[Ask]:
    rng = random.Random(9)
    prompts = [[rng.randrange(384) for _ in range(rng.choice((3, 15, 30)))] for _ in range(10)] + [[4, 5] * 8] * 4
    params = SamplingParams(temperature=0.7, max_tokens=40, ignore_eos=True, mirostat_mode=2, repetition_penalty=1.1)
    asks = [Ask(prompt, msgspec.structs.replace(params, seed=number)) for number, prompt in enumerate(prompts)]
    return asks[:-4] + [Ask(ask.prompt_ids, SamplingParams(temperature=0, seed=1, max_tokens=40)) for ask in asks[-4:]]


@pytest.fixture(scope="module")
def roomy(models: Models) -> Outputs:
    return plainly(models, crowding_asks())


@pytest.mark.parametrize(("method", "topology"), [("another model", "1P1D"), *SOME_PATHS])
def test_a_pool_that_is_too_small(models: Models, roomy: Outputs, method: str, topology: str) -> None:
    """Sequences are preempted while they have guesses, and begin anew."""
    load, config = models.load(method, num_blocks=20)
    with LocalCluster(load, num_prefill=TOPOLOGIES[topology], speculation=config, max_num_seqs=14) as cluster:
        assert cluster.ask(crowding_asks()) == roomy
        stats = counts_of(cluster)
    assert stats.num_preemptions > 0
    assert stats.num_draft_tokens > 0
    if method != "another model":
        assert stats.num_accepted_tokens > 0
