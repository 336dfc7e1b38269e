"""Guesses drawn one after another, whatever gives their logits: with the target's noise, samplers and masks."""

from collections.abc import Callable, Sequence

from torch import Tensor

from .guesses import Guesses
from .plan import Draw, Row
from .sampler import GuessingSampler


class Draft:
    """Guesses of one row in the making."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.num_drawn = 0
        self._token_ids: list[int] = []
        self._draws = list(row.draws)
        self._blocked = False
        """The grammar does not allow the guess that was drawn."""

    @property
    def wants_more(self) -> bool:
        return not self._blocked and len(self._token_ids) < self.row.num_drafts

    @property
    def next_draw(self) -> Draw:
        return self._draws[len(self._token_ids)]

    @property
    def next_row(self) -> Row:
        """The last token that is known or guessed."""
        count = len(self._token_ids)
        token = self._token_ids[-1] if count else self.row.token_ids[0]
        return Row(self.row.seq_id, (token,), self.row.start + count, self.row.block_table)

    def take(self, token_id: int) -> None:
        self.num_drawn += 1
        if self.row.follow is not None:
            mask = self.row.follow(token_id)
            if mask is None:
                self._blocked = True
                return
            self._draws[len(self._token_ids) + 1] = self._draws[len(self._token_ids) + 1].masked(mask)
        self._token_ids.append(token_id)

    @property
    def computed(self) -> list[int]:
        """Tokens whose KV was stored on the way, from the row's first on."""
        return [self.row.token_ids[0], *self._token_ids][: self.num_drawn]

    @property
    def guesses(self) -> Guesses:
        return Guesses(tuple(self._token_ids), tuple(self._draws), num_refused=int(self._blocked))


def draw_guesses(
    drafts: Sequence[Draft], sampler: GuessingSampler, logits_of: Callable[[Sequence[Draft]], Tensor]
) -> None:
    """Turn by turn, one of each draft that wants more: `logits_of` gives those of what follows each one's `next_row`,
    fp32 [N, vocab_size]. The sampler then forgets them."""
    asked = drafts
    while asked := [draft for draft in asked if draft.wants_more]:
        tokens = sampler.guess(logits_of(asked), [draft.next_draw for draft in asked])
        for draft, token in zip(asked, tokens, strict=True):
            draft.take(token)
    for draft in drafts:
        sampler.forget(draft.row.seq_id, draft.num_drawn)
