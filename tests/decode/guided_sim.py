"""RouterSim with grammars: a fake engine that draws within masks, and an oracle that walks the grammar alone."""

import string
from collections.abc import Sequence
from concurrent.futures import wait
from hashlib import blake2b
from struct import pack
from typing import Any

import numpy as np
from isthmus.decode.automaton import Ending
from isthmus.decode.guidance import Guides
from isthmus.decode.guide import Guide
from isthmus.engine.fake_engine import FakeEngine, extend_history
from isthmus.engine.plan import Draw
from isthmus.tests.decode.router_sim import EOS, VOCAB, Request, RouterSim
from isthmus.text.grammar_cache import GrammarCache
from isthmus.text.grammar_compiler import GrammarCompiler, Vocabulary
from isthmus.wire.messages import Failed, FromWorker
from isthmus.wire.noise import philox_key
from isthmus.wire.sampling import Guidance, SamplingParams

TOKENS = [
    b"<eos>",
    *(c.encode() for c in string.ascii_lowercase + string.digits + '{}[]:,"'),
    b"ab",
    b"12",
    b'":',
    b"a1",
]
TOKENS += [b""] * (VOCAB - len(TOKENS))


def vocabulary() -> Vocabulary:
    def encode(text: str) -> list[int]:
        return [TOKENS.index(bytes([byte])) for byte in text.encode() if bytes([byte]) in TOKENS]

    return Vocabulary(TOKENS, special_ids=[EOS], eos_ids=[EOS], encode=encode)


def error_of(guide: Guide) -> str:
    """Why its output cannot go on."""
    ending = guide.ending
    return "" if ending is None or ending.error is None else ending.error


def text_of(token_ids: Sequence[int]) -> str:
    """Without the end of sequence."""
    return b"".join(TOKENS[token_id] for token_id in token_ids if token_id != EOS).decode()


class MaskedEngine(FakeEngine):
    """A draw with a mask is a function of history, key, position and mask."""

    _words: Any = None

    def _draw(self, draw: Draw, history: int) -> int:
        self._words = None if draw.mask is None else draw.mask.result()
        token = super()._draw(draw, history)
        self._words = None
        return token

    def _pick(self, history: int, key: tuple[int, int], position: int, banned: frozenset[int]) -> int:
        if self._words is None:
            return super()._pick(history, key, position, banned)
        return pick(self._words, history, key, position, banned)


def pick(words: np.ndarray, history: int, key: tuple[int, int], position: int, banned: frozenset[int]) -> int:
    """One of the tokens allowed, -1 if there is none."""
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[:VOCAB]
    allowed = [int(token_id) for token_id in bits.nonzero()[0] if token_id not in banned]
    digest = blake2b(pack("<QIII", history, *key, position), digest_size=8).digest()
    return allowed[int.from_bytes(digest, "little") % len(allowed)] if allowed else -1


class GuidedSim(RouterSim):
    def __init__(
        self, *, num_blocks: int, block_size: int = 4, compiler: GrammarCompiler | None = None, **options: Any
    ):
        self.guides = Guides(GrammarCache(compiler or GrammarCompiler(vocabulary)), VOCAB, num_threads=2)
        super().__init__(num_blocks=num_blocks, block_size=block_size, guides=self.guides, **options)
        eos_probability = options.get("eos_probability", 0.0)
        self.engine = MaskedEngine(num_blocks, block_size, VOCAB, eos_id=EOS, eos_probability=eos_probability)
        self.failures: list[tuple[Request, str]] = []
        self.awaits_grammars = True
        """The sim's time does not pass while a grammar is compiled."""

    def place(self, request: Request, choices: list[int]) -> int:
        placement = super().place(request, choices)
        if self.awaits_grammars and request.params.guidance is not None:
            wait([self.guides._grammars.get(request.params.guidance)], 20)
        return placement

    def on_message(self, message: FromWorker) -> None:
        if isinstance(message, Failed) and not message.retriable:
            request, choices = self.placed[message.placement]
            self.failures.append((request, message.error))
            request.cancelled.update(choices)
            self.leave(message.placement, None)
            return
        super().on_message(message)

    def expected(self, request: Request, choice: int) -> list[int]:
        params = request.params
        if params.guidance is None:
            return super().expected(request, choice)
        stops = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else {EOS})
        pending = self.guides.pending(params, stops, (EOS,), 0.0)
        guide = pending.begin(pending.grammar.result(20), ())
        key = philox_key(params.seed & (2**64 - 1), 0, choice)
        (*_, history), tokens = extend_history(0, request.prompt), []
        limit = params.max_tokens
        assert limit is not None
        while len(tokens) < limit:
            words = guide.mask().result()
            if guide.ending == Ending(None):
                break
            banned = stops if len(tokens) < params.min_tokens else frozenset()
            tokens.append(pick(words, history, key, len(tokens), banned))
            if tokens[-1] in stops:
                break
            (history,) = extend_history(history, tokens[-1:])
            guide.advance(tokens[-1:])
        return tokens

    def assert_exact(self, request: Request) -> None:
        """As ever, but that a grammar may end an output without a token for it."""
        if request.params.guidance is None:
            super().assert_exact(request)
            return
        for choice, output in request.outputs.items():
            expected = self.expected(request, choice)
            assert output == expected if choice in request.finished else output == expected[: len(output)]
            if choice in request.finished:
                row, limit = request.finished[choice], request.params.max_tokens
                assert (row.finish_reason == "length") == (len(output) == limit and output[-1] != EOS)


def guided(kind: str, spec: str, **params: Any) -> SamplingParams:
    return SamplingParams(guidance=Guidance(kind, spec), **{"seed": 1, "max_tokens": 60, **params})
