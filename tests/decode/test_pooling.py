"""A prompt's vector from the decode scheduler, where no prefill worker lives."""

import numpy as np
import pytest
from isthmus.decode.scheduler import DecodeScheduler
from isthmus.engine.block_pool import BlockPool
from isthmus.engine.fake_engine import FakeEngine, extend_history, hidden_states
from isthmus.wire.codec import pack_ids
from isthmus.wire.messages import Cancel, Choice, Failed, FromWorker, Pooled, Pooling, Reserve, Reserved, Tokens
from isthmus.wire.sampling import SamplingParams

PROMPT = list(range(23))
BLOCK_SIZE, NUM_BLOCKS = 4, 8


class Bench:
    """A scheduler and a fake engine."""

    def __init__(self, **options: int) -> None:
        self.pool, self.engine = BlockPool(NUM_BLOCKS, BLOCK_SIZE), FakeEngine(NUM_BLOCKS, BLOCK_SIZE, 50)
        sizes = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": NUM_BLOCKS * BLOCK_SIZE} | options
        self.scheduler = DecodeScheduler(self.pool, epoch="d", **sizes)
        self.messages: list[FromWorker] = []

    def reserve(
        self, prompt: list[int], pooling: Pooling | None, max_tokens: int = 0, *, remote: bool = False, choices: int = 1
    ) -> None:
        asked = tuple(Choice(index) for index in range(choices))
        params = SamplingParams(max_tokens=max_tokens)
        message = Reserve(len(prompt), "r", pack_ids(prompt), asked, params, 0, 1, remote, (), pooling)
        self.scheduler.on_reserve(message, 0.0)

    def run(self) -> list[FromWorker]:
        """What is told of placements until all have ended."""
        while (plan := self.scheduler.plan(0.0, None)) is not None:
            self.scheduler.take_effects()
            self.scheduler.apply(plan, self.engine.launch(plan).result(), 0.0)
            self.messages += self.scheduler.take_effects().messages
        self.messages += self.scheduler.take_effects().messages
        self.scheduler.check()
        assert self.scheduler.empty
        assert self.pool.num_used == 0
        return [one for one in self.messages if isinstance(one, Pooled | Tokens | Failed)]


def expected(pooling: Pooling, prompt: list[int]) -> np.ndarray:
    states = hidden_states(extend_history(0, prompt))
    return {"last": states[-1], "mean": states.sum(0) / np.float32(len(prompt)), "cls": states[0]}[pooling]


@pytest.mark.parametrize("chunk", [64, 10, 3])
@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
def test_it_is_told_before_the_end(pooling: Pooling, chunk: int) -> None:
    bench = Bench(max_chunk_tokens=chunk)
    bench.reserve(PROMPT, None)
    bench.run()
    bench.messages.clear()
    bench.reserve(PROMPT, pooling)
    pooled, ended = bench.run()
    assert isinstance(pooled, Pooled)
    assert np.array_equal(np.frombuffer(pooled.values, "<f4"), expected(pooling, PROMPT))
    assert isinstance(ended, Tokens)
    assert [row.finish_reason for row in ended.rows] == ["length"]


@pytest.mark.parametrize(("pooling", "num_cached"), [("last", 20), ("mean", 0), ("cls", 0)])
def test_only_the_last_tokens_vector_may_use_the_cache(pooling: Pooling, num_cached: int) -> None:
    bench = Bench()
    bench.reserve(PROMPT, "mean")
    bench.run()
    bench.reserve(PROMPT, pooling)
    reserved = [one for one in bench.scheduler.take_effects().messages if isinstance(one, Reserved)]
    assert [one.num_cached_tokens for one in reserved] == [num_cached]
    bench.run()


def test_a_prompt_may_fill_the_context_and_the_pool() -> None:
    whole = [7] * (NUM_BLOCKS * BLOCK_SIZE)
    bench = Bench()
    bench.reserve(whole, "mean")
    pooled, _ = bench.run()
    assert isinstance(pooled, Pooled)
    assert np.array_equal(np.frombuffer(pooled.values, "<f4"), expected("mean", whole))


def test_one_that_is_cancelled_in_flight_tells_nothing() -> None:
    bench = Bench()
    bench.reserve(PROMPT, "last")
    plan = bench.scheduler.plan(0.0, None)
    assert plan is not None
    bench.scheduler.on_cancel(Cancel(len(PROMPT)), 0.0)
    bench.scheduler.apply(plan, bench.engine.launch(plan).result(), 0.0)
    assert bench.run() == []


@pytest.mark.parametrize("asked", [{"max_tokens": 1}, {"choices": 2}, {"remote": True}])
def test_no_vector_where_tokens_are_wanted(asked: dict[str, int]) -> None:
    bench = Bench()
    bench.reserve(PROMPT, "last", **asked)
    [failed] = bench.run()
    assert isinstance(failed, Failed)
    assert not failed.retriable
