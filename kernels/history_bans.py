"""Bans of repeated n-grams and of bad words, for one row and its sequence, as Triton device functions.

A sequence is (runs, keys int32, how many keys there are): see history_table.Block. A list is (found, values).
"""

# mypy: allow-incomplete-defs

import triton
import triton.language as tl

from .history_lists import ban_listed, note_bans
from .history_penalties import spelled


@triton.jit
def ban_ngrams(row, sequence, lists, size, V, BLOCK: tl.constexpr):
    """Each token that followed an earlier copy of the last `size` − 1 tokens. A tile compares as many tokens as its
    longest copy has, so a large `size` costs nothing where the text does not repeat itself."""
    _, keys, num_tokens = sequence
    found, values = lists
    last, count = num_tokens - 1, 0
    for begin in range(tl.minimum(size, num_tokens + 1) - 2, last, BLOCK):
        ends = begin + tl.arange(0, BLOCK)  # [BLOCK]
        is_copy = ends < last
        compared, num_copies = 0, tl.sum(is_copy.to(tl.int32), 0)
        while (compared < size - 1) & (num_copies > 0):
            wanted = spelled(tl.load(keys + last - compared))
            is_copy &= spelled(tl.load(keys + ends - compared, mask=is_copy, other=0)) == wanted
            num_copies = tl.sum(is_copy.to(tl.int32), 0)
            compared += 1
        if num_copies > 0:
            following = spelled(tl.load(keys + ends + 1, mask=is_copy, other=0))
            count = note_bans(row, found, values, count, following, is_copy)
    ban_listed(row, found, values, count, V, BLOCK)


@triton.jit
def ban_words(row, sequence, lists, words, num_words, longest, num_output, V, BLOCK: tl.constexpr):
    """The last token of each word whose others the output ends with. `words`: see HistoryTable."""
    _, keys, num_tokens = sequence
    found, values = lists
    count = 0
    for begin in range(0, num_words, BLOCK):
        word = begin + tl.arange(0, BLOCK)  # [BLOCK]
        inside = word < num_words
        final = tl.load(words + word + 1, mask=inside, other=0) - 1
        num_before = final - tl.load(words + word, mask=inside, other=0)
        is_begun = inside & (num_before <= num_output)
        for back in range(tl.minimum(longest - 1, num_output)):
            said = spelled(tl.load(keys + num_tokens - 1 - back))
            is_compared = is_begun & (back < num_before)
            is_begun &= (is_compared == 0) | (tl.load(words + final - 1 - back, mask=is_compared, other=-1) == said)
        banned = tl.load(words + final, mask=is_begun, other=0)
        count = note_bans(row, found, values, count, banned, is_begun)
    ban_listed(row, found, values, count, V, BLOCK)
