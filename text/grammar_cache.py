"""Compiled grammars by their text, made in threads of their own."""

import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from llguidance import LLMatcher

from ..wire.sampling import Guidance
from .grammar_compiler import GrammarCompiler, Vocabulary
from .tokenizer import Tokenizer

MAX_GRAMMARS = 128
NUM_THREADS = 2


class GrammarCache:
    """The grammars used last, refused ones included. Safe to share between threads."""

    def __init__(self, compiler: GrammarCompiler, *, max_grammars: int = MAX_GRAMMARS, num_threads: int = NUM_THREADS):
        self._compiler = compiler
        self._max_grammars = max_grammars
        self._grammars: OrderedDict[Guidance, Future[LLMatcher]] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(num_threads, "grammar")

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "GrammarCache":
        return cls(GrammarCompiler(partial(Vocabulary.of, tokenizer)))

    def get(self, guidance: Guidance) -> Future[LLMatcher]:
        """The matcher, to be copied, or GrammarError. Others wait for the same future: it must not be cancelled."""
        with self._lock:
            future = self._grammars.get(guidance)
            if future is None:
                future = self._grammars[guidance] = self._pool.submit(self._compiler.compile, guidance)
            self._grammars.move_to_end(guidance)
            while len(self._grammars) > self._max_grammars:
                self._grammars.popitem(last=False)
            return future

    def num_words(self) -> int:
        """Of a mask."""
        return self._compiler.num_words()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
