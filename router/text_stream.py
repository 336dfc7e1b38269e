"""Tokens to text: detokenized, cut at stop strings, for every choice of a request."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from msgspec import Struct

from ..text.detokenizer import Detokenizer
from ..text.stop import StopMatcher
from ..text.tokenizer import Tokenizer
from ..wire.logprobs import TokenLogprobs
from ..wire.messages import FinishReason
from .job import Core, Job, JobError, JobTimings, JobWorkers, NewTokens, Stream
from .token_logprobs import LogprobQueue, ScoredToken

TAIL_TOKENS = 16
"""How much of the prompt the detokenizer looks at, for a character that the prompt leaves unfinished."""


class Piece(Struct, frozen=True):
    """Text of one choice that arrived together, maybe empty."""

    index: int
    """Among all choices of the request: prompt index × n + choice."""
    text: str
    finish_reason: FinishReason | None = None
    """With the last piece of a choice."""
    stop_reason: str | int | None = None
    """The stop string or token id asked for that ended it; None for end of sequence and for length."""
    logprobs: tuple[ScoredToken, ...] = ()
    """Of the tokens whose text this is, where the request asks."""
    token_ids: tuple[int, ...] = ()
    """That came since the piece before, stop tokens included, where the request asks."""


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How a request wants its text."""

    stops: tuple[str, ...] = ()
    include_stop: bool = False
    """Whether the stop string or token that ended a choice is part of its text."""
    skip_special_tokens: bool = True
    shown_special: frozenset[int] = frozenset()
    """Special tokens that are not skipped: markers of what is read out of the text."""
    with_ids: bool = False
    """Whether pieces and choices tell their tokens."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A validated request: a job per prompt, all with the same number of choices."""

    jobs: tuple[Job, ...]
    options: TextOptions
    echoes: tuple[str, ...] = ()
    """A prompt's text, to be put before each of its choices; empty if that was not asked for."""
    num_logprobs: int | None = None
    """Likeliest tokens to show beside each of an answer's, and of a prompt's that is echoed; None: nothing is shown."""
    num_prompt_logprobs: int | None = None
    """Of a prompt's, in a field of their own."""
    guided_by: str = "guidance"
    """The client's name of the field that constrains the output, if one does."""

    @property
    def num_choices(self) -> int:
        return len(self.jobs) * self.jobs[0].num_choices

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(job.prompt_ids) for job in self.jobs)

    def job_of(self, index: int) -> Job:
        """Of a choice among all."""
        return self.jobs[index // self.jobs[0].num_choices]

    def echo(self, index: int) -> str:
        return self.echoes[index // self.jobs[0].num_choices] if self.echoes else ""


class ChoiceText:
    """The text of one choice as its tokens come. Pure: knows no stream."""

    def __init__(self, index: int, tokenizer: Tokenizer, job: Job, options: TextOptions):
        tail = job.prompt_ids[-TAIL_TOKENS:]
        self.index = index
        self.parts: list[str] = []
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self.logprobs: list[ScoredToken] = []
        """Of the tokens whose text has been given out, where the request asks."""
        self.sum_logprobs = 0.0
        """Of all tokens that count as output, where the request asks."""
        self.token_ids: list[int] = []
        """All that count as output, where the request asks."""
        self._num_ids_told = 0
        self._num_chars = 0
        self._with_ids = options.with_ids
        self._params = job.params
        self._include_stop = options.include_stop
        skip, shown = options.skip_special_tokens, options.shown_special
        self._detokenizer = Detokenizer(tokenizer, tail, skip_special_tokens=skip, shown=shown)
        self._matcher = StopMatcher(options.stops, options.include_stop) if options.stops else None
        self._one_by_one = bool(options.stops) or job.params.logprobs is not None
        self._queue = None if job.params.logprobs is None else LogprobQueue(self._detokenizer)

    def push(self, new: NewTokens) -> Piece | None:
        """What `new` adds; None if that is nothing. Once finished, no more may be pushed."""
        assert self.finish_reason is None
        num_before = self.num_tokens
        if self._one_by_one or new.finish_reason is not None:
            text = self._text(new)
        else:  # the usual case, spared all that follows
            self.num_tokens += len(new.token_ids)
            text = self._detokenizer.push(new.token_ids)
        if self._with_ids:
            self.token_ids += new.token_ids[: self.num_tokens - num_before]
        if not text and self.finish_reason is None:
            return None
        self.parts.append(text)
        logprobs = self._logprobs_of(text)
        return Piece(self.index, text, self.finish_reason, self.stop_reason, logprobs, self._untold_ids())

    def _untold_ids(self) -> tuple[int, ...]:
        untold, self._num_ids_told = self.token_ids[self._num_ids_told :], len(self.token_ids)
        return tuple(untold)

    def _text(self, new: NewTokens) -> str:
        text = self._shown(new)
        if self.finish_reason is None and new.finish_reason is not None:
            self._finish(new)
            text += self._flush()
        return text

    def _shown(self, new: NewTokens) -> str:
        hidden = new.stop_token_id is not None and not self._include_stop
        shown = new.token_ids[:-1] if hidden else new.token_ids
        if not self._one_by_one:
            self.num_tokens += len(new.token_ids)
            return self._detokenizer.push(shown)
        text = self._push_each(shown, new.logprobs)
        if hidden and self.finish_reason is None:
            self.num_tokens += 1
            self.sum_logprobs += sum(one.chosen for one in new.logprobs[-1:])
        return text

    def _push_each(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> str:
        """Token by token: what counts as output ends with the token that completes a stop string, however many
        came together."""
        given = ""
        for index, token_id in enumerate(token_ids):
            self.num_tokens += 1
            text = self._detokenizer.push((token_id,))
            if self._queue is not None:
                self._queue.push(token_id, logprobs[index], text)
                self.sum_logprobs += logprobs[index].chosen
            given += self._match(text)
            if self.finish_reason is not None:
                break
        return given

    def _match(self, text: str) -> str:
        if self._matcher is None or self.num_tokens <= self._params.min_tokens:
            return text  # before min_tokens nothing stops a choice
        text, stop = self._matcher.push(text)
        if stop is not None:
            self.finish_reason, self.stop_reason = "stop", stop
        return text

    def _flush(self) -> str:
        rest = self._detokenizer.flush()
        if self._matcher is None:
            return rest
        text, _ = self._matcher.push(rest)  # it has finished already, so a match here changes nothing
        return text + self._matcher.flush()

    def _logprobs_of(self, text: str) -> tuple[ScoredToken, ...]:
        """Of the tokens that are complete with this text, which is given out now."""
        if self._queue is None:
            return ()
        self._num_chars += len(text)
        scored = self._queue.take(self._num_chars)
        if self.finish_reason is not None:
            scored += self._queue.finish(self._num_chars if isinstance(self.stop_reason, str) else None)
        self.logprobs += scored
        return scored

    def _finish(self, new: NewTokens) -> None:
        self.finish_reason = new.finish_reason
        if new.stop_token_id in self._params.stop_token_ids:
            self.stop_reason = new.stop_token_id


class TextStream:
    """The text of all choices of a request. Raises JobError on submission if any job is refused."""

    def __init__(self, core: Core, generation: Generation, tokenizer: Tokenizer):
        self.generation = generation
        self._n = generation.jobs[0].num_choices
        self._streams = submit_all(core, generation.jobs)
        self._waiting: dict[asyncio.Task[Sequence[NewTokens]], int] = {}
        self.choices = [
            ChoiceText(job.prompt_index * self._n + choice, tokenizer, job, generation.options)
            for job in generation.jobs
            for choice in range(self._n)
        ]

    async def next(self) -> list[Piece] | None:
        """What has come since the last call, waiting for at least a token; None when all is over. Raises JobError."""
        if len(self._streams) == 1:
            arrived = await self._streams[0].next()
            return self._pieces(0, arrived) if arrived else None
        return await self._next_of_many()

    async def _next_of_many(self) -> list[Piece] | None:
        if not self._waiting:
            for index in range(len(self._streams)):
                self._wait_for(index)
        pieces: list[Piece] = []
        while self._waiting:
            done, _ = await asyncio.wait(self._waiting, return_when=asyncio.FIRST_COMPLETED)
            arrived = [(self._waiting.pop(task), task.result()) for task in done]
            live = [(index, tokens) for index, tokens in arrived if tokens]
            for index, tokens in live:
                pieces += self._pieces(index, tokens)
                self._wait_for(index)
            if live:
                return pieces
        return None

    def _wait_for(self, index: int) -> None:
        task = asyncio.ensure_future(self._streams[index].next())
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._waiting[task] = index

    def _pieces(self, job_index: int, arrived: Sequence[NewTokens]) -> list[Piece]:
        pieces: list[Piece] = []
        for new in together(arrived):
            choice = self.choices[job_index * self._n + new.choice]
            if choice.finish_reason is not None:
                continue  # sent before the stop reached the worker
            piece = choice.push(new)
            if piece is not None:
                pieces.append(piece)
            if choice.finish_reason is not None and new.finish_reason is None:
                self._streams[job_index].stop(new.choice)
        return pieces

    def cancel(self) -> None:
        for stream in self._streams:
            stream.cancel()

    def prompt_logprobs(self, index: int) -> Sequence[TokenLogprobs]:
        """Of the tokens of a choice's prompt, from the second on, where the request asks."""
        return self._streams[index // self._n].prompt_logprobs

    @property
    def num_output_tokens(self) -> int:
        return sum(choice.num_tokens for choice in self.choices)

    def timings(self) -> JobTimings:
        """Of several prompts the slowest at each stage, and all their cached tokens."""
        each = [stream.timings() for stream in self._streams]
        return JobTimings(
            queue_s=max(t.queue_s for t in each),
            prefill_s=max(t.prefill_s for t in each),
            transfer_s=max(t.transfer_s for t in each),
            decode_s=max(t.decode_s for t in each),
            num_cached_tokens=sum(t.num_cached_tokens for t in each),
        )

    def each_job(self) -> Iterator[tuple[Job, JobTimings, JobWorkers]]:
        """The prompts, and what became of them."""
        for job, stream in zip(self.generation.jobs, self._streams, strict=True):
            yield job, stream.timings(), stream.workers()


def together(arrived: Sequence[NewTokens]) -> Sequence[NewTokens]:
    """What came of each choice as one: a backlog costs one pass through text and one event, however long it is."""
    if len(arrived) < 2:
        return arrived
    by_choice: dict[int, list[NewTokens]] = {}
    for new in arrived:
        by_choice.setdefault(new.choice, []).append(new)
    return [joined(each) for each in by_choice.values()]


def joined(parts: Sequence[NewTokens]) -> NewTokens:
    """Of one choice, in order: all tokens, and how the last ended."""
    last = parts[-1]
    if len(parts) == 1:
        return last
    token_ids = [token_id for part in parts for token_id in part.token_ids]
    logprobs = tuple(one for part in parts for one in part.logprobs)
    return NewTokens(last.choice, token_ids, last.finish_reason, last.stop_token_id, logprobs)


def submit_all(core: Core, jobs: Sequence[Job]) -> list[Stream]:
    """All or none: if one is refused the others are cancelled. Raises JobError."""
    streams: list[Stream] = []
    try:
        for job in jobs:
            streams.append(core.submit(job))
    except JobError:
        for stream in streams:
            stream.cancel()
        raise
    return streams
