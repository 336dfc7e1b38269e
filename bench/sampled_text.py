"""Text as a model itself writes it: replies to a few tasks, sampled under a law, by the engine and its sampler."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..decode.sampler import Sampler
from ..engine.kv_pool import KvPool
from ..engine.models.llama import Llama
from ..engine.plan import Draw, Plan, Row, SequenceSeed
from ..engine.torch_engine import TorchEngine
from ..kernels.samplers import keep_top_p, scale
from ..text.chat_template import ChatTemplate, load_chat_template
from ..text.tokenizer import Tokenizer
from ..wire.noise import philox_key
from ..wire.sampling import SamplingParams

BLOCK_SIZE = 16
ARTICLE = (
    "The isthmus was cut in 1893 after eleven years of work. The canal is six kilometres long and twenty-one metres "
    "wide, too narrow for modern freighters, so most of its traffic today is small boats and tourists. Landslides "
    "closed it for two years in the 1920s, and again for most of 2021 and 2022."
)
TASKS = {
    "chat": ("How do I keep basil alive on a windowsill?", "Why is the sky red in the evening?"),
    "summary": (f"Summarise in two sentences: {ARTICLE}", f"What are the main points of this text? {ARTICLE}"),
    "edit": (f"Repeat this text, but change every year to 1950: {ARTICLE}", f"Correct the spelling: {ARTICLE}"),
    "json": (
        "List three European capitals as a JSON array of objects with the fields name, country and population.",
        f"Answer with a JSON object with the fields year, length_km and width_m for this text: {ARTICLE}",
    ),
}
"""What users ask, by kind."""


@dataclass(frozen=True, slots=True)
class Law:
    """What makes a distribution of logits. Raises ValueError where it would be none."""

    temperature: float
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"the temperature is {self.temperature:g}: it must be above 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top-p is {self.top_p:g}: it must be above 0 and at most 1")

    def probabilities(self, logits: Tensor) -> Tensor:
        """fp32 [N, V] -> fp64 [N, V], by the samplers that draw."""
        logits = scale(logits, torch.full((len(logits),), self.temperature))
        if self.top_p < 1:
            logits = keep_top_p(logits, torch.full((len(logits),), self.top_p, dtype=torch.float64))
        return logits.double().softmax(-1)


@dataclass(frozen=True, slots=True)
class Text:
    prompt_ids: Sequence[int]
    output_ids: Sequence[int]


def prompts_of(tasks: Sequence[str], folder: Path) -> list[list[int]]:
    """Token ids of the named `TASKS`, as the chat template of the model in `folder` puts them; without one, plain."""
    tokenizer, template = Tokenizer.from_folder(folder), load_chat_template(folder)
    return [chat_ids(tokenizer, template, text) for task in tasks for text in TASKS[task]]


def chat_ids(tokenizer: Tokenizer, template: ChatTemplate | None, text: str) -> list[int]:
    """A user's message, as the template puts it; without one, plain."""
    if template is None:
        return tokenizer.encode(text)
    return tokenizer.encode_chat(template.render([{"role": "user", "content": text}]))


def sample_texts(
    model: Llama, prompts: Sequence[Sequence[int]], law: Law, num_tokens: int, stop_ids: frozenset[int], seed: int
) -> list[Text]:
    """A reply to each prompt, of `num_tokens` tokens or up to the first of `stop_ids`, that one included."""
    length = max(map(len, prompts)) + num_tokens
    engine = TorchEngine(model, pool_for(model, len(prompts), length), Sampler(model.config.vocab_size))
    params = SamplingParams(temperature=law.temperature, top_p=law.top_p)
    for i, prompt in enumerate(prompts):
        engine.admit(SequenceSeed(i, params, philox_key(seed, i, 0), prompt, (), stop_ids))
    outputs: dict[int, list[int]] = {i: [] for i in range(len(prompts))}
    for position in range(num_tokens):
        going_on = [i for i, output in outputs.items() if stop_ids.isdisjoint(output)]
        if not going_on:
            break
        rows = tuple(_row(i, prompts[i], outputs, length) for i in going_on)
        drawn = engine.launch(Plan(position, rows)).result().token_ids
        for i, token in zip(going_on, drawn, strict=True):
            outputs[i].append(token)
    return [Text(prompt, outputs[i]) for i, prompt in enumerate(prompts)]


def pool_for(model: Llama, num_seqs: int, length: int) -> KvPool:
    """With blocks for so many sequences of so many tokens."""
    config = model.config
    return KvPool(
        num_layers=config.num_layers,
        num_blocks=num_seqs * _num_blocks(length),
        block_size=BLOCK_SIZE,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=model.dtype,
    )


def block_table(seq_id: int, length: int) -> range:
    """The blocks of a sequence in a `pool_for` sequences of this length."""
    return range(seq_id * _num_blocks(length), (seq_id + 1) * _num_blocks(length))


def _row(seq_id: int, prompt: Sequence[int], outputs: Mapping[int, Sequence[int]], length: int) -> Row:
    """The prompt, or the output's last token; with a draw of the next."""
    output = outputs[seq_id]
    draws = (Draw(seq_id, len(output)),)
    if not output:
        return Row(seq_id, prompt, 0, block_table(seq_id, length), draws)
    return Row(seq_id, (output[-1],), len(prompt) + len(output) - 1, block_table(seq_id, length), draws)


def _num_blocks(length: int) -> int:
    return -(-length // BLOCK_SIZE)
