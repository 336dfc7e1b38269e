"""Rows with guesses: whatever is guessed, by whomever, the tokens are those of plain decoding."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from isthmus.decode.sampler import Sampler
from isthmus.engine.load import Checkpoint
from isthmus.engine.plan import DRAFT, NO_TOKEN, Draw, Plan, Row, SequenceSeed
from isthmus.engine.speculation_config import SpeculationConfig
from isthmus.engine.torch_engine import TorchEngine
from isthmus.tests.engine.tiny import VOCAB_SIZE, engine_of, llama, prompt, reference_model, save
from isthmus.wire.noise import philox_key
from isthmus.wire.sampling import SamplingParams

MIXED = SamplingParams(
    temperature=1.2,
    top_p=0.9,
    repetition_penalty=1.3,
    dry_multiplier=0.8,
    dry_sequence_breakers=(),
    mirostat_mode=2,
    logprobs=2,
)
PARAMS = [SamplingParams(temperature=0.0), SamplingParams(temperature=1.0, logprobs=1), MIXED]
TABLE = tuple(range(3, 23))
NUM_TOKENS = 24


def seed_of(params: SamplingParams, prompt_ids: Sequence[int]) -> SequenceSeed:
    return SequenceSeed(0, params, philox_key(7, 0, 0), prompt_ids, (), frozenset())


def begin(engine: TorchEngine, params: SamplingParams, prompt_ids: Sequence[int]) -> list[Any]:
    """The first token, its logprobs and state."""
    engine.admit(seed_of(params, prompt_ids))
    row = Row(0, prompt_ids, 0, TABLE, (Draw(0, 0),))
    return list(engine.launch(Plan(0, (row,))).result().drawn)


def generate(
    engine: TorchEngine,
    params: SamplingParams,
    prompt_ids: Sequence[int],
    guess: Callable[[list[int]], Sequence[int]],
) -> tuple[list[Any], int]:
    """What was drawn, and how many guesses were right."""
    drawn, num_right = begin(engine, params, prompt_ids), 0
    while len(drawn) < NUM_TOKENS:
        tokens = [*prompt_ids, *(one[0] for one in drawn)]
        guesses = list(guess(tokens))
        draws = tuple(Draw(0, len(drawn) + index) for index in range(1 + len(guesses)))
        history = tokens if DRAFT in guesses else ()
        row = Row(0, (tokens[-1], *guesses), len(tokens) - 1, TABLE, draws, num_drafts=len(guesses), history=history)
        made = [one for one in engine.launch(Plan(len(drawn), (row,))).result().drawn if one[0] >= NO_TOKEN]
        drawn += made
        num_right += len(made) - 1
    engine.retire(0)
    return drawn[:NUM_TOKENS], num_right


def assert_same(drawn: Sequence[Any], expected: Sequence[Any]) -> None:
    """Tokens to the bit; what logits make of them as near as logits of several positions at once are."""
    assert [one[0] for one in drawn] == [one[0] for one in expected]
    for (_, logprobs, state), (_, expected_logprobs, expected_state) in zip(drawn, expected, strict=True):
        assert len(state) == len(expected_state)
        assert (logprobs is None) == (expected_logprobs is None)
        if logprobs is not None:
            assert logprobs.chosen == pytest.approx(expected_logprobs.chosen, abs=1e-4)
            assert [token for token, _ in logprobs.top] == [token for token, _ in expected_logprobs.top]


def nothing(tokens: list[int]) -> Sequence[int]:
    return ()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(reference_model(llama()), tmp_path_factory.mktemp("target"))


def engine_for(checkpoint: Path, **options: Any) -> TorchEngine:
    return engine_of(llama(), checkpoint, sampler=Sampler(VOCAB_SIZE), **options)


@pytest.fixture(scope="module", params=PARAMS, ids=["greedy", "sampled", "mixed"])
def plain(checkpoint: Path, request: pytest.FixtureRequest) -> tuple[SamplingParams, list[Any]]:
    return request.param, generate(engine_for(checkpoint), request.param, prompt(11), nothing)[0]


@pytest.mark.parametrize("num_guesses", [1, 3, 8])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_known_guesses(
    checkpoint: Path, plain: tuple[SamplingParams, list[Any]], num_guesses: int, share: float
) -> None:
    params, expected = plain
    tokens = [one[0] for one in expected]

    def guess(seen: list[int]) -> Sequence[int]:
        first = len(seen) - 11
        right = tokens[first : first + num_guesses]
        return [t if (31 * (first + i)) % 10 < 10 * share else (t + 1) % VOCAB_SIZE for i, t in enumerate(right)]

    drawn, num_right = generate(engine_for(checkpoint), params, prompt(11), guess)
    assert_same(drawn, expected)
    assert (num_right > 0) == (share > 0)
    if share == 1:
        assert num_right >= (NUM_TOKENS - 1) * num_guesses // (1 + num_guesses) - num_guesses


@pytest.mark.parametrize("num_guesses", [1, 4])
def test_a_draft_model_that_is_the_target_is_always_right(
    checkpoint: Path, plain: tuple[SamplingParams, list[Any]], num_guesses: int
) -> None:
    params, expected = plain
    config = SpeculationConfig("draft", num_guesses)
    engine = engine_for(checkpoint, speculation=config, draft=Checkpoint(llama(), checkpoint))
    num_steps = 0

    def guess(tokens: list[int]) -> Sequence[int]:
        nonlocal num_steps
        num_steps += 1
        return () if num_steps == 2 else (DRAFT,) * num_guesses

    for _ in range(2):  # the second finds what the first left in the pool
        drawn, num_right = generate(engine, params, prompt(11), guess)
        assert_same(drawn, expected)
        if not params.mirostat_mode:  # its state is not known ahead
            assert num_right >= (NUM_TOKENS - 2) * num_guesses // (1 + num_guesses) - num_guesses


def test_first_layers_and_another_model_change_no_token(
    checkpoint: Path, plain: tuple[SamplingParams, list[Any]], tmp_path: Path
) -> None:
    params, expected = plain
    other = llama(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
    small = Checkpoint(other, save(reference_model(other, seed=5), tmp_path))
    layers = engine_for(checkpoint, speculation=SpeculationConfig("first-layers", 3, num_layers=1))
    model = engine_for(checkpoint, speculation=SpeculationConfig("draft", 3), draft=small)
    for engine in (layers, model):
        drawn, num_right = generate(engine, params, prompt(11), lambda tokens: (DRAFT,) * 3)
        assert_same(drawn, expected)
        assert num_right < NUM_TOKENS
