"""Guesses of one sequence's next tokens: who makes them, how many are wanted, and how often they were right."""

from collections.abc import Sequence
from typing import Protocol

from ..engine.plan import DRAFT
from .acceptance import Acceptance


class Proposer(Protocol):
    """Of one sequence."""

    def propose(self, tokens: Sequence[int], count: int) -> tuple[int, ...]:
        """At most `count` guesses of what follows `tokens`; all `DRAFT` if the engine makes them."""

    def forget(self, num_tokens: int) -> None:
        """The tokens after the first `num_tokens` were taken back."""


class EngineProposer:
    """Leaves it to the engine, which guesses when it launches the step."""

    def propose(self, tokens: Sequence[int], count: int) -> tuple[int, ...]:
        return (DRAFT,) * count

    def forget(self, num_tokens: int) -> None:
        pass


class Speculator:
    def __init__(self, proposer: Proposer, limit: int, acceptance: Acceptance) -> None:
        """At most `limit` guesses a step."""
        self._proposer = proposer
        self.limit = limit
        self.acceptance = acceptance
        self.wanted = 0
        """Guesses of the next step, as far as they pay."""

    def propose(self, tokens: Sequence[int], limit: int) -> tuple[int, ...]:
        """Guesses of what follows `tokens`, at most `limit` and no more than are wanted."""
        count = min(self.wanted, limit)
        return self._proposer.propose(tokens, count) if count > 0 else ()

    def expects(self, tokens: Sequence[int]) -> bool:
        """Whether it would guess now."""
        return bool(self.propose(tokens, 1))

    def forget(self, num_tokens: int) -> None:
        """The tokens after the first `num_tokens` were taken back."""
        self._proposer.forget(num_tokens)
