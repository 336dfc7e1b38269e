"""A request's vectors: in order, no more at once than the queue can bear, and none where one fails."""

import asyncio
from typing import Any

import numpy as np
import pytest
from isthmus.router.fake_core import FakeCore, FakeStream, made_up_vector
from isthmus.router.job import Job, JobError
from isthmus.router.pooling_request import NO_OUTPUT
from isthmus.router.vector_batch import MAX_AT_ONCE, VectorBatch


class NarrowCore(FakeCore):
    """With room for a few jobs at a time."""

    def __init__(self, room: int, **how: Any):
        super().__init__(**how)
        self.room = room
        self.most = 0

    def submit(self, job: Job) -> FakeStream:
        if self.num_running >= self.room:
            raise JobError(503, "full")
        stream = super().submit(job)
        self.most = max(self.most, self.num_running)
        return stream


def jobs(count: int) -> list[Job]:
    return [Job("r", index, [index, index + 1], 1, NO_OUTPUT, (), "mean") for index in range(count)]


def vectors_of(core: FakeCore, asked: list[Job]) -> list[np.ndarray]:
    async def use() -> list[np.ndarray]:
        return await VectorBatch(core, asked).vectors()

    return asyncio.run(use())


@pytest.mark.parametrize("room", [1, 3, 10_000])
def test_all_come_in_order_however_narrow_the_queue(room: int) -> None:
    core, asked = NarrowCore(room), jobs(600)
    found = vectors_of(core, asked)
    assert [vector.tobytes() for vector in found] == [made_up_vector(job.prompt_ids, 8) for job in asked]
    assert core.most == min(room, MAX_AT_ONCE)


def test_a_queue_that_is_full_of_others_refuses() -> None:
    with pytest.raises(JobError, match="full"):
        VectorBatch(NarrowCore(0), jobs(3))


def test_one_that_can_never_fit_ends_all() -> None:
    class Core(FakeCore):
        def submit(self, job: Job) -> FakeStream:
            if job.prompt_index == 2:
                raise JobError(400, "never")
            return super().submit(job)

    core = Core()
    with pytest.raises(JobError, match="never"):
        VectorBatch(core, jobs(4))
    assert core.num_running == 0
    assert len(core.streams) == 2


def test_numbers_that_are_none_are_an_error() -> None:
    class Core(FakeCore):
        def submit(self, job: Job) -> FakeStream:
            stream = super().submit(job)
            stream.pooled = np.array([1, np.nan], "<f4").tobytes()
            return stream

    with pytest.raises(JobError, match="no numbers"):
        vectors_of(Core(), jobs(1))


def test_once_cancelled_nothing_more_is_submitted() -> None:
    core = FakeCore(step_s=30)

    async def use() -> list[np.ndarray]:
        batch = VectorBatch(core, jobs(2 * MAX_AT_ONCE))
        asyncio.get_running_loop().call_later(0.01, batch.cancel)
        return await batch.vectors()

    assert asyncio.run(use()) == []
    assert len(core.streams) == MAX_AT_ONCE
    assert core.num_running == 0
