"""Where one output stands in its grammar."""

from collections.abc import Sequence
from dataclasses import dataclass

from llguidance import LLMatcher

from ..text.grammar_compiler import error_of
from .token_bans import TokenBans


@dataclass(frozen=True, slots=True)
class Ending:
    """Nothing may come any more. Everything is allowed instead, and what is drawn does not count."""

    error: str | None
    """Why the output cannot go on; None if it is complete."""


class Automaton:
    """The matcher of one sequence. Belongs to the batch of masks that is working on it."""

    def __init__(self, grammar: LLMatcher, bans: TokenBans) -> None:
        self.grammar = grammar
        self.matcher = grammar.deep_copy()
        self.bans = bans
        self.output: list[int] = []
        """What the matcher has taken in."""
        self.is_new = True
        """It has had no mask yet, and the first of a grammar may take long."""
        self.is_slow = False
        """Its last mask took long."""
        self.is_suspect = False
        """The last batch took long, and there were others in it."""

    def move(self, num_back: int, token_ids: Sequence[int]) -> None:
        """Takes the last tokens back, then others in."""
        if num_back:
            self.matcher.rollback(num_back)
            del self.output[-num_back:]
        if token_ids:
            self.matcher.consume_tokens(list(token_ids))
            self.output += token_ids

    def begin_anew(self) -> None:
        """A matcher that has failed stays so: this one takes in the output again."""
        self.matcher = self._after(self.output)

    def ending(self, guesses: Sequence[int] = ()) -> Ending:
        """Why nothing may come after the output and these."""
        matcher = self._after([*self.output, *guesses]) if guesses else self.matcher
        if matcher.is_error():
            return Ending(f"the output cannot follow its grammar any further: {error_of(matcher)}")
        if matcher.is_accepting():
            return Ending(None)
        return Ending("no token is left to draw: the request bans every one that its grammar allows next")

    def _after(self, token_ids: Sequence[int]) -> LLMatcher:
        matcher = self.grammar.deep_copy()
        matcher.consume_tokens(list(token_ids))
        return matcher
