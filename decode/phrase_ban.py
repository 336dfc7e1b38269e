"""Phrases that never come in an output's text, however they are spelt in tokens (KoboldCpp's banned strings).

Tokens are held back while the end of their text may still become a phrase. When one is complete, the output goes back
to the token in which it begins, that token is banned at its place, and drawing goes on from there under a higher epoch:
noise of the tokens taken back has been looked at, and used again would favour what once followed them. Bans of a place
add up while the output stands there; going back before it forgets them. What was released stays: should a phrase begin
in it after all, as another token has come than the one that made it harmless, the first one after it is banned.

Case is ignored (Unicode's full case folding). Only the output counts: a phrase that begins in the prompt may end in it.
Special tokens have no text here.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..engine.plan import MAX_BANS
from ..text.automaton import Node, automaton
from ..text.detokenizer import Detokenizer
from ..text.tokenizer import Tokenizer
from ..wire.logprobs import TokenLogprobs

TAIL_TOKENS = 16
"""How much of the prompt is looked at, for a character that the prompt leaves unfinished."""
CACHE_SIZE = 64
"""Clients send the same list of phrases with every request."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a text stands between two tokens."""

    detokenizer: Detokenizer
    node: Node
    num_chars: int
    """Complete ones, case-folded, since the first token that may be taken back."""

    @property
    def num_begun(self) -> int:
        """Characters of which at least a byte is there."""
        return self.num_chars + self.detokenizer.unfinished

    @property
    def first_open(self) -> int:
        """The first character of what may still become a phrase: `num_begun` if there is no such thing."""
        return self.num_chars - self.node.depth

    def after(self, token_id: int) -> "Place | int":
        """The place after one more token, or the index of the first character of the phrase that it completes."""
        detokenizer = self.detokenizer.copy()
        return self._read(detokenizer.push((token_id,)), detokenizer)

    def at_end(self) -> "Place | int":
        """The same, if nothing more comes."""
        detokenizer = self.detokenizer.copy()
        return self._read(detokenizer.flush(), detokenizer)

    def _read(self, text: str, detokenizer: Detokenizer) -> "Place | int":
        node, num_chars = self.node, self.num_chars
        for character in text.casefold():
            node, num_chars = node.step(character), num_chars + 1
            if node.shortest is not None:
                return num_chars - len(node.shortest)
        return Place(detokenizer, node, num_chars)


@dataclass(frozen=True, slots=True)
class Held:
    """A token whose text may be the beginning of a phrase, or is after one that may be."""

    token_id: int
    logprobs: TokenLogprobs | None
    state: bytes
    """The sampler's, after it."""
    epoch: int
    """Of its draw: a replay that goes on after this token goes on with it."""
    before: Place


class PhraseBan:
    """What is held back of one output, and what may not come next."""

    def __init__(self, place: Place, num_output: int = 0, epoch: int = 0, state: bytes = b"") -> None:
        """`num_output` tokens were released before, the last of them under `epoch`, leaving the sampler at `state`."""
        self.epoch = epoch
        """How often the output was taken back: part of the noise of every draw."""
        self.error: str | None = None
        """Why the output cannot go on."""
        self._place = place
        self.num_released = num_output
        self.released_epoch, self.released_state = epoch, state
        """Of the last token released."""
        self._held: list[Held] = []
        self._bans: dict[int, tuple[int, ...]] = {}
        self._num_rewinds = 0  # since a token was released

    @property
    def num_tokens(self) -> int:
        """Of the output, those held back included."""
        return self.num_released + len(self._held)

    @property
    def state(self) -> bytes:
        """The sampler's after the last token; empty before the first."""
        return self._held[-1].state if self._held else self.released_state

    @property
    def bans(self) -> tuple[int, ...]:
        """Tokens that may not come next."""
        return self.bans_at(self.num_tokens)

    def bans_at(self, position: int) -> tuple[int, ...]:
        """Tokens that output token `position` may not be, as far as is known."""
        return self._bans.get(position, ())

    def push(
        self, token_id: int, logprobs: TokenLogprobs | None = None, state: bytes = b"", *, ends: bool = False
    ) -> tuple[Held, ...] | None:
        """Takes in the next token, with which the output `ends` or not; the tokens that are released, maybe none. None:
        it is not taken in, and the output has become as long as `num_tokens` says, unless `error` says why it ends."""
        if token_id in self.bans:
            self.error = "banned_strings leave no token to draw: all that else may come next would complete a phrase"
            return None
        before = self._place
        self._held.append(Held(token_id, logprobs, state, self.epoch, before))
        found = before.after(token_id)
        if isinstance(found, int):
            self._rewind(found)
            return None
        self._place = found
        return self.finish() if ends else self._release(self._num_settled)

    def finish(self) -> tuple[Held, ...] | None:
        """As `push`, where the output ends without a further token."""
        found = self._place.at_end()
        if isinstance(found, int) and self._held:
            self._rewind(found)
            return None
        return self._release(len(self._held))

    @property
    def _num_settled(self) -> int:
        """Tokens held back that need not be any more."""
        place = self._place
        if place.first_open == place.num_begun:
            return len(self._held)
        return self._index(place.first_open)

    def _index(self, char: int) -> int:
        """Of the token in which a character begins; of the first that can be taken back, if it began before."""
        return max(0, bisect_right(self._held, char, key=lambda held: held.before.num_begun) - 1)

    def _release(self, count: int) -> tuple[Held, ...]:
        released, self._held = tuple(self._held[:count]), self._held[count:]
        if released:
            self.num_released += count
            self.released_epoch, self.released_state = released[-1].epoch, released[-1].state
            self._bans = {at: banned for at, banned in self._bans.items() if at >= self.num_released}
            self._num_rewinds = 0
        return released

    def _rewind(self, char: int) -> None:
        """To the token in which a phrase begins."""
        index = self._index(char)
        first, position = self._held[index], self.num_released + index
        banned = (*self._bans.get(position, ()), first.token_id)
        self._held, self._place = self._held[:index], first.before
        self._bans = {at: ids for at, ids in self._bans.items() if at < position} | {position: banned}
        self.epoch += 1
        self._num_rewinds += 1
        if max(self._num_rewinds, len(banned)) > MAX_BANS:
            self.error = f"banned_strings: the output cannot go on, {MAX_BANS} attempts have completed a phrase"


class PhraseBans:
    """Of a worker whose model has this tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._automaton = lru_cache(CACHE_SIZE)(automaton)

    def begin(
        self,
        phrases: Sequence[str],
        prompt_ids: Sequence[int],
        output_ids: Sequence[int] = (),
        epoch: int = 0,
        state: bytes = b"",
    ) -> PhraseBan:
        """For an output that has `output_ids` already; `epoch` and `state` as in `PhraseBan`."""
        node = self._automaton(tuple(dict.fromkeys(phrase.casefold() for phrase in phrases)))
        detokenizer = Detokenizer(self._tokenizer, prompt_ids[-TAIL_TOKENS:])
        for character in detokenizer.push(output_ids).casefold():
            node = node.step(character)
        return PhraseBan(Place(detokenizer, node, 0), len(output_ids), epoch, state)


def make_phrase_bans(tokenizer: Tokenizer | None) -> PhraseBans | None:
    return None if tokenizer is None else PhraseBans(tokenizer)
