"""What an engine without a model writes: texts that are known, token by token, within the masks that come with rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..engine.guesses import followed
from ..engine.plan import NOT_DRAWN, Plan, Row, SequenceSeed
from ..text.grammar_masks import allows


class Drawable(Protocol):
    """A step."""

    def draw(self) -> None: ...


@dataclass(slots=True)
class KnownTexts:
    """The part of plan.Engine that takes no time; `launch` is left to those who say how long a step takes."""

    num_blocks: int
    block_size: int
    texts: Mapping[tuple[int, ...], Sequence[int]]
    """By their prompts, what is written after them."""
    overlaps: bool = field(default=True, kw_only=True)
    undrawn: Drawable | None = field(init=False, default=None)
    """The last step, if its masks were not to be asked for yet."""
    _writing: dict[int, Sequence[int]] = field(init=False, default_factory=dict)

    def draw_last(self) -> None:
        """Before anything else is told."""
        undrawn, self.undrawn = self.undrawn, None
        if undrawn is not None:
            undrawn.draw()

    def admit(self, seed: SequenceSeed) -> None:
        self.draw_last()
        self._writing[seed.seq_id] = self.texts[tuple(seed.prompt_ids)]

    def retire(self, *seq_ids: int) -> None:
        if seq_ids:
            self.draw_last()
        for seq_id in seq_ids:
            del self._writing[seq_id]

    def drawn(self, plan: Plan) -> list[int]:
        """As plan.Result has them. Raises AssertionError where a mask does not let come what is to come."""
        return [token for row in plan.rows for token in self._draw(row)]

    def guesses(self, row: Row) -> Sequence[int]:
        """Of a row that has some."""
        return row.token_ids[1:]

    def _draw(self, row: Row) -> list[int]:
        guesses: tuple[int, ...] = ()
        draws = row.draws
        if row.num_drafts:
            found = followed(row, self.guesses(row))
            guesses, draws = tuple(found.token_ids), found.draws
        drawn: list[int] = []
        for index, draw in enumerate(draws):
            is_made = index == 0 or (index <= len(guesses) and drawn[-1] == guesses[index - 1])
            drawn.append(self._writing[row.seq_id][draw.position] if is_made else NOT_DRAWN)
            if index <= len(guesses) and draw.mask is not None:
                words = draw.mask.result()
                assert not is_made or allows(words, drawn[-1]), "a token that its mask does not let come"
        return drawn
