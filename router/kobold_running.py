"""The generations of Kobold's routes that can be looked at and aborted by genkey."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .text_stream import TextStream
from .token_logprobs import ScoredToken

GenKey = tuple[str, str]
"""Client address and its genkey: Lite's are "KCPP" and four digits, so two users may well have the same. Empty where
the client sends none, as SillyTavern's abort does."""

MAX_ENDED = 64
"""Generations whose logprobs are kept after their end, for clients that ask then."""


class RunningGenerations:
    def __init__(self) -> None:
        self._by_key: dict[GenKey, list[TextStream]] = defaultdict(list)
        self._ended: dict[GenKey, Sequence[ScoredToken]] = {}
        """Logprobs of generations that have ended, the newest last."""

    @contextmanager
    def registered(self, key: GenKey, text: TextStream) -> Iterator[None]:
        self._by_key[key].append(text)
        try:
            yield
        finally:
            self._by_key[key].remove(text)
            self._remember(key, text.choices[0].logprobs)
            if not self._by_key[key]:
                del self._by_key[key]

    def text_so_far(self, key: GenKey) -> str:
        """Of the newest generation with this key; empty if there is none."""
        if key not in self._by_key:
            return ""
        return "".join(self._by_key[key][-1].choices[0].parts)

    def _remember(self, key: GenKey, scored: Sequence[ScoredToken]) -> None:
        self._ended.pop(key, None)
        if scored:
            self._ended[key] = scored
        while len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]

    def last_logprobs(self, key: GenKey) -> Sequence[ScoredToken]:
        """Of the newest generation with this key, or of the last one that has ended; empty where neither asked."""
        if key in self._by_key:
            return self._by_key[key][-1].choices[0].logprobs
        return self._ended.get(key, ())

    def abort(self, key: GenKey) -> bool:
        """Ends all generations with this key; whether there was one."""
        streams = self._by_key.get(key, ())
        for text in streams:
            text.cancel()
        return bool(streams)

    def __len__(self) -> int:
        return sum(len(streams) for streams in self._by_key.values())
