"""Which placements are let in, and the prompts they begin as."""

from typing import TYPE_CHECKING

from ..engine.block_pool import BlockPool
from ..engine.paged_prompt import hash_prompt, reserve_prompt
from ..engine.pooling import Pooler, needs_all
from ..wire.codec import unpack_ids
from ..wire.messages import Reserve
from .admission import Bounds
from .prompt import Prompt, PromptState
from .sequence import Limits
from .speculation import Speculation

if TYPE_CHECKING:
    from .guidance import Guides, PendingGuide
    from .phrase_ban import PhraseBans


class Reservations:
    def __init__(
        self,
        pool: BlockPool,
        bounds: Bounds,
        *,
        epoch: str,
        watermark_blocks: int | None,
        guides: "Guides | None",
        phrase_bans: "PhraseBans | None",
        speculation: Speculation,
    ):
        """As DecodeScheduler says of them."""
        self._pool = pool
        self._bounds = bounds
        self._epoch = epoch
        self._watermark_blocks = pool.num_blocks // 100 if watermark_blocks is None else watermark_blocks
        self._guides = guides
        self._phrase_bans = phrase_bans
        self._speculation = speculation
        self._num_placements = 0
        self._num_sequences = 0
        self.draining = False
        self.num_seqs = 0
        """Choices that hold blocks, those that ended in flight included: whoever frees the blocks takes them off."""
        self.prefix_hit_tokens = 0
        self.prefix_query_tokens = 0

    @property
    def keep_free(self) -> int:
        """Blocks for the growth of what is already here."""
        return self._watermark_blocks if self.num_seqs else 0

    @property
    def num_reservable(self) -> int:
        """Blocks."""
        if self.draining or self.num_seqs >= self._bounds.max_num_seqs:
            return 0
        return max(0, self._pool.num_free - self.keep_free)

    def refusal(self, msg: Reserve) -> str | None:
        """Why it will never be let in."""
        return self._bounds.refusal(msg) or self._unreadable(msg)

    def not_now(self, msg: Reserve) -> str | None:
        """Why it is not, however many blocks there are."""
        if self.draining:
            return "draining"
        if self.num_seqs + len(msg.choices) > self._bounds.max_num_seqs:
            return "too many sequences"
        return None

    def make(self, msg: Reserve, now: float) -> Prompt | None:
        """The prompt, with all the blocks it begins with; None if there are too few."""
        token_ids = unpack_ids(msg.prompt + msg.choices[0].output)
        draws = msg.params.max_tokens != 0
        num_blocks = self._bounds.num_blocks_for(len(token_ids), len(msg.choices), draws=draws)
        hashes = hash_prompt(self._pool, token_ids, msg.salt)
        match = msg.remote or (msg.params.prompt_logprobs is None and not needs_all(msg.pooling))
        paged = reserve_prompt(self._pool, token_ids, hashes, num_blocks, self.keep_free, match=match)
        if paged is None:
            return None
        num_own = num_blocks - len(msg.choices) + 1
        paged.table, spares = paged.table[:num_own], paged.table[num_own:]
        order, first_id = self._num_placements, self._num_sequences
        self._num_placements += 1
        self._num_sequences += len(msg.choices)
        self.num_seqs += len(msg.choices)
        self.prefix_query_tokens += paged.num_tokens
        self.prefix_hit_tokens += paged.num_cached
        limits = self._bounds.limits(msg)
        return Prompt(
            message=msg,
            paged=paged,
            prompt_len=len(msg.prompt) // 4,
            limits=limits,
            age=(order, 0),
            seq_ids={choice.index: first_id + i for i, choice in enumerate(msg.choices)},
            row_seq_id=first_id,
            spares=spares,
            transfer_id=f"{self._epoch}.{order}.{msg.placement}" if msg.remote else "",
            state=PromptState.RESERVED if msg.remote else PromptState.PREFILLING,
            pending_guide=self._pending_guide(msg, limits, now),
            phrase_bans=self._phrase_bans if msg.params.banned_strings else None,
            speculation=self._speculation,
            pooler=None if msg.pooling is None else Pooler(msg.pooling, len(token_ids)),
        )

    def _unreadable(self, msg: Reserve) -> str | None:
        """Why its output cannot be followed as text, where that is needed."""
        if msg.params.guidance is not None and self._guides is None:
            return "constrained decoding needs the model's tokenizer, which this worker does not have"
        if msg.params.banned_strings and self._phrase_bans is None:
            return "banned_strings needs the model's tokenizer, which this worker does not have"
        return None

    def _pending_guide(self, msg: Reserve, limits: Limits, now: float) -> "PendingGuide | None":
        if self._guides is None or limits.max_output == 0:
            return None
        return self._guides.pending(msg.params, limits.stop_ids, msg.eos_ids, now)
