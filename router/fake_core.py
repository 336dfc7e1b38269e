"""A core without workers: tokens from a script, for tests and for measuring the HTTP edge alone."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice

import numpy as np

from ..wire.logprobs import TokenLogprobs
from ..wire.messages import FinishReason
from .job import Job, JobError, JobTimings, JobWorkers, NewTokens
from .timelines import Timeline
from .topology import RouterView, Topology

Script = Callable[[Job, int], Iterator[int]]
"""The tokens of a job's choice; raises JobError where the job is to fail."""
FAKE_HIDDEN_SIZE = 8


def repeat_prompt(job: Job, choice: int) -> Iterator[int]:
    """The prompt again and again; choice i begins at its token i."""
    return islice(cycle(job.prompt_ids), choice, None)


def made_up_logprobs(token_ids: Sequence[int], num_top: int) -> tuple[TokenLogprobs, ...]:
    """Token i has logprob -i / 64; the ids from 0 on are the likeliest."""
    top = tuple((other, -other / 64) for other in range(num_top))
    return tuple(TokenLogprobs(-token / 64, top, token + 1) for token in token_ids)


def made_up_vector(token_ids: Sequence[int], size: int) -> bytes:
    """Counts of ids by their remainder, so that prompts of the same tokens are alike in any order."""
    return np.bincount(np.array(token_ids) % size, minlength=size).astype("<f4").tobytes()


class FakeCore:
    """Implements `Core`. Ends choices as decode workers do: at end of sequence, stop tokens and max_tokens."""

    def __init__(self, script: Script = repeat_prompt, *, tokens_per_step: int = 1, step_s: float = 0.0):
        self.script = script
        self.tokens_per_step = tokens_per_step
        self.step_s = step_s
        self.ready = True
        self.refusal: JobError | None = None
        """What `submit` raises, if anything."""
        self.streams: list[FakeStream] = []
        """All ever submitted."""
        self.workers = ["decode-0"]
        self.draining: list[str] = []

    def submit(self, job: Job) -> "FakeStream":
        if self.refusal is not None:
            raise self.refusal
        stream = FakeStream(self, job)
        self.streams.append(stream)
        return stream

    @property
    def num_running(self) -> int:
        return sum(bool(stream.running) for stream in self.streams)

    def drain_worker(self, name: str) -> bool:
        if name not in self.workers:
            return False
        self.draining.append(name)
        return True

    def topology(self) -> Topology:
        return Topology(RouterView("fake", uptime_s=60.0, num_waiting=0, num_running=self.num_running))

    def timelines(self) -> list[Timeline]:
        return [fake_timeline(stream) for stream in reversed(self.streams)]

    def metrics(self) -> bytes:
        return (
            "# HELP isthmus:num_requests_running Number of requests in the running batch.\n"
            "# TYPE isthmus:num_requests_running gauge\n"
            f"isthmus:num_requests_running {self.num_running}\n"
        ).encode()


class FakeStream:
    """Implements `Stream`: each `next` is a step of all running choices."""

    def __init__(self, core: FakeCore, job: Job):
        self.job = job
        self.cancelled = asyncio.Event()
        self.prompt_logprobs: Sequence[TokenLogprobs] = ()
        if job.params.prompt_logprobs is not None:
            self.prompt_logprobs = made_up_logprobs(job.prompt_ids[1:], job.params.prompt_logprobs)
        self.pooled = b""
        if job.pooling is not None:
            self.pooled = made_up_vector(job.prompt_ids, 1 if job.pooling == "score" else FAKE_HIDDEN_SIZE)
        self.stopped: list[int] = []
        """Choices ended by `stop`."""
        self.running = {choice: core.script(job, choice) for choice in range(job.num_choices)}
        """Choices that have not ended, with the rest of their tokens."""
        self._step_s = core.step_s
        self._tokens_per_step = core.tokens_per_step
        self._stops = frozenset((*job.params.stop_token_ids, *(() if job.params.ignore_eos else job.eos_ids)))
        self._num_made = [0] * job.num_choices
        self.num_made = 0
        """Tokens of all choices."""

    async def next(self) -> Sequence[NewTokens]:
        if self._step_s == 0:
            await asyncio.sleep(0)
        else:
            await self._step()
        return [self._advance(choice) for choice in list(self.running)]

    async def _step(self) -> None:
        try:
            await asyncio.wait_for(self.cancelled.wait(), self._step_s)
        except TimeoutError:
            return

    def _advance(self, choice: int) -> NewTokens:
        if self.job.prompt_only:
            return self._end(NewTokens(choice, (), "length"))
        made = []
        num_made = self._num_made[choice]
        for token_id in islice(self.running[choice], self._tokens_per_step):
            made.append(token_id)
            num_made += 1
            if token_id in self._stops and num_made > self.job.params.min_tokens:
                return self._end(self._new(choice, made, "stop", token_id))
            if num_made == self.job.params.max_tokens:
                return self._end(self._new(choice, made, "length"))
        self._num_made[choice] = num_made
        if len(made) < self._tokens_per_step:
            return self._end(self._new(choice, made, "stop"))
        return self._new(choice, made)

    def _new(
        self, choice: int, made: Sequence[int], reason: FinishReason | None = None, stop: int | None = None
    ) -> NewTokens:
        num_top = self.job.params.logprobs
        self.num_made += len(made)
        return NewTokens(choice, made, reason, stop, () if num_top is None else made_up_logprobs(made, num_top))

    def _end(self, new: NewTokens) -> NewTokens:
        del self.running[new.choice]
        return new

    def stop(self, choice: int) -> None:
        self.stopped.append(choice)
        self.running.pop(choice, None)

    def cancel(self) -> None:
        self.running.clear()
        self.cancelled.set()

    def timings(self) -> JobTimings:
        return JobTimings(queue_s=0.0, prefill_s=self._step_s, transfer_s=0.0, decode_s=0.0, num_cached_tokens=0)

    def workers(self) -> JobWorkers:
        return JobWorkers(prefill=None, decode="fake")


def fake_timeline(stream: FakeStream) -> Timeline:
    """Made of round numbers, and of what is known of the job."""
    job, over = stream.job, not stream.running
    return Timeline(
        request_id=job.request_id,
        prompt_index=job.prompt_index,
        outcome="stop" if over else None,
        at_stop_string=bool(stream.stopped),
        age_s=8.0,
        ended_s=2.0 if over else None,
        queue_s=1.0,
        prefill_s=0.5,
        transfer_s=0.5,
        decode_s=4.0,
        num_choices=job.num_choices,
        num_prompt_tokens=len(job.prompt_ids),
        num_cached_tokens=0,
        num_output_tokens=stream.num_made,
        seed=job.params.seed,
        prefill=None,
        decode="fake",
    )
