"""How often guesses are accepted: with the target's noise, with noise of their own, and at best (1 − TV).

The target writes text under each law (temperature, top-p); at each position of it, the distributions of target and
draft, both after that law, give the acceptances (see coupling.py), which are averaged; also what a second guess adds.
Drafts are the target's own first layers with its final norm and head, the whole target at a higher temperature, and the
target in bf16: from far to near. Guessing under the accepted text is what a drafter does, too: a guess counts only if
all before it were accepted.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.attention import PagedAttention
from ..engine.config import ModelConfig
from ..engine.load import load_model
from ..engine.models.llama import Llama
from ..engine.plan import Row
from ..launch.demo_model import cache_dir, ensure_demo_model
from ..text.resolve import resolve
from ..text.tokenizer import Tokenizer
from .coupling import optimum, own_noise, second_guess, shared_noise
from .report import command_line, cpu_model, versions
from .sampled_text import TASKS, Law, Text, block_table, pool_for, prompts_of, sample_texts

LAYERS = (10, 15, 20, 25)
NUM_DRAWS = 16
"""A position, where nothing is in closed form."""
HOTTER = 1.5
"""What the temperature of the draft named so is multiplied by."""
HEADER = (
    "| draft | temperature | top-p | positions | coupled | independent | 1 − TV | coupled ÷ optimum | second guess |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


@dataclass(slots=True)
class Acceptance:
    """Sums over positions, of one draft under one law."""

    num_positions: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))
    """Of shared noise, own noise, optimum, a second guess."""

    def add(self, p: Tensor, q: Tensor) -> None:
        """The target's and the draft's distribution at each position, fp64 [N, V]."""
        self.num_positions += len(p)
        second = partial(second_guess, num_draws=NUM_DRAWS, seed=self.num_positions)
        self.sums += torch.stack([measure(p, q).sum() for measure in (shared_noise, own_noise, optimum, second)])

    def line(self, draft: str, law: Law) -> str:
        """Of the table."""
        shared, own, best, second = (self.sums / self.num_positions).tolist()
        numbers = f"{self.num_positions} | {shared:.3f} | {own:.3f} | {best:.3f} | {shared / best:.3f} | {second:.3f}"
        return f"| {draft} | {law.temperature:g} | {law.top_p:g} | {numbers} |"


class Drafts:
    """Logits of the target and of all drafts at the positions of a text."""

    def __init__(self, target: Llama, rounded: Llama, layers: Sequence[int]) -> None:
        """`rounded`: the target in bf16. Raises ValueError where a number of layers is not below the target's."""
        num_layers = target.config.num_layers
        if wrong := [n for n in layers if not 0 < n < num_layers]:
            raise ValueError(f"a draft of {wrong[0]} layers: the model has {num_layers}")
        self._target, self._rounded, self._layers = target, rounded, layers

    def logits(self, text: Text) -> tuple[Tensor, dict[str, Tensor]]:
        """The target's, fp32 [N, V], and each draft's by name."""
        whole = self._target.config.num_layers
        after = logits_after(self._target, text, [*self._layers, whole])
        drafts = {f"first {n} of {whole} layers": after[n] for n in self._layers}
        drafts[f"target, temperature × {HOTTER:g}"] = after[whole] / HOTTER
        drafts["target in bf16"] = logits_after(self._rounded, text, [whole])[whole]
        return after[whole], drafts


@torch.inference_mode()
def logits_after(model: Llama, text: Text, num_layers: Sequence[int]) -> dict[int, Tensor]:
    """What the head makes of the residual stream after so many layers: fp32 [N, V], row i of it the law of
    `output_ids[i]`."""
    token_ids = [*text.prompt_ids, *text.output_ids[:-1]]
    row = Row(0, token_ids, 0, block_table(0, len(token_ids)))
    config = model.config
    attention = PagedAttention(
        pool_for(model, 1, len(token_ids)),
        (row,),
        num_heads=config.num_heads,
        windows=config.windows,
        rope=model.rope,
    )
    x, logits = F.embedding(torch.tensor(token_ids), model.embedding), {}
    for n, layer in enumerate(model.layers, 1):
        x = layer.finish(x, layer.attend(x, attention))
        if n in num_layers:
            logits[n] = model.head(x[len(text.prompt_ids) - 1 :])
    return logits


def measure_law(drafts: Drafts, texts: Sequence[Text], law: Law) -> dict[str, Acceptance]:
    """Of each draft, by name."""
    found: dict[str, Acceptance] = {}
    for text in texts:
        target, guesses = drafts.logits(text)
        p = law.probabilities(target)
        for name, logits in guesses.items():
            found.setdefault(name, Acceptance()).add(p, law.probabilities(logits))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    laws = [Law(temperature, top_p) for top_p in options.top_ps for temperature in options.temperatures]
    torch.set_num_threads(options.threads)
    resolved = resolve(options.model or str(ensure_demo_model()), cache_dir())
    sizes, stop_ids = ModelConfig.from_hf(resolved.config()), Tokenizer.from_folder(resolved.folder).eos_ids
    target, rounded = (load_model(sizes, resolved.weights, dtype) for dtype in (torch.float32, torch.bfloat16))
    drafts, prompts = Drafts(target, rounded, options.layers), prompts_of(options.prompts, resolved.folder)
    print(f"`{command_line()}`\n\n{Path(resolved.source).name}, fp32, {cpu_model()}, {versions(['torch'])}, ", end="")
    print(f"{len(prompts)} texts a law\n\n{HEADER}")
    for law in laws:
        texts = sample_texts(target, prompts, law, options.tokens, stop_ids, options.seed)
        for name, acceptance in measure_law(drafts, texts, law).items():
            print(acceptance.line(name, law), flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m isthmus.bench.coupled_drafts", description=__doc__)
    parser.add_argument("--model", help="MODEL; default: the demo model")
    parser.add_argument("--layers", type=int, nargs="*", default=LAYERS, help="of the drafts made of first layers")
    parser.add_argument("--temperatures", type=float, nargs="+", default=(0.7, 1.0))
    parser.add_argument("--top-ps", type=float, nargs="+", default=(1.0, 0.95))
    parser.add_argument("--prompts", nargs="+", default=tuple(TASKS), choices=tuple(TASKS), help="kinds of task")
    parser.add_argument("--tokens", type=int, default=48, help="of each text, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
