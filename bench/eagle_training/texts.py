"""Prompts with the answers that the target gave: what a head is trained on."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .. import sampled_text

Text = sampled_text.Text


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts side by side, those that are shorter filled up at their end."""

    token_ids: Tensor
    """int64 [B, T]"""
    prompt_lengths: Sequence[int]
    lengths: Sequence[int]

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.token_ids.to(device, non_blocking=True), self.prompt_lengths, self.lengths)


def save_texts(path: Path, texts: Sequence[Text]) -> None:
    """One file: token ids of all, int32, and of each how many are its prompt's and its answer's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    token_ids = [token for text in texts for token in (*text.prompt_ids, *text.output_ids)]
    save_file(
        {
            "token_ids": torch.tensor(token_ids, dtype=torch.int32),
            "prompt_lengths": torch.tensor([len(text.prompt_ids) for text in texts], dtype=torch.int32),
            "output_lengths": torch.tensor([len(text.output_ids) for text in texts], dtype=torch.int32),
        },
        path,
    )


def load_texts(path: Path) -> list[Text]:
    """What `save_texts` wrote."""
    given = load_file(path)
    prompts, outputs = given["prompt_lengths"].tolist(), given["output_lengths"].tolist()
    ends = accumulate((length for both in zip(prompts, outputs, strict=True) for length in both), initial=0)
    parts = [given["token_ids"][start:end].tolist() for start, end in pairwise(ends)]
    return [Text(prompt, output) for prompt, output in zip(parts[::2], parts[1::2], strict=True)]


def hold_out(texts: Sequence[Text], count: int) -> tuple[list[Text], list[Text]]:
    """The first `count`, and of the others those with prompts of their own."""
    held = list(texts[:count])
    prompts = {tuple(text.prompt_ids) for text in held}
    return held, [text for text in texts[count:] if tuple(text.prompt_ids) not in prompts]


def batches(texts: Sequence[Text], max_tokens: int, rng: random.Random) -> Iterator[Batch]:
    """All texts once, in batches of similar lengths, in random order. `max_tokens`: of a batch, filled up, unless one
    text alone has more."""
    order = sorted(range(len(texts)), key=lambda index: _length(texts[index]) * rng.uniform(0.9, 1.1))
    groups: list[list[Text]] = [[]]
    longest = 0
    for text in (texts[index] for index in order):
        longest = max(longest, _length(text))
        if groups[-1] and longest * (len(groups[-1]) + 1) > max_tokens:
            groups.append([])
            longest = _length(text)
        groups[-1].append(text)
    rng.shuffle(groups)
    yield from map(make_batch, groups)


def make_batch(texts: Sequence[Text]) -> Batch:
    lengths = [_length(text) for text in texts]
    token_ids = torch.zeros(len(texts), max(lengths), dtype=torch.int64)
    for row, text, length in zip(token_ids, texts, lengths, strict=True):
        row[:length] = torch.tensor([*text.prompt_ids, *text.output_ids])
    return Batch(token_ids, [len(text.prompt_ids) for text in texts], lengths)


def _length(text: Text) -> int:
    return len(text.prompt_ids) + len(text.output_ids)
