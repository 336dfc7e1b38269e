"""What is asked of an engine that guesses: tasks of users, and prompts after which nothing can be guessed."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..text.chat_template import load_chat_template
from ..text.tokenizer import Tokenizer
from ..wire.sampling import Guidance, SamplingParams
from .batch_decoder import Request
from .sampled_text import TASKS, chat_ids

RANDOM_TEMPERATURE = 1.5
RANDOM_PROMPT_TOKENS = 32


def object_schema(**properties: Any) -> dict[str, Any]:
    """Of an object with just these fields."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


NAME, NUMBER = {"type": "string", "maxLength": 40}, {"type": "integer"}
CAPITALS = {
    "type": "array",
    "items": object_schema(name=NAME, country=NAME, population=NUMBER),
    "minItems": 3,
    "maxItems": 3,
}
CANAL = object_schema(year=NUMBER, length_km=NUMBER, width_m=NUMBER)
SCHEMAS = {"json": tuple(Guidance("json_schema", json.dumps(schema)) for schema in (CAPITALS, CANAL))}
"""For each prompt of a task, what its answer must match."""


class Asker:
    """Requests for the model in `folder`."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._template = tokenizer, load_chat_template(folder)

    def requests(self, task: str, count: int, temperature: float, num_tokens: int) -> list[Request]:
        """`count` different ones; the first of them are the same whatever the count."""
        texts, guidance = TASKS[task], SCHEMAS.get(task, (None,) * len(TASKS[task]))
        return [
            Request(
                self._prompt(texts[i % len(texts)], 1 + i // len(texts)),
                SamplingParams(
                    temperature=temperature, max_tokens=num_tokens, seed=i, guidance=guidance[i % len(texts)]
                ),
            )
            for i in range(count)
        ]

    def random_requests(self, count: int, num_tokens: int, seed: int) -> list[Request]:
        """Prompts that are no text, and answers that are hardly any."""
        rng, size = random.Random(seed), self._tokenizer.vocab_size
        params = [
            SamplingParams(
                temperature=RANDOM_TEMPERATURE, max_tokens=num_tokens, seed=rng.getrandbits(32), ignore_eos=True
            )
            for _ in range(count)
        ]
        return [Request(rng.choices(range(size), k=RANDOM_PROMPT_TOKENS), one) for one in params]

    def longest_prompt(self, count: int) -> int:
        """Tokens, of any prompt in so many requests."""
        prompts = [one.prompt_ids for task in TASKS for one in self.requests(task, count, 0.0, 1)]
        return max(RANDOM_PROMPT_TOKENS, *map(len, prompts))

    def _prompt(self, text: str, version: int) -> Sequence[int]:
        """Versions after the first say so at their end, so that answers differ and most of the prompt does not."""
        text = text if version == 1 else f"{text} Give me version {version}."
        return chat_ids(self._tokenizer, self._template, text)
