"""What one engine step shall do, and what came of it. Plain data: no torch, no sockets.

A scheduler makes a `Plan`, an engine launches it, `Handle.result()` gives the `Result` the scheduler applies.
A step may be launched while the one before it is still in flight: a token that the flying plan is about to sample
stands in the next plan's rows as `IN_FLIGHT`, and the engine puts the sampled id in its place.

Rows and draws, of which there are many in a step, are of the kind that is made fastest.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from msgspec import Struct

from ..wire.logprobs import TokenLogprobs
from ..wire.messages import Pooling

IN_FLIGHT = -1
"""In `Row.token_ids`: the token that the plan in flight samples for this sequence."""

MAX_BANS = 512
"""Of one draw."""

NO_TOKEN = -1
"""In `Result.token_ids`: nothing could be drawn, and the sequence cannot go on."""

DRAFT = -2
"""In `Row.token_ids`: a token that the engine's own proposer guesses when it launches the step."""

NOT_DRAWN = -2
"""In `Result.token_ids`: of a position after a wrong guess."""

NOT_TRIED = -3
"""In `Result.token_ids`: of a position after a guess that the engine left out, as it may."""


class Mask(Protocol):
    """What a draw may give. A `Future` is one."""

    def result(self) -> Any:
        """int32 or uint32 [ceil(vocab / 32)], bit i of word i // 32 set where token i is allowed; at least one is.
        Waits until it is there."""


Follow = Callable[[int], Mask | None]
"""Takes in the next guess of a row: gives the mask of the draw after it, as `Draw.mask`; None if that guess is not
allowed to come, so that the row ends before it."""


class Draw(Struct, frozen=True):
    """Sample one token for `seq_id` from the logits of the row it hangs on."""

    seq_id: int
    position: int
    """Index of the token among the request's output tokens: counts the request's whole life, not this attempt."""
    epoch: int = 0
    """How often the request was rewound before this draw: noise after a rewind is not the noise before it."""
    mask: Mask | None = None
    """Asked for just before sampling. None: all are allowed."""
    bans: tuple[int, ...] = ()
    """Tokens that may not come either, each once; if the mask leaves no others, they may."""

    def masked(self, mask: Mask) -> "Draw":
        return Draw(self.seq_id, self.position, self.epoch, mask, self.bans)


@dataclass(frozen=True, slots=True)
class Scoring:
    """Tell how likely tokens that are known already were: those of a prompt."""

    targets: Sequence[int]
    """The tokens that follow those of the row, the first being that at `start + 1`. None follows the prompt's last."""
    num_top: int
    """Of the likeliest tokens to name beside each."""


class Row(Struct, frozen=True):
    """A run of tokens of one sequence: one token when decoding, a chunk of the prompt when prefilling."""

    seq_id: int
    token_ids: Sequence[int]
    """Ids to compute, at positions `start`, `start + 1`, …; the only `IN_FLIGHT` one is a decode row's single id."""
    start: int
    """Tokens of the sequence whose KV is already in the pool."""
    block_table: Sequence[int]
    """Pool blocks of the sequence, covering at least `start + len(token_ids)` slots."""
    draws: tuple[Draw, ...] = ()
    """Tokens to sample from the logits of the row's last position: none in the middle of a prompt, several for
    the n choices of one prompt. Of a row with guesses: one after each of its tokens."""
    keep_logits: bool = False
    """Return the last position's logits (fp32, [vocab]) in the result: prefill ships them to decode."""
    prompt_logprobs: Scoring | None = None
    pooling: Pooling | None = None
    """Tell what this row adds to its prompt's pooled vector."""
    num_drafts: int = 0
    """The last so many of `token_ids` are guesses, known ones or all `DRAFT`; the one before them is the sequence's
    last token. Draws are made in order, each only if those before it gave what was guessed."""
    follow: Follow | None = None
    """Of a row with guesses whose sequence has a grammar: asked about each guess, in order, when it is launched."""
    look_ahead: Callable[[Sequence[int]], None] | None = None
    """Of a row with `follow` whose guesses are `DRAFT`: may be told all of them before `follow` is asked, so that what
    may come after them is worked out together with that of other rows."""
    history: Sequence[int] = ()
    """Of a row whose guesses are `DRAFT`: all tokens of the sequence, `token_ids[0]` being the last."""

    @property
    def num_scored(self) -> int:
        """Positions, from the row's first, whose logits tell how likely the known token after it was."""
        return 0 if self.prompt_logprobs is None else len(self.prompt_logprobs.targets)


