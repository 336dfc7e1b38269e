"""What the device keeps of the tokens of running sequences, for DRY, repetition over a range, n-grams and bad words.

A sequence that asks for none of it takes no memory but its row of rules. Another has a block, about 20 bytes for each
token it may grow to, made when it begins. Kernels find blocks, and tables that sequences share, by the addresses in
the rules, so that a captured graph serves whatever sequences there are. Work is ordered on the current stream: the
steps that read a block must run on the stream on which its slot is set and cleared.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from .history_rules import BreakerAutomaton, break_keys, find_matches, older_repetition

(
    BLOCK,
    CAPACITY,
    PROMPT_LEN,
    TABLE,
    WORDS,
    NUM_WORDS,
    LONGEST_WORD,
    ALLOWED_LENGTH,
    DRY_RANGE,
    NGRAM_SIZE,
    REPETITION_RANGE,
    REPETITION_FIRST,
    LOG_MULTIPLIER,
    LOG_BASE,
    REPETITION,
    OLDER_REPETITION,
) = range(16)
"""Columns of `rules`. BLOCK, TABLE (of breakers) and WORDS are addresses, 0 for none; fp64 from LOG_MULTIPLIER on."""
NUM_RULES = 16
MAX_INT = 2**31 - 1
OFF = -1
"""An ALLOWED_LENGTH: no DRY."""
RUNS_PADDING = 2
"""Entries that `runs` has beyond the capacity, so that what lies behind it is aligned."""


@dataclass(frozen=True, slots=True)
class HistoryParams:
    """Neutral by default. Names, ranges and meaning as in the request, but for the following.

    `repetition_penalty` is done here only if it is not left to the tail's counts, which know no range.
    `repetition_first`: it comes before DRY in the request's order. `bad_words`: their tokens."""

    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_range: int = 0
    breakers: BreakerAutomaton | None = None
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    repetition_penalty_range: int = 0
    repetition_penalty_slope: float = 1.0
    repetition_first: bool = False
    bad_words: tuple[tuple[int, ...], ...] = ()

    @property
    def is_neutral(self) -> bool:
        return not (
            self.dry_multiplier or self.no_repeat_ngram_size or self.repetition_penalty != 1 or len(self.bad_words)
        )


class Block(NamedTuple):
    """A sequence's memory, in one int32 tensor: views of its parts."""

    runs: Tensor
    """int64 [capacity + RUNS_PADDING]. Of distance d: n in the upper half and L in the lower one say that, when the
    last token was at n, the L tokens up to there were those up to n − d. Anything else in the upper half: L is old."""
    keys: Tensor
    """int32 [capacity]: the tokens, t as ~t where it is a breaker."""
    found: Tensor
    """int32 [room]: token ids that are to be changed, of one step."""
    values: Tensor
    """fp32 [room]: their logits, or what becomes of them."""

    @classmethod
    def of(cls, memory: Tensor, capacity: int) -> "Block":
        num_runs = 2 * (capacity + RUNS_PADDING)
        room = (len(memory) - num_runs - capacity) // 2
        runs, keys, found, values = memory.split((num_runs, capacity, room, room))
        return cls(runs.view(torch.int64), keys, found, values.view(torch.float32))


@dataclass(frozen=True, slots=True)
class Held:
    """What a slot's addresses point to, kept from being freed."""

    params: HistoryParams
    prompt_len: int
    capacity: int
    memory: Tensor
    table: Tensor | None
    words: Tensor | None

    @property
    def block(self) -> Block:
        return Block.of(self.memory, self.capacity)


