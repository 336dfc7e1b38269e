import asyncio
import gc
import weakref

import pytest
from isthmus.router.job import Job, JobError, NewTokens
from isthmus.router.ledger import Ledger
from isthmus.router.metrics import Metrics
from isthmus.router.stream import JobStream
from isthmus.wire.sampling import SamplingParams


class Ids(list):
    """A list that a weak reference can watch."""


def make_stream():
    return JobStream(stop=lambda entry, choice: None, cancel=lambda entry: None, clock=lambda: 0.0)


def test_what_came_together_is_given_together_and_before_the_error():
    async def play():
        stream = make_stream()
        stream.push(NewTokens(0, (1,)))
        stream.push(NewTokens(1, (2,)))
        stream.fail(JobError(500, "broken"))
        assert [n.choice for n in await stream.next()] == [0, 1]
        with pytest.raises(JobError, match="broken"):
            await stream.next()

    asyncio.run(play())


def test_waiting_is_woken_once_for_many_pushes():
    async def play():
        stream = make_stream()
        waiting = asyncio.create_task(stream.next())
        await asyncio.sleep(0)
        for i in range(3):
            stream.push(NewTokens(0, (i,)))
        stream.end()
        assert [n.token_ids for n in await waiting] == [(0,), (1,), (2,)]
        assert list(await stream.next()) == []

    asyncio.run(play())


def test_a_cancelled_wait_loses_nothing():
    async def play():
        stream = make_stream()
        waiting = asyncio.create_task(stream.next())
        await asyncio.sleep(0)
        waiting.cancel()
        stream.push(NewTokens(0, (1,)))
        await asyncio.sleep(0)
        assert [n.token_ids for n in await stream.next()] == [(1,)]

    asyncio.run(play())


def test_an_ended_stream_holds_no_prompt():
    ledger = Ledger(router_epoch=1, metrics=Metrics())
    stream = JobStream(
        stop=lambda entry, choice: ledger.stop(entry, choice, 2.0),
        cancel=lambda entry: ledger.cancel(entry, 2.0),
        clock=lambda: 2.0,
    )
    prompt_ids = Ids([1, 2, 3])
    stream.entry = ledger.submit(Job("r1", 0, prompt_ids, 2, SamplingParams(seed=1), ()), stream, 1.0)
    held = weakref.ref(prompt_ids)
    del prompt_ids
    gc.disable()
    try:
        stream.stop(0)
        assert held() is not None
        stream.cancel()
        assert held() is None, "no reference cycle is left"
    finally:
        gc.enable()
    stream.stop(1)
    stream.cancel()
    assert stream.timings().queue_s == 1.0
