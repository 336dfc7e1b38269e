"""Stop strings in a text that comes in pieces."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Node:
    """A prefix of a stop string, in the automaton of Aho and Corasick (1975)."""

    depth: int
    stop: str | None = None
    """The longest stop string that ends here."""
    next: dict[str, "_Node"] = field(default_factory=dict)
    fallback: "_Node | None" = None
    """The longest proper suffix of this prefix that is a prefix too; None at the root."""


class StopMatcher:
    """Finds the stop string that is complete first; of those complete at the same character, the longest.

    Text is held back only while it may still become a stop string. Raises ValueError for an empty stop string.
    """

    def __init__(self, stops: Sequence[str], include_stop: bool = False) -> None:
        """`include_stop`: the matched string is part of the text that is given out."""
        self._root = _automaton(stops)
        self._node = self._root
        self._held = ""
        self._include_stop = include_stop

    def push(self, text: str) -> tuple[str, str | None]:
        """(text to give out, matched stop string or None). After a match nothing more may be pushed."""
        if not self._root.next:
            return text, None
        pending = self._held + text
        for position, character in enumerate(text, start=len(self._held) + 1):
            self._node = _step(self._node, character)
            if self._node.stop is not None:
                return self._matched(pending, position, self._node.stop)
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


def _step(node: _Node, character: str) -> _Node:
    while character not in node.next:
        if node.fallback is None:
            return node
        node = node.fallback
    return node.next[character]


def _automaton(stops: Sequence[str]) -> _Node:
    root = _Node(depth=0)
    for stop in stops:
        if not stop:
            raise ValueError("a stop string must not be empty")
        node = root
        for character in stop:
            node = node.next.setdefault(character, _Node(node.depth + 1))
        node.stop = stop
    _link(root)
    return root


def _link(root: _Node) -> None:
    """Set the fallbacks, breadth first: a node's fallback is shallower, so it is complete when it is needed."""
    queue = deque([root])
    while queue:
        node = queue.popleft()
        for character, child in node.next.items():
            child.fallback = root if node.fallback is None else _step(node.fallback, character)
            child.stop = child.stop or child.fallback.stop
            queue.append(child)
