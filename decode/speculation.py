"""Speculative decoding of one worker: which sequences have their next tokens guessed, how many, and what came of it.

Guesses change nothing but the speed: the engine draws every token as it would without them, and what is not drawn as
guessed is not taken (plan.Row.num_drafts).
"""

from collections.abc import Callable, Sequence
from itertools import zip_longest

from ..wire.sampling import SamplingParams
from .draft_policy import DecodedStep, DraftPolicy
from .speculator import EngineProposer, Experience, Kind, Proposer, Speculator

MAX_PATIENCE = 8
"""Where nothing was found for long, guesses are looked for so many times more rarely."""
PATIENT_AFTER = 4
"""Looks that found nothing, each time; one that found something takes back as many."""
NUM_SCOUTS = 4
"""About: of more sequences only so many go on being looked at where nothing was found: each must be read for that."""
SCOUTED_STEPS = 4096
"""Then others are."""


class Speculation:
    def __init__(self, make_proposer: Callable[[], Proposer], num_tokens: int) -> None:
        """At most `num_tokens` guesses a sequence and step; with 0 there are none, and what steps take is not noted."""
        self._make_proposer = make_proposer
        self._num_tokens = num_tokens
        self._policy = DraftPolicy()
        self._experience = Experience()
        self._num_steps = self._num_fruitless = self._num_begun = 0
        self._is_disturbed = False
        """The step being planned has looked for guesses, or comes after one that had some: none was planned ahead."""
        self.num_drafts = 0
        """Rows that had guesses."""
        self.num_draft_tokens = 0
        self.num_accepted_per_position: tuple[int, ...] = ()

    @classmethod
    def none(cls) -> "Speculation":
        return cls(EngineProposer, 0)

    @property
    def num_accepted_tokens(self) -> int:
        return sum(self.num_accepted_per_position)

    @property
    def is_looking(self) -> bool:
        """For guesses, in the step that is being planned."""
        return self._experience.least_rate < 1

    def begin(self, params: SamplingParams) -> Speculator | None:
        """Of a sequence; None if its request wants none."""
        asked = params.num_speculative_tokens
        limit = self._num_tokens if asked is None else min(asked, self._num_tokens)
        if not limit:
            return None
        self._num_begun += 1
        return Speculator(self._make_proposer(), limit, self._experience, Kind.of(params), self._num_begun)

    def begin_step(self, num_rows: int) -> None:
        """A step of about so many rows is planned."""
        if not self._num_tokens:
            return
        experience = self._experience
        least, is_probe = self._policy.least_rate(num_rows, self._num_tokens)
        if self.is_looking:  # in the step before
            change = -PATIENT_AFTER if experience.had_guess else 1
            self._num_fruitless = min(max(0, self._num_fruitless + change), MAX_PATIENCE * PATIENT_AFTER)
        self._num_steps += 1
        patience = min(MAX_PATIENCE, 1 + self._num_fruitless // PATIENT_AFTER)
        num_groups = max(1, num_rows // NUM_SCOUTS) if patience > 1 else 1
        experience.scouts = num_groups, self._num_steps // SCOUTED_STEPS % num_groups
        experience.is_searching = self._num_steps % (patience * self._policy.search_steps(num_rows)) == 0
        looks = (experience.is_searching or experience.had_guess) and (is_probe or experience.best_rate >= least)
        experience.least_rate = least if looks else 1.0
        self._is_disturbed |= self.is_looking

    def end_step(self, num_drafts: int) -> bool:
        """A step is planned, with so many guesses: whether it takes what it would without speculation."""
        is_plain, self._is_disturbed = not self._is_disturbed, num_drafts > 0
        self._experience.had_guess &= self.is_looking
        return is_plain

    def prepare(self, rows: Sequence[tuple[Speculator | None, Sequence[int]]], budget: int) -> None:
        """For the rows of a step and the tokens that are known of each, which may have `budget` guesses in all: how
        many each is to have. Where none can pay none is looked for."""
        self._experience.had_guess = False
        if self._experience.least_rate >= 1:
            return
        looked = [(one, one.look(tokens)) for one, tokens in rows if one is not None]
        found = [(speculator, rate) for speculator, rate in looked if rate]
        if not found:
            return
        rates, limits = [rate for _, rate in found], [speculator.limit for speculator, _ in found]
        for (speculator, _), count in zip(found, self._policy.lengths(rates, limits, len(rows)), strict=True):
            speculator.wanted = min(count, budget)
            budget -= speculator.wanted

    def learn(self, speculator: Speculator, num_drafts: int, num_right: int) -> None:
        """Of a row's guesses that were tried, the first `num_right` were right."""
        if not num_drafts:
            return
        speculator.learn(num_drafts, num_right)
        self.num_drafts += 1
        self.num_draft_tokens += num_drafts
        right = (1,) * num_right
        self.num_accepted_per_position = tuple(
            map(sum, zip_longest(self.num_accepted_per_position, right, fillvalue=0))
        )

    def record(self, step: DecodedStep, *, is_plain: bool) -> None:
        """What a step without prompts took. `is_plain`: as `end_step` said of it."""
        if self._num_tokens:
            self._policy.record(step, is_plain=is_plain)
