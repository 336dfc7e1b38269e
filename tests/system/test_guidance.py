"""Grammars with a real engine and random weights: outputs match at any temperature, and are the same on every path."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jsonschema
import msgspec
import pytest
from isthmus.engine.worker import Loaded
from isthmus.router.job import JobError
from isthmus.tests.local_cluster import Ask, LocalCluster
from isthmus.tests.oracle import SMALL, Reference, make_tiny
from isthmus.tests.router.edge import EOS, byte_tokenizer
from isthmus.text.tokenizer import Tokenizer
from isthmus.wire.sampling import Guidance, SamplingParams

SMALL_BYTES = byte_tokenizer()
TOKENIZER = Tokenizer(
    SMALL_BYTES._backend,
    special_tokens=SMALL_BYTES.special_tokens,
    eos_ids=SMALL_BYTES.eos_ids,
    vocab_size=SMALL["vocab_size"],
)
TOPOLOGIES = {"aggregated": {"num_prefill": 0}, "1P1D": {"num_prefill": 1}}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]{1,8}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "é", "🙂"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def fits_schema(text: str) -> bool:
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(json.loads(text))


CASES: list[tuple[Guidance, Callable[[str], Any]]] = [
    (Guidance("regex", "[a-f]{3,9}-[0-9]{2}"), re.compile("[a-f]{3,9}-[0-9]{2}").fullmatch),
    (Guidance("choice", '["yes", "no", "vielleicht, ja"]'), {"yes", "no", "vielleicht, ja"}.__contains__),
    (Guidance("gbnf", 'root ::= "<" [x-z]{1,6} ">"'), re.compile("<[x-z]{1,6}>").fullmatch),
    (Guidance("lark", 'start: "(" A{1,4} ")"\nA: /[ab]/'), re.compile(r"\([ab]{1,4}\)").fullmatch),
    (Guidance("json_schema", json.dumps(SCHEMA)), fits_schema),
]
RICH = ("regex", "json_schema")
"""Kinds of which two draws are hardly ever the same."""


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Loaded]:
    reference: Reference = make_tiny("qwen3", tmp_path_factory.mktemp("model"))
    return lambda model: replace(reference.load(model), tokenizer=TOKENIZER)


def asks() -> list[tuple[Ask, Callable[[str], Any]]]:
    made = []
    for number, (guidance, fits) in enumerate(CASES):
        for temperature in (0.0, 1.0, 3.0):
            params = SamplingParams(
                guidance=guidance,
                temperature=temperature,
                seed=number,
                max_tokens=400,
                min_p=0.01 if temperature else 0.0,
                ignore_eos=temperature == 3.0,
            )
            made.append((Ask([1 + number] * 20, params, num_choices=2), fits))
    return made


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_outputs_match(load: Callable[[str], Loaded], topology: str) -> None:
    questions = asks()
    free = Ask([7, 8, 9], SamplingParams(seed=3, max_tokens=60))
    with LocalCluster(load, **TOPOLOGIES[topology], max_num_seqs=40) as cluster:
        *answers, unbound = cluster.ask([*(ask for ask, _ in questions), free], eos_ids=(EOS,))
        assert cluster.ask([free], eos_ids=(EOS,))[0] == unbound  # neighbours with grammars change nothing
        assert set(cluster.used_blocks().values()) == {0}
    for (ask, fits), outputs in zip(questions, answers, strict=True):
        for output in outputs:
            assert (EOS in output) == (not ask.params.ignore_eos)
            assert fits(TOKENIZER.decode(output)), (ask.params, TOKENIZER.decode(output))
        assert ask.params.temperature < 2 or ask.params.guidance.kind not in RICH or outputs[0] != outputs[1]


def test_every_path_gives_the_same_tokens(load: Callable[[str], Loaded]) -> None:
    questions = [ask for ask, _ in asks()]
    answers = []
    for topology in TOPOLOGIES.values():
        with LocalCluster(load, **topology, max_num_seqs=40) as cluster:
            answers.append(cluster.ask(questions, eos_ids=(EOS,)))
            answers.append([cluster.ask([ask], eos_ids=(EOS,))[0] for ask in questions[-3:]])
    together, alone, apart, apart_alone = answers
    assert together == apart
    assert alone == apart_alone == together[-3:]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_bad_grammar_fails_alone(load: Callable[[str], Loaded], topology: str) -> None:
    """Routers refuse these before; a worker that gets one all the same lives."""
    good, fits = asks()[1]
    with LocalCluster(load, **TOPOLOGIES[topology]) as cluster:
        for spec in ("(", "a(?=b)"):
            bad = Ask([1, 2, 3], msgspec.structs.replace(good.params, guidance=Guidance("regex", spec)))
            with pytest.raises(JobError, match="grammar") as failure:
                cluster.ask([bad, good], eos_ids=(EOS,))
            assert failure.value.status == 400
        (outputs,) = cluster.ask([good], eos_ids=(EOS,))
        assert all(fits(TOKENIZER.decode(output)) for output in outputs)
