"""What history says about the next token, as the definitions are written: the whole context anew for each."""

import numpy as np


def breaker_flags(tokens, spellings, breakers):
    """Of each token, whether an occurrence of a breaker ends inside it; by looking at the whole text."""
    flags, text = [], b""
    for token in tokens:
        begin, text = len(text), text + spellings[token]
        ends = range(begin + 1, len(text) + 1)
        flags.append(any(text[:end].endswith(breaker.encode()) for breaker in breakers for end in ends))
    return flags


def common_suffix(tokens, flags, end, first):
    """Tokens by which the text that ends at `end` equals the whole one, within the window, up to a breaker."""
    length = 0
    while end - length >= first and tokens[end - length] == tokens[len(tokens) - 1 - length]:
        if flags[end - length] or flags[len(tokens) - 1 - length]:
            break
        length += 1
    return length


def dry(tokens, flags, params):
    """{token: what it loses}"""
    first = max(0, len(tokens) - params.dry_range) if params.dry_range > 0 else 0
    longest = {}
    for end in range(first, len(tokens) - 1):
        length = common_suffix(tokens, flags, end, first)
        if length >= 1 and not flags[end + 1]:
            following = tokens[end + 1]
            longest[following] = max(longest.get(following, 0), length)
    allowed = params.dry_allowed_length
    losses = {token: (length, params.dry_base ** (length - allowed)) for token, length in longest.items()}
    return {token: params.dry_multiplier * power for token, (length, power) in losses.items() if length >= allowed}


def repeated_ngrams(tokens, size):
    begun = tuple(tokens[len(tokens) - size + 1 :])
    grams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    return {gram[-1] for gram in grams if gram[:-1] == begun and len(tokens) >= size - 1}


def completed_words(output, words):
    return {word[-1] for word in words if output[len(output) - len(word) + 1 :] == list(word[:-1])}


def repetition(tokens, params):
    """{token: its penalty}, of those in the window."""
    window = params.repetition_penalty_range or len(tokens)
    recent = tokens[max(0, len(tokens) - window) :]
    older, newer = recent[: len(recent) // 2], recent[len(recent) // 2 :]
    weak = max(0.01, 1 + (params.repetition_penalty - 1) * params.repetition_penalty_slope)
    penalties = {token: np.float32(weak) for token in older}
    return penalties | {token: np.float32(params.repetition_penalty) for token in newer}
