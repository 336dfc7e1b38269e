"""Markers, such as `<think>`, in a text that comes in pieces."""

from collections.abc import Sequence


def find_first(text: str, markers: Sequence[str], start: int = 0) -> tuple[int, str] | None:
    """Where the first of `markers` stands from `start` on, and which it is. None may be a part of another."""
    found = [(position, marker) for marker in markers if (position := text.find(marker, start)) >= 0]
    return min(found, default=None)


def num_unsure(text: str, markers: Sequence[str]) -> int:
    """Characters at the end of `text` that may turn out to begin one of `markers`."""
    return max((_overlap(text, marker) for marker in markers), default=0)


def _overlap(text: str, marker: str) -> int:
    longest = min(len(text), len(marker) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(marker[:length])), 0)
