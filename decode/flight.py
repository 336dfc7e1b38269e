"""A plan in the making, and in flight: its rows together with whom they are for."""

from dataclasses import dataclass, field

from ..engine.block_pool import BlockPool
from ..engine.plan import NO_TOKEN, NOT_TRIED, Plan, Result, Row, ShippedDraw
from .decoded_step import DecodedStep, Part
from .prompt import Prompt
from .sequence import Sequence


@dataclass(slots=True, eq=False)
class Flight:
    start_s: float
    rows: list[Row] = field(default_factory=list)
    shipped: list[ShippedDraw] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    """Holds a reference to each source."""
    chunks: list[tuple[Prompt, int]] = field(default_factory=list)
    """Prompts and how many of their tokens are computed."""
    decoding: list[Sequence] = field(default_factory=list)
    """Drawn for by a row of their own: the first draws of the plan."""
    num_drafts: int = 0
    """Guesses in those rows."""
    part: Part = Part.NONE
    """Of speculation in how it was planned."""
    is_quiet: bool = False
    """Speculation is not told of it."""
    num_noted: int = 0
    """So many steps, this one included, for which speculation is told what it took."""
    forked: list[Sequence] = field(default_factory=list)
    """Drawn for by the last row of their prompt."""
    from_shipped: list[Sequence] = field(default_factory=list)
    plan: Plan | None = None

    @property
    def empty(self) -> bool:
        return not self.rows and not self.shipped

    @property
    def sequences(self) -> list[Sequence]:
        """In the order of `Plan.draws`."""
        return [*self.decoding, *self.beginning]

    @property
    def beginning(self) -> list[Sequence]:
        """Without a row of their own."""
        return [*self.forked, *self.from_shipped]

    @property
    def num_prompt_tokens(self) -> int:
        return sum(num_tokens for _, num_tokens in self.chunks)

    @property
    def frees_blocks(self) -> bool:
        """Whether applying it gives back blocks for sure."""
        items: list[Sequence | Prompt] = [*self.sequences, *(prompt for prompt, _ in self.chunks)]
        return bool(self.copies) or any(item.ended or item.condemned for item in items)

    @property
    def num_decode_tokens(self) -> int:
        """Guesses included."""
        return len(self.decoding) + self.num_drafts

    @property
    def decodes_only(self) -> bool:
        return len(self.decoding) == len(self.rows) and not self.shipped

    def add_decode(self, sequence: Sequence, block_size: int, drafts: tuple[int, ...] = ()) -> None:
        if copy := sequence.take_copy(block_size):
            self.copies.append(copy)
        self.rows.append(sequence.plan_row(drafts))
        self.decoding.append(sequence)
        self.num_drafts += len(drafts)

    def add_chunk(self, prompt: Prompt, num_tokens: int, pool: BlockPool) -> list[Sequence]:
        """The sequences that begin with it: those of the prompt, if the chunk is its last and tokens are wanted."""
        last = num_tokens == prompt.paged.num_unplanned and not prompt.prompt_only
        scoring = prompt.paged.scoring(num_tokens, prompt.prompt_len, prompt.num_prompt_logprobs)
        draws = prompt.draws() if last else ()
        pooling = prompt.paged.pooling(num_tokens, prompt.pooler)
        row = prompt.paged.plan_row(prompt.row_seq_id, num_tokens, draws, scoring=scoring, pooling=pooling)
        self.rows.append(row)
        self.chunks.append((prompt, num_tokens))
        prompt.pending += 1
        sequences = prompt.fork(pool) if last else []
        self.forked += sequences
        return sequences

    def add_shipped(self, prompt: Prompt, pool: BlockPool) -> list[Sequence]:
        """The sequences that begin with it."""
        self.shipped.append(ShippedDraw(prompt.logits, prompt.draws()))
        sequences = prompt.fork(pool)
        self.from_shipped += sequences
        return sequences

    def take_off(self, step_id: int) -> Plan:
        self.plan = Plan(step_id, tuple(self.rows), tuple(self.shipped), tuple(self.copies))
        return self.plan

    def decoded(self, result: Result, elapsed_s: float) -> DecodedStep:
        """What it was for speculation, if it `decodes_only`."""
        num_rows, has_grammar = len(self.decoding), any(one.guide is not None for one in self.decoding)
        if not self.num_drafts:
            return DecodedStep(num_rows, elapsed_s, part=self.part, has_grammar=has_grammar, num_steps=self.num_noted)
        num_tried = self.num_drafts - sum(token == NOT_TRIED for token in result.token_ids)
        num_right = sum(token >= NO_TOKEN for token in result.token_ids) - num_rows
        return DecodedStep(num_rows, elapsed_s, self.num_drafts, num_tried, num_right, self.part, has_grammar)

    def failures(self) -> dict[int, str]:
        """Why placements in it cannot go on, by placement."""
        running = [sequence for sequence in self.sequences if not sequence.ended]
        return {sequence.placement: sequence.error for sequence in running if sequence.error}
