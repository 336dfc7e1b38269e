"""How much of a step drawing takes, and waiting for masks, where every row has guesses and all of them are right.

What answers will be is found out without guesses, and then guessed: so each row draws as often as it can. Steps of all
rows count: a row that went on otherwise, as logits that are nearly equal let it, ends long after the others. On a CPU
the sampler is timed from inside; on a GPU it is part of the step, and shows in the difference to greedy rows alone.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from msgspec.structs import replace as replace_struct
from torch import Tensor

from ..decode.sampler import Sampler, Samples
from ..engine.heap import settle
from ..engine.plan import Draw, Follow, Handle, Mask, Plan, Row, SequenceSeed
from ..engine.speculation_config import SpeculationConfig
from ..wire.sampling import Guidance, SamplingParams
from .batch_decoder import BatchDecoder, Request, StepEngine, only_decodes
from .fixed_speculation import FixedSpeculation
from .speculation_engines import EngineMaker
from .speculation_tasks import Asker

NUM_STEPS = 12
"""With guesses, that each answer takes."""
MIXTURE = SamplingParams(
    repetition_penalty=1.1,
    presence_penalty=0.1,
    frequency_penalty=0.1,
    dry_multiplier=0.8,
    top_k=50,
    top_p=0.95,
    min_p=0.02,
)
JSON = Guidance(
    "json_schema",
    '{"type": "array", "minItems": 20, "items": {"type": "object", "properties": {"name": {"type": "string"}, '
    '"population": {"type": "integer"}}, "required": ["name", "population"]}}',
)
CASES = {
    "greedy": SamplingParams(temperature=0),
    "defaults": SamplingParams(),
    "penalties, DRY, top-k, top-p, min-p": MIXTURE,
    "defaults, JSON grammar": SamplingParams(guidance=JSON),
    "all of these": replace_struct(MIXTURE, guidance=JSON),
}
HEADER = (
    "| batch | samplers | ms a step without guesses | ms a step with | draws a row | sampler ms | of the step | "
    "masks ms | of the step | over greedy, of the step |\n|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(slots=True)
class Stopwatch:
    """Seconds."""

    sampling_s: float = 0.0
    """Without waiting for masks."""
    masks_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TimedSampler:
    """Draws as `inner` does."""

    inner: Sampler
    watch: Stopwatch

    def admit(self, seed: SequenceSeed) -> None:
        self.inner.admit(seed)

    def retire(self, seq_id: int) -> None:
        self.inner.retire(seq_id)

    def sample(self, logits: Tensor, draws: Sequence[Draw]) -> Samples:
        waited_s, start_s = self.watch.masks_s, time.perf_counter()
        samples = self.inner.sample(logits, draws)
        self.watch.sampling_s += time.perf_counter() - start_s - (self.watch.masks_s - waited_s)
        return samples

    def guess(self, logits: Tensor, draws: Sequence[Draw]) -> list[int]:
        return self.inner.guess(logits, draws)

    def forget(self, seq_id: int, count: int) -> None:
        self.inner.forget(seq_id, count)


@dataclass(frozen=True, slots=True)
class TimedMask:
    inner: Mask
    watch: Stopwatch

    def result(self) -> Any:
        start_s = time.perf_counter()
        words = self.inner.result()
        self.watch.masks_s += time.perf_counter() - start_s
        return words


@dataclass(slots=True)
class TimedEngine:
    """Launches as `inner` does, and sums up what the watch shows over steps of so many rows without prompts."""

    inner: StepEngine
    watch: Stopwatch
    least_rows: int = 1
    """Of the steps that count."""
    total: Stopwatch = field(default_factory=Stopwatch)

    @property
    def num_blocks(self) -> int:
        return self.inner.num_blocks

    @property
    def block_size(self) -> int:
        return self.inner.block_size

    @property
    def overlaps(self) -> bool:
        return self.inner.overlaps

    def admit(self, seed: SequenceSeed) -> None:
        self.inner.admit(seed)

    def retire(self, *seq_ids: int) -> None:
        self.inner.retire(*seq_ids)

    def launch(self, plan: Plan) -> Handle:
        with self._counting(plan):
            handle = self.inner.launch(replace(plan, rows=tuple(timed_row(row, self.watch) for row in plan.rows)))
        return _OfPlan(plan, handle, self._counting)

    @contextmanager
    def _counting(self, plan: Plan) -> Iterator[None]:
        sampling_s, masks_s = self.watch.sampling_s, self.watch.masks_s
        yield
        if only_decodes(plan, self.least_rows):
            self.total.sampling_s += self.watch.sampling_s - sampling_s
            self.total.masks_s += self.watch.masks_s - masks_s


@dataclass(frozen=True, slots=True)
class _OfPlan:
    """The handle of a plan that was launched in another form."""

    plan: Plan
    inner: Handle
    counting: Callable[[Plan], AbstractContextManager[None]]

    def result(self) -> Any:
        with self.counting(self.plan):
            return self.inner.result()


def timed_row(row: Row, watch: Stopwatch) -> Row:
    draws = tuple(replace_struct(draw, mask=timed_mask(draw.mask, watch)) for draw in row.draws)
    return replace_struct(row, draws=draws, follow=None if row.follow is None else timed_follow(row.follow, watch))


def timed_mask(mask: Mask | None, watch: Stopwatch) -> Mask | None:
    return None if mask is None else TimedMask(mask, watch)


def timed_follow(follow: Follow, watch: Stopwatch) -> Follow:
    def timed(token_id: int) -> Mask | None:
        start_s = time.perf_counter()
        mask = follow(token_id)
        watch.masks_s += time.perf_counter() - start_s
        return timed_mask(mask, watch)

    return timed


class Replay:
    """Guesses that a text goes on as the one of `texts` that begins as it does."""

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self._texts = texts
        self._text: Sequence[int] | None = None
        self._place = 0

    def look(self, tokens: Sequence[int]) -> int | None:
        """See speculator.Proposer."""
        if self._text is None:
            start = list(tokens)
            self._text = next((text for text in self._texts if list(text[: len(start)]) == start), ())
        self._place = len(tokens)
        return 0

    def propose(self, count: int) -> tuple[int, ...]:
        """See speculator.Proposer."""
        return tuple(self._text[self._place : self._place + count]) if self._text else ()

    def forget(self, num_tokens: int) -> None:
        """It guesses by place."""


def measure_shares(maker: EngineMaker, asker: Asker, batch: int, num_guesses: int) -> Iterator[str]:
    """Lines of the table."""
    watch, texts = Stopwatch(), list[list[int]]()
    sampler = TimedSampler(maker.sampler(), watch) if maker.device == "cpu" else None
    # Guesses come from outside the engine: so do those of n-grams, which it is told of.
    engine = TimedEngine(maker.engine(SpeculationConfig("ngram", num_guesses), sampler), watch, batch)
    decoder = replace(maker.around(engine, FixedSpeculation(lambda: Replay(texts), num_guesses)), least_rows=batch)
    greedy_s = 0.0
    for name, params in {"": CASES["greedy"], **CASES}.items():
        requests = _requests(asker, params, batch, 1 + NUM_STEPS * (1 + num_guesses))
        case = _measure(decoder, engine, requests, texts)
        greedy_s = case.step_s if name == "greedy" else greedy_s
        if name:
            yield case.line(batch, name, greedy_s, timed=sampler is not None)
        else:  # warms up
            settle()
    decoder.check()


@dataclass(frozen=True, slots=True)
class _Case:
    plain_s: float
    step_s: float
    tokens_a_row: float
    watch: Stopwatch
    """Of a step."""

    def line(self, batch: int, name: str, greedy_s: float, *, timed: bool) -> str:
        steps = f"{1e3 * self.plain_s:.1f} | {1e3 * self.step_s:.1f} | {self.tokens_a_row:.2f}"
        sampling_s, masks_s = self.watch.sampling_s, self.watch.masks_s
        sampling = f"{1e3 * sampling_s:.2f} | {sampling_s / self.step_s:.1%}" if timed else "– | –"
        masks = f"{1e3 * masks_s:.2f} | {masks_s / self.step_s:.1%}"
        return f"| {batch} | {name} | {steps} | {sampling} | {masks} | {1 - greedy_s / self.step_s:.1%} |"


def _measure(decoder: BatchDecoder, engine: TimedEngine, requests: Sequence[Request], texts: list[list[int]]) -> _Case:
    """The answers without guesses, then guessed."""
    batch = len(requests)
    plain = decoder.run([_without_guesses(request) for request in requests], batch)
    texts[:] = [[*request.prompt_ids, *output] for request, output in zip(requests, plain.outputs, strict=True)]
    engine.total = Stopwatch()
    steps = decoder.run(requests, batch).steps
    each = Stopwatch(engine.total.sampling_s / steps.num_steps, engine.total.masks_s / steps.num_steps)
    return _Case(plain.steps.step_s, steps.step_s, steps.num_tokens / steps.num_rows, each)


def _requests(asker: Asker, params: SamplingParams, batch: int, num_tokens: int) -> list[Request]:
    """Of the JSON task, each with these samplers and a seed of its own. None ends before its last token."""
    asked = asker.requests("json", batch, params.temperature, num_tokens)
    return [
        Request(one.prompt_ids, replace_struct(params, seed=i, max_tokens=num_tokens, ignore_eos=True))
        for i, one in enumerate(asked)
    ]


def _without_guesses(request: Request) -> Request:
    return Request(request.prompt_ids, replace_struct(request.params, num_speculative_tokens=0))
