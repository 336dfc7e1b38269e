"""The head in our engine is the one that was trained: where it guesses as it does here, the same guesses are right.

The engine answers prompts at temperature 0, always with as many guesses as it may. Then the training's own code guesses
from every position of those answers, each guess going in as the next token, and its guesses are counted where the
engine made some. In fp32 the counts are equal, but for logits that are as good as equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor

from ...engine.speculation_config import SpeculationConfig
from ...wire.sampling import SamplingParams
from ..batch_decoder import Request
from ..speculation_engines import EngineMaker
from .checkpoint import load_head
from .head import DraftHead
from .target import FrozenTarget


@dataclass(frozen=True, slots=True)
class Agreement:
    """Guesses that were right: the first of a step's, the second, …"""

    num_steps: int
    in_engine: tuple[int, ...]
    in_training: tuple[int, ...]

    def __str__(self) -> str:
        engine, training = (" / ".join(map(str, counts)) for counts in (self.in_engine, self.in_training))
        return f"right guesses in {self.num_steps} steps: {engine} in the engine, {training} in training's code"


@torch.no_grad()
def guess(
    head: DraftHead, target_ids: Tensor, target: FrozenTarget, token_ids: Sequence[int], num_guesses: int
) -> list[list[int]]:
    """At temperature 0, from each root of a text: the target's ids of what comes after the token after it."""
    tokens = torch.tensor([token_ids])
    features, _ = target.read(tokens, torch.tensor([0]))
    chains, given, made = head.chains(features.float()), tokens.roll(-1, 1), []
    for _ in range(num_guesses):
        hidden = chains.step(target.embed(given).float())
        given = target_ids[head.logits(hidden).argmax(-1)]
        made.append(given[0])
    return torch.stack(made, 1).tolist()


def check_head(
    folder: Path, maker: EngineMaker, prompts: Sequence[Sequence[int]], num_tokens: int, num_guesses: int
) -> Agreement:
    """`maker`: of fp32 engines on the CPU; answers of `num_tokens` tokens."""
    outputs, in_engine = answer(folder, maker, prompts, num_tokens, num_guesses)
    model = maker.model
    head, target_ids = load_head(folder, model.decoder_config)
    target = FrozenTarget.load(
        model.decoder_config, model.path, torch.float32, torch.device("cpu"), head.config.aux_layers, model.load_format
    )
    accepted: list[int] = []
    for prompt, output in zip(prompts, outputs, strict=True):
        token_ids = [*prompt, *output]
        accepted += walk(guess(head, target_ids, target, token_ids, num_guesses), token_ids, len(prompt))
    in_training = tuple(sum(count > turn for count in accepted) for turn in range(num_guesses))
    return Agreement(len(accepted), in_engine, in_training)


def answer(
    folder: Path, maker: EngineMaker, prompts: Sequence[Sequence[int]], num_tokens: int, num_guesses: int
) -> tuple[list[list[int]], tuple[int, ...]]:
    """By the engine, and how many guesses were right in each place [num_guesses]."""
    decoder = maker.decoder(SpeculationConfig("eagle", num_guesses, str(folder)), fixed=True)
    decoder.eos_ids = ()  # right guesses after an end count, too: no answer ends early
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, seed=0)
    outputs = decoder.run([Request(ids, params) for ids in prompts], batch=1).outputs
    assert decoder.speculation is not None
    right = decoder.speculation.num_accepted_per_position
    return outputs, (*right, *[0] * (num_guesses - len(right)))


def walk(guesses: Sequence[Sequence[int]], token_ids: Sequence[int], prompt_length: int) -> list[int]:
    """Of each step in which an engine guesses while it writes this text, how many of its guesses are right. The first
    token comes from the prompt's last position; one fewer is guessed than may still come."""
    accepted, known = [], prompt_length + 1
    while (room := len(token_ids) - known - 1) > 0:
        pairs = zip(guesses[known - 2][:room], token_ids[known:], strict=False)
        accepted.append(sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)))
        known += accepted[-1] + 1
    return accepted
