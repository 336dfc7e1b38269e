"""One prompt on a prefill worker, from its message until its KV has been sent."""

from dataclasses import dataclass
from typing import Any

from ..engine.paged_prompt import PagedPrompt
from ..engine.pooling import Pooler
from ..wire.messages import Prefill
from .effects import Send


@dataclass(slots=True, eq=False)
class Job:
    """
    WAITING (no blocks yet) ──allocated──> COMPUTING ──last chunk applied──> SENDING ──sent──> gone
                                               └──last chunk applied, nothing to send────────────^
    """

    message: Prefill
    seq_id: int
    token_ids: list[int]
    hashes: list[bytes]
    first_block: int
    """The first that decode does not hold."""
    num_sent: int
    """Blocks handed to the transport, and those that decode holds."""
    paged: PagedPrompt | None = None
    """None while it waits for blocks."""
    began_s: float = 0.0
    """When its first chunk was planned."""
    compute_s: float = 0.0
    """From then until its last chunk was applied."""
    pending: int = 0
    """Plans in flight that compute a chunk of it."""
    ended: bool = False
    prompt_logprobs: bytes = b""
    """Packed: of the prompt's tokens from the second on, as far as they are known. They wait to be sent with the KV."""
    num_scored: int = 0
    """Tokens of the prompt whose logprobs the router has been sent."""
    pooler: Pooler | None = None
    """What gathers its vector, where that is asked for."""

    @property
    def sends(self) -> bool:
        """False: the prompt is wanted in the prefix cache, and nowhere else."""
        return bool(self.message.data_endpoint)

    @property
    def num_unplanned(self) -> int:
        return self.paged.num_unplanned if self.paged else len(self.token_ids)

    @property
    def computed(self) -> bool:
        return self.paged is not None and self.paged.num_computed == len(self.token_ids)

    @property
    def blocks(self) -> list[int]:
        return self.paged.table if self.paged else []

    def next_piece(self, block_size: int, logits: Any) -> Send | None:
        """The blocks that became complete since the last piece; with the last token, the partial one and the
        logits as well. None if there are none."""
        assert self.paged is not None
        complete = -(-len(self.token_ids) // block_size) if self.computed else self.paged.num_computed // block_size
        if complete <= self.num_sent:
            return None
        blocks = self.paged.table[self.num_sent : complete]
        index, self.num_sent = self.num_sent - self.first_block, complete
        message = self.message
        tail = (logits, self.prompt_logprobs) if self.computed else ()
        return Send(message.transfer_id, message.data_endpoint, index, blocks, self.computed, *tail)
