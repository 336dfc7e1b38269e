"""One sequence and its grammar: what may come next, and after guesses of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from llguidance import LLMatcher

from ..text.grammar_compiler import Words
from ..text.grammar_masks import allows
from .automaton import Automaton, Ending
from .mask_batch import Task
from .mask_maker import GuideMask, MaskMaker
from .token_bans import TokenBans


class Guide:
    """Says what is to be done; it is done in order, when the maker of masks begins or somebody asks.

    Guesses that are known beforehand are looked at from where the matcher stands: it takes in those that came together
    with the token after them. Others are taken in one by one, and taken back."""

    def __init__(self, grammar: LLMatcher, bans: TokenBans, output: Sequence[int], maker: MaskMaker) -> None:
        """`output`: the tokens that the request has produced already."""
        self._automaton = Automaton(grammar, bans)
        self._maker = maker
        self._last: Task | None = None
        self._untold: list[int] = []
        """The output's last tokens, which the next task will tell the matcher."""
        self._ahead: Task | None = None
        """Its guesses may be followed."""
        self._num_followed = 0
        self.num_tokens = len(output)
        """Of the output that it has been told, guesses included."""
        self._mask = self._move(0, output)

    def advance(self, token_ids: Sequence[int]) -> None:
        """The output goes on with these tokens."""
        self.num_tokens += len(token_ids)
        self._mask = self._move(0, token_ids)

    def look_ahead(self, token_ids: Sequence[int]) -> None:
        """These guesses will be followed, maybe: what may come after each is worked out beside other work. Until
        `rollback_to` no others are."""
        assert self._ahead is None
        self._ahead, self._num_followed = self._next_task(), 0
        self._ahead.guesses = tuple(token_ids)

    def follow(self, token_id: int) -> GuideMask | None:
        """The output may go on with this guess: what may come after it. None, and nothing has changed, if the grammar
        does not let it come next, or takes long. Waits for the mask before it."""
        if self._ahead is not None:
            self._ahead.batch.run()
            if self._num_followed == self._ahead.num_allowed:
                return None
            self._num_followed += 1
            self.num_tokens += 1
            return GuideMask(self._ahead, self._num_followed)
        if self.holds_up or self._mask.ending is not None or not allows(self._mask.result(), token_id):
            return None
        self.advance((token_id,))
        return self._mask

    def rollback_to(self, num_tokens: int) -> None:
        """All tokens after the first `num_tokens` of the output are taken back."""
        count, self.num_tokens = self.num_tokens - num_tokens, num_tokens
        assert count >= 0
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            num_kept = self._num_followed - count
            if num_kept >= 0:
                self._untold = list(ahead.guesses[:num_kept])
                self._mask = GuideMask(ahead, num_kept)
                return
            count = -num_kept
        if count:
            self._mask = self._move(count, ())

    def mask(self) -> GuideMask:
        """What may come next. It never fails: where nothing may come, everything is allowed, and `ending` says that
        what is drawn does not count."""
        return self._mask

    def next_mask(self) -> "NextMask":
        """What may come after the next token."""
        return NextMask(self)

    @property
    def takes_long(self) -> bool:
        """The mask before this one did."""
        return self._automaton.is_slow

    @property
    def holds_up(self) -> bool:
        """The mask is not there yet and, as the one before it took long, may not be for a while: a step with this
        sequence in it would keep the others waiting."""
        return self.takes_long and not self._mask.is_done

    @property
    def ending(self) -> Ending | None:
        """Why nothing may follow, if so: the output cannot go on, or it is complete, as the grammar lets nothing follow
        but an end of sequence, which the request or the model does not have. Waits for the mask."""
        return self._mask.ending

    def _move(self, num_back: int, token_ids: Sequence[int]) -> GuideMask:
        """Takes the last tokens back, then others in: what may come then."""
        task = self._next_task()
        if num_back:
            num_unread = min(num_back, len(task.token_ids))
            del task.token_ids[len(task.token_ids) - num_unread :]
            task.num_back += num_back - num_unread
        task.token_ids += token_ids
        return GuideMask(task)

    def _next_task(self) -> Task:
        self._last = task = self._maker.next_task(self._automaton, self._last)
        if self._untold:
            task.token_ids += self._untold
            self._untold = []
        return task


@dataclass(slots=True, eq=False)
class NextMask:
    """Of a draw whose token before is in flight: as plan.Mask, once the guide has been told that token. Where the
    output has ended before, what is drawn does not count."""

    guide: Guide

    def result(self) -> Words:
        return self.guide.mask().result()
