"""A placement before its first draw: its prompt is on the way from a prefill worker, or computed here."""

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from ..engine.block_pool import BlockPool
from ..engine.paged_prompt import PagedPrompt
from ..engine.plan import Draw, SequenceSeed
from ..engine.pooling import Pooler
from ..wire.messages import Choice, Reserve, TokenRow
from ..wire.noise import philox_key
from .sequence import Limits, Sequence

if TYPE_CHECKING:
    from .guidance import Guide, PendingGuide
    from .phrase_ban import PhraseBan, PhraseBans
    from .speculation import Speculation


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
    speculation: "Speculation"
    pending_guide: "PendingGuide | None" = None
    """Of its grammar, if it has one: its first draws wait until that is compiled."""
    guides: "dict[int, Guide]" = field(default_factory=dict)
    """Of its choices, from the plan of their first draws on."""
    phrase_bans: "PhraseBans | None" = None
    """None if it bans no phrases."""
    pooler: Pooler | None = None
    """What gathers its vector, where that is asked for."""
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
    def num_prompt_logprobs(self) -> int | None:
        """Likeliest tokens to name beside each of the prompt's; None: nothing is asked about these."""
        return self.message.params.prompt_logprobs

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

    @property
    def waits_for_grammar(self) -> bool:
        return self.pending_guide is not None and not self.pending_guide.ready

    def guide(self, choice: int) -> "Guide | None":
        if self.pending_guide is None:
            return None
        if choice not in self.guides:
            self.guides[choice] = self.pending_guide.guide(self.paged.token_ids[self.prompt_len :])
        return self.guides[choice]

    def draws(self) -> tuple[Draw, ...]:
        position = self.paged.num_tokens - self.prompt_len
        draws, bans = [], self.limits.bans_at(position)
        for choice, seq_id in self.seq_ids.items():
            guide = self.guide(choice)
            epoch = self._asked(choice).epoch
            draws.append(Draw(seq_id, position, epoch, None if guide is None else guide.mask(), bans))
        return tuple(draws)

    def seeds(self) -> list[SequenceSeed]:
        return [self._seed(choice) for choice in self.seq_ids]

    def _seed(self, choice: int) -> SequenceSeed:
        tokens, params = self.paged.token_ids, self.message.params
        seed = params.seed & 0xFFFF_FFFF_FFFF_FFFF
        return SequenceSeed(
            self.seq_ids[choice],
            params,
            philox_key(seed, self.message.prompt_index, choice),
            tokens[: self.prompt_len],
            tokens[self.prompt_len :],
            self.limits.stop_ids,
            self._asked(choice).state,
        )

    def _asked(self, choice: int) -> Choice:
        return next(asked for asked in self.message.choices if asked.index == choice)

    def _ban(self, choice: int) -> "PhraseBan | None":
        if self.phrase_bans is None:
            return None
        tokens, asked = self.paged.token_ids, self._asked(choice)
        prompt_ids, output_ids = tokens[: self.prompt_len], tokens[self.prompt_len :]
        phrases = self.message.params.banned_strings
        return self.phrase_bans.begin(phrases, prompt_ids, output_ids, asked.epoch, asked.state)

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
        ban = self._ban(choice)
        return Sequence(
            seq_id=seq_id,
            placement=self.placement,
            choice=choice,
            age=(self.age[0], choice),
            tokens=list(self.paged.token_ids),
            prompt_len=self.prompt_len,
            table=table,
            source=source,
            num_shared=full,
            limits=self.limits,
            num_planned=num_tokens,
            num_computed=num_tokens,
            num_committed=full,
            last_hash=hashes[-1] if hashes else b"",
            salt=self.message.salt,
            pending=1,
            guide=self.guide(choice),
            ban=ban,
            speculator=self.speculation.begin(self.message.params),
            seed=None if ban is None else self._seed(choice),
        )
