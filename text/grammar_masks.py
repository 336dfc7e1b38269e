"""Masks of many grammars in one call of llguidance, which frees the GIL meanwhile and shares the work among threads."""

import os
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from llguidance import LLExecutor, LLMatcher

from .grammar_compiler import Words

MAX_THREADS = 8


class MaskFiller:
    """For matchers of one vocabulary, safe to share between threads."""

    def __init__(self, num_words: Callable[[], int], num_threads: int | None = None) -> None:
        """`num_words`: of a mask, asked for when there is one to make. `num_threads`: None for half of the cores, at
        most MAX_THREADS; they begin then, too."""
        self._num_words = num_words
        self._num_threads = num_threads or min(MAX_THREADS, max(1, (os.cpu_count() or 1) // 2))

    @cached_property
    def _executor(self) -> LLExecutor:
        return LLExecutor(self._num_threads)

    def fill(self, runs: Sequence[tuple[LLMatcher, Sequence[int]]]) -> Words:
        """uint32 [N, num_words], bit i of word i // 32 for token i: of each matcher what may come next, then what
        may come after each of the tokens given with it. Rows after a token that may not come hold anything.

        Matchers stay where they are. One that fails (`is_error`) has no masks."""
        words = np.empty((sum(1 + len(token_ids) for _, token_ids in runs), self._num_words()), np.uint32)
        plain: list[tuple[LLMatcher, int]] = []
        ahead: list[tuple[LLMatcher, int, list[int]]] = []
        row = 0
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
        return words


def allows(words: Words, token_id: int) -> bool:
    """`words` uint32 [ceil(V / 32)]."""
    return bool(int(words[token_id >> 5]) >> (token_id & 31) & 1)
