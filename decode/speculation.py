"""Speculative decoding of one worker: which sequences have their next tokens guessed, how many, and what came of it.

Guesses change nothing but the speed: the engine draws every token as it would without them, and what is not drawn as
guessed is not taken (plan.Row.num_drafts).
"""

from collections.abc import Callable, Sequence
from itertools import zip_longest

from ..wire.sampling import SamplingParams
from .acceptance import Acceptance
from .draft_policy import DraftPolicy
from .speculator import Proposer, Speculator


class Speculation:
    def __init__(self, make_proposer: Callable[[], Proposer], num_tokens: int) -> None:
        """At most `num_tokens` guesses a sequence and step."""
        self._make_proposer = make_proposer
        self._num_tokens = num_tokens
        self._policy = DraftPolicy()
        self._acceptance = Acceptance()
        self.num_drafts = 0
        """Rows that had guesses."""
        self.num_draft_tokens = 0
        self.num_accepted_per_position: tuple[int, ...] = ()

    @property
    def num_accepted_tokens(self) -> int:
        return sum(self.num_accepted_per_position)

    def begin(self, params: SamplingParams) -> Speculator | None:
        """Of a sequence; None if its request wants none."""
        asked = params.num_speculative_tokens
        limit = self._num_tokens if asked is None else min(asked, self._num_tokens)
        return Speculator(self._make_proposer(), limit, Acceptance(self._acceptance)) if limit else None

    def prepare(self, speculators: Sequence[Speculator | None], budget: int) -> None:
        """Before a step with these rows, which may have `budget` guesses in all: how many each is to have."""
        ours = [speculator for speculator in speculators if speculator is not None]
        rates, limits = [one.acceptance.rate for one in ours], [one.limit for one in ours]
        wanted = self._policy.lengths(rates, limits, len(speculators) - len(ours))
        for speculator, count in zip(ours, wanted, strict=True):
            speculator.wanted = min(count, budget)
            budget -= speculator.wanted

    def learn(self, speculator: Speculator, num_drafts: int, num_right: int) -> None:
        """Of a row's guesses that were tried, the first `num_right` were right."""
        if not num_drafts:
            return
        speculator.acceptance.learn(num_drafts, num_right)
        self.num_drafts += 1
        self.num_draft_tokens += num_drafts
        right = (1,) * num_right
        self.num_accepted_per_position = tuple(
            map(sum, zip_longest(self.num_accepted_per_position, right, fillvalue=0))
        )

    def record(self, num_rows: int, num_drafts: int, num_tried: int, elapsed_s: float) -> None:
        """What a step without prompts took, and how many of its guesses the engine tried."""
        if num_drafts and not num_tried:
            self._policy.give_up(num_rows)
        else:
            self._policy.record(num_rows, num_tried, elapsed_s)
