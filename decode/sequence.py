"""One choice of one placement, from its first draw to its last token."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING

from msgspec.structs import replace as replace_struct

from ..engine.block_pool import BlockPool
from ..engine.plan import DRAFT, IN_FLIGHT, NO_TOKEN, Draw, Mask, Row, SequenceSeed
from ..wire.block_hash import block_hashes
from ..wire.logprobs import TokenLogprobs
from ..wire.messages import FinishReason, TokenRow
from ..wire.sampling import BanRange, SamplingParams

if TYPE_CHECKING:
    from .guide import Guide
    from .phrase_ban import Held, PhraseBan
    from .speculator import Speculator

Drawn = tuple[int, TokenLogprobs | None, bytes]
"""A token, or NO_TOKEN, NOT_DRAWN or NOT_TRIED; how likely it was, if that is asked; the sampler's state after it."""

NOTHING_TO_DRAW = (
    "no token can be drawn: the request's bans, and its grammar if it has one, exclude all of them, or the model's "
    "logits are no numbers"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """When the tokens of a request end. Counts are of its whole life, not of this placement."""

    max_output: int
    min_output: int
    stop_ids: frozenset[int]
    ban_ranges: tuple[BanRange, ...] = ()

    @classmethod
    def of(cls, params: SamplingParams, eos_ids: tuple[int, ...], prompt_len: int, max_model_len: int) -> "Limits":
        room = max_model_len - prompt_len
        max_output = room if params.max_tokens is None else min(room, params.max_tokens)
        stop_ids = frozenset(params.stop_token_ids) | frozenset(() if params.ignore_eos else eos_ids)
        return cls(max_output, params.min_tokens, stop_ids, params.token_ban_ranges)

    def bans_at(self, position: int) -> tuple[int, ...]:
        """Tokens that output token `position` may not be."""
        if not self.ban_ranges:
            return ()
        acting = [one.tokens for one in self.ban_ranges if one.start <= position < one.start + one.length]
        return tuple({token: None for tokens in acting for token in tokens})

    def finish_reason(self, token_id: int, position: int) -> FinishReason | None:
        """Whether output token `position` is the last one. A stop token before `min_output` tokens is no stop."""
        if token_id in self.stop_ids and position >= self.min_output:
            return "stop"
        return "length" if position + 1 >= self.max_output else None


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens are known one step after they are planned: a draw in flight counts in `pending`, not in `tokens`. Guesses
    in flight count in `num_planned` until it is known how many were right.

    Where phrases are banned, the last tokens may be held back: they are in `tokens`, nobody was told, and they may be
    taken back again. The KV of those before them stays, what comes after is overwritten."""

    seq_id: int
    placement: int
    choice: int
    age: tuple[int, int]
    """Orders all work of a scheduler: arrival of the placement, then choice."""
    tokens: list[int]
    """Prompt and all output, held back or not."""
    prompt_len: int
    table: list[int]
    source: int | None
    """A block of the prompt that others use, pinned until its copy into this sequence's own has been planned."""
    num_shared: int
    """Blocks at the table's beginning that others may read: never written."""
    limits: Limits
    num_planned: int
    """Tokens whose KV is in the pool once all plans in flight are applied."""
    num_computed: int
    num_committed: int
    """Full blocks offered to the prefix cache."""
    last_hash: bytes
    """Of the last of those, empty at 0."""
    salt: bytes
    """Of the hashes."""
    pending: int = 0
    """Plans in flight that draw for it: its blocks stay until they are applied."""
    condemned: bool = False
    """To be preempted as soon as no plan in flight draws for it."""
    ended: bool = False
    error: str | None = None
    """Why it cannot go on, once that is known: its placement is to fail."""
    guide: "Guide | None" = None
    """What its grammar lets come next, if it has one."""
    ban: "PhraseBan | None" = None
    """What its banned phrases hold back, if it has any."""
    speculator: "Speculator | None" = None
    """What guesses its next tokens, if anything does."""
    num_drafts: int = 0
    """Guesses in flight."""
    seed: SequenceSeed | None = None
    """How its sampling state began, where it may have to begin anew."""
    rewound: bool = False
    """Tokens that the sampling state knows were taken back."""

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.prompt_len

    @property
    def plannable(self) -> bool:
        return self.goes_on and not self.waits_for_host

    @property
    def goes_on(self) -> bool:
        """False also if a token in flight will surely be the last."""
        return not self.ended and not self.condemned and self.num_output + self.pending < self.limits.max_output

    @property
    def waits_for_host(self) -> bool:
        """Its next draw needs host work on the token in flight, or takes long. Others go on meanwhile."""
        if self.pending > 0:
            return self.needs_last_token or self.takes_long
        return self.guide is not None and self.guide.holds_up

    @property
    def is_guided(self) -> bool:
        """It has a grammar, and will have its mask in time for the next step."""
        if self.guide is None:
            return False
        return not (self.guide.takes_long if self.pending else self.guide.holds_up)

    @property
    def needs_last_token(self) -> bool:
        """Its next row can only be planned once no token of it is in flight: its bans read it, or it is not known how
        many guesses are right."""
        return self.ban is not None or self.num_drafts > 0

    @property
    def takes_long(self) -> bool:
        """Its grammar, to say what may come next."""
        return self.guide is not None and self.guide.takes_long

    @property
    def max_drafts(self) -> int:
        """Guesses after which a token may still come."""
        return max(0, self.limits.max_output - self.num_output - 1)

    def needs_block(self, block_size: int) -> bool:
        return self.num_planned == len(self.table) * block_size

    def take_copy(self, block_size: int) -> tuple[int, int] | None:
        """(source, destination) of the block to be copied before its next row; from here on the caller holds the
        source's reference."""
        index = self.num_planned // block_size
        if index < self.num_shared:
            # After a rewind to the first token, the row is the prompt's last: the block after it becomes the copy.
            self.source, self.num_shared = self.table.pop(index), index
        if self.source is None:
            return None
        source, self.source = self.source, None
        return source, self.table[index]

    def take_new_seed(self) -> SequenceSeed:
        """With what the sampling state is to begin anew, once after a rewind."""
        assert self.rewound
        assert self.seed is not None
        assert self.ban is not None
        self.rewound = False
        return replace(self.seed, output_ids=self.tokens[self.prompt_len :], state=self.ban.state)

    def plan_row(self, drafts: tuple[int, ...] = ()) -> Row:
        """The newest token and guesses of those after it, and a draw after each."""
        token = IN_FLIGHT if self.pending else self.tokens[-1]
        position = self.num_output + self.pending
        first, start = self._draw(position, self._next_mask()), self.num_planned
        self.num_planned += 1 + len(drafts)
        self.num_drafts = len(drafts)
        self.pending += 1
        if not drafts:
            return Row(self.seq_id, (token,), start, self.table, (first,))
        draws = [self._draw(position + 1 + index) for index in range(len(drafts))]
        is_guided, is_open = self.guide is not None, DRAFT in drafts
        if is_guided and not is_open:
            self._look_ahead(drafts)
        return Row(
            self.seq_id,
            (token, *drafts),
            start,
            self.table,
            (first, *draws),
            num_drafts=len(drafts),
            follow=self._follow if is_guided else None,
            look_ahead=self._look_ahead if is_guided and is_open else None,
            history=self.tokens if is_open else (),
        )

    def _next_mask(self) -> Mask | None:
        if self.guide is None:
            return None
        return self.guide.next_mask() if self.pending else self.guide.mask()

    def _draw(self, position: int, mask: Mask | None = None) -> Draw:
        bans = self.limits.bans_at(position)
        if self.ban is None:
            return Draw(self.seq_id, position, 0, mask, bans)
        return Draw(self.seq_id, position, self.ban.epoch, mask, (*bans, *self.ban.bans_at(position)))

    def _look_ahead(self, drafts: Iterable[int]) -> None:
        """See plan.Row. Where the grammar takes long, nothing will be followed."""
        assert self.guide is not None
        if not self.guide.holds_up:
            self.guide.look_ahead(tuple(takewhile(lambda token: token not in self.limits.stop_ids, drafts)))

    def _follow(self, token_id: int) -> Mask | None:
        """See plan.Follow. Nothing is to come after a token that ends the output."""
        assert self.guide is not None
        return None if token_id in self.limits.stop_ids else self.guide.follow(token_id)

    def take(self, drawn: Iterable[Drawn], pool: BlockPool, *, has_row: bool) -> TokenRow | None:
        """What a step drew for it, of a row of its own or of its prompt's. None if there is nothing to tell, or it
        cannot go on: then `error` says why. What a sequence drew that has ended in the meantime is discarded."""
        num_drafts, row = self.num_drafts, None
        self.num_drafts = 0
        self.pending -= 1
        # What a grammar ended has no last token, of which the step after may have computed KV.
        self.num_computed = min(self.num_computed + has_row, len(self.tokens))
        if num_drafts:
            made = list(takewhile(lambda one: one[0] >= NO_TOKEN, drawn))
            self.num_planned -= max(0, num_drafts + 1 - len(made))
            row = None if self.ended else _joined(self._accept_all(made))
        elif not self.ended:
            (one,) = drawn
            row = self._accept(one, guided=False)
        self._commit(pool)
        return row

    def _accept_all(self, made: list[Drawn]) -> list[TokenRow]:
        """Of guesses that were tried, in order; what comes after the output's end, or after what takes tokens back, has
        not come."""
        num_right = len(made) - 1
        if self.guide is not None:
            self.guide.rollback_to(self.num_output + num_right)
        rows = []
        for index, drawn in enumerate(made):
            row = self._accept(drawn, guided=index < num_right)
            if row is not None:
                rows.append(row)
            if self.error is not None or self.rewound or (row is not None and row.finish_reason):
                break
            self.num_computed += index < num_right
        return rows

    def _commit(self, pool: BlockPool) -> None:
        """Full blocks of what is settled join the prefix cache."""
        while pool.enable_prefix_caching and (self.num_committed + 1) * pool.block_size <= self.num_settled:
            start = self.num_committed * pool.block_size
            filled = self.tokens[start : start + pool.block_size]
            (self.last_hash,) = block_hashes(filled, pool.block_size, self.salt, parent=self.last_hash)
            pool.commit(self.table[self.num_committed], self.last_hash)
            self.num_committed += 1

    @property
    def num_settled(self) -> int:
        """Tokens whose KV is there, and will not be written again."""
        if self.ban is None:
            return self.num_computed
        return min(self.num_computed, self.prompt_len + self.ban.num_released - 1)  # a rewind computes the last anew

    def _accept(self, drawn: Drawn, *, guided: bool) -> TokenRow | None:
        """Appends a token. `guided`: it was a guess, and the guide has taken it in already. None if there is nothing to
        tell, or the sequence cannot go on: then `error` says why."""
        token_id, logprobs, state = drawn
        position = self.num_output
        ending = None if self.guide is None or guided else self.guide.ending
        if ending is not None and ending.error is None:
            return self._end_by_guide()
        self.error = NOTHING_TO_DRAW if token_id == NO_TOKEN else None
        if ending is not None:
            self.error = ending.error
        if self.error is not None:
            return None
        self.tokens.append(token_id)
        reason = self.limits.finish_reason(token_id, position)
        stop = token_id if reason == "stop" else None
        if self.ban is not None:
            row = self._after(self.ban, self.ban.push(token_id, logprobs, state, ends=reason is not None), reason, stop)
        else:
            told = () if logprobs is None else (logprobs,)
            row = TokenRow(self.placement, self.choice, position, (token_id,), reason, stop, state, told)
        if self.guide is not None and not guided and reason is None and not self.rewound:
            self.guide.advance((token_id,))
        return row

    def _end_by_guide(self) -> TokenRow | None:
        if self.ban is None:
            return TokenRow(self.placement, self.choice, self.num_output, (), "stop")
        return self._after(self.ban, self.ban.finish(), "stop", None)

    def _after(
        self, ban: "PhraseBan", released: "tuple[Held, ...] | None", reason: FinishReason | None, stop: int | None
    ) -> TokenRow | None:
        """What the ban lets go, if anything."""
        if released is None:
            self._rewind(ban)
            return None
        if not released and reason is None:
            return None
        position, told = ban.num_released - len(released), [held.logprobs for held in released]
        return TokenRow(
            self.placement,
            self.choice,
            position,
            tuple(held.token_id for held in released),
            reason,
            stop,
            ban.released_state,
            tuple(one for one in told if one is not None),
            ban.released_epoch,
        )

    def _rewind(self, ban: "PhraseBan") -> None:
        """Takes back the tokens that the ban has taken back."""
        self.error = ban.error
        if self.guide is not None and self.guide.num_tokens > ban.num_tokens:
            self.guide.rollback_to(ban.num_tokens)
        if self.speculator is not None:
            self.speculator.forget(self.prompt_len + ban.num_tokens)
        del self.tokens[self.prompt_len + ban.num_tokens :]
        self.num_planned = self.num_computed = len(self.tokens) - 1
        self.rewound = True


def _joined(rows: list[TokenRow]) -> TokenRow | None:
    """Rows of one choice that follow each other as one; None if there are none."""
    if len(rows) < 2:
        return rows[0] if rows else None
    token_ids = tuple(token_id for row in rows for token_id in row.token_ids)
    logprobs = tuple(one for row in rows for one in row.logprobs)
    last = rows[-1]
    return replace_struct(last, position=rows[0].position, token_ids=token_ids, logprobs=logprobs)
