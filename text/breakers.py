"""Where strings end in a text of tokens: DRY's sequence breakers.

The automaton of Aho and Corasick (1975) over bytes: one state is all that the text so far says about the next token, so
a breaker may lie across tokens in any way. A token is a breaker where an occurrence of any string ends inside it.
"""

from collections.abc import Sequence

import numpy as np

from .vocabulary import VocabularyBytes

IS_END = 0x8000
"""The bit of a state at which an occurrence ends."""


class Breakers:
    """The automaton of some strings, over one vocabulary.

    `table` uint16 [S, 256]: the state after a byte, state 0 being that of an empty text; with `IS_END` where an
    occurrence ends with this byte. Raises ValueError for a string that is empty or not valid Unicode."""

    def __init__(self, strings: Sequence[str], vocabulary: VocabularyBytes) -> None:
        patterns = [_encoded(string) for string in strings]
        self.table = byte_automaton(patterns)
        self._vocabulary = vocabulary
        self._next = self.table.flatten().tolist()
        lengths = np.diff(vocabulary.offsets)
        # Most tokens have none of the strings' bytes: the state after them is 0.
        self._resets = (vocabulary.uses_of(b"".join(patterns)) == 0) & (lengths > 0)

    def step(self, state: int, token: int) -> tuple[int, bool]:
        """(state after the token, whether it is a breaker)."""
        is_breaker = False
        for byte in self._vocabulary[token]:
            state = self._next[state << 8 | byte]
            if state & IS_END:
                state, is_breaker = state ^ IS_END, True
        return state, is_breaker

    def scan(self, tokens: Sequence[int]) -> tuple[np.ndarray, int]:
        """(which tokens of a text are breakers, bool [n]; the state after the last)."""
        ids = np.asarray(tokens, np.int64)
        known = ids < len(self._resets)
        resets = np.zeros(len(ids), bool)
        resets[known] = self._resets[ids[known]]
        flags, state, last = np.zeros(len(ids), bool), 0, -1
        for index in np.flatnonzero(~resets).tolist():
            state, flags[index] = self.step(state if index == last + 1 else 0, int(ids[index]))
            last = index
        return flags, state if last == len(ids) - 1 else 0


def byte_automaton(patterns: Sequence[bytes]) -> np.ndarray:
    """`Breakers.table` of byte strings that are not empty. The states are the beginnings of strings that may go on:
    single bytes need one."""
    edges, ends = _trie(patterns)
    assert len(edges) < IS_END
    table = np.zeros((len(edges), 256), np.uint16)
    fallback, settled, queue = [0] * len(edges), [0] * len(edges), [0]
    for node in queue:  # breadth first: a node's fallback, which is shallower, is complete
        table[node] = table[fallback[node]]
        ends[node] |= ends[fallback[node]]
        settled[node] = node if edges[node] else settled[fallback[node]]
        for byte, child in edges[node].items():
            fallback[child] = int(table[node, byte])  # as if there were no such edge
            table[node, byte] = child
            queue.append(child)
    states = np.unique(settled)
    table = table[states]
    numbers = np.searchsorted(states, settled).astype(np.uint16)
    return numbers[table] | ends[table].astype(np.uint16) * np.uint16(IS_END)


def _trie(patterns: Sequence[bytes]) -> tuple[list[dict[int, int]], np.ndarray]:
    """(the children of each node, whether a pattern ends at it); node 0 is the root."""
    edges: list[dict[int, int]] = [{}]
    ends = []
    for pattern in patterns:
        node = 0
        for byte in pattern:
            child = edges[node].setdefault(byte, len(edges))
            if child == len(edges):
                edges.append({})
            node = child
        ends.append(node)
    is_end = np.zeros(len(edges), bool)
    is_end[ends] = True
    return edges, is_end


def _encoded(string: str) -> bytes:
    if not string:
        raise ValueError("dry_sequence_breakers holds an empty string")
    try:
        return string.encode()
    except UnicodeEncodeError:
        raise ValueError("dry_sequence_breakers holds half a surrogate pair") from None
