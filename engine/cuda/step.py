"""A launched step of the GPU's engine: what it waits for, and how what comes from the device becomes a Result."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ...wire.logprobs import TokenLogprobs
from ..guesses import Guesses
from ..plan import DRAFT, NOT_DRAWN, NOT_TRIED, Plan, Result
from .drawn_states import DrawnStates
from .eager_draws import Drawn
from .logprobs import DrawnLogprobs
from .prompt_facts import NO_FACTS, PromptFacts

NO_PLACE, REFUSED = -1, -2
"""Of draws that were not made, as their guess was not tried, or not allowed."""


_MISSING = {NO_PLACE: NOT_TRIED, REFUSED: NOT_DRAWN}


@dataclass(slots=True)
class LaunchedStep:
    """A handle."""

    plan: Plan
    _draw: Callable[[], "Step"] | None
    """Until it has drawn: it holds memory of the device, which the next step may need."""
    _step: "Step | None" = None

    def draw(self) -> None:
        draw, self._draw = self._draw, None
        if draw is not None:
            self._step = draw()

    def result(self) -> Result:
        self.draw()
        assert self._step is not None
        return self._step.result()


@dataclass(frozen=True, slots=True)
class Step:
    """What a step draws, on its way to the host."""

    wait: Callable[[], None]
    tokens: np.ndarray
    """int32, of all draws as they were made, once `wait` has returned."""
    order: Sequence[int]
    """Where the draws of the plan stand in `tokens`, or NO_PLACE, or REFUSED; a range where they stand as they are."""
    guesses: Sequence[tuple[int, Guesses]] = ()
    """Of rows that have some, with the number of their first draw."""
    proposed: np.ndarray | None = None
    """int32, the tokens of a grid, once `wait` has returned, where some guesses are `DRAFT` in `guesses`."""
    refused: Collection[int] = ()
    """Places in `tokens` at which nothing was drawn, whatever the draws before gave."""
    on_proposed: Callable[[Sequence[Guesses]], None] = lambda guesses: None
    """Is told those."""
    kept: dict[int, Tensor] = field(default_factory=dict)
    logprobs: DrawnLogprobs | None = None
    states: DrawnStates | None = None
    prompts: PromptFacts = NO_FACTS
    eager: Mapping[int, Drawn] = field(default_factory=dict)
    """Of draws that were made outside of the kernels, by their places."""

    def result(self) -> Result:
        self.wait()
        order = self.order
        if isinstance(order, range):
            token_ids = self.tokens.tolist()
        else:
            token_ids = [_MISSING.get(place, token) for place, token in zip(order, self._tokens, strict=True)]
        for first, guesses in self._known_guesses():
            for index in range(1, 1 + len(guesses.token_ids)):
                was_drawn = order[first + index] not in self.refused
                if not (was_drawn and guesses.reaches(index, token_ids[first + index - 1])):
                    token_ids[first + index] = NOT_DRAWN
        logprobs: Sequence[TokenLogprobs | None] = ()
        if self.logprobs is not None or any(one for _, one, _ in self.eager.values()):
            found: dict[int, TokenLogprobs | None] = {place: one for place, (_, one, _) in self.eager.items()}
            found |= {} if self.logprobs is None else self.logprobs.by_place()
            logprobs = [found.get(place) for place in order]
        states: Sequence[bytes] = ()
        if self.states is not None or any(state for _, _, state in self.eager.values()):
            kept = {} if self.states is None else self.states.by_place()
            kept |= {place: state for place, (_, _, state) in self.eager.items()}
            states = [kept.get(place, b"") for place in order]
        return Result(token_ids, self.kept, logprobs, states, self.prompts.logprobs(), self.prompts.pooled())

    def _known_guesses(self) -> list[tuple[int, Guesses]]:
        if self.proposed is None:
            return list(self.guesses)
        known, proposed = [], []
        for first, guesses in self.guesses:
            if DRAFT in guesses.token_ids:
                places = self.order[first + 1 : first + 1 + len(guesses.token_ids)]
                guesses = Guesses(self.proposed[list(places)].tolist(), guesses.draws)
                proposed.append(guesses)
            known.append((first, guesses))
        self.on_proposed(proposed)
        return known

    @property
    def _tokens(self) -> list[int]:
        """Of the plan's draws, something where there is none."""
        return self.tokens[list(self.order)].tolist() if self.order else []
