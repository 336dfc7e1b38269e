"""Speculation that guesses the same number of tokens always, whether that pays or not."""

from collections.abc import Sequence

from ..decode.speculation import Speculation
from ..decode.speculator import Speculator


class FixedSpeculation(Speculation):
    def prepare(self, speculators: Sequence[Speculator | None], budget: int) -> None:
        """As many guesses as each may have, while the budget lasts."""
        for speculator in speculators:
            if speculator is not None:
                speculator.wanted = min(speculator.limit, budget)
                budget -= speculator.wanted

    def record(self, num_rows: int, num_drafts: int, num_tried: int, elapsed_s: float) -> None:
        """Nothing is learnt of costs."""
