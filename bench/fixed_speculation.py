"""Speculation that guesses the same number of tokens always, whether that pays or not."""

from collections.abc import Callable

from ..decode.decoded_step import Part
from ..decode.speculation import Rows, Speculation


class FixedSpeculation(Speculation):
    def begin_step(self, num_rows: int, has_grammar: Callable[[], bool] = lambda: False) -> None:
        """Every guess pays."""
        self.is_looking, self._experience.least_rate = True, 0.0

    def awaits(self, rows: Rows) -> bool:
        """Wherever there is one."""
        return bool(self._look(rows).rates)

    def prepare(self, rows: Rows, budget: int) -> None:
        """As many guesses as each may have, while the budget lasts."""
        for speculator, tokens in rows:
            if speculator is not None:
                speculator.wanted = min(speculator.limit, budget) if speculator.look(tokens) else 0
                budget -= speculator.wanted

    def notes(self, part: Part, *, has_changed: bool) -> int:
        """Nothing is learnt of costs."""
        return 0
