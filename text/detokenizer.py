"""Token ids to text as they come, never half a character."""

import codecs
from collections.abc import Iterable, Sequence
from copy import copy

from .tokenizer import Tokenizer


class Detokenizer:
    """Incremental decoding of one sequence, in constant time a token.

    What the pushes and the final flush return, joined, is what decoding all ids at once gives. One difference: where
    SentencePiece's byte tokens mix whole characters and invalid bytes in one run, the characters are kept, since they
    were already given out; decoding at once replaces the whole run.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_tail_ids: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
        shown: frozenset[int] = frozenset(),
    ) -> None:
        """`shown`: special tokens that are not skipped.

        `prompt_tail_ids`: the prompt's last ids (a dozen will do): its text is not repeated, but a character it
        leaves unfinished is finished, and a space after it is kept."""
        self._bytes = tokenizer.token_bytes
        self._skip = tokenizer.special_ids - shown if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")(self._bytes.errors)
        self._strip_left = self._bytes.strip_left
        self.push(prompt_tail_ids)

    def copy(self) -> "Detokenizer":
        """One that goes on from here on its own."""
        twin = copy(self)
        twin._decoder = codecs.getincrementaldecoder("utf-8")(self._bytes.errors)
        twin._decoder.setstate(self._decoder.getstate())
        return twin

    def push(self, ids: Iterable[int]) -> str:
        """The text that `ids` complete."""
        table, skip = self._bytes, self._skip
        return self._strip(self._decoder.decode(b"".join([table[i] for i in ids if i not in skip])))

    def flush(self) -> str:
        """The rest: U+FFFD for the bytes of a character that never got finished."""
        return self._strip(self._decoder.decode(b"", final=True))

    @property
    def unfinished(self) -> bool:
        """Whether a character has begun of which bytes are still to come."""
        return bool(self._decoder.getstate()[0])

    def _strip(self, text: str) -> str:
        while self._strip_left and text:
            if text[0] != " ":
                self._strip_left = 0
                return text
            self._strip_left -= 1
            text = text[1:]
        return text
