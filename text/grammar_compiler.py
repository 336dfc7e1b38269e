"""Grammars to automata over a model's tokens, within limits of work: llguidance.

A compiled grammar is a matcher at the beginning of an output: it is copied, never advanced. Its masks have a bit a
token, lowest first, in 32-bit words. An end-of-sequence token is allowed exactly where the output may end,
other special tokens only where the grammar names them.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from ..wire.sampling import Guidance
from .grammar import GrammarError, grammar_of
from .tokenizer import Tokenizer

NO_DETAILS = "<non-verbose/>"
REASONS = {"NoExtensionBias": "no output can match it"}
"""Sentences for what llguidance says in one word."""

Words = npt.NDArray[np.uint32]
MAX_MESSAGE = 300
NUM_FORCED, MAX_FORCED = 4096, 256
"""Texts, of so many bytes at most, whose tokens are remembered. llguidance asks wherever a grammar lets nothing but one
text come next, such as a schema's key, and cutting it takes longer than the mask."""

LIMITS = LLParserLimits(verbose_errors=False)
"""llguidance's own: about 20 ms of work to build a lexer, 15 ms a token, 500,000 symbols, and 2000 Earley items a row,
which ends ambiguous grammars (work grows with their square). Its messages do not repeat the grammar."""


class Vocabulary:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(
        self,
        tokens: Sequence[bytes],
        *,
        special_ids: Iterable[int],
        eos_ids: Iterable[int],
        encode: Callable[[str], list[int]],
    ):
        """`tokens`: the bytes of every id that the model may draw; `encode` cuts text as the model expects."""
        self.size = len(tokens)
        self.eos_ids = sorted(set(eos_ids)) or [self.size]  # llguidance wants one: an id that no model draws
        self.eos_token_id = self.eos_ids[0]
        self.tokens = [*tokens, b""] if self.eos_token_id == self.size else list(tokens)
        self.special_token_ids = sorted({*special_ids, *self.eos_ids})
        self._encode = encode
        self._encode_again = lru_cache(NUM_FORCED)(encode)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Vocabulary":
        size = tokenizer.vocab_size
        return cls(
            [tokenizer.token_bytes[token_id] for token_id in range(size)],
            special_ids=(token_id for token_id in tokenizer.special_ids if token_id < size),
            eos_ids=(token_id for token_id in tokenizer.eos_ids if token_id < size),
            encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
        )

    def __call__(self, text: bytes) -> list[int]:
        return (self._encode if len(text) > MAX_FORCED else self._encode_again)(text.decode())

    @property
    def special(self) -> Mapping[str, int]:
        """Ids of the special tokens by their text."""
        return {self.tokens[i].decode(errors="replace"): i for i in self.special_token_ids if self.tokens[i]}


class GrammarCompiler:
    """For the vocabulary that `load` gives when the first grammar comes: reading one takes up to a second. Safe to
    share between threads."""

    def __init__(self, load: Callable[[], Vocabulary]):
        self._load = load
        self._lock = threading.Lock()
        self._loaded: tuple[LLTokenizer, Mapping[str, int]] | None = None

    def compile(self, guidance: Guidance) -> LLMatcher:
        """Raises GrammarError if it is wrong, asks for what is not supported, or takes too much work."""
        tokens, special = self._tokens()
        matcher = LLMatcher(tokens, grammar_of(guidance, special), log_level=0, limits=LIMITS)
        if not matcher.is_error():
            next_tokens(matcher, tokens.vocab_size)  # work that the first output would have to do
        if matcher.is_error():
            raise GrammarError(error_of(matcher))
        return matcher

    def num_words(self) -> int:
        """Of a mask."""
        return -(-self._tokens()[0].vocab_size // 32)

    def _tokens(self) -> tuple[LLTokenizer, Mapping[str, int]]:
        with self._lock:
            if self._loaded is None:
                words = self._load()
                wrapper = TokenizerWrapper(words)
                tokens = LLTokenizer(wrapper, n_vocab=len(words.tokens), eos_token=list(words.eos_ids))
                self._loaded = tokens, words.special
            return self._loaded


def next_tokens(matcher: LLMatcher, num_tokens: int) -> Words:
    """The mask uint32 [ceil(num_tokens / 32)] of what may come next; `num_tokens` is that of its tokenizer. Frees the
    GIL. On failure `matcher.is_error()` is true afterwards, and the mask means nothing."""
    words = np.empty(-(-num_tokens // 32), np.uint32)
    matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
    return words


def error_of(matcher: LLMatcher) -> str:
    """Why it has failed, in few words."""
    message = matcher.get_error().removesuffix(NO_DETAILS).strip()
    return REASONS.get(message, message.replace("\n", "; ")[:MAX_MESSAGE])
