"""The generations of Kobold's routes that can be looked at and aborted by genkey."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from .text_stream import TextStream

GenKey = tuple[str, str]
"""Client address and its genkey: Lite's are "KCPP" and four digits, so two users may well have the same. Empty where
the client sends none, as SillyTavern's abort does."""


class RunningGenerations:
    def __init__(self) -> None:
        self._by_key: dict[GenKey, list[TextStream]] = defaultdict(list)

    @contextmanager
    def registered(self, key: GenKey, text: TextStream) -> Iterator[None]:
        self._by_key[key].append(text)
        try:
            yield
        finally:
            self._by_key[key].remove(text)
            if not self._by_key[key]:
                del self._by_key[key]

    def text_so_far(self, key: GenKey) -> str:
        """Of the newest generation with this key; empty if there is none."""
        if key not in self._by_key:
            return ""
        return "".join(self._by_key[key][-1].choices[0].parts)

    def abort(self, key: GenKey) -> bool:
        """Ends all generations with this key; whether there was one."""
        streams = self._by_key.get(key, ())
        for text in streams:
            text.cancel()
        return bool(streams)

    def __len__(self) -> int:
        return sum(len(streams) for streams in self._by_key.values())
