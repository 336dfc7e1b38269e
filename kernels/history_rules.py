"""What a history of tokens costs the next one: the rules that CPU and device share, in numpy.

Sources: DRY (p-e-w, 2024); repetition penalty (Keskar et al., CTRL, 2019), its range and slope (KoboldCpp).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

MAX_PENALTY = 1e30
"""Finite in fp32, as is what temperatures and other penalties make of it; no token with less is ever drawn."""
MIN_REPETITION = 0.01
"""What slopes do not take the repetition penalty below: a request's own minimum."""

MAX_COMPARED = 64
"""Tokens of matches that are compared one by one: most repetitions are shorter."""


class BreakerAutomaton(Protocol):
    """Finds the tokens that DRY's sequence breakers end in, from bytes to states; state 0 is that of an empty text."""

    @property
    def table(self) -> np.ndarray:
        """uint16 [S, 256]: the state after each byte, with bit 15 set where a breaker ends with it."""

    def scan(self, tokens: Sequence[int]) -> tuple[np.ndarray, int]:
        """(which tokens are breakers, bool [n]; the state after the last)."""

    def step(self, state: int, token: int) -> tuple[int, bool]:
        """(the state after one more token; whether it is a breaker)."""


@dataclass(frozen=True, slots=True)
class Matches:
    """Earlier positions i at which the text that ends there equals, by some tokens, the text that ends now."""

    positions: np.ndarray
    """int32 [k], ascending."""
    lengths: np.ndarray
    """int32 [k], ≥ 1: how many tokens are equal."""


NO_MATCHES = Matches(np.zeros(0, np.int32), np.zeros(0, np.int32))


def break_keys(tokens: Sequence[int], breakers: BreakerAutomaton | None) -> tuple[np.ndarray, int]:
    """(int32 [n]: the tokens, t as ~t where it is a breaker and so matches nothing; the state after them)."""
    ids = np.asarray(tokens, np.int32)
    if breakers is None:
        return ids, 0
    flags, state = breakers.scan(tokens)
    return np.where(flags, ~ids, ids), state


def find_matches(keys: np.ndarray, window: int = 0) -> Matches:
    """The matches at the end of `keys`, int32 [n], where a negative one matches nothing; with a window, those that end
    within the last so many. Takes linear time at worst: long ones are found from all keys at once."""
    if len(keys) == 0 or keys[-1] < 0:
        return NO_MATCHES
    lengths = _short_matches(keys)
    if lengths is None:
        unequal = np.where(keys < 0, -1 - np.arange(len(keys)), keys)
        lengths = np.array(_z_function(unequal[::-1].tolist()), np.int32)[::-1]
        lengths[-1] = 0
    if window:
        lengths[: max(0, len(keys) - window)] = 0
    positions = np.flatnonzero(lengths).astype(np.int32)
    return Matches(positions, lengths[positions])


def _short_matches(keys: np.ndarray) -> np.ndarray | None:
    """The length of the match that ends at each position, 0 for none; None where one reaches MAX_COMPARED."""
    lengths, last = np.zeros(len(keys), np.int32), len(keys) - 1
    ends = np.flatnonzero(keys[:-1] == keys[-1])
    for length in range(1, MAX_COMPARED):
        lengths[ends] = length
        ends = ends[ends >= length]
        if len(ends) == 0 or keys[last - length] < 0:
            return lengths
        ends = ends[keys[ends - length] == keys[last - length]]
    return None if len(ends) else lengths


def _z_function(keys: Sequence[int]) -> list[int]:
    """Of each place, by how many keys the sequence from there on equals its own beginning (Gusfield, 1997)."""
    num_keys = len(keys)
    lengths = [num_keys] + [0] * (num_keys - 1)
    left = right = 0
    for place in range(1, num_keys):
        length = min(right - place, lengths[place - left]) if place < right else 0
        while place + length < num_keys and keys[length] == keys[place + length]:
            length += 1
        if place + length > right:
            left, right = place, place + length
        lengths[place] = length
    return lengths


def longest_repeats(
    keys: np.ndarray, matches: Matches, allowed_length: int, window: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens that followed matches of at least `allowed_length`, distinct; the longest match of each), int32 [k].

    `window`: both texts lie within the last so many keys; 0 is all. A negative key that followed is left out."""
    first = max(0, len(keys) - window) if window else 0
    lengths = np.minimum(matches.lengths, matches.positions - first + 1)
    following = keys[matches.positions + 1]
    counts = (lengths >= allowed_length) & (following >= 0)
    ids, group = np.unique(following[counts], return_inverse=True)
    longest = np.zeros(len(ids), np.int32)
    np.maximum.at(longest, group, lengths[counts])
    return ids, longest


def dry_penalty(lengths: np.ndarray, multiplier: float, base: float, allowed_length: int) -> np.ndarray:
    """multiplier · base^(lengths − allowed_length), at most MAX_PENALTY, as fp32."""
    logarithms = (lengths.astype(np.float64) - allowed_length) * math.log(base) + math.log(multiplier)
    return np.exp(np.minimum(logarithms, math.log(MAX_PENALTY))).astype(np.float32)


def repetition_bounds(num_tokens: int, window: int) -> tuple[int, int]:
    """(first position within the last `window` tokens, 0 being all; first one of their newer half)."""
    inside = min(window or num_tokens, num_tokens)
    return num_tokens - inside, num_tokens - inside + inside // 2


def older_repetition(penalty: float, slope: float) -> float:
    """The repetition penalty in the older half of its range."""
    return max(MIN_REPETITION, 1 + (penalty - 1) * slope)
