"""Logprobs wait for the text of their tokens: while half a character, or what may become a stop string, is held back,
so are they."""

from collections import deque
from collections.abc import Sequence

from msgspec import Struct

from ..text.detokenizer import Detokenizer
from ..wire.logprobs import TokenLogprobs


class ScoredToken(Struct, frozen=True):
    token_id: int
    logprobs: TokenLogprobs | None
    """None: nothing is known of a prompt's first token."""
    start: int
    """Characters of its text, choice's or prompt's, before it."""
    end: int
    """Characters before the token after it, but for a character that is begun and not finished."""


class LogprobQueue:
    """The tokens of one choice that have been pushed and whose text has not been given out."""

    def __init__(self, detokenizer: Detokenizer):
        self._detokenizer = detokenizer
        self._waiting: deque[ScoredToken] = deque()
        self._num_chars = 0

    def push(self, token_id: int, logprobs: TokenLogprobs, text: str) -> None:
        """`text` is what the token completed; all tokens are pushed, right after the detokenizer had them."""
        start, self._num_chars = self._num_chars, self._num_chars + len(text)
        end = self._num_chars + self._detokenizer.unfinished
        self._waiting.append(ScoredToken(token_id, logprobs, start, end))

    def take(self, num_chars: int) -> tuple[ScoredToken, ...]:
        """Those whose text is within the first `num_chars` characters."""
        taken = []
        while self._waiting and self._waiting[0].end <= num_chars:
            taken.append(self._waiting.popleft())
        return tuple(taken)

    def finish(self, num_chars: int | None) -> tuple[ScoredToken, ...]:
        """All that are left; where a stop string cut the text to `num_chars`, those that begin before the cut."""
        rest = tuple(token for token in self._waiting if num_chars is None or token.start < num_chars)
        self._waiting.clear()
        return rest


def score_prompt(
    token_ids: Sequence[int], rows: Sequence[TokenLogprobs], detokenizer: Detokenizer
) -> tuple[ScoredToken, ...]:
    """A prompt's tokens; `rows` are of those from the second on."""
    scored, num_chars = [], 0
    for token_id, logprobs in zip(token_ids, (None, *rows), strict=True):
        end = num_chars + len(detokenizer.push((token_id,)))
        scored.append(ScoredToken(token_id, logprobs, num_chars, end))
        num_chars = end
    return tuple(scored)