class HistoryTable:
    """Tensors made once, for graphs to read.

    `rules` int64 [S, NUM_RULES]; `progress` int32 [S, 2]: how many tokens a block holds, and the state of the breakers
    after them; `offsets` int32 [V + 1] and `data` uint8: the bytes of each token."""

    def __init__(
        self,
        num_slots: int,
        vocab_size: int,
        device: torch.device | str,
        vocabulary: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        """`vocabulary`: offsets int32 [V' + 1] and data uint8 of the tokens' bytes, which breakers need; a model's
        vocabulary V may be larger."""
        self.device = torch.device(device)
        self.vocab_size = vocab_size
        self.rules = torch.zeros(num_slots, NUM_RULES, dtype=torch.int64, device=self.device)
        self.progress = torch.zeros(num_slots, 2, dtype=torch.int32, device=self.device)
        offsets, data = vocabulary if vocabulary is not None else (np.zeros(1, np.int32), np.zeros(0, np.uint8))
        spread = np.full(vocab_size + 1, offsets[-1], np.int32)
        spread[: len(offsets)] = offsets[: vocab_size + 1]
        self.offsets = torch.from_numpy(spread).to(self.device)
        self.data = torch.from_numpy(np.concatenate((data, np.zeros(1, np.uint8)))).to(self.device)
        self.held: dict[int, Held] = {}
        self._tables: WeakKeyDictionary[BreakerAutomaton, Tensor] = WeakKeyDictionary()

    def set(
        self, slot: int, params: HistoryParams, prompt_ids: Sequence[int], output_ids: Sequence[int], max_tokens: int
    ) -> None:
        """Begins a sequence in `slot` that grows to `max_tokens` tokens at most, prompt and output together.

        Raises ValueError where there are more already, or a token of a bad word is not in the vocabulary."""
        self.clear(slot)
        if params.is_neutral:
            return
        num_tokens = len(prompt_ids) + len(output_ids)
        if num_tokens > max_tokens:
            raise ValueError(f"{num_tokens} tokens in a sequence of {max_tokens}")
        self._check_words(params)
        keys, state = break_keys([*prompt_ids, *output_ids], params.breakers if params.dry_multiplier else None)
        capacity = round_up(max_tokens)
        memory = self._memory(params, keys, capacity)
        held = Held(params, len(prompt_ids), capacity, memory, self._table(params), self._words(params))
        self.held[slot] = held
        self.rules[slot].copy_(self._upload(pack_rules(held)))
        self.progress[slot].copy_(self._upload(np.array([num_tokens, state], np.int32)))

    def clear(self, slot: int) -> None:
        """Ends a sequence."""
        if self.held.pop(slot, None) is not None:
            self.rules[slot].zero_()

    def _memory(self, params: HistoryParams, keys: np.ndarray, capacity: int) -> Tensor:
        size = 2 * (capacity + RUNS_PADDING) + capacity + 2 * room_of(capacity, params)
        memory = torch.full((size,), -1, dtype=torch.int32, device=self.device)
        block = Block.of(memory, capacity)
        if len(keys):
            block.keys[: len(keys)].copy_(self._upload(keys))
            if params.dry_multiplier:
                block.runs[: len(keys)].copy_(self._upload(pack_runs(keys)))
        return memory

    def _table(self, params: HistoryParams) -> Tensor | None:
        breakers = params.breakers
        if not params.dry_multiplier or breakers is None:
            return None
        if breakers not in self._tables:
            self._tables[breakers] = self._upload(breakers.table.view(np.int16))
        return self._tables[breakers]

    def _words(self, params: HistoryParams) -> Tensor | None:
        """int32: where each word begins, and where the last ends, from the start; then the words."""
        words = params.bad_words
        if not words:
            return None
        starts = np.cumsum([len(words) + 1, *(len(word) for word in words)])
        return self._upload(np.concatenate((starts, *words)).astype(np.int32))

    def _upload(self, array: np.ndarray) -> Tensor:
        """Pinned memory comes from torch's allocator, which gives it away again only after the copy."""
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _check_words(self, params: HistoryParams) -> None:
        for word in params.bad_words:
            if not word or not 0 <= min(word) <= max(word) < self.vocab_size:
                raise ValueError(f"bad_words: {word} are not tokens of a vocabulary of {self.vocab_size}")


def pack_rules(held: Held) -> np.ndarray:
    """int64 [NUM_RULES]"""
    params, words = held.params, held.params.bad_words
    rules = np.zeros(NUM_RULES, np.int64)
    rules[: REPETITION_FIRST + 1] = (
        held.memory.data_ptr(),
        held.capacity,
        held.prompt_len,
        0 if held.table is None else held.table.data_ptr(),
        0 if held.words is None else held.words.data_ptr(),
        len(words),
        max((len(word) for word in words), default=0),
        min(params.dry_allowed_length, MAX_INT) if params.dry_multiplier else OFF,
        max(0, params.dry_range),
        params.no_repeat_ngram_size,
        params.repetition_penalty_range,
        params.repetition_first,
    )
    rules.view(np.float64)[LOG_MULTIPLIER:] = (
        math.log(params.dry_multiplier) if params.dry_multiplier else 0.0,
        math.log(params.dry_base),
        params.repetition_penalty,
        older_repetition(params.repetition_penalty, params.repetition_penalty_slope),
    )
    return rules


def pack_runs(keys: np.ndarray) -> np.ndarray:
    """`Block.runs` after some keys, int64 [n]."""
    matches, last = find_matches(keys), len(keys) - 1
    runs = np.full(len(keys), -1, np.int64)
    runs[last - matches.positions] = (last << 32) | matches.lengths.astype(np.int64)
    return runs


def round_up(max_tokens: int) -> int:
    """A capacity: of a block whose parts are all aligned."""
    return -(-max(max_tokens, 1) // 4) * 4


def room_of(capacity: int, params: HistoryParams) -> int:
    """Tokens that may be changed in a step."""
    return max(capacity, len(params.bad_words))
