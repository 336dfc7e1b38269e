"""One choice of one placement, from its first draw to its last token."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..engine.block_pool import BlockPool
from ..engine.plan import IN_FLIGHT, NO_TOKEN, Draw, Row, SequenceSeed
from ..wire.block_hash import block_hashes
from ..wire.logprobs import TokenLogprobs
from ..wire.messages import FinishReason, TokenRow
from ..wire.sampling import BanRange, SamplingParams

if TYPE_CHECKING:
    from .guidance import Guide
    from .phrase_ban import Held, PhraseBan


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
        acting = [one.tokens for one in self.ban_ranges if one.start <= position < one.start + one.length]
        return tuple({token: None for tokens in acting for token in tokens})

    def finish_reason(self, token_id: int, position: int) -> FinishReason | None:
        """Whether output token `position` is the last one. A stop token before `min_output` tokens is no stop."""
        if token_id in self.stop_ids and position >= self.min_output:
            return "stop"
        return "length" if position + 1 >= self.max_output else None


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens are known one step after they are planned: a draw in flight counts in `pending`, not in `tokens`.

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
    seed: SequenceSeed | None = None
    """How its sampling state began, where it may have to begin anew."""
    rewound: bool = False
    """Tokens that the sampling state knows were taken back."""

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.prompt_len

    @property
    def plannable(self) -> bool:
        """False also if a token in flight will surely be the last."""
        if self.condemned or self.waits_for_host:
            return False
        return self.num_output + self.pending < self.limits.max_output

    @property
    def waits_for_host(self) -> bool:
        """Its next draw needs host work on the token in flight, or takes long. Others go on meanwhile."""
        if self.pending > 0:
            return self.guide is not None or self.ban is not None
        return self.guide is not None and self.guide.holds_up

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

    def take_new_seed(self) -> SequenceSeed | None:
        """With what the sampling state is to begin anew, once after a rewind."""
        if not self.rewound:
            return None
        assert self.seed is not None
        assert self.ban is not None
        self.rewound = False
        return replace(self.seed, output_ids=self.tokens[self.prompt_len :], state=self.ban.state)

    def plan_row(self) -> Row:
        """The newest token, and a draw of the one after it."""
        mask = None if self.guide is None else self.guide.mask()
        position = self.num_output + self.pending
        epoch, bans = (0, ()) if self.ban is None else (self.ban.epoch, self.ban.bans)
        draw = Draw(self.seq_id, position, epoch, mask, (*self.limits.bans_at(position), *bans))
        token = IN_FLIGHT if self.pending else self.tokens[-1]
        row = Row(self.seq_id, (token,), self.num_planned, self.table, (draw,))
        self.num_planned += 1
        self.pending += 1
        return row

    def advance(self, pool: BlockPool) -> None:
        """The KV of one more token is there."""
        self.num_computed += 1
        while pool.enable_prefix_caching and (self.num_committed + 1) * pool.block_size <= self.num_settled:
            start = self.num_committed * pool.block_size
            filled = self.tokens[start : start + pool.block_size]
            (self.last_hash,) = block_hashes(filled, pool.block_size, parent=self.last_hash)
            pool.commit(self.table[self.num_committed], self.last_hash)
            self.num_committed += 1

    @property
    def num_settled(self) -> int:
        """Tokens whose KV is there, and will not be written again."""
        if self.ban is None:
            return self.num_computed
        return min(self.num_computed, self.prompt_len + self.ban.num_released - 1)  # a rewind computes the last anew

    def accept(self, token_id: int, logprobs: TokenLogprobs | None, state: bytes) -> TokenRow | None:
        """Appends a drawn token; `state` is the sampler's after it. None if there is nothing to tell, or the sequence
        cannot go on: then `error` says why."""
        position = self.num_output
        if self.guide is not None and self.guide.finished:
            return self._end_by_guide()
        self.error = self._error_of(token_id)
        if self.error is not None:
            return None
        self.tokens.append(token_id)
        reason = self.limits.finish_reason(token_id, position)
        stop = token_id if reason == "stop" else None
        if self.ban is not None:
            held = self.ban.push(token_id, logprobs, state, ends=reason is not None)
            row = self._after(self.ban, held, reason, stop, num_unguided=1)
        else:
            told = () if logprobs is None else (logprobs,)
            row = TokenRow(self.placement, self.choice, position, (token_id,), reason, stop, state, told)
        if self.guide is not None and reason is None and not self.rewound:
            self.guide.advance((token_id,))
        return row

    def _end_by_guide(self) -> TokenRow | None:
        if self.ban is None:
            return TokenRow(self.placement, self.choice, self.num_output, (), "stop")
        return self._after(self.ban, self.ban.finish(), "stop", None, num_unguided=0)

    def _after(
        self,
        ban: "PhraseBan",
        released: "tuple[Held, ...] | None",
        reason: FinishReason | None,
        stop: int | None,
        *,
        num_unguided: int,
    ) -> TokenRow | None:
        """What the ban lets go, if anything. The guide does not know the last `num_unguided` tokens."""
        if released is None:
            self._rewind(ban, num_unguided)
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

    def _rewind(self, ban: "PhraseBan", num_unguided: int) -> None:
        """Takes back the tokens that the ban has taken back."""
        self.error = ban.error
        num_known = self.num_output - ban.num_tokens - num_unguided
        if self.guide is not None and num_known > 0:
            self.guide.rollback(num_known)
        del self.tokens[self.prompt_len + ban.num_tokens :]
        self.num_planned = self.num_computed = len(self.tokens) - 1
        self.rewound = True

    def _error_of(self, token_id: int) -> str | None:
        if self.guide is not None and self.guide.error is not None:
            return self.guide.error
        if token_id == NO_TOKEN:
            return (
                "no token can be drawn: the request's bans, and its grammar if it has one, exclude all of them, or the "
                "model's logits are no numbers"
            )
        return None
