"""A placement before its first draw: its prompt is on the way from a prefill worker, or computed here."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from ..engine.block_pool import BlockPool
from ..engine.paged_prompt import PagedPrompt
from ..engine.plan import Draw, SequenceSeed
from ..wire.messages import Reserve, TokenRow
from ..wire.noise import philox_key
from .sequence import Limits, Sequence


class PromptState(Enum):
    """
    remote:  RESERVED ──first bytes──> RECEIVING ──all──> RECEIVED ──shipped draw planned──> its sequences run
                 └───────────────────all──────────────────────^
    local:   PREFILLING ──last chunk planned──> its sequences run
                 └──last chunk applied, no token wanted──> gone
    """

    RESERVED = "reserved"
    RECEIVING = "receiving"
    RECEIVED = "received"
    PREFILLING = "prefilling"


MOVES = {
    (PromptState.RESERVED, PromptState.RECEIVING),
    (PromptState.RESERVED, PromptState.RECEIVED),
    (PromptState.RECEIVING, PromptState.RECEIVED),
}


@dataclass(slots=True, eq=False)
class Prompt:
    message: Reserve
    paged: PagedPrompt
    """Its table is that of the first choice."""
    prompt_len: int
    """Tokens of the request's prompt: what `paged` has beyond is earlier output."""
    limits: Limits
    age: tuple[int, int]
    seq_ids: dict[int, int]
    """Choice index -> seq_id, of the choices that were not cancelled."""
    row_seq_id: int
    """Of the rows that compute the prompt."""
    spares: list[int]
    """One block for each choice but the first."""
    transfer_id: str
    """Empty for a local prefill."""
    state: PromptState
    logits: Any = None
    """Shipped ones, once RECEIVED."""
    claimed: bool = False
    """A peer may write the blocks it is to receive."""
    pending: int = 0
    """Plans in flight that compute a chunk of it."""
    condemned: bool = False
    ended: bool = False

    @property
    def placement(self) -> int:
        return self.message.placement

    @property
    def prompt_only(self) -> bool:
        """No token is wanted."""
        return self.limits.max_output == 0

    @property
    def untouched(self) -> bool:
        """Nothing is lost if it is revoked."""
        if self.state is PromptState.PREFILLING:
            return self.paged.num_planned == self.paged.num_cached
        return self.state is PromptState.RESERVED

    def move(self, state: PromptState) -> None:
        assert (self.state, state) in MOVES, f"placement {self.placement}: {self.state} -> {state}"
        self.state = state

    def blocks_to_receive(self, block_size: int) -> list[int]:
        first, end = self.paged.num_cached // block_size, -(-self.paged.num_tokens // block_size)
        return self.paged.table[first:end]

    def receive_all(self, logits: Any, pool: BlockPool) -> None:
        self.move(PromptState.RECEIVED)
        self.logits, self.claimed = logits, False
        num_tokens = self.paged.num_unplanned
        self.paged.num_planned += num_tokens
        self.paged.advance(num_tokens, pool)

    def last_rows(self) -> list[TokenRow]:
        """The end of each choice, where no token is wanted and the prompt is computed."""
        if self.ended or not self.prompt_only or self.paged.num_computed < self.paged.num_tokens:
            return []
        return [TokenRow(self.placement, choice, 0, (), "length") for choice in self.seq_ids]

    def draws(self) -> tuple[Draw, ...]:
        position = self.paged.num_tokens - self.prompt_len
        return tuple(Draw(seq_id, position) for seq_id in self.seq_ids.values())

    def seeds(self) -> list[SequenceSeed]:
        tokens, params = self.paged.token_ids, self.message.params
        prompt_ids, output_ids = tokens[: self.prompt_len], tokens[self.prompt_len :]
        seed = params.seed & 0xFFFF_FFFF_FFFF_FFFF
        return [
            SequenceSeed(
                seq_id,
                params,
                philox_key(seed, self.message.prompt_index, choice),
                prompt_ids,
                output_ids,
                self.limits.stop_ids,
            )
            for choice, seq_id in self.seq_ids.items()
        ]

    def fork(self, pool: BlockPool) -> list[Sequence]:
        """Its choices as sequences whose first draw is in the plan being made. The first takes over the table, the
        others share the full blocks, and pin a partial one until they have copied it into their own."""
        full = self.paged.num_tokens // pool.block_size
        shared, partial = self.paged.table[:full], self.paged.num_tokens % pool.block_size
        sequences: list[Sequence] = []
        for choice, seq_id in self.seq_ids.items():
            if not sequences:
                sequences.append(self._sequence(choice, seq_id, self.paged.table, None, full))
                continue
            source = self.paged.table[full] if partial else None
            pool.share(shared if source is None else [*shared, source])
            sequences.append(self._sequence(choice, seq_id, [*shared, self.spares.pop()], source, full))
        assert not self.spares
        return sequences

    def _sequence(self, choice: int, seq_id: int, table: list[int], source: int | None, full: int) -> Sequence:
        num_tokens, hashes = self.paged.num_tokens, self.paged.hashes
        return Sequence(
            seq_id=seq_id,
            placement=self.placement,
            choice=choice,
            age=(self.age[0], choice),
            tokens=list(self.paged.token_ids),
            prompt_len=self.prompt_len,
            table=table,
            source=source,
            limits=self.limits,
            num_planned=num_tokens,
            num_computed=num_tokens,
            num_committed=full,
            last_hash=hashes[-1] if hashes else b"",
            pending=1,
        )
