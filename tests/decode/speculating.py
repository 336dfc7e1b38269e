"""A scheduler and an engine that decode with guesses of known quality, step by step and always the same."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from isthmus.decode.draft_policy import DraftPolicy
from isthmus.decode.lookout import Lookout
from isthmus.decode.speculation import Speculation
from isthmus.decode.speculator import Proposer, Reach
from isthmus.engine.plan import Engine
from isthmus.tests.decode.router_sim import Request, RouterSim
from isthmus.wire.messages import Failed, FromWorker
from isthmus.wire.sampling import SamplingParams

Outputs = list[dict[int, list[int]]]


class Always(DraftPolicy):
    """As many guesses as there may be, whether they pay or not: on a tiny model they hardly ever do."""

    def least_rate(self, num_rows: int, limit: int = 0) -> tuple[float, bool]:
        return 0.001, True

    def search_steps(self, num_rows: int, look_s: float) -> int:
        return 1

    def pays(self, rates: Sequence[float], limits: Sequence[int], num_rows: int, num_looked: int | None = None) -> bool:
        return any(limits)

    def knows(self, num_rows: int) -> bool:
        return True

    def has_known(self, num_rows: int) -> bool:
        return True

    def lengths(
        self, rates: Sequence[float], limits: Sequence[int], num_rows: int, *, waits: bool = False
    ) -> list[int]:
        return list(limits)


class Everyone(Lookout):
    """Is looked at in every step."""

    def begin_step(self, num_rows: int) -> Reach:
        return Reach.ALL

    def scouts(self, num_rows: int) -> tuple[int, int]:
        return 1, 0


@dataclass
class Knowing:
    """Guesses from texts that are known, but for one token in `wrong_every`, which is another one of the vocabulary. At
    a text's end it says `after_end`, which may well come if nothing stops it."""

    texts: Sequence[Sequence[int]]
    wrong_every: int = 0
    after_end: int = 0
    tokens: Sequence[int] = ()

    def look(self, tokens: Sequence[int]) -> int | None:
        self.tokens = list(tokens)
        return 0

    def propose(self, count: int) -> tuple[int, ...]:
        size = len(self.tokens)
        known = next((text for text in self.texts if list(text[:size]) == self.tokens), ())
        right = (*known[size : size + count], *(self.after_end,) * count)[:count]
        return tuple(self._said(token, size + i) for i, token in enumerate(right))

    def _said(self, token: int, position: int) -> int:
        is_wrong = self.wrong_every and position % self.wrong_every == 0
        return token + (1 if token % 2 == 0 else -1) if is_wrong else token

    def forget(self, num_tokens: int) -> None:
        pass


Ask = tuple[list[int], SamplingParams, int]
"""Prompt, how its tokens are drawn, choices."""


class Sim(RouterSim):
    """A request that fails has no more tokens."""

    def on_message(self, message: FromWorker) -> None:
        if isinstance(message, Failed) and not message.retriable:
            request, choices = self.placed[message.placement]
            request.cancelled.update(choices)
            self.leave(message.placement, None)
        else:
            super().on_message(message)


def speculation_of(make_proposer: Callable[[], Proposer], num_tokens: int = 4) -> Speculation:
    speculation = Speculation(make_proposer, num_tokens)
    speculation._policies, speculation._lookout = (Always(), Always()), Everyone()
    return speculation


def decode(engine: Engine, asks: Sequence[Ask], speculation: Speculation | None = None, **options: Any) -> Outputs:
    """What all asks give at once."""
    sim = Sim(
        num_blocks=engine.num_blocks,
        block_size=engine.block_size,
        max_num_seqs=64,
        max_num_batched_tokens=512,
        speculation=speculation,
        **options,
    )
    sim.engine = engine  # type: ignore[assignment]
    requests = [sim.submit(Request(prompt, params, num_choices)) for prompt, params, num_choices in asks]
    sim.run()
    return [request.outputs for request in requests]


def texts_of(asks: Sequence[Ask], outputs: Outputs) -> list[list[int]]:
    """What `Knowing` is to know."""
    return [[*prompt, *one] for (prompt, _, _), made in zip(asks, outputs, strict=True) for one in made.values()]
