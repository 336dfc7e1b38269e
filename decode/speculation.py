"""Speculative decoding of one worker: which sequences have their next tokens guessed, how many, and what came of it.

Guesses change nothing but the speed: the engine draws every token as it would without them, and what is not drawn as
guessed is not taken (plan.Row.num_drafts).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from ..wire.sampling import SamplingParams
from .decoded_step import DecodedStep, Part
from .draft_policy import DraftPolicy
from .guess_costs import PROBE_GUESSES
from .lookout import Lookout
from .plain_steps import of_an_octave
from .speculator import EngineProposer, Experience, Kind, Proposer, Reach, Speculator

NOTED_S, MOST_UNNOTED = 0.02, 48
"""Of plain steps, once some are known, one is noted in about so much time, and one in so many at least: noting takes a
part of short ones."""
MOST_LOOKED = 48
"""Steps with looks and no guesses in a row, of which none is noted: then one is, for all of them."""
MOST_CHANGES = 4
"""A step whose batch is not the one before's also takes what coming and going takes, so that it is not noted: unless so
many in a row are like that."""


@dataclass(frozen=True, slots=True)
class Found:
    """Of a look: who has guesses that may pay, how often they are right, and how many were looked at."""

    speculators: Sequence[Speculator]
    rates: Sequence[float]
    num_looked: int

    @property
    def limits(self) -> list[int]:
        return [one.limit for one in self.speculators]


Rows = Sequence[tuple[Speculator | None, Sequence[int]]]
"""Of a step, with the tokens that are known of each."""


class Speculation:
    def __init__(
        self,
        make_proposer: Callable[[], Proposer],
        num_tokens: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """At most `num_tokens` guesses a sequence and step; with 0 there are none, and what steps take is not noted.
        `clock` gives seconds: looks are timed."""
        self._make_proposer, self._clock = make_proposer, clock
        self._num_tokens = num_tokens
        self._policies = DraftPolicy(), DraftPolicy()
        """Of batches without a grammar, and of those with one, whose steps take longer: they wait for masks."""
        self._policy = self._policies[0]
        """For the step that is being planned."""
        self._experience = Experience()
        self._lookout = Lookout()
        self._num_begun = self._num_unnoted = self._num_changes = 0
        self._note_every = 1
        """Plain steps."""
        self._num_quiet, self._begun_rows = 0, range(0)
        """Steps without looks, if they have about as many rows as the last that began here."""
        self.is_looking = False
        """For guesses, in the step that is being planned."""
        self._look_s = 0.0
        """That it has taken so far."""
        self._has_looked = self._waits = False
        """For the step that is being planned: guesses were looked for, or waited for."""
        self._num_last_drafts = 0
        """Guesses of the step before."""
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

    def begin(self, params: SamplingParams) -> Speculator | None:
        """Of a sequence; None if its request wants none."""
        asked = params.num_speculative_tokens
        limit = self._num_tokens if asked is None else min(asked, self._num_tokens)
        if not limit:
            return None
        self._num_begun += 1
        self._num_quiet = 0
        self._lookout.welcome()
        return Speculator(self._make_proposer(), limit, self._experience, Kind.of(params), self._num_begun)

    def passes(self, num_rows: int) -> bool:
        """Whether the step that is planned next, of about so many rows and without prompts, is one of which nothing
        need be told here: nobody is looked at in it, and what it takes is not noted. So most steps take none of the
        host's time for guesses that do not pay."""
        if not self._num_tokens:
            return True
        is_noted = self._num_unnoted + 1 >= self._note_every
        if is_noted or not self._num_quiet or num_rows not in self._begun_rows:
            return False
        self._num_quiet -= 1
        self._num_unnoted += 1
        self._lookout.pass_step()
        return True

    def begin_step(self, num_rows: int, has_grammar: Callable[[], bool] = lambda: False) -> None:
        """A step of about so many rows is planned. `has_grammar`: whether any of them has one."""
        if not self._num_tokens:
            return
        self.is_looking, self._begun_rows = False, of_an_octave(num_rows)
        reach = self._lookout.begin_step(num_rows)
        if reach is None:
            return
        start_s = self._clock()
        experience, self._policy = self._experience, self._policies[has_grammar()]
        least, is_probe = self._policy.least_rate(num_rows, self._num_tokens)
        if least >= 1 or not (is_probe or experience.best_rate >= least):
            if self._policy.has_known(num_rows):
                self._lookout.rest(num_rows, self._policy.search_steps(num_rows, self._clock() - start_s))
            else:
                self._note_all()
            return
        if not self._policy.knows(num_rows):
            self._note_all()
            return
        experience.least_rate, experience.reach = least, reach
        experience.scouts = self._lookout.scouts(num_rows)
        self.is_looking = self._has_looked = True
        self._look_s = self._clock() - start_s

    def skip_step(self) -> None:
        """In what is planned now nothing is guessed, or it is no step."""
        self.is_looking = self._has_looked = self._waits = False

    def awaits(self, rows: Rows) -> bool:
        """Whether a step is to wait for the one in flight, of whose rows the last token is not known yet, as guesses
        of what comes then pay. If not, this one has none. Nobody is looked at while they are made: nothing is known
        that was not when the one in flight got its own."""
        if self._num_last_drafts > PROBE_GUESSES:
            self._waits = True
            return True
        start_s = self._clock()
        found = self._look(rows)
        self._waits = bool(found.rates) and self._policy.pays(found.rates, found.limits, len(rows))
        # Within a grammar the host has masks to make meanwhile.
        self._looked(found, len(rows), start_s, is_ahead=self._policy is self._policies[False], pays=self._waits)
        self.is_looking = self._waits
        return self._waits

    def prepare(self, rows: Rows, budget: int) -> None:
        """For the rows of a step, which may have `budget` guesses in all: how many each is to have. Where none can pay
        none is looked for."""
        if not self.is_looking:
            return
        start_s = self._clock()
        found = self._look(rows)
        waits = self._waits or self._num_last_drafts > 0
        counts = self._policy.lengths(found.rates, found.limits, len(rows), waits=waits) if found.rates else []
        self._looked(found, len(rows), start_s, is_ahead=False, pays=any(counts))
        for speculator, count in zip(found.speculators, counts, strict=True):
            speculator.wanted = min(count, budget)
            budget -= speculator.wanted

    def end_step(self, num_drafts: int) -> Part:
        """A step is planned, with so many guesses."""
        self._num_quiet = 0 if num_drafts else self._lookout.num_quiet(self._begun_rows.start)
        if not (self._has_looked or self._num_last_drafts or num_drafts):
            return Part.NONE
        waited = self._waits or self._num_last_drafts > 0 or num_drafts > 0
        part = Part.WAITED if waited else Part.LOOKED
        self._num_last_drafts = num_drafts
        self._has_looked = self._waits = False
        return part

    def _look(self, rows: Rows) -> Found:
        looked = [(one, rate) for one, tokens in rows if one is not None and (rate := one.look(tokens)) is not None]
        having = [(one, rate) for one, rate in looked if rate]
        return Found([one for one, _ in having], [rate for _, rate in having], len(looked))

    def _looked(self, found: Found, num_rows: int, start_s: float, *, is_ahead: bool, pays: bool) -> None:
        policy, reach = self._policy, self._experience.reach
        promises = pays
        if reach is Reach.SCOUTS and found.rates and not pays:
            promises = policy.pays(found.rates, found.limits, num_rows, found.num_looked)
        steps = policy.search_steps(num_rows, self._look_s + self._clock() - start_s)
        self._look_s = 0.0
        self._lookout.looked(
            reach,
            steps,
            is_ahead=is_ahead,
            num_looked=found.num_looked,
            found=bool(found.rates),
            pays=pays,
            promises=promises,
        )

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

    def notes(self, part: Part, *, has_changed: bool) -> int:
        """How many steps the one that was planned last, without prompts, is to stand for in `record`; 0: it is not
        needed. `has_changed`: its batch is not the one before's."""
        if not self._num_tokens:
            return 0
        if part is Part.WAITED:
            self._note_all()
            return 1
        self._num_unnoted += 1
        if has_changed and self._num_changes < MOST_CHANGES:
            self._num_changes += 1
            return 0
        self._num_changes = 0
        if self._num_unnoted < (MOST_LOOKED if part is Part.LOOKED else self._note_every):
            return 0
        count, self._num_unnoted = self._num_unnoted, 0
        return count

    def _note_all(self) -> None:
        """From now on, until what plain steps take is known."""
        self._note_every = 1

    def record(self, step: DecodedStep) -> None:
        """What a step without prompts took."""
        policy = self._policies[step.has_grammar]
        policy.record(step)
        if step.part is Part.NONE:
            is_known = policy.knows(step.num_rows)
            self._note_every = min(MOST_UNNOTED, 1 + int(NOTED_S / step.elapsed_s)) if is_known else 1
