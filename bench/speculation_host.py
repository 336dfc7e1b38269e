"""What speculation takes of the host, and whether it finds what can be gained: a scheduler and masks, beside an engine
that only waits.

By default its steps are over before the host has planned the next one, as on a slow host with a fast GPU: what takes
the host's time is then hidden by nothing. Guesses make steps so much longer that none pays. Texts are known, so every
method and every run has the same tokens: JSON within a grammar, whose keys come again; chat, words in no order, of
which short runs come again and go on otherwise; edits, which repeat their prompts, but for a token in twenty. Each
round of a method lies between two without speculation.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..decode.guidance import Guides, make_guides
from ..decode.ngram_proposer import NgramProposer
from ..decode.speculation import Speculation
from ..decode.speculator import EngineProposer
from ..engine.heap import settle
from ..launch.demo_model import cache_dir, ensure_demo_model
from ..text.resolve import resolve
from ..text.tokenizer import Tokenizer
from ..wire.sampling import Guidance, SamplingParams
from .batch_decoder import BatchDecoder, Request, Steps
from .fixed_speculation import FixedSpeculation
from .paced_engine import Pace, PacedEngine
from .report import command_line, cpu_model
from .speculation_rounds import Case, Measured, Until, measure
from .speculation_tasks import NAME, NUMBER, object_schema

BLOCK_SIZE = 16
PROMPT_TOKENS = 64
KINDS = "json", "chat", "edit"
RECORDS = {"type": "array", "items": object_schema(name=NAME, country=NAME, population=NUMBER), "minItems": 3}
COMMON_WORDS = 40
"""Of chat: the fewer, the more often runs come again."""
OWN_TOKENS, CHANGED_SHARE = 6, 0.05
"""Of edits: before the copy, and within it."""
METHODS: dict[str, Callable[[int], Speculation | None]] = {
    "off again": lambda _: None,
    "ngram": lambda num_tokens: Speculation(NgramProposer, num_tokens),
    "ngram, always": lambda num_tokens: FixedSpeculation(NgramProposer, num_tokens),
    "head": lambda num_tokens: Speculation(EngineProposer, num_tokens),
}
"""Given how many tokens are guessed at once, at most. The engine guesses as a head would, or a draft model."""
HEADER = (
    "| text | batch | method | µs a step | ÷ off | tokens a row | guessed a row | right |\n"
    "|---|---|---|---|---|---|---|---|"
)
Texts = Mapping[tuple[int, ...], list[int]]
"""By prompts."""


class Writer:
    """Makes prompts and the texts that follow them."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._tokenizer, self._rng = tokenizer, random.Random(seed)
        rng = random.Random(0)
        self._words = ["".join(rng.choices("aeioulnrst", k=rng.randrange(3, 8))) for _ in range(400)]

    def pair(self, kind: str, num_tokens: int) -> tuple[tuple[int, ...], list[int]]:
        """A prompt, and so many tokens after it."""
        if kind != "edit":
            return self._ids(PROMPT_TOKENS), self._text(kind, num_tokens)
        prompt = self._ids(num_tokens)
        copied = [self._ids(1)[0] if self._rng.random() < CHANGED_SHARE else token for token in prompt]
        return prompt, [*self._ids(OWN_TOKENS), *copied][:num_tokens]

    def _ids(self, count: int) -> tuple[int, ...]:
        return tuple(self._rng.choices(range(100, self._tokenizer.vocab_size), k=count))

    def _text(self, kind: str, num_tokens: int) -> list[int]:
        written = ""
        while len(ids := self._tokenizer.encode(written, add_special_tokens=False)) < num_tokens:
            written = self._json(num_tokens) if kind == "json" else f"{written}{self._chat(num_tokens)} "
        return ids[:num_tokens]

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
                yield from self._lines(kind, batch)

    def _lines(self, kind: str, batch: int) -> Iterator[str]:
        options, texts = self._options, self._texts(kind, batch)
        guidance = Guidance("json_schema", json.dumps(RECORDS)) if kind == "json" else None
        requests = [
            Request(prompt, SamplingParams(max_tokens=len(text), ignore_eos=True, guidance=guidance))
            for prompt, text in texts.items()
        ]
        off = self._decoders(texts, batch, None)
        others = {name: self._decoders(texts, batch, METHODS[name](options.guesses)) for name in options.methods}
        case = Case(kind, 0.0, batch, 2 * len(off), lambda _: requests)
        measure(case, off, others, backwards=False)  # what is known of guesses, and all code, as after a while
        case = replace(case, least_rounds=options.rounds)
        plain, found = measure(case, off, others, backwards=False, until=Until(most_rounds=options.rounds))
        yield f"| {kind} | {batch} | off | {1e6 * plain.steps.step_s:.1f} | | {_tokens_a_row(plain.steps)} | | |"
        for name, one in found.items():
            assert one.outputs == [*texts.values()] * len(one.rounds)
            yield f"| {kind} | {batch} | {name} | {_figures(one)} |"

    def _texts(self, kind: str, count: int) -> Texts:
        """They end one after the other, as answers do, so that a batch passes all sizes."""
        writer, lengths = Writer(self._tokenizer, count), random.Random(count)
        most = self._options.tokens
        return dict(writer.pair(kind, lengths.randrange(most // 3, most + 1)) for _ in range(count))

    def _decoders(self, texts: Texts, batch: int, speculation: Speculation | None) -> list[BatchDecoder]:
        """No two are as fast, by a hundredth, wherever that comes from."""
        options, length = self._options, max(len(prompt) + len(text) for prompt, text in texts.items())
        num_blocks = (batch + 2) * (-(-length // BLOCK_SIZE) + 2)
        pace = Pace(options.step_us / 1e6, options.guesses_us / 1e6, options.evicted_kb)
        engines = [PacedEngine(num_blocks, BLOCK_SIZE, texts, pace, options.right) for _ in range(options.engines)]
        return [BatchDecoder(one, batch, length, speculation, self._guides) for one in engines]


def _figures(one: Measured) -> str:
    steps, error = one.steps, f" ± {one.error:.3f}" if len(one.ratios) > 1 else ""
    right = f"{steps.num_accepted / steps.num_guesses:.2f}" if steps.num_guesses else "–"
    guessed = f"{_tokens_a_row(steps)} | {steps.num_guesses / steps.num_rows:.3f} | {right}"
    return f"{1e6 * steps.step_s:.1f} | **{one.ratio:.3f}**{error} | {guessed}"


def _tokens_a_row(steps: Steps) -> str:
    return f"{steps.num_tokens / steps.num_rows:.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m isthmus.bench.speculation_host", description=__doc__)
    parser.add_argument("--model", help="MODEL whose tokenizer is used; the demo model's by default")
    parser.add_argument("--texts", nargs="+", default=("json", "chat"), choices=KINDS)
    parser.add_argument("--methods", nargs="+", default=("off again", "ngram", "head"), choices=tuple(METHODS))
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 8, 32))
    parser.add_argument("--tokens", type=int, default=192, help="of each text, at most")
    parser.add_argument("--rounds", type=int, default=36)
    parser.add_argument("--engines", type=int, default=3, help="for each method, in turn")
    parser.add_argument("--guesses", type=int, default=4, help="at once, at most")
    parser.add_argument("--right", type=float, default=0.5, help="how often what the engine guesses is right")
    parser.add_argument("--step-us", type=float, default=50.0, help="of the engine")
    parser.add_argument("--guesses-us", type=float, default=1000.0, help="what a step with guesses takes longer")
    parser.add_argument("--evicted-kb", type=int, default=4096, help="copied with each launch: see paced_engine.py")
    options = parser.parse_args(arguments)
    folder = resolve(options.model or str(ensure_demo_model()), Path(cache_dir()), tokenizer_only=True).folder
    tokenizer = Tokenizer.from_folder(folder)
    guides = make_guides(tokenizer, tokenizer.vocab_size)
    assert guides is not None
    settle()
    print(f"```\n{command_line()}\n```\n{cpu_model()}\n\n{HEADER}", flush=True)
    for line in HostBench(tokenizer, guides, options).lines():
        print(line, flush=True)
    guides.close()


if __name__ == "__main__":
    main()