@dataclass(frozen=True, slots=True)
class ShippedDraw:
    """Sample from logits that a prefill worker shipped, without computing a row."""

    logits: Any
    """fp32, [vocab]: a tensor, or whatever the engine's transport delivers."""
    draws: tuple[Draw, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    step_id: int
    rows: tuple[Row, ...]
    shipped: tuple[ShippedDraw, ...] = ()
    copies: tuple[tuple[int, int], ...] = ()
    """(source block, destination block) pairs, copied before the rows are computed."""

    @property
    def num_tokens(self) -> int:
        return sum(len(row.token_ids) for row in self.rows)

    @property
    def waits_for_tokens(self) -> bool:
        """Some masks follow from tokens that are in flight. An engine asks for none of them before the plan before has
        given its result; it may with whatever it is told after that, the next plan included."""
        return any(row.draws and row.draws[0].mask is not None and row.token_ids[0] == IN_FLIGHT for row in self.rows)

    @property
    def draws(self) -> list[Draw]:
        """All draws, rows first, in the order of `Result.token_ids`."""
        parts: tuple[Row | ShippedDraw, ...] = (*self.rows, *self.shipped)
        return [draw for part in parts for draw in part.draws]


@dataclass(frozen=True, slots=True)
class Result:
    token_ids: Sequence[int]
    """One sampled id, NO_TOKEN, NOT_DRAWN or NOT_TRIED, for each of `Plan.draws`, in that order."""
    logits: dict[int, Any] = field(default_factory=dict)
    """Of rows with `keep_logits`: seq_id -> fp32 [vocab]."""
    logprobs: Sequence[TokenLogprobs | None] = ()
    """Of the token of each draw, None where its sequence does not ask; empty where none does."""
    states: Sequence[bytes] = ()
    """Of each draw, what `SequenceSeed.state` must be to go on after its token; empty where all are."""
    prompt_logprobs: Mapping[int, Sequence[TokenLogprobs]] = field(default_factory=dict)
    """Of rows with `prompt_logprobs`: seq_id -> one for each of `Scoring.targets`."""
    pooled: Mapping[int, Any] = field(default_factory=dict)
    """Of rows with `pooling`: seq_id -> float32 numpy array, [hidden size] or [number of labels]. "mean": the sum over
    the row's tokens, which the scheduler adds up and divides; "last" and "score": of its last token; "cls": of its
    first, which is the prompt's where `start` is 0."""

    @property
    def drawn(self) -> Iterator[tuple[int, TokenLogprobs | None, bytes]]:
        """(token id, logprobs, state) of each draw."""
        num_draws = len(self.token_ids)
        logprobs, states = self.logprobs or (None,) * num_draws, self.states or (b"",) * num_draws
        return zip(self.token_ids, logprobs, states, strict=True)


class Handle(Protocol):
    """A launched step."""

    @property
    def plan(self) -> Plan: ...

    def result(self) -> Result:
        """Waits for the step. Called exactly once."""


class Engine(Protocol):
    """A model and its KV pool. `launch` may be called once more before the previous handle's `result`; a plan that
    an engine cannot compute is a bug, and what it raises ends the worker."""

    num_blocks: int
    block_size: int
    vocab_size: int

    bytes_per_block: int
    overlaps: bool
    """`launch` returns before the step is done, so that planning the next one costs nothing."""

    def launch(self, plan: Plan) -> Handle: ...

    def read_blocks(self, block_ids: Sequence[int], out: memoryview | None = None) -> memoryview:
        """The KV of these blocks in one contiguous buffer of `len(block_ids) * bytes_per_block` bytes, block by
        block: in `out`, where one of that size is given. Called only while no plan in flight writes them."""

    def write_blocks(self, block_ids: Sequence[int], payload: memoryview) -> None:
        """Stores what `read_blocks` of an engine with the same layout gave. Raises ValueError on a wrong size."""

    def pack_logits(self, logits: Any) -> memoryview:
        """The bytes of one `Result.logits` value."""

    def unpack_logits(self, payload: memoryview) -> Any:
        """What `ShippedDraw.logits` takes. Raises ValueError on a wrong size."""

    def admit(self, seed: "SequenceSeed") -> None:
        """A sequence whose tokens will be drawn: its sampling state begins. Before its first draw is launched; one that
        is rewound is retired and admitted anew before its next row."""

    def retire(self, *seq_ids: int) -> None:
        """Their state ends. Only after every plan that draws for them was applied."""


@runtime_checkable
class HeadedEngine(Protocol):
    """An engine that may have a head that follows its model (see engine/eagle): its blocks then hold the head's KV,
    too."""

    def read_hidden(self, block_id: int) -> memoryview | None:
        """What the head needs of the last position computed in this block, to guess what follows; None where there is
        no head. Called only while no plan in flight writes the block."""

    def lend_blocks(self, block_ids: Sequence[int]) -> None:
        """A peer will write these blocks itself: when this returns, nothing else does any more, and nothing is known of
        what the head needs of them."""

    def write_hidden(self, block_id: int, payload: memoryview) -> None:
        """Stores what `read_hidden` of another engine gave, after `write_blocks` of that block. Raises ValueError on a
        wrong size."""


@dataclass(frozen=True, slots=True)
class SequenceSeed:
    """All that drawing the tokens of one sequence depends on, besides logits."""

    seq_id: int
    params: Any
    """wire.sampling.SamplingParams"""
    key: tuple[int, int]
    """Philox key: two 32-bit words, from `wire.noise.philox_key`."""
    prompt_ids: Sequence[int]
    output_ids: Sequence[int]
    """Tokens the request produced before this placement (a replay or a preemption), else empty."""
    stop_ids: frozenset[int]
    """End-of-sequence ids (unless ignored) and stop_token_ids: what `min_tokens` masks."""
    state: bytes = b""
    """What `Result.states` gave with the last of `output_ids`: all that tokens do not determine. Empty where there is
    no such thing, or no token yet."""
