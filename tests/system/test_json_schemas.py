"""200 schemas, over the demo model's vocabulary: whatever is drawn within the masks validates."""

import json
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from isthmus.decode.automaton import Ending
from isthmus.decode.guide import Guide
from isthmus.decode.mask_maker import MaskMaker
from isthmus.decode.token_bans import TokenBans
from isthmus.tests.helpers import demo_model_path
from isthmus.tests.system.json_schemas import Schema, schemas
from isthmus.text.grammar_compiler import GrammarCompiler, Vocabulary
from isthmus.text.resolve import resolve
from isthmus.text.tokenizer import Tokenizer
from isthmus.wire.sampling import Guidance, SamplingParams

MAX_TOKENS = 3000
PATIENCE = 100
"""Tokens drawn evenly from the mask; later ones close what is open where they can, or are short."""
CLOSING = [b'"', b"@", b"}", b"]"]
SHORT = [bytes([byte]) for byte in b"abcdefghijklmnopqrstuvwxyzTZYMDWHS0123456789-+:.,"]


class Writer:
    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.compiler = GrammarCompiler(partial(Vocabulary.of, tokenizer))
        self.masks = MaskMaker(self.compiler.num_words)
        by_bytes = {tokenizer.token_bytes[i]: i for i in range(tokenizer.vocab_size)}
        self.closing = [by_bytes[token] for token in CLOSING]
        self.short = [by_bytes[token] for token in SHORT]

    def write(self, schema: Schema, seed: int) -> str:
        rng, vocab_size, eos_ids = random.Random(seed), self.tokenizer.vocab_size, self.tokenizer.eos_ids
        eos = sorted(eos_ids)
        bans = TokenBans.of(SamplingParams(), eos_ids, eos_ids, vocab_size)
        grammar = self.compiler.compile(Guidance("json_schema", json.dumps(schema)))
        guide, output = Guide(grammar, bans, (), self.masks), []
        while len(output) < MAX_TOKENS:
            words = guide.mask().result()
            assert guide.ending in (None, Ending(None))
            bits = np.unpackbits(words.view(np.uint8), bitorder="little")
            if bits[eos].any():
                return self.tokenizer.decode(output)
            output.append(self.choose(bits, rng, impatient=len(output) > PATIENCE))
            guide.advance(output[-1:])
        raise AssertionError(f"no end after {MAX_TOKENS} tokens: {self.tokenizer.decode(output)[-300:]!r}")

    def choose(self, bits: np.ndarray, rng: random.Random, *, impatient: bool) -> int:
        """A token whose bit is set."""
        if impatient:
            closing = next((token_id for token_id in self.closing if bits[token_id]), None)
            if closing is not None:
                return closing
            short = [token_id for token_id in self.short if bits[token_id]]
            if short:
                return rng.choice(short)
        allowed = bits.view(bool).nonzero()[0]
        return int(allowed[rng.randrange(len(allowed))])


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Writer]:
    folder = resolve(str(demo_model_path()), Path(tmp_path_factory.mktemp("text")), tokenizer_only=True).folder
    writer = Writer(Tokenizer.from_folder(folder))
    yield writer
    writer.masks.close()


def test_there_are_200() -> None:
    made = dict(schemas())
    assert len(made) == 200
    assert len({json.dumps(schema) for schema in made.values()}) == 200
    for schema in made.values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(("name", "schema"), list(schemas()), ids=lambda value: value if isinstance(value, str) else "")
def test_every_output_validates(writer: Writer, name: str, schema: Schema) -> None:
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    for seed in range(3):
        output = writer.write(schema, seed)
        validator.validate(json.loads(output))
