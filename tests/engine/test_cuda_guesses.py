"""Rows with guesses on the engine for GPUs: whatever is guessed, tokens, logprobs and states are those of one token a
step. Here over the kernels' references, on a GPU with the kernels."""

import random
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from isthmus.decode.sampler import Sampler
from isthmus.engine import draft_progress
from isthmus.engine.cuda.engine import CudaEngine
from isthmus.engine.cuda.sampler import can_draw
from isthmus.engine.load import Checkpoint
from isthmus.engine.plan import DRAFT, NO_TOKEN, Draw, Plan, Row
from isthmus.tests.decode.test_sampler_isolation import guide
from isthmus.tests.engine import tiny
from isthmus.tests.engine.cuda_tiny import MAX_DRAFTS, cuda_engine
from isthmus.tests.engine.test_cuda_samplers import PROMPT, Drawn, assert_near, floats, mixtures, seed_of
from isthmus.wire.sampling import SamplingParams

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
BATCH, NUM_TOKENS = 8, 16
BLOCKS_EACH = tiny.NUM_BLOCKS // BATCH
SIMPLE = [
    SamplingParams(temperature=0.0),
    SamplingParams(),
    SamplingParams(temperature=0.8, top_p=0.9, logprobs=2),
    SamplingParams(temperature=1.0, repetition_penalty=1.5, frequency_penalty=0.5),
    SamplingParams(mirostat_mode=2, logprobs=0),
    SamplingParams(dry_multiplier=2.0, dry_allowed_length=1, dry_sequence_breakers=(), min_p=0.05),
    SamplingParams(adaptive_target=0.4, logit_bias={7: 2.0, 9: -3.0}),
    SamplingParams(top_k=20, xtc_probability=0.5, min_tokens=6, no_repeat_ngram_size=2),
]


NOT_FOLLOWED = frozenset(range(0, tiny.VOCAB_SIZE, 3))
"""They may come, but not as guesses that others come after: as tokens that end an output."""


