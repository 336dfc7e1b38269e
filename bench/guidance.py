"""What constrained decoding costs on the host: compiling a grammar, and the mask of each token, in one thread.

Outputs are drawn evenly from the masks, over the demo model's vocabulary or that of --model. A mask is hidden where it
takes less time than the step that computes the logits it is for.
"""

import argparse
import json
import random
import time
from functools import partial
from pathlib import Path

import numpy as np

from ..decode.guide import Guide
from ..decode.mask_maker import MaskMaker
from ..decode.token_bans import TokenBans
from ..launch.demo_model import cache_dir, ensure_demo_model
from ..text.grammar_compiler import GrammarCompiler, Vocabulary
from ..text.resolve import resolve
from ..text.tokenizer import Tokenizer
from ..wire.sampling import Guidance, SamplingParams

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 8},
    },
    "required": ["name", "age", "email", "tags"],
}
WIDE = {"type": "object", "properties": {f"field_{i}": {"type": ["string", "null"]} for i in range(100)}}
GRAMMARS = {
    "JSON object": Guidance("json_object", ""),
    "JSON schema, 4 fields": Guidance("json_schema", json.dumps(PERSON)),
    "JSON schema, 100 optional fields": Guidance("json_schema", json.dumps(WIDE)),
    "regular expression": Guidance("regex", r"([a-z]{1,12} ){1,40}\d{4}-\d{2}-\d{2}"),
    "choice of 1000": Guidance("choice", json.dumps([f"answer number {i}" for i in range(1000)])),
    "GBNF, arithmetic": Guidance("gbnf", 'root ::= term ([-+*/] term)*\nterm ::= [0-9]+ | "(" root ")"'),
}


class Bench:
    def __init__(self, tokenizer: Tokenizer, num_tokens: int):
        self._tokenizer = tokenizer
        self._num_tokens = num_tokens
        self._compiler = GrammarCompiler(partial(Vocabulary.of, tokenizer))
        self._masks = MaskMaker(self._compiler.num_words)

    def compile_s(self, guidance: Guidance) -> float:
        start_s = time.perf_counter()
        self._compiler.compile(guidance)
        return time.perf_counter() - start_s

    def mask_s(self, guidance: Guidance) -> list[float]:
        """Seconds from a token to the mask of the next, of as many as asked for: outputs one after another."""
        rng = random.Random(1)
        seconds: list[float] = []
        while len(seconds) < self._num_tokens:
            guide = self._guide(guidance)
            while len(seconds) < self._num_tokens:
                words = guide.mask().result()
                allowed = np.unpackbits(words.view(np.uint8), bitorder="little").nonzero()[0]
                token = int(rng.choice(allowed))
                if token in self._tokenizer.eos_ids or guide.ending is not None:
                    break
                start_s = time.perf_counter()
                guide.advance([token])
                guide.mask().result()
                seconds.append(time.perf_counter() - start_s)
        return seconds

    def _guide(self, guidance: Guidance) -> Guide:
        eos_ids = self._tokenizer.eos_ids
        bans = TokenBans.of(SamplingParams(), eos_ids, eos_ids, self._tokenizer.vocab_size)
        return Guide(self._compiler.compile(guidance), bans, (), self._masks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="MODEL whose tokenizer is used; the demo model's by default")
    parser.add_argument("--tokens", type=int, default=2000, help="masks to measure of each grammar")
    options = parser.parse_args()
    folder = resolve(options.model or str(ensure_demo_model()), Path(cache_dir()), tokenizer_only=True).folder
    tokenizer = Tokenizer.from_folder(folder)
    bench = Bench(tokenizer, options.tokens)
    print(f"vocabulary: {tokenizer.vocab_size}; first grammar, with the vocabulary's tree: ", end="")
    print(f"{bench.compile_s(GRAMMARS['JSON object']) * 1e3:.0f} ms")
    print(f"{'':34}{'compile':>10}{'mask p50':>10}{'p99':>10}{'max':>10}")
    for name, guidance in GRAMMARS.items():
        compile_ms = bench.compile_s(guidance) * 1e3
        p50, p99, most = np.percentile(np.array(bench.mask_s(guidance)) * 1e6, [50, 99, 100])
        print(f"{name:34}{compile_ms:7.1f} ms{p50:7.0f} µs{p99:7.0f} µs{most:7.0f} µs")


if __name__ == "__main__":
    main()
