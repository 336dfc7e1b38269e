"""An engine that waits instead of computing: it writes the texts it knows, within grammars, with guesses or without."""

import random
import time
from collections.abc import Iterator

import pytest
from isthmus.bench.batch_decoder import BatchDecoder, Request
from isthmus.bench.paced_engine import Pace, PacedEngine
from isthmus.bench.speculation_host import main
from isthmus.decode.guidance import Guides
from isthmus.decode.speculation import Speculation
from isthmus.decode.speculator import EngineProposer
from isthmus.tests.decode.guided_sim import TOKENS, vocabulary
from isthmus.tests.decode.router_sim import VOCAB
from isthmus.tests.decode.speculating import Knowing, speculation_of
from isthmus.tests.helpers import demo_model_path
from isthmus.text.grammar_cache import GrammarCache
from isthmus.text.grammar_compiler import GrammarCompiler
from isthmus.wire.sampling import Guidance, SamplingParams

STEP_S = 0.002
NUM_TOKENS = 20


@pytest.fixture
def guides() -> Iterator[Guides]:
    made = Guides(GrammarCache(GrammarCompiler(vocabulary)), VOCAB)
    yield made
    made.close()


def texts(alphabet: str) -> dict[tuple[int, ...], list[int]]:
    rng, ids = random.Random(1), [TOKENS.index(one.encode()) for one in alphabet]
    return {(1, 2, 3 + i): rng.choices(ids, k=NUM_TOKENS) for i in range(4)}


def decoder(
    known: dict[tuple[int, ...], list[int]], guides: Guides, speculation: Speculation | None, right: float = 0.0
) -> BatchDecoder:
    engine = PacedEngine(64, 4, known, Pace(STEP_S, STEP_S / 2), right)
    return BatchDecoder(engine, len(known), 4 + NUM_TOKENS, speculation, guides)


@pytest.mark.parametrize("wrong_every", [0, 3, 1])
def test_texts_come_as_they_are(guides: Guides, wrong_every: int) -> None:
    known = texts("abc")
    params = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True, guidance=Guidance("regex", "[a-d]*"))
    requests = [Request(prompt, params) for prompt in known]
    whole = [[*prompt, *text] for prompt, text in known.items()]
    plain = decoder(known, guides, None).run(requests, len(known))
    guessed = decoder(known, guides, speculation_of(lambda: Knowing(whole, wrong_every))).run(requests, len(known))
    assert plain.outputs == guessed.outputs == list(known.values())
    assert (guessed.steps.num_steps < plain.steps.num_steps) == (wrong_every != 1)
    assert (guessed.steps.num_accepted == guessed.steps.num_guesses) == (wrong_every == 0)


@pytest.mark.parametrize("right", [0.0, 0.7, 1.0])
def test_the_engine_guesses_as_often_right_as_it_is_told(guides: Guides, right: float) -> None:
    known = texts("abc")
    params = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True, guidance=Guidance("regex", "[a-d]*"))
    requests = [Request(prompt, params) for prompt in known]
    run = decoder(known, guides, speculation_of(EngineProposer), right).run(requests, len(known))
    assert run.outputs == list(known.values())
    steps = run.steps
    assert (steps.num_accepted > 0) == (right > 0)
    assert (steps.num_accepted == steps.num_guesses > 0) == (right == 1)


def test_a_step_takes_its_time(guides: Guides) -> None:
    known = texts("abc")
    requests = [Request(prompt, SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True)) for prompt in known]
    start_s = time.monotonic()
    decoder(known, guides, None).run(requests, len(known))
    assert time.monotonic() - start_s >= NUM_TOKENS * STEP_S


def test_what_masks_do_not_let_come_is_noticed(guides: Guides) -> None:
    known = texts("xyz")
    params = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True, guidance=Guidance("regex", "[a-d]*"))
    with pytest.raises(AssertionError, match="does not let come"):
        decoder(known, guides, None).run([Request(prompt, params) for prompt in known], len(known))


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    texts, methods = ["json", "chat", "edit"], ["off again", "ngram", "ngram, always", "head"]
    options = {"batches": 2, "tokens": 24, "rounds": 2, "engines": 1, "step-us": 50}
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    main(["--model", str(demo_model_path()), *given, "--texts", *texts, "--methods", *methods])
    header, _, *rows = capsys.readouterr().out.strip().split("\n\n")[-1].splitlines()
    cases = [[f"| {kind}", "2", one] for kind in texts for one in ("off", *methods)]
    assert [row.split(" | ")[:3] for row in rows] == cases
    assert {row.count("|") for row in rows} == {header.count("|")}
