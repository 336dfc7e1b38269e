"""Constrained decoding: what each sequence's grammar lets come next.

A mask is computed in a thread, from the moment the token before it is known, while the engine computes logits: the
engine asks for it when it draws. llguidance frees the GIL meanwhile. All of a guide's state follows from the grammar
and the output's tokens, so it is made anew from them on a replay.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher

from ..text.grammar import GrammarError
from ..text.grammar_cache import GrammarCache
from ..text.grammar_compiler import Words, error_of
from ..text.tokenizer import Tokenizer
from ..wire.sampling import SamplingParams
from .token_bans import TokenBans

COMPILE_DEADLINE_S = 10.0
NUM_THREADS = 4
SLOW_S = 0.003
"""A mask is usually there within a tenth of this, long before a step has logits."""


class Guide:
    """Where one sequence stands in its grammar. Its work is done in order, in the pool's threads; `finished` and
    `error` wait for it."""

    def __init__(self, grammar: LLMatcher, bans: TokenBans, output: Sequence[int], pool: ThreadPoolExecutor):
        """`output`: the tokens that the request has produced already."""
        self._matcher = grammar.deep_copy()
        self._bans = bans
        self._pool = pool
        self._num_tokens = 0
        self.num_tokens = len(output)
        """Of the output that it has been told, guesses included."""
        self._finished = False
        self._error: str | None = None
        self._slow = False
        self._mask = pool.submit(self._consume, None, tuple(output))
        self._ahead: Future[list[Words]] | None = None
        """Masks after guesses that may be followed, as far as they are allowed."""
        self._num_followed = 0

    def advance(self, token_ids: Sequence[int]) -> None:
        """The output goes on with these tokens."""
        self.num_tokens += len(token_ids)
        self._mask = self._pool.submit(self._consume, self._mask, tuple(token_ids))

    def look_ahead(self, token_ids: Sequence[int]) -> None:
        """These guesses will be followed, maybe: what may come after each is worked out beside other work. Until
        `rollback_to` no others are."""
        assert self._ahead is None
        self._ahead, self._num_followed = self._pool.submit(self._go_ahead, self._mask, tuple(token_ids)), 0

    def follow(self, token_id: int) -> Future[Words] | None:
        """The output may go on with this guess: what may come after it. None, and nothing has changed, if the grammar
        does not let it come next, or takes long. Waits for the mask before it."""
        if self._ahead is not None:
            masks, index = self._ahead.result(), self._num_followed
            if index == len(masks):
                return None
            self._num_followed += 1
            self.num_tokens += 1
            return _done(masks[index])
        if self.holds_up:
            return None
        words = self._mask.result()
        if self._finished or self._error is not None or not _allows(words, token_id):
            return None
        self.advance((token_id,))
        return self._mask

    def rollback_to(self, num_tokens: int) -> None:
        """All tokens after the first `num_tokens` of the output are taken back."""
        count, self.num_tokens = self.num_tokens - num_tokens, num_tokens
        assert count >= 0
        if self._ahead is not None:
            masks, self._ahead = self._ahead.result(), None
            num_kept = self._num_followed - count
            kept = self._mask if num_kept == 0 else _done(masks[num_kept - 1]) if num_kept > 0 else None
            count += len(masks) - self._num_followed
            if kept is not None:
                self._mask = self._pool.submit(self._return_to, kept, count) if count else kept
                return
        if count:
            self._mask = self._pool.submit(self._take_back, self._mask, count)

    def mask(self) -> Future[Words]:
        """What may come next, uint32 [ceil(V / 32)]. It never fails: where nothing may come, everything is allowed, and
        `finished` or `error` say that what is drawn does not count."""
        return self._mask

    @property
    def holds_up(self) -> bool:
        """The mask is not there yet and, as the one before it took long, may not be for a while: a step with this
        sequence in it would keep the others waiting."""
        return self._slow and not self._mask.done()

    @property
    def finished(self) -> bool:
        """The output is complete: the grammar lets nothing follow but an end of sequence, which the request or the
        model does not have."""
        self._mask.result()
        return self._finished

    @property
    def error(self) -> str | None:
        """Why the output cannot go on; None if it can."""
        self._mask.result()
        return self._error

    # In a thread of the pool. Earlier work of this guide was submitted before, so waiting for it cannot deadlock.

    def _consume(self, before: Future[Words] | None, token_ids: tuple[int, ...]) -> Words:
        if before is not None:
            before.result()
        start_s = time.monotonic()
        self._num_tokens += len(token_ids)
        self._matcher.consume_tokens(list(token_ids))
        words = self._next()
        self._slow = time.monotonic() - start_s > SLOW_S
        return words

    def _go_ahead(self, before: Future[Words], token_ids: tuple[int, ...]) -> list[Words]:
        words, masks = before.result(), list[Words]()
        for token_id in token_ids:
            if self._finished or self._error is not None or not _allows(words, token_id):
                break
            self._num_tokens += 1
            self._matcher.consume_tokens([token_id])
            words = self._next()
            masks.append(words)
        return masks

    def _return_to(self, kept: Future[Words], num_tokens: int) -> Words:
        """Takes tokens back that were gone ahead; `kept` is what may come before them."""
        self._num_tokens -= num_tokens
        self._matcher.rollback(num_tokens)
        self._finished, self._error = False, None
        return kept.result()

    def _take_back(self, before: Future[Words], num_tokens: int) -> Words:
        before.result()
        self._num_tokens -= num_tokens
        self._matcher.rollback(num_tokens)
        return self._next()

    def _next(self) -> Words:
        self._finished, self._error = False, None
        raw = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
        if self._matcher.is_error():
            self._error = f"the output cannot follow its grammar any further: {error_of(self._matcher)}"
            return self._anything
        words = raw[: len(self._bans.allowed)] & self._bans.at(self._num_tokens)
        if words.any():
            return words
        self._finished = self._matcher.is_accepting()
        if not self._finished:
            self._error = "no token is left to draw: the request bans every one that its grammar allows next"
        return self._anything

    @property
    def _anything(self) -> Words:
        return np.full_like(self._bans.allowed, 0xFFFF_FFFF)


def _allows(words: Words, token_id: int) -> bool:
    return bool(words[token_id // 32] >> np.uint32(token_id % 32) & 1)


def _done(words: Words) -> Future[Words]:
    future: Future[Words] = Future()
    future.set_result(words)
    return future


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
        self._pool = ThreadPoolExecutor(num_threads, "guide")

    def pending(
        self, params: SamplingParams, stop_ids: frozenset[int], eos_ids: tuple[int, ...], now: float
    ) -> "PendingGuide | None":
        """Begins to compile the request's grammar; None if it has none. `stop_ids` as in `TokenBans`."""
        if params.guidance is None:
            return None

        def begin(grammar: LLMatcher, output: Sequence[int]) -> Guide:
            bans = TokenBans.of(params, stop_ids, eos_ids, self._vocab_size)
            return Guide(grammar, bans, output, self._pool)

        return PendingGuide(self._grammars.get(params.guidance), now + COMPILE_DEADLINE_S, begin)

    def close(self) -> None:
        self._grammars.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


def make_guides(tokenizer: Tokenizer | None, vocab_size: int) -> Guides | None:
    """Of a worker whose model has this tokenizer; without one, it cannot constrain anything."""
    if tokenizer is None:
        return None
    return Guides(GrammarCache.of(tokenizer), vocab_size)
