"""Several strings looked for at once, a character at a time (Aho and Corasick, 1975).

A node stands for the longest beginning of a string that a text ends with: what may still become one of them. Nodes
never change, so a text's place in the automaton is remembered by keeping its node.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Node:
    depth: int
    """Characters of that beginning."""
    longest: str | None = None
    """Of the strings that end here."""
    shortest: str | None = None
    """Of the strings that end here."""
    next: dict[str, "Node"] = field(default_factory=dict)
    fallback: "Node | None" = None
    """The longest proper suffix of this beginning that is one too; None at the root."""

    def step(self, character: str) -> "Node":
        node = self
        while character not in node.next:
            if node.fallback is None:
                return node
            node = node.fallback
        return node.next[character]


def automaton(strings: Iterable[str]) -> Node:
    """The root. Takes time and memory in proportion to all strings' characters. No string may be empty."""
    root = Node(depth=0)
    for string in strings:
        assert string
        node = root
        for character in string:
            node = node.next.setdefault(character, Node(node.depth + 1))
        node.longest = node.shortest = string
    _link(root)
    return root


def _link(root: Node) -> None:
    """Set the fallbacks, breadth first: a node's fallback is shallower, so it is complete when it is needed."""
    queue = deque([root])
    while queue:
        node = queue.popleft()
        for character, child in node.next.items():
            child.fallback = root if node.fallback is None else node.fallback.step(character)
            child.longest = child.longest or child.fallback.longest
            child.shortest = child.fallback.shortest or child.shortest
            queue.append(child)
