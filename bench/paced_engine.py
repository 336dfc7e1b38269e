"""An engine without a model that writes down texts it knows, at the pace of a GPU: steps take a set time, nothing else.

As on a GPU, `launch` asks for masks and holds guesses against grammars before it returns, and the step begins then, or
when the one before it ends. What is left of a turn is what the host takes.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..engine.guesses import followed
from ..engine.plan import NOT_DRAWN, Plan, Result, Row, SequenceSeed
from ..text.grammar_masks import allows

SPIN_S = 1e-4
"""Before the end of a wait, as sleep may be late by about so much."""


@dataclass(frozen=True, slots=True)
class _Step:
    plan: Plan
    tokens: list[int]
    ready_at: float
    engine: "PacedEngine"

    def result(self) -> Result:
        self.engine.wait_until(self.ready_at)
        return Result(self.tokens)


@dataclass(slots=True)
class PacedEngine:
    num_blocks: int
    block_size: int
    texts: Mapping[tuple[int, ...], Sequence[int]]
    """By their prompts, what is written after them."""
    step_s: float
    guesses_s: float
    """What a step takes longer that has guesses."""
    overlaps: bool = True
    waited_s: float = 0.0
    """By the host, for steps: what remains of the time it worked."""
    _writing: dict[int, Sequence[int]] = field(default_factory=dict)
    _busy_until: float = 0.0

    def admit(self, seed: SequenceSeed) -> None:
        self._writing[seed.seq_id] = self.texts[tuple(seed.prompt_ids)]

    def retire(self, *seq_ids: int) -> None:
        for seq_id in seq_ids:
            del self._writing[seq_id]

    def launch(self, plan: Plan) -> _Step:
        tokens = [token for row in plan.rows for token in self._draw(row)]
        takes_s = self.step_s + self.guesses_s * any(row.num_drafts for row in plan.rows)
        self._busy_until = max(self._busy_until, time.monotonic()) + takes_s
        return _Step(plan, tokens, self._busy_until, self)

    def wait_until(self, ready_at: float) -> None:
        start_s = time.monotonic()
        if ready_at - start_s > SPIN_S:
            time.sleep(ready_at - start_s - SPIN_S)
        while time.monotonic() < ready_at:
            pass
        self.waited_s += time.monotonic() - start_s

    def _draw(self, row: Row) -> list[int]:
        """Raises AssertionError where a mask does not let come what is to come."""
        guesses: tuple[int, ...] = ()
        draws = row.draws
        if row.num_drafts:
            found = followed(row, row.token_ids[1:])
            guesses, draws = tuple(found.token_ids), found.draws
        drawn: list[int] = []
        for index, draw in enumerate(draws):
            is_made = index == 0 or (index <= len(guesses) and drawn[-1] == guesses[index - 1])
            drawn.append(self._writing[row.seq_id][draw.position] if is_made else NOT_DRAWN)
            if index <= len(guesses) and draw.mask is not None:
                words = draw.mask.result()
                assert not is_made or allows(words, drawn[-1]), "a token that its mask does not let come"
        return drawn
