"""One choice of one placement, from its first draw to its last token."""

from dataclasses import dataclass

from ..engine.block_pool import BlockPool
from ..engine.plan import IN_FLIGHT, Draw, Row
from ..wire.block_hash import block_hashes
from ..wire.messages import FinishReason, TokenRow
from ..wire.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Limits:
    """When the tokens of a request end. Counts are of its whole life, not of this placement."""

    max_output: int
    min_output: int
    stop_ids: frozenset[int]

    @classmethod
    def of(cls, params: SamplingParams, eos_ids: tuple[int, ...], prompt_len: int, max_model_len: int) -> "Limits":
        room = max_model_len - prompt_len
        max_output = room if params.max_tokens is None else min(room, params.max_tokens)
        stop_ids = frozenset(params.stop_token_ids) | frozenset(() if params.ignore_eos else eos_ids)
        return cls(max_output, params.min_tokens, stop_ids)

    def finish_reason(self, token_id: int, position: int) -> FinishReason | None:
        """Whether output token `position` is the last one. A stop token before `min_output` tokens is no stop."""
        if token_id in self.stop_ids and position >= self.min_output:
            return "stop"
        return "length" if position + 1 >= self.max_output else None


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens are known one step after they are planned: a draw in flight counts in `pending`, not in `tokens`."""

    seq_id: int
    placement: int
    choice: int
    age: tuple[int, int]
    """Orders all work of a scheduler: arrival of the placement, then choice."""
    tokens: list[int]
    """Prompt and all output."""
    prompt_len: int
    table: list[int]
    source: int | None
    """The prompt's partial last block, pinned until its copy into this sequence's own has been planned."""
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

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.prompt_len

    @property
    def plannable(self) -> bool:
        """False also if a token in flight will surely be the last."""
        return not self.condemned and self.num_output + self.pending < self.limits.max_output

    def needs_block(self, block_size: int) -> bool:
        return self.num_planned == len(self.table) * block_size

    def take_copy(self, block_size: int) -> tuple[int, int] | None:
        """(source, destination) of the block to be copied before the first row; from here on the caller holds
        the source's reference."""
        if self.source is None:
            return None
        source, self.source = self.source, None
        return source, self.table[self.num_planned // block_size]

    def plan_row(self) -> Row:
        """The newest token, and a draw of the one after it."""
        draw = Draw(self.seq_id, self.num_output + self.pending)
        token = IN_FLIGHT if self.pending else self.tokens[-1]
        row = Row(self.seq_id, (token,), self.num_planned, self.table, (draw,))
        self.num_planned += 1
        self.pending += 1
        return row

    def advance(self, pool: BlockPool) -> None:
        """The KV of one more token is there."""
        self.num_computed += 1
        if self.num_computed % pool.block_size or not pool.enable_prefix_caching:
            return
        filled = self.tokens[self.num_computed - pool.block_size : self.num_computed]
        (self.last_hash,) = block_hashes(filled, pool.block_size, parent=self.last_hash)
        pool.commit(self.table[self.num_committed], self.last_hash)
        self.num_committed += 1

    def accept(self, token_id: int) -> TokenRow:
        """Appends a drawn token."""
        position = self.num_output
        self.tokens.append(token_id)
        reason = self.limits.finish_reason(token_id, position)
        stop = token_id if reason == "stop" else None
        return TokenRow(self.placement, self.choice, position, (token_id,), reason, stop)
