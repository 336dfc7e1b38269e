"""Guesses of one sequence's next tokens: who makes them, how sure they are, and how many are wanted."""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol

from ..engine.plan import DRAFT
from ..wire.sampling import SamplingParams
from .acceptance import Acceptance

WARM = 0.5
"""A temperature from which on it is another kind of request."""
PATIENCE = 16
"""Looks without a guess after one that was right: a copy of a text, with changes, is one again soon after each."""


class Reach(IntEnum):
    """Whom a look for guesses takes in; those who had one of late always."""

    FOUND = 0
    SCOUTS = 1
    ALL = 2


class Proposer(Protocol):
    """Of one sequence."""

    def look(self, tokens: Sequence[int]) -> int | None:
        """The class of the guesses that it would make now, those of one class being right about as often; None if it
        would make none."""

    def propose(self, count: int) -> tuple[int, ...]:
        """At most `count` guesses of what follows the tokens that were looked at last; all `DRAFT` if the engine makes
        them."""

    def forget(self, num_tokens: int) -> None:
        """The tokens after the first `num_tokens` were taken back."""


class EngineProposer:
    """Leaves it to the engine, which guesses when it launches the step."""

    def look(self, tokens: Sequence[int]) -> int | None:
        return 0

    def propose(self, count: int) -> tuple[int, ...]:
        return (DRAFT,) * count

    def forget(self, num_tokens: int) -> None:
        pass


class Kind(NamedTuple):
    """Of requests whose guesses are right about as often."""

    is_guided: bool = False
    warmth: int = 0

    @classmethod
    def of(cls, params: SamplingParams) -> "Kind":
        return cls(params.guidance is not None, (params.temperature > 0) + (params.temperature >= WARM))


USUAL = Kind()


class Experience:
    """What a worker knows of guesses, whoever they were for."""

    def __init__(self) -> None:
        self.least_rate = 1.0
        """What is right less often does not pay, now."""
        self.reach = Reach.ALL
        self.scouts = 1, 0
        """One in so many sequences, and which of them."""
        self._acceptances: dict[tuple[Kind, int], Acceptance] = {}

    def acceptance(self, kind: Kind, of: int) -> Acceptance:
        """Of guesses of a class, for requests of a kind."""
        found = self._acceptances.get((kind, of))
        if found is None:
            below = self.acceptance(kind, of - 1) if of else None
            found = self._acceptances[kind, of] = Acceptance(below=below)
        return found

    @property
    def best_rate(self) -> float:
        """Of any kind and class."""
        return max((acceptance.rate for acceptance in self._acceptances.values()), default=1.0)


class Speculator:
    def __init__(
        self, proposer: Proposer, limit: int, experience: Experience, kind: Kind = USUAL, number: int = 0
    ) -> None:
        """At most `limit` guesses a step. `number`: sequences are counted."""
        self._proposer = proposer
        self._experience = experience
        self._kind, self._number = kind, number
        self._own: dict[int, Acceptance] = {}
        self._class: int | None = None
        self._patience = 0
        """Looks for which it goes on being looked at always."""
        self._unmade: tuple[int, int] | None = None
        """Class and place of the last guess, which may never be made: what comes tells how good it was all the same."""
        self.limit = limit
        self.wanted = 0
        """Guesses of the next step, as far as they pay."""

    def look(self, tokens: Sequence[int]) -> float | None:
        """How often the guess of what follows `tokens` would be right, 0 if it has none that pays; None where it is
        not looked at now."""
        self.wanted = 0
        if not (self._patience or self._is_reached):
            return None
        self._judge_unmade(tokens)
        self._class = found = self._proposer.look(tokens)
        if found is not None:
            self._unmade = found, len(tokens)
        rate = 0.0 if found is None else self._acceptance(found).rate
        if rate >= self._experience.least_rate:
            self._patience = max(1, self._patience)
            return rate
        self._patience = max(0, self._patience - 1) if found is None else self._patience // 2
        return 0.0

    def propose(self, limit: int) -> tuple[int, ...]:
        """Guesses of what follows the tokens of the last look, at most `limit` and no more than are wanted, once."""
        count, self.wanted = min(self.wanted, limit), 0
        if count <= 0:
            return ()
        self._unmade = None
        return self._proposer.propose(count)

    def learn(self, num_drafts: int, num_right: int) -> None:
        """What came of the last guesses."""
        assert self._class is not None
        self._acceptance(self._class).learn(num_drafts, num_right)
        self._patience = max(self._patience, PATIENCE if num_right else PATIENCE // 4)

    def forget(self, num_tokens: int) -> None:
        """The tokens after the first `num_tokens` were taken back."""
        self._unmade = None
        self._proposer.forget(num_tokens)

    def _judge_unmade(self, tokens: Sequence[int]) -> None:
        """As far as what it guessed has come."""
        if self._unmade is None:
            return
        (of, start), self._unmade = self._unmade, None
        came = tokens[start : start + self.limit]
        guess = self._proposer.propose(len(came))
        if not guess or guess[0] == DRAFT:
            return
        num_right = next((i for i, pair in enumerate(zip(guess, came, strict=False)) if pair[0] != pair[1]), len(came))
        self._acceptance(of).learn(len(came), num_right)

    @property
    def _is_reached(self) -> bool:
        reach = self._experience.reach
        return reach is Reach.ALL or (reach is Reach.SCOUTS and self._is_scout)

    @property
    def _is_scout(self) -> bool:
        """Each is of another place among as many as there are groups than those as many before it: what comes in turns
        is not always asked of the same kind."""
        num_groups, group = self._experience.scouts
        return (self._number + self._number // num_groups) % num_groups == group

    def _acceptance(self, of: int) -> Acceptance:
        found = self._own.get(of)
        if found is None:
            below = self._acceptance(of - 1) if of else None
            found = self._own[of] = Acceptance(self._experience.acceptance(self._kind, of), below)
        return found
