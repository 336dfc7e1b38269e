"""A prompt's vector from the prefill scheduler."""

import numpy as np
import pytest
from isthmus.engine.fake_engine import extend_history, hidden_states
from isthmus.tests.prefill.prefill_sim import PrefillSim
from isthmus.wire.codec import pack_ids
from isthmus.wire.messages import Cancelled, Credit, Failed, Pooled, Pooling, Prefill, Prefilled

PROMPT = list(range(23))
KINDS: list[Pooling] = ["last", "mean", "cls"]


def vectors(sim: PrefillSim) -> list[np.ndarray]:
    return [np.frombuffer(message.values, "<f4") for message in sim.messages if isinstance(message, Pooled)]


def expected(pooling: Pooling, prompt: list[int] = PROMPT) -> np.ndarray:
    states = hidden_states(extend_history(0, prompt))
    return {"last": states[-1], "mean": states.sum(0) / np.float32(len(prompt)), "cls": states[0]}[pooling]


@pytest.mark.parametrize("overlap", [False, True], ids=["synchronous", "overlapped"])
@pytest.mark.parametrize("chunk", [64, 10, 3])
@pytest.mark.parametrize("pooling", KINDS)
def test_it_is_told_once_whole_and_before_the_end(pooling: Pooling, chunk: int, overlap: bool) -> None:
    sim = PrefillSim(num_blocks=40, max_num_batched_tokens=chunk, overlap=overlap)
    sim.submit(PROMPT, sends=False, pooling=pooling)
    sim.run()
    told = [message for message in sim.messages if not isinstance(message, Credit)]
    assert [type(message) for message in told] == [Pooled, Prefilled]
    assert np.array_equal(vectors(sim)[0], expected(pooling))


@pytest.mark.parametrize(("pooling", "num_cached"), [("last", 20), ("score", 20), ("mean", 0), ("cls", 0)])
def test_only_what_the_last_token_tells_may_come_from_the_cache(pooling: Pooling, num_cached: int) -> None:
    sim = PrefillSim(num_blocks=40)
    sim.submit(PROMPT, sends=False)
    sim.run()
    work = sim.submit(PROMPT, sends=False, pooling=pooling)
    sim.run()
    assert isinstance(work.answer, Prefilled)
    assert work.answer.num_cached_tokens == num_cached
    assert np.array_equal(vectors(sim)[0], expected("last" if pooling == "score" else pooling))
    later = sim.submit(PROMPT, sends=False)
    sim.run()
    assert isinstance(later.answer, Prefilled)
    assert later.answer.num_cached_tokens == 20, "its blocks were published"


def test_prompts_are_pooled_beside_each_other() -> None:
    sim = PrefillSim(num_blocks=60, max_num_batched_tokens=8)
    prompts = [PROMPT, PROMPT[5:], PROMPT[::-1]]
    for prompt, pooling in zip(prompts, KINDS, strict=True):
        sim.submit(prompt, sends=False, pooling=pooling)
    sim.run()
    told = {message.placement: message.values for message in sim.messages if isinstance(message, Pooled)}
    for index, (prompt, pooling) in enumerate(zip(prompts, KINDS, strict=True)):
        assert np.array_equal(np.frombuffer(told[index], "<f4"), expected(pooling, prompt))


@pytest.mark.parametrize("num_turns", [0, 1, 2])
def test_what_was_cancelled_tells_nothing(num_turns: int) -> None:
    sim = PrefillSim(num_blocks=40, max_num_batched_tokens=10, overlap=True)
    work = sim.submit(PROMPT, sends=False, pooling="mean")
    for _ in range(num_turns):
        sim.turn()
    sim.cancel(work)
    sim.run()
    assert isinstance(work.answer, Cancelled)
    assert vectors(sim) == []


def test_no_vector_of_a_prompt_whose_kv_is_sent() -> None:
    sim = PrefillSim(num_blocks=40)
    sim.submit([1])
    message = Prefill(9, "r", pack_ids(PROMPT), 0, "tcp://d", "t9", 23, pooling="last")
    sim.scheduler.on_prefill(message, 0.0)
    failed = [one for one in sim.scheduler.take_effects().messages if isinstance(one, Failed)]
    assert [(one.placement, one.retriable) for one in failed] == [(9, False)]
