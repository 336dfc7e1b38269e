"""Stop strings in a text that comes in pieces."""

from collections.abc import Sequence

from .automaton import automaton


class StopMatcher:
    """Finds the stop string that is complete first; of those complete at the same character, the longest.

    Text is held back only while it may still become a stop string. Raises ValueError for an empty stop string.
    """

    def __init__(self, stops: Sequence[str], include_stop: bool = False) -> None:
        """`include_stop`: the matched string is part of the text that is given out."""
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self._root = automaton(stops)
        self._node = self._root
        self._held = ""
        self._include_stop = include_stop

    def push(self, text: str) -> tuple[str, str | None]:
        """(text to give out, matched stop string or None). After a match nothing more may be pushed."""
        if not self._root.next:
            return text, None
        pending = self._held + text
        for position, character in enumerate(text, start=len(self._held) + 1):
            self._node = self._node.step(character)
            if self._node.longest is not None:
                return self._matched(pending, position, self._node.longest)
        split = len(pending) - self._node.depth
        self._held = pending[split:]
        return pending[:split], None

    def flush(self) -> str:
        """The text still held back, once no more can come."""
        held, self._held, self._node = self._held, "", self._root
        return held

    def _matched(self, pending: str, end: int, stop: str) -> tuple[str, str]:
        self._held = ""
        return pending[: end if self._include_stop else end - len(stop)], stop
