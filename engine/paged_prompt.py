"""A prompt in blocks: what of its KV was found, planned, computed and committed. Both schedulers stand on it."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..wire.block_hash import block_hashes
from ..wire.messages import Pooling
from .block_pool import BlockPool
from .plan import Draw, Row, Scoring
from .pooling import Pooler


@dataclass(slots=True, eq=False)
class PagedPrompt:
    """Tokens to have KV for, and the blocks it lies in. `num_cached <= num_computed <= num_planned <= num_tokens`."""

    token_ids: list[int]
    hashes: list[bytes]
    """One per full block."""
    table: list[int]
    """Blocks of all tokens, and of the ones drawn after them as far as they were reserved."""
    num_cached: int
    """Tokens whose KV the prefix cache had."""
    num_planned: int
    """Tokens whose KV is in the pool once all plans in flight are applied."""
    num_computed: int
    """Tokens whose KV is in the pool."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_unplanned(self) -> int:
        return len(self.token_ids) - self.num_planned

    def plan_row(
        self,
        seq_id: int,
        num_tokens: int,
        draws: tuple[Draw, ...] = (),
        *,
        keep_logits: bool = False,
        scoring: Scoring | None = None,
        pooling: Pooling | None = None,
    ) -> Row:
        """The next `num_tokens` tokens as a row of a plan."""
        start = self.num_planned
        self.num_planned += num_tokens
        token_ids = self.token_ids[start : self.num_planned]
        return Row(seq_id, token_ids, start, self.table, draws, keep_logits, scoring, pooling)

    def scoring(self, num_tokens: int, prompt_len: int, num_top: int | None) -> Scoring | None:
        """What the next `num_tokens` tokens tell of those that follow them, as far as these are the prompt's."""
        first = self.num_planned + 1
        targets = self.token_ids[first : min(first + num_tokens, prompt_len)]
        return Scoring(targets, num_top) if targets and num_top is not None else None

    def pooling(self, num_tokens: int, pooler: Pooler | None) -> Pooling | None:
        """What the next `num_tokens` tokens tell of the prompt's vector, where one is gathered."""
        return None if pooler is None else pooler.of_row(self.num_planned, num_tokens)

    def advance(self, num_tokens: int, pool: BlockPool) -> None:
        """The KV of the next `num_tokens` tokens is there: blocks it filled join the prefix cache."""
        first = self.num_computed // pool.block_size
        self.num_computed += num_tokens
        assert self.num_computed <= self.num_planned
        for index in range(first, min(self.num_computed // pool.block_size, len(self.hashes))):
            pool.commit(self.table[index], self.hashes[index])


def reserve_prompt(
    pool: BlockPool,
    token_ids: list[int],
    hashes: Sequence[bytes],
    num_blocks: int,
    keep_free: int = 0,
    *,
    match: bool = True,
) -> PagedPrompt | None:
    """Finds the prompt's prefix and allocates the rest of `num_blocks` blocks; None if fewer than `keep_free`
    blocks would then be left. The match stops before the last token: its logits are wanted. Without `match` nothing is
    looked for: the logits, or the hidden states, of all are."""
    cached = pool.match(hashes[: (len(token_ids) - 1) // pool.block_size]) if match else []
    rest = num_blocks - len(cached)
    fresh = pool.allocate(rest, after=cached[-1] if cached else None) if pool.num_free - rest >= keep_free else None
    if fresh is None:
        pool.free(cached)
        return None
    num_cached = len(cached) * pool.block_size
    return PagedPrompt(token_ids, list(hashes), cached + fresh, num_cached, num_cached, num_cached)


def hash_prompt(pool: BlockPool, token_ids: Sequence[int], salt: bytes) -> list[bytes]:
    """The hashes of the prompt's full blocks under its salt; none where the pool has no prefix cache to use them."""
    return block_hashes(token_ids, pool.block_size, salt) if pool.enable_prefix_caching else []
