"""Which steps are captured: rows of one token, and tokens of chunks beside them, both filled up to sizes of a ladder.

Launching a step kernel by kernel costs the host a millisecond a layer, whatever the size of the step; a replay costs
next to nothing. So small steps are captured, and steps that take the GPU longer than that are launched, which also
lets their attention choose by the lengths at hand. Steps with guesses, which come with small batches, are captured by
rows and guesses a row.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

MAX_CHUNKS = 16
"""Chunks of a captured step."""
DRAFTED_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Of steps with guesses. Batches beyond are bound by arithmetic, which guesses add to."""
SLOW_TOKENS = (3, 4)
CHAINED_TOKENS = range(5, 17)
"""Steps whose graphs are one chain. All others have a branch beside it: without one a kernel of cuBLAS's begins late
after one that was launched early, by 0.7 us on an H200; up to 8% of a step of more tokens. These take 1% longer with it
(docs/benchmarks/gpu_engine.md)."""
CAPTURED_FLOPS = 40e12
"""Up to so many operations in the linear layers (some 55 ms on an H100, the host's cost of 32 layers being 35 ms) a
step with chunks is captured."""


@dataclass(frozen=True, slots=True, order=True)
class StepSize:
    num_single: int
    """Rows that are drawn for: of one token, and of guesses after it."""
    num_chunk_tokens: int
    num_drafts: int = 0
    """Guesses of each row."""

    @property
    def num_decode_tokens(self) -> int:
        return self.num_single * (1 + self.num_drafts)

    @property
    def num_tokens(self) -> int:
        return self.num_decode_tokens + self.num_chunk_tokens

    @property
    def has_branch(self) -> bool:
        """As of `Runtime.capture`."""
        return self.num_tokens not in CHAINED_TOKENS


@dataclass(frozen=True, slots=True)
class Ladder:
    decode: Sequence[int]
    """Rows of steps without chunks, ascending."""
    single: Sequence[int]
    """Rows of one token beside chunks, ascending from 0."""
    chunk_tokens: Sequence[int]
    """Ascending."""
    drafted: Sequence[int] = ()
    """Rows of steps with guesses, ascending."""
    drafts: Sequence[int] = ()
    """Guesses of each, ascending."""
    masked: Sequence[int] = ()
    """Of `decode`, sizes that are captured in two halves, too, for rows with masks, ascending."""

    @property
    def sizes(self) -> list[StepSize]:
        decode = [StepSize(n, 0) for n in self.decode]
        drafted = [StepSize(n, 0, k) for n in self.drafted for k in self._drafts_of(n)]
        return decode + drafted + [StepSize(n, tokens) for n in self.single for tokens in self.chunk_tokens]

    def fit_drafted(self, num_rows: int, num_drafts: int) -> StepSize | None:
        """The smallest that holds such rows, or all of them but some guesses; None if none does."""
        rows = _at_least(self.drafted, num_rows)
        if rows is None or not self.drafts:
            return None
        drafts = self._drafts_of(rows)
        return StepSize(rows, 0, _at_least(drafts, num_drafts) or drafts[-1])

    def fit_masked(self, num_rows: int) -> StepSize | None:
        """The smallest in two halves that holds such rows; None if none does."""
        rows = _at_least(self.masked, num_rows)
        return None if rows is None else StepSize(rows, 0)

    def has_halves(self, size: StepSize) -> bool:
        """Whether a step is captured in two halves: all those with guesses are, and in no other way."""
        return size.num_drafts > 0 or (not size.num_chunk_tokens and size.num_single in self.masked)

    def _drafts_of(self, num_rows: int) -> Sequence[int]:
        """Three and four tokens take longer than five (H200, 8B: 6.0 and 5.3 ms), which cuBLAS multiplies."""
        return [k for k in self.drafts if num_rows * (1 + k) not in SLOW_TOKENS] or self.drafts

    def fit(self, num_single: int, num_chunk_tokens: int, num_chunks: int) -> StepSize | None:
        """The smallest that holds such a step; None if none does."""
        if not num_chunk_tokens:
            single = _at_least(self.decode, num_single)
            return None if single is None else StepSize(single, 0)
        single, tokens = _at_least(self.single, num_single), _at_least(self.chunk_tokens, num_chunk_tokens)
        if single is None or tokens is None or num_chunks > MAX_CHUNKS:
            return None
        return StepSize(single, tokens)


NOTHING_CAPTURED = Ladder((), (), ())


def make_ladder(
    *, draws: bool, max_num_seqs: int, max_num_batched_tokens: int, num_weights: int, max_drafts: int = 0
) -> Ladder:
    """`num_weights`: of the linear layers that every token meets. Without `draws` no row has one token."""
    tokens = min(max_num_batched_tokens, int(CAPTURED_FLOPS / (2 * num_weights)))
    decode = _decode_sizes(max_num_seqs) if draws else []
    single = sorted({0, *(n for n in (16, 64) if n < max_num_seqs), max_num_seqs}) if draws else [0]
    drafted = [n for n in DRAFTED_ROWS if n <= max_num_seqs] if draws and max_drafts else []
    drafts = sorted({max_drafts, *(k for k in (2, 4, 8) if k < max_drafts)})
    masked = [n for n in decode if n == decode[-1] or n & (n - 1) == 0]  # few: each costs start-up two more captures
    return Ladder(decode, single, _chunk_sizes(tokens), drafted, drafts if drafted else [], masked)


def _decode_sizes(max_num_seqs: int) -> list[int]:
    """A step computes at most a quarter more rows than it has, from 16 rows on an eighth."""
    sizes = [1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16]
    while sizes[-1] < max_num_seqs:
        sizes.append(sizes[-1] + max(2, 1 << (sizes[-1].bit_length() - 4)))
    return [size for size in sizes if size < max_num_seqs] + [max_num_seqs]


def _chunk_sizes(max_tokens: int) -> list[int]:
    sizes = [16, 32, 48, 64, 96, 128, 192, 256, 320, 384, 448, 512]
    while sizes[-1] < max_tokens:
        sizes.append(sizes[-1] + (128 if sizes[-1] < 2048 else 512))
    return [size for size in sizes if size <= max_tokens]


def _at_least(sizes: Sequence[int], wanted: int) -> int | None:
    index = bisect_left(sizes, wanted)
    return sizes[index] if index < len(sizes) else None
