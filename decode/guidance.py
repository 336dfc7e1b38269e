"""Constrained decoding: what each sequence's grammar lets come next.

Masks are made while the engine computes logits, or where that is not possible before: see `mask_maker`. All of a
guide's state follows from the grammar and the output's tokens, so it is made anew from them on a replay.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from llguidance import LLMatcher

from ..text.grammar import GrammarError
from ..text.grammar_cache import GrammarCache
from ..text.tokenizer import Tokenizer
from ..wire.sampling import SamplingParams
from .guide import Guide
from .mask_maker import NUM_THREADS, MaskMaker
from .token_bans import TokenBans

COMPILE_DEADLINE_S = 10.0


@dataclass(slots=True)
class PendingGuide:
    """A placement's grammar while it is compiled; from then on it makes guides."""

    grammar: Future[LLMatcher]
    deadline: float
    begin: Callable[[LLMatcher, Sequence[int]], Guide]

    @property
    def ready(self) -> bool:
        return self.grammar.done()

    def failure(self, now: float) -> str | None:
        """Why there will be no guide; None if there is one or may be one yet."""
        if not self.grammar.done():
            return "its grammar takes too long to compile" if now >= self.deadline else None
        error = self.grammar.exception()
        if error is None or isinstance(error, GrammarError):
            return None if error is None else f"its grammar {error}"
        raise error

    def guide(self, output: Sequence[int]) -> Guide:
        """Of a choice that has this output already. Only once it is ready, and has not failed."""
        return self.begin(self.grammar.result(), output)


class Guides:
    """Makes the guides of a worker, for a model of `vocab_size` tokens."""

    def __init__(self, grammars: GrammarCache, vocab_size: int, *, num_threads: int = NUM_THREADS):
        self._grammars = grammars
        self._vocab_size = vocab_size
        self._masks = MaskMaker(grammars.num_words, num_threads)

    def pending(
        self, params: SamplingParams, stop_ids: frozenset[int], eos_ids: tuple[int, ...], now: float
    ) -> "PendingGuide | None":
        """Begins to compile the request's grammar; None if it has none. `stop_ids` as in `TokenBans`."""
        if params.guidance is None:
            return None

        def begin(grammar: LLMatcher, output: Sequence[int]) -> Guide:
            bans = TokenBans.of(params, stop_ids, eos_ids, self._vocab_size)
            return Guide(grammar, bans, output, self._masks)

        return PendingGuide(self._grammars.get(params.guidance), now + COMPILE_DEADLINE_S, begin)

    def begin_masks(self) -> None:
        """Of all that was said since the last call: a step is planned."""
        self._masks.begin()

    def close(self) -> None:
        self._grammars.close()
        self._masks.close()


def make_guides(tokenizer: Tokenizer | None, vocab_size: int) -> Guides | None:
    """Of a worker whose model has this tokenizer; without one, it cannot constrain anything."""
    if tokenizer is None:
        return None
    return Guides(GrammarCache.of(tokenizer), vocab_size)
