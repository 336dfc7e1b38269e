"""What speculation takes of the host where steps are short: a scheduler and masks, beside an engine that only waits.

Texts are known, so every method and every run has the same tokens: JSON within a grammar, whose keys come again, and
chat, words in no order, of which short runs come again and go on otherwise. Each batch is answered in turn with
n-gram guesses and without.
"""

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ..decode.guidance import Guides, make_guides
from ..decode.ngram_proposer import NgramProposer
from ..decode.speculation import Speculation
from ..engine.heap import settle
from ..launch.demo_model import cache_dir, ensure_demo_model
from ..text.resolve import resolve
from ..text.tokenizer import Tokenizer
from ..wire.sampling import Guidance, SamplingParams
from .batch_decoder import BatchDecoder, Request, Steps
from .paced_engine import PacedEngine
from .speculation_tasks import NAME, NUMBER, object_schema

BLOCK_SIZE = 16
PROMPT_TOKENS = 64
RECORDS = {"type": "array", "items": object_schema(name=NAME, country=NAME, population=NUMBER), "minItems": 3}
COMMON_WORDS = 40
"""Of chat: the fewer, the more often runs come again."""
HEADER = (
    "| text | batch | ms a step, off | host µs a step, off | with | ÷ off, median: by round | tokens a row | "
    "guessed a row | right |\n|---|---|---|---|---|---|---|---|---|"
)


class Writer:
    """Makes texts, and the prompts they follow."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._tokenizer, self._rng = tokenizer, random.Random(seed)
        rng = random.Random(0)
        self._words = ["".join(rng.choices("aeioulnrst", k=rng.randrange(3, 8))) for _ in range(400)]

    def text(self, kind: str, num_tokens: int) -> list[int]:
        written = ""
        while len(ids := self._tokenizer.encode(written, add_special_tokens=False)) < num_tokens:
            written = self._json(num_tokens) if kind == "json" else f"{written}{self._chat(num_tokens)} "
        return ids[:num_tokens]

    def prompt(self) -> list[int]:
        return self._rng.choices(range(100, self._tokenizer.vocab_size), k=PROMPT_TOKENS)

    def _json(self, num_records: int) -> str:
        def one() -> dict[str, Any]:
            name, country = self._rng.choices(self._words, k=2)
            return {"name": name, "country": country, "population": self._rng.randrange(10**6)}

        return json.dumps([one() for _ in range(num_records // 8)])

    def _chat(self, num_words: int) -> str:
        words = self._words[:COMMON_WORDS] * 4 + self._words
        return " ".join(self._rng.choices(words, k=num_words))


class HostBench:
    def __init__(self, tokenizer: Tokenizer, guides: Guides, options: argparse.Namespace) -> None:
        self._tokenizer, self._guides, self._options = tokenizer, guides, options

    def lines(self) -> Iterator[str]:
        for kind in self._options.texts:
            for batch in self._options.batches:
                yield self._line(kind, batch)

    def _line(self, kind: str, batch: int) -> str:
        guidance = Guidance("json_schema", json.dumps(RECORDS)) if kind == "json" else None
        texts = self._texts(kind, batch)
        requests = [
            Request(prompt, SamplingParams(max_tokens=len(text), ignore_eos=True, guidance=guidance))
            for prompt, text in texts.items()
        ]
        speculation = Speculation(NgramProposer, self._options.guesses)
        sides = [self._decoder(texts, batch, None), self._decoder(texts, batch, speculation)]
        found: list[list[tuple[Steps, float]]] = [[], []]
        for number in range(self._options.rounds):
            for side in (0, 1) if number % 2 else (1, 0):
                found[side].append(self._run(*sides[side], requests, batch, texts))
        return _row(kind, batch, *found)

    def _run(
        self,
        decoder: BatchDecoder,
        engine: PacedEngine,
        requests: Sequence[Request],
        batch: int,
        texts: dict[tuple[int, ...], list[int]],
    ) -> tuple[Steps, float]:
        """Sums, and seconds of the host in a step."""
        waited_s = engine.waited_s
        run = decoder.run(requests, batch)
        assert run.outputs == list(texts.values())
        return run.steps, (run.steps.elapsed_s - engine.waited_s + waited_s) / run.steps.num_steps

    def _texts(self, kind: str, count: int) -> dict[tuple[int, ...], list[int]]:
        writer = Writer(self._tokenizer, count)
        return {tuple(writer.prompt()): writer.text(kind, self._options.tokens) for _ in range(count)}

    def _decoder(
        self, texts: dict[tuple[int, ...], list[int]], batch: int, speculation: Speculation | None
    ) -> tuple[BatchDecoder, PacedEngine]:
        length = PROMPT_TOKENS + self._options.tokens
        num_blocks = (batch + 2) * (-(-length // BLOCK_SIZE) + 2)
        engine = PacedEngine(num_blocks, BLOCK_SIZE, texts, self._options.step_us / 1e6, self._options.guesses_us / 1e6)
        return BatchDecoder(engine, batch, length, speculation, self._guides), engine


def _row(kind: str, batch: int, off: list[tuple[Steps, float]], on: list[tuple[Steps, float]]) -> str:
    plain, steps = (sum((one for one, _ in rounds), Steps()) for rounds in (off, on))
    ratios = [mine.tokens_per_s / its.tokens_per_s for (mine, _), (its, _) in zip(on, off, strict=True)]
    host = " | ".join(f"{1e6 * sum(host_s for _, host_s in rounds) / len(rounds):.0f}" for rounds in (off, on))
    right = f"{steps.num_accepted / steps.num_guesses:.2f}" if steps.num_guesses else "–"
    return (
        f"| {kind} | {batch} | {1e3 * plain.step_s:.2f} | {host} | **{median(ratios):.2f}**: "
        f"{' '.join(f'{ratio:.2f}' for ratio in ratios)} | {steps.num_tokens / steps.num_rows:.2f} | "
        f"{steps.num_guesses / steps.num_rows:.2f} | {right} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m isthmus.bench.speculation_host", description=__doc__)
    parser.add_argument("--model", help="MODEL whose tokenizer is used; the demo model's by default")
    parser.add_argument("--texts", nargs="+", default=("json", "chat"), choices=("json", "chat"))
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 8, 32, 64))
    parser.add_argument("--tokens", type=int, default=192, help="of each text")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--guesses", type=int, default=4, help="at once, at most")
    parser.add_argument("--step-us", type=float, default=600.0, help="of the engine")
    parser.add_argument("--guesses-us", type=float, default=150.0, help="what a step with guesses takes longer")
    options = parser.parse_args(arguments)
    folder = resolve(options.model or str(ensure_demo_model()), Path(cache_dir()), tokenizer_only=True).folder
    tokenizer = Tokenizer.from_folder(folder)
    guides = make_guides(tokenizer, tokenizer.vocab_size)
    assert guides is not None
    settle()
    print(HEADER, flush=True)
    for line in HostBench(tokenizer, guides, options).lines():
        print(line, flush=True)
    guides.close()


if __name__ == "__main__":
    main()
