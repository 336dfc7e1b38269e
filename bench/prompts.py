"""Prompts of a wanted length in tokens."""

from pathlib import Path

from ..text.tokenizer import Tokenizer

SENTENCE = " The isthmus joins two lands, and what crosses it must cross it once."


def long_text(folder: Path, num_tokens: int, number: int) -> str:
    """Text of `num_tokens` tokens, or a few more. Texts of different `number` differ from the first token on, so that
    no prefix cache shortens them. `folder`: a resolved model's."""
    tokenizer = Tokenizer.from_folder(folder)
    num_repeated = len(tokenizer.encode(SENTENCE * 2)) - len(tokenizer.encode(SENTENCE))
    return f"{number}." + SENTENCE * (num_tokens // num_repeated + 1)


def long_ids(num_tokens: int, number: int) -> list[int]:
    """As `long_text`, in token ids."""
    return [100 + number] * num_tokens
