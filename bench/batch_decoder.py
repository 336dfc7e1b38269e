"""A decode worker without its sockets: its scheduler and engine in this process, and how long their steps take.

Steps run as in engine/worker.py: an engine that overlaps has the next one launched before the last is taken in. A step
ends when its tokens are told, before the engine hears who has ended. Only steps without prompts are measured, from the
end of the step before, or where they were planned after that (always, where none is launched ahead) from then.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Protocol

from ..decode.guidance import Guides
from ..decode.scheduler import DecodeScheduler
from ..decode.speculation import Speculation
from ..engine.block_pool import BlockPool
from ..engine.plan import Handle, Plan, SequenceSeed
from ..wire.codec import pack_ids
from ..wire.messages import Choice, Declined, Failed, Reserve, Tokens
from ..wire.sampling import SamplingParams

MAX_BATCHED_TOKENS = 2048
REST_S = 0.001
"""Slept while a grammar is compiled."""


class StepEngine(Protocol):
    """What is needed of plan.Engine."""

    @property
    def num_blocks(self) -> int: ...

    @property
    def block_size(self) -> int: ...

    @property
    def overlaps(self) -> bool: ...

    def launch(self, plan: Plan) -> Handle: ...

    def admit(self, seed: SequenceSeed) -> None: ...

    def retire(self, *seq_ids: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Request:
    prompt_ids: Sequence[int]
    params: SamplingParams
    """With a seed and max_tokens."""


@dataclass(slots=True)
class Steps:
    """Sums over steps without prompts; guesses are those of all steps."""

    num_steps: int = 0
    num_rows: int = 0
    """Of sequences: one a sequence and step."""
    num_tokens: int = 0
    elapsed_s: float = 0.0
    row_s: float = 0.0
    """What sequences waited, together: each step counts once for each that goes on, in it or not."""
    num_drafts: int = 0
    """Rows with guesses that the engine tried."""
    num_guesses: int = 0
    num_accepted: int = 0

    def __add__(self, other: "Steps") -> "Steps":
        return Steps(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(Steps)))

    def count(self, num_rows: int, num_tokens: int, elapsed_s: float, num_going: int) -> None:
        """One more step, while so many sequences go on. It must not take long beside the step."""
        self.num_steps += 1
        self.num_rows += num_rows
        self.num_tokens += num_tokens
        self.elapsed_s += elapsed_s
        self.row_s += num_going * elapsed_s

    @property
    def tokens_per_s(self) -> float:
        """Of one sequence, the mean over its time: 1 / ITL. 0 where nothing was measured."""
        return self.num_tokens / self.row_s if self.row_s else 0.0

    @property
    def step_s(self) -> float:
        return self.elapsed_s / self.num_steps if self.num_steps else 0.0


@dataclass(frozen=True, slots=True)
class Run:
    outputs: list[list[int]]
    """Of each request, the tokens drawn."""
    steps: Steps


@dataclass(frozen=True, slots=True)
class _Flight:
    step: Handle
    start_s: float
    """When it began to be planned."""


Turns = Generator[None, None, Run]


def run_all(many: Iterable[Turns]) -> list[Run]:
    """Turn about, until all have ended: what slows the machine down for a moment hits all of them."""
    going, runs = dict(enumerate(many)), dict[int, Run]()
    while going:
        for number, turns in list(going.items()):
            try:
                next(turns)
            except StopIteration as end:
                runs[number] = end.value
                del going[number]
    return [run for _, run in sorted(runs.items())]


@dataclass(slots=True)
class BatchDecoder:
    """Lives as long as a worker does: what it has learnt of guesses, and cached of prompts, it keeps between runs."""

    engine: StepEngine
    max_num_seqs: int
    max_model_len: int
    speculation: Speculation | None = None
    guides: Guides | None = None
    eos_ids: Sequence[int] = ()
    caches: bool = True
    """Prompts, for who comes after. False where others use the engine, too, between runs."""
    least_rows: int = 1
    """Of the steps that are measured."""
    clock: Callable[[], float] = time.monotonic
    """Seconds."""
    _scheduler: DecodeScheduler = field(init=False)
    _outputs: dict[int, list[int]] = field(init=False, default_factory=dict)
    """By placement."""
    _open: set[int] = field(init=False, default_factory=set)
    _num_leaving: int = field(init=False, default=0)
    """Ended in the last turn, and still in a step that was launched before."""
    _num_placements: int = field(init=False, default=0)
    _flying: _Flight | None = field(init=False, default=None)
    _last_end_s: float = field(init=False, default=0.0)
    """Of a step."""
    _told_s: float = field(init=False, default=0.0)
    """When tokens were told last."""

    def __post_init__(self) -> None:
        self._scheduler = DecodeScheduler(
            BlockPool(self.engine.num_blocks, self.engine.block_size, enable_prefix_caching=self.caches),
            epoch="bench",
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=MAX_BATCHED_TOKENS,
            max_model_len=self.max_model_len,
            guides=self.guides,
            speculation=self.speculation,
        )

    def run(self, requests: Sequence[Request], batch: int) -> Run:
        """Answers all, `batch` of them at a time. Raises RuntimeError if one is not served."""
        return run_all([self.turns(requests, batch)])[0]

    def turns(self, requests: Sequence[Request], batch: int) -> Turns:
        """As `run`, stopping after each turn of the worker's loop: so that others can take theirs in between, which an
        engine that overlaps must not have."""
        first, waiting = self._num_placements, deque(requests)
        guessed, steps = self._guessed(), Steps()
        while waiting or self._open:
            num_taken = len(self._open) + self._num_leaving
            for _ in range(min(len(waiting), batch - num_taken)):
                self._place(waiting.popleft())
            num_going = sum(bool(self._outputs[placement]) for placement in self._open)
            done, num_tokens, elapsed_s = self._turn()
            if done is not None and only_decodes(done, self.least_rows):
                steps.count(len(done.rows), num_tokens, elapsed_s, num_going)
            yield
        self._turn()  # ended sequences may stand in a step that was launched ahead
        outputs = [self._outputs.pop(placement) for placement in range(first, self._num_placements)]
        return Run(outputs, steps + _difference(self._guessed(), guessed))

    def check(self) -> None:
        """Raises AssertionError if something is left of the requests."""
        assert self._scheduler.empty
        self._scheduler.check()

    def _place(self, request: Request) -> None:
        placement, num_tokens = self._num_placements, len(request.prompt_ids)
        self._num_placements += 1
        self._outputs[placement] = []
        self._open.add(placement)
        reserve = Reserve(
            placement,
            str(placement),
            pack_ids(request.prompt_ids),
            (Choice(0),),
            request.params,
            prompt_index=0,
            cost_blocks=-(-num_tokens // self.engine.block_size),
            remote=False,
            eos_ids=tuple(self.eos_ids),
        )
        self._scheduler.on_reserve(reserve, self.clock())

    def _turn(self) -> tuple[Plan | None, int, float]:
        """Once around the worker's loop: the plan that was taken in, if any, how many tokens it gave and how long that
        took, seconds."""
        flying, start_s = self._flying, self.clock()
        plan = self._scheduler.plan(start_s, flying.step.plan if flying else None)
        self._carry_out()
        ahead = _Flight(self.engine.launch(plan), start_s) if plan else None
        num_open = len(self._open)
        done = flying if self.engine.overlaps else ahead
        if done is not None:
            self._scheduler.apply(done.step.plan, done.step.result(), self.clock())
        self._flying = ahead if self.engine.overlaps else None
        num_tokens = self._carry_out()
        self._num_leaving = num_open - len(self._open) if self.engine.overlaps else 0
        if done is None:
            if plan is None:
                time.sleep(REST_S)
            return None, num_tokens, 0.0
        elapsed_s = self._told_s - max(done.start_s, self._last_end_s)
        self._last_end_s = self._told_s
        return done.step.plan, num_tokens, elapsed_s

    def _carry_out(self) -> int:
        """The scheduler's effects; how many tokens there were among them."""
        effects = self._scheduler.take_effects()
        num_tokens = 0
        for message in effects.messages:
            match message:
                case Tokens():
                    num_tokens += self._take(message)
                case Failed() | Declined():
                    raise RuntimeError(f"a request was not served: {message}")
        self._told_s = self.clock()
        self.engine.retire(*effects.retire)
        for seed in effects.admit:
            self.engine.admit(seed)
        return num_tokens

    def _take(self, message: Tokens) -> int:
        for row in message.rows:
            self._outputs[row.placement] += row.token_ids
            if row.finish_reason is not None:
                self._open.remove(row.placement)
        return sum(len(row.token_ids) for row in message.rows)

    def _guessed(self) -> Steps:
        """Guesses so far."""
        if (one := self.speculation) is None:
            return Steps()
        return Steps(num_drafts=one.num_drafts, num_guesses=one.num_draft_tokens, num_accepted=one.num_accepted_tokens)


def only_decodes(plan: Plan, least_rows: int = 0) -> bool:
    """Whether so many rows are in it and no prompt is computed: the first token comes from a prompt's last row."""
    return len(plan.rows) >= least_rows and all(row.draws and row.draws[0].position for row in plan.rows)


def _difference(after: Steps, before: Steps) -> Steps:
    return Steps(*(getattr(after, one.name) - getattr(before, one.name) for one in fields(Steps)))
