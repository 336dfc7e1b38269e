"""Masks of many grammars at once: the first in the thread that asks, as waking others takes longer than most masks do;
what is left after a while by threads of llguidance, if it is of several grammars. Each call frees the GIL: who works
aside, while another thread runs Python, gets it back late, so there it is one call for all.
"""

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from llguidance import LLExecutor, LLMatcher

from .grammar_compiler import Words

MAX_THREADS = 4
ALONE_S = 0.001
"""Before threads help: a mask usually takes a hundredth of this, and waking threads as long as twenty do."""


class Run(NamedTuple):
    matcher: LLMatcher
    token_ids: Sequence[int]
    """That may come next, one after the other."""
    grammar: object
    """Whose copy the matcher is: copies share what they find out, and wait for each other."""


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
        most MAX_THREADS; they begin when they are needed, which is after `alone_s`."""
        self._num_words = num_words
        self._num_threads = num_threads or min(MAX_THREADS, max(1, (os.cpu_count() or 1) // 2))
        self._alone_s = alone_s
        self._executors: dict[int, LLExecutor] = {}
        """By their threads."""

    def fill(self, runs: Sequence[Run], *, aside: bool = False) -> Filled:
        """Words uint32 [N, num_words], bit i of word i // 32 for token i: of each matcher what may come next, then what
        may come after each of the tokens given with it. Rows after a token that may not come hold anything.

        Matchers stay where they are. One that fails (`is_error`) has no masks. `aside`: other threads run Python."""
        words = np.empty((sum(1 + len(run.token_ids) for run in runs), self._num_words()), np.uint32)
        address, stride = words.ctypes.data, words.strides[0]
        row, own_s, start_cpu_s, start_s = 0, list[float](), time.thread_time(), time.perf_counter()
        last_s, end_s = start_s, start_s + (0.0 if aside and len(runs) > 1 else self._alone_s)
        num_threads = 1
        for run in runs:
            if last_s >= end_s and len(own_s) + 1 < len(runs):
                num_threads = self._num_threads if _is_shared_out(runs[len(own_s) :]) else 1
                if aside or num_threads > 1:
                    break
                end_s = math.inf
            _fill_one(run, address + row * stride, stride)
            row += 1 + len(run.token_ids)
            now_s = time.perf_counter()
            own_s.append(now_s - last_s)
            last_s = now_s
        spent_s, left = time.thread_time() - start_cpu_s, runs[len(own_s) :]
        waited_s = max(0.0, last_s - start_s - spent_s)
        helped_s = self._fill_in_threads(left, words, row, num_threads) if left else 0.0
        return Filled(words, [max(0.0, took_s - waited_s) for took_s in own_s], spent_s, helped_s)

    def _fill_in_threads(self, runs: Sequence[Run], words: Words, row: int, num_threads: int) -> float:
        """From this row on; seconds."""
        start_s = time.perf_counter()
        placed: list[tuple[Run, int]] = []
        for run in runs:
            placed.append((run, row))
            row += 1 + len(run.token_ids)
        placed.sort(key=lambda one: id(one[0].grammar))  # a thread begins with neighbours
        plain = [(run.matcher, row) for run, row in placed if not run.token_ids]
        ahead = [(run.matcher, row, list(run.token_ids)) for run, row in placed if run.token_ids]
        executor = self._executors.get(num_threads)
        if executor is None:
            executor = self._executors[num_threads] = LLExecutor(num_threads)
        place = words.ctypes.data, words.strides[0], len(words)
        if plain:
            executor.unsafe_compute_mask_ptr(plain, *place)
        if ahead:
            executor.unsafe_compute_mask_ptr_with_draft_token(ahead, *place)
        return time.perf_counter() - start_s


def _is_shared_out(runs: Sequence[Run]) -> bool:
    """Threads would not wait for one grammar most of the time: none is that of more than two in three of these."""
    counts = Counter(id(run.grammar) for run in runs)
    return 3 * max(counts.values()) <= 2 * len(runs)


def _fill_one(run: Run, address: int, stride: int) -> None:
    """At `address`, and for each token `stride` bytes further on."""
    matcher = run.matcher
    matcher.unsafe_compute_mask_ptr(address, stride)
    num_taken = 0
    for token_id in run.token_ids:
        if not matcher.try_consume_tokens([token_id]):
            break
        num_taken += 1
        matcher.unsafe_compute_mask_ptr(address + num_taken * stride, stride)
    if num_taken:
        matcher.rollback(num_taken)


def allows(words: Words, token_id: int) -> bool:
    """`words` uint32 [ceil(V / 32)]."""
    return bool(int(words[token_id >> 5]) >> (token_id & 31) & 1)
