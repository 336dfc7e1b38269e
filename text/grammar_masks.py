"""Masks of many grammars at once: the first in the thread that asks, as waking others takes longer than most masks do;
what is left after a while by threads of llguidance. Each call frees the GIL: who works aside, while another thread
runs Python, gets it back late, so there it is one call for all.
"""

import math
import os
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from llguidance import LLExecutor, LLMatcher

from .grammar_compiler import Words

MAX_THREADS = 4
ALONE_S = 0.001
"""Before threads help: a mask usually takes a hundredth of this, and waking threads as long as twenty do."""
FEWEST_THREADS = 3
"""That help: a mask takes one of them twice as long as it takes who asks."""
Runs = Sequence[tuple[LLMatcher, Sequence[int]]]
"""Matchers, each with tokens that may come next, one after the other."""


class Filled(NamedTuple):
    words: Words
    own_s: Sequence[float]
    """For each of the first matchers, at least: what this thread waited for something else may have been in any."""
    spent_s: float
    """For those together, without that."""
    helped_s: float
    """Until threads had done the others."""


class MaskFiller:
    """For matchers of one vocabulary, safe to share between threads."""

    def __init__(self, num_words: Callable[[], int], num_threads: int | None = None, alone_s: float = ALONE_S) -> None:
        """`num_words`: of a mask, asked for when there is one to make. `num_threads`: None for half of the cores, at
        most MAX_THREADS; they begin when they are needed, which is after `alone_s`, or if there are few never."""
        self._num_words = num_words
        self._num_threads = num_threads or min(MAX_THREADS, max(1, (os.cpu_count() or 1) // 2))
        self._alone_s = alone_s if self._num_threads >= FEWEST_THREADS else math.inf

    @cached_property
    def _executor(self) -> LLExecutor:
        return LLExecutor(self._num_threads)

    def fill(self, runs: Runs, *, aside: bool = False) -> Filled:
        """Words uint32 [N, num_words], bit i of word i // 32 for token i: of each matcher what may come next, then what
        may come after each of the tokens given with it. Rows after a token that may not come hold anything.

        Matchers stay where they are. One that fails (`is_error`) has no masks. `aside`: other threads run Python."""
        words = np.empty((sum(1 + len(token_ids) for _, token_ids in runs), self._num_words()), np.uint32)
        address, stride = words.ctypes.data, words.strides[0]
        row, own_s, start_cpu_s, start_s = 0, list[float](), time.thread_time(), time.perf_counter()
        last_s, end_s = start_s, start_s + (0.0 if aside and len(runs) > 1 else self._alone_s)
        for matcher, token_ids in runs:
            if last_s >= end_s and len(own_s) + 1 < len(runs):
                break
            _fill_one(matcher, token_ids, address + row * stride, stride)
            row += 1 + len(token_ids)
            now_s = time.perf_counter()
            own_s.append(now_s - last_s)
            last_s = now_s
        spent_s, left = time.thread_time() - start_cpu_s, runs[len(own_s) :]
        waited_s = max(0.0, last_s - start_s - spent_s)
        helped_s = self._fill_in_threads(left, words, row) if left else 0.0
        return Filled(words, [max(0.0, took_s - waited_s) for took_s in own_s], spent_s, helped_s)

    def _fill_in_threads(self, runs: Runs, words: Words, row: int) -> float:
        """From this row on; seconds."""
        start_s = time.perf_counter()
        plain: list[tuple[LLMatcher, int]] = []
        ahead: list[tuple[LLMatcher, int, list[int]]] = []
        for matcher, token_ids in runs:
            if token_ids:
                ahead.append((matcher, row, list(token_ids)))
            else:
                plain.append((matcher, row))
            row += 1 + len(token_ids)
        place = words.ctypes.data, words.strides[0], len(words)
        if plain:
            self._executor.unsafe_compute_mask_ptr(plain, *place)
        if ahead:
            self._executor.unsafe_compute_mask_ptr_with_draft_token(ahead, *place)
        return time.perf_counter() - start_s


def _fill_one(matcher: LLMatcher, token_ids: Sequence[int], address: int, stride: int) -> None:
    """At `address`, and for each token `stride` bytes further on."""
    matcher.unsafe_compute_mask_ptr(address, stride)
    num_taken = 0
    for token_id in token_ids:
        if not matcher.try_consume_tokens([token_id]):
            break
        num_taken += 1
        matcher.unsafe_compute_mask_ptr(address + num_taken * stride, stride)
    if num_taken:
        matcher.rollback(num_taken)


def allows(words: Words, token_id: int) -> bool:
    """`words` uint32 [ceil(V / 32)]."""
    return bool(int(words[token_id >> 5]) >> (token_id & 31) & 1)