@dataclass
class Drawing:
    """As a scheduler keeps it. Blocks that hold no token that stays are others in every step."""

    seq_id: int
    drawn: list[Drawn] = field(default_factory=list)
    table: list[int] = field(default_factory=list)
    told: list[int] = field(default_factory=list)
    """The guesses of the last row, where the engine made them and there is a grammar."""

    @property
    def start(self) -> int:
        """Tokens whose KV is there."""
        return len(PROMPT) + len(self.drawn) - 1

    def blocks(self, num_tokens: int, rng: random.Random) -> list[int]:
        mine = range(self.seq_id * BLOCKS_EACH, (self.seq_id + 1) * BLOCKS_EACH)
        del self.table[-(-self.start // tiny.BLOCK_SIZE) :]
        free = [block for block in mine if block not in self.table]
        rng.shuffle(free)
        missing = -(-(self.start + num_tokens) // tiny.BLOCK_SIZE) - len(self.table)
        self.table += free[: max(0, missing)]
        return list(self.table)

    def mask(self, position: int) -> "Future[Any] | None":
        return guide(self.seq_id, position, tiny.VOCAB_SIZE)

    def row(self, guesses: Sequence[int], rng: random.Random) -> Row:
        first = len(self.drawn)
        draws = [
            Draw(self.seq_id, first + turn, 0, None if turn else self.mask(first)) for turn in range(1 + len(guesses))
        ]
        tokens = (self.drawn[-1][0], *guesses)
        history = [*PROMPT, *(one[0] for one in self.drawn)] if DRAFT in guesses else []
        table, is_guided = self.blocks(len(tokens), rng), self.mask(first) is not None
        self.told.clear()
        return Row(
            self.seq_id,
            tokens,
            self.start,
            table,
            tuple(draws),
            num_drafts=len(guesses),
            follow=self.follower(first, is_told=DRAFT in guesses) if is_guided else None,
            look_ahead=self.told.extend if is_guided and DRAFT in guesses else None,
            history=history,
        )

    def follower(self, position: int, *, is_told: bool) -> "Callable[[int], Future[Any] | None]":
        num_asked = 0

        def follow(token: int) -> "Future[Any] | None":
            nonlocal position, num_asked
            assert not is_told or self.told[num_asked] == token
            num_asked += 1
            mask = self.mask(position)
            assert mask is not None
            position += 1
            return self.mask(position) if allows(mask.result(), token) and token not in NOT_FOLLOWED else None

        return follow


def allows(words: np.ndarray, token: int) -> bool:
    return bool(words.view(np.uint32)[token // 32] >> np.uint32(token % 32) & 1)


Guess = Callable[[Drawing], Sequence[int]]


def generate(engine: CudaEngine, params: Sequence[SamplingParams], guess: Guess) -> tuple[list[list[Drawn]], int]:
    """What each sequence drew, and how many guesses were right."""
    rng, num_right = random.Random(2), 0
    sequences = [Drawing(seq_id) for seq_id in range(len(params))]
    for seq_id, one in enumerate(params):
        engine.admit(seed_of(seq_id, one))
    chunks = [
        Row(s.seq_id, PROMPT, 0, s.blocks(len(PROMPT) + 1, rng), (Draw(s.seq_id, 0, 0, s.mask(0)),)) for s in sequences
    ]
    for sequence, first in zip(sequences, engine.launch(Plan(0, tuple(chunks))).result().drawn, strict=True):
        sequence.drawn.append(first)
    for step in range(1, 100):
        live = [s for s in sequences if len(s.drawn) < NUM_TOKENS]
        if not live:
            break
        rows = [s.row(guess(s), rng) for s in live]
        drawn = engine.launch(Plan(step, tuple(rows))).result().drawn
        for sequence, row in zip(live, rows, strict=True):
            made = [one for one in (next(drawn) for _ in row.draws) if one[0] >= NO_TOKEN]
            sequence.drawn += made
            num_right += len(made) - 1
    for sequence in sequences:
        engine.retire(sequence.seq_id)
    return [sequence.drawn[:NUM_TOKENS] for sequence in sequences], num_right


class Plain:
    """What an engine draws without guesses, for each mixture of samplers that is asked for."""

    def __init__(self, engine: CudaEngine) -> None:
        self._of = cache(lambda seed: generate(engine, params_of(seed), lambda sequence: ()))

    def of(self, seed: int | None) -> list[list[Drawn]]:
        drawn, num_right = self._of(seed)
        assert num_right == 0
        return drawn


def params_of(seed: int | None) -> list[SamplingParams]:
    return SIMPLE if seed is None else [one for one in mixtures(3 * BATCH, seed) if can_draw(one)][:BATCH]


def guesser(expected: Sequence[Sequence[Drawn]], seed: int, share: float, most: int) -> Guess:
    """Up to `most` guesses, each right with this probability."""
    rng = random.Random(seed)

    def guess(sequence: Drawing) -> Sequence[int]:
        right = [one[0] for one in expected[sequence.seq_id][len(sequence.drawn) :][: rng.randint(0, most)]]
        return [token if rng.random() < share else rng.randrange(tiny.VOCAB_SIZE) for token in right]

    return guess


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=[True, False], ids=["captured", "launched"])
def engine(request: pytest.FixtureRequest, device: str, tmp_path_factory: pytest.TempPathFactory) -> CudaEngine:
    config = tiny.llama()
    weights = tiny.save(tiny.reference_model(config), tmp_path_factory.mktemp("model"))
    sampler = Sampler(tiny.VOCAB_SIZE, device)
    return cuda_engine(config, weights, device, sampler=sampler, captured=request.param)


@pytest.fixture(scope="module")
def plain(engine: CudaEngine) -> Plain:
    return Plain(engine)


GUESSED = [(1.0, MAX_DRAFTS), (0.7, MAX_DRAFTS), (0.7, 1), (0.0, 3)]
"""What share of the guesses is right, and how many there are at most. With each, the simple samplers and a mixture are
run; other mixtures with one of them."""


@pytest.mark.parametrize(
    ("seed", "share", "most"),
    [*((seed, *guessed) for seed in (None, 0) for guessed in GUESSED), (1, 0.7, MAX_DRAFTS), (2, 1.0, MAX_DRAFTS)],
)
def test_guesses_change_nothing(engine: CudaEngine, plain: Plain, seed: int | None, share: float, most: int) -> None:
    params, expected = params_of(seed), plain.of(seed)
    got, num_right = generate(engine, params, guesser(expected, most, share, most))
    for one, other, asked in zip(expected, got, params, strict=True):
        assert [token for token, _, _ in one] == [token for token, _, _ in other], asked
        for (_, logprobs, state), (_, got_logprobs, got_state) in zip(one, other, strict=True):
            assert_near(logprobs, got_logprobs)
            assert floats(state) == pytest.approx(floats(got_state), rel=1e-3)
    assert (num_right > 3) == (share > 0)


def test_beside_what_the_kernels_do_not_draw_nothing_is_guessed(engine: CudaEngine) -> None:
    params = [SamplingParams(), SamplingParams(logprobs=2, logprobs_mode="processed")]
    expected, _ = generate(engine, params, lambda sequence: ())
    got, num_right = generate(engine, params, guesser(expected, 1, 1.0, MAX_DRAFTS))
    assert [[one[0] for one in drawn] for drawn in got] == [[one[0] for one in drawn] for drawn in expected]
    assert num_right == 0


def test_more_guesses_than_captured_steps_have_room_for(engine: CudaEngine) -> None:
    params = [SamplingParams(temperature=0.0)] * 2
    expected, _ = generate(engine, params, lambda sequence: ())
    got, _ = generate(engine, params, guesser(expected, 1, 1.0, MAX_DRAFTS))
    assert [[one[0] for one in drawn] for drawn in got] == [[one[0] for one in drawn] for drawn in expected]


def asking(most: int) -> Guess:
    """Now and then fewer guesses of the engine's, or none."""
    rng = random.Random(most)
    return lambda sequence: (DRAFT,) * (most if rng.random() < 0.7 else rng.randint(0, most))


@pytest.fixture(scope="module", params=["first layer", "another", "itself"])
def guessing(request: pytest.FixtureRequest, device: str, tmp_path_factory: pytest.TempPathFactory) -> CudaEngine:
    config, small = tiny.llama(), tiny.llama(hidden_size=32, num_attention_heads=2, num_key_value_heads=1)
    weights = tiny.save(tiny.reference_model(config), tmp_path_factory.mktemp("model"))
    if request.param == "first layer":
        draft: Checkpoint | int = 1
    elif request.param == "itself":
        draft = Checkpoint(config, weights)
    else:
        draft = Checkpoint(small, tiny.save(tiny.reference_model(small, seed=4), tmp_path_factory.mktemp("small")))
    sampler = Sampler(tiny.VOCAB_SIZE, device)
    engine = cuda_engine(config, weights, device, sampler=sampler, draft=draft)
    engine.always_right = request.param == "itself"  # type: ignore[attr-defined]
    return engine


@pytest.fixture(scope="module")
def guessing_plain(guessing: CudaEngine) -> Plain:
    return Plain(guessing)


@pytest.mark.parametrize(("seed", "most"), [(None, 1), (None, MAX_DRAFTS), (0, 3), (1, MAX_DRAFTS)])
def test_what_the_engine_guesses_changes_nothing(
    guessing: CudaEngine, guessing_plain: Plain, seed: int | None, most: int
) -> None:
    params, expected = params_of(seed), guessing_plain.of(seed)
    got, num_right = generate(guessing, params, asking(most))
    for one, other, asked in zip(expected, got, params, strict=True):
        assert [token for token, _, _ in one] == [token for token, _, _ in other], asked
        assert [len(state) for _, _, state in one] == [len(state) for _, _, state in other]
    assert num_right > (20 if guessing.always_right else 0)  # type: ignore[attr-defined]


@pytest.mark.parametrize("catch_up_tokens", [draft_progress.CATCH_UP_TOKENS, 2])
def test_the_model_itself_is_always_right(
    catch_up_tokens: int, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first step on, in however many parts it takes up a prompt."""
    monkeypatch.setattr(draft_progress, "CATCH_UP_TOKENS", catch_up_tokens)
    config = tiny.llama()
    weights = tiny.save(tiny.reference_model(config), tmp_path)
    engine = cuda_engine(config, weights, device, draft=Checkpoint(config, weights))
    params = [SamplingParams(temperature=0.0), SamplingParams(), SamplingParams(top_p=0.9)] * 2
    num_steps: dict[int, int] = {}

    def guess(sequence: Drawing) -> Sequence[int]:
        num_steps[sequence.seq_id] = num_steps.get(sequence.seq_id, 0) + 1
        return (DRAFT,) * MAX_DRAFTS

    generate(engine, params, guess)
    rows_unguided = [seq_id for seq_id in num_steps if seq_id % 3]
    assert {num_steps[seq_id] for seq_id in rows_unguided} == {-(-(NUM_TOKENS - 1) // (1 + MAX_DRAFTS))}
