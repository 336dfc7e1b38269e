"""Grammars' masks on the engine for GPUs: here with the kernels' references, and on a GPU with the kernels."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from isthmus.decode.sampler import Sampler
from isthmus.engine.cuda.engine import CudaEngine
from isthmus.engine.cuda.step import LaunchedStep, Step
from isthmus.engine.plan import IN_FLIGHT, NOT_DRAWN, Draw, Engine, Handle, Plan, Row, SequenceSeed
from isthmus.tests.engine import tiny
from isthmus.tests.engine.cuda_tiny import cuda_engine
from isthmus.wire.noise import philox_key
from isthmus.wire.sampling import SamplingParams

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CONFIG = tiny.llama()
PROMPT = tiny.prompt(11)
NUM_ALLOWED = 6
PARAMS = (
    SamplingParams(temperature=0),
    SamplingParams(temperature=0.9),
    SamplingParams(temperature=1.1, logit_bias={5: 9.0}),
    SamplingParams(temperature=0.8),
)
GUIDED = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class Allowed:
    """As plan.Mask."""

    token_ids: tuple[int, ...]

    def result(self) -> np.ndarray:
        bits = np.zeros(-(-tiny.VOCAB_SIZE // 32) * 32, bool)
        bits[list(self.token_ids)] = True
        return np.packbits(bits, bitorder="little").view(np.uint32)


def allowed(seq_id: int, position: int) -> Allowed:
    rng = np.random.default_rng((seq_id, position))
    return Allowed(tuple(rng.choice(tiny.VOCAB_SIZE, NUM_ALLOWED, replace=False).tolist()))


def table_of(seq_id: int) -> list[int]:
    return list(range(4 + 8 * seq_id, 12 + 8 * seq_id))


def draw_of(seq_id: int, position: int) -> Draw:
    return Draw(seq_id, position, 0, allowed(seq_id, position) if seq_id in GUIDED else None)


def begin(engine: Engine, many: Sequence[SamplingParams] = PARAMS) -> list[list[int]]:
    """First tokens of four sequences, of which some have grammars."""
    for seq_id, params in enumerate(many):
        engine.admit(SequenceSeed(seq_id, params, philox_key(7, 0, seq_id), PROMPT, [], frozenset()))
    rows = [Row(seq_id, PROMPT, 0, table_of(seq_id), (draw_of(seq_id, 0),)) for seq_id in range(len(many))]
    return [[token] for token in engine.launch(Plan(0, tuple(rows))).result().token_ids]


def row_of(seq_id: int, output: list[int]) -> Row:
    start = len(PROMPT) + len(output) - 1
    return Row(seq_id, output[-1:], start, table_of(seq_id), (draw_of(seq_id, len(output)),))


def write(engine: Engine, num_tokens: int) -> list[list[int]]:
    """Batches with grammars, and in every third step one without."""
    outputs = begin(engine)
    for step in range(1, num_tokens):
        members = [seq_id for seq_id in range(len(PARAMS)) if step % 3 or seq_id not in GUIDED]
        rows = tuple(row_of(seq_id, outputs[seq_id]) for seq_id in members)
        tokens = engine.launch(Plan(step, rows)).result().token_ids
        for seq_id, token in zip(members, tokens, strict=True):
            outputs[seq_id].append(token)
    return outputs


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("captured", [False, True])
def test_tokens_are_those_that_masks_allow_and_equal_the_cpu_engine(
    captured: bool, device: str, tmp_path: Path
) -> None:
    weights = tiny.save(tiny.reference_model(CONFIG), tmp_path)
    outputs = write(cuda_engine(CONFIG, weights, device, captured=captured), 12)
    assert outputs == write(tiny.engine_of(CONFIG, weights, sampler=Sampler(tiny.VOCAB_SIZE)), 12)
    for seq_id in GUIDED:
        for position, token in enumerate(outputs[seq_id]):
            assert token in allowed(seq_id, position).token_ids


EAGER = SamplingParams(temperature=0.9, logprobs=2, logprobs_mode="processed")
"""The kernels do not draw for it."""


@dataclass(frozen=True, slots=True)
class Following:
    """A mask that follows from the token before: it must be known when it is asked for."""

    outputs: list[list[int]]
    seq_id: int
    position: int

    def result(self) -> np.ndarray:
        output = self.outputs[self.seq_id]
        assert len(output) == self.position, "asked for too early, or too late"
        return allowed(self.seq_id, output[-1]).result()


def rows_of(outputs: list[list[int]], position: int, *, is_ahead: bool, has_chunk: bool) -> tuple[Row, ...]:
    """Of all that have so many tokens, or will; and a chunk of a prompt."""
    start = len(PROMPT) + position - 1
    rows = [
        Row(
            seq_id,
            (IN_FLIGHT,) if is_ahead else output[-1:],
            start,
            table_of(seq_id),
            (Draw(seq_id, position, 0, None if seq_id == 3 else Following(outputs, seq_id, position)),),
        )
        for seq_id, output in enumerate(outputs)
    ]
    return (*rows, Row(9, PROMPT[: 2 + position], 0, table_of(6))) if has_chunk else tuple(rows)


def write_following(engine: Engine, params: SamplingParams, num_tokens: int, *, is_ahead: bool) -> list[list[int]]:
    """Four sequences, of which three have masks that follow from their tokens, and one of these has these `params`;
    in every fourth step a prompt is computed beside them."""
    outputs = begin(engine, (*PARAMS[:2], params, PARAMS[3]))
    flying: Handle | None = None
    for position in range(1, num_tokens):
        has_chunk = position % 4 == 0
        plan = Plan(position, rows_of(outputs, position, is_ahead=flying is not None, has_chunk=has_chunk))
        handle = engine.launch(plan)
        assert plan.waits_for_tokens == (flying is not None)
        if flying is not None:
            take(flying, outputs)
        flying = handle
        if not is_ahead:
            take(flying, outputs)
            flying = None
    if flying is not None:
        take(flying, outputs)
    return outputs


def take(handle: Handle, outputs: list[list[int]]) -> None:
    for output, token in zip(outputs, handle.result().token_ids, strict=True):
        output.append(token)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("params", [PARAMS[2], EAGER], ids=["kernels", "eager"])
def test_masks_may_follow_from_tokens_that_are_in_flight(
    params: SamplingParams, captured: bool, device: str, tmp_path: Path
) -> None:
    """The step is launched before they are known, and draws after."""
    weights = tiny.save(tiny.reference_model(CONFIG), tmp_path)
    written = [
        write_following(
            cuda_engine(CONFIG, weights, device, captured=captured, sampler=Sampler(tiny.VOCAB_SIZE, device)),
            params,
            14,
            is_ahead=is_ahead,
        )
        for is_ahead in (False, True)
    ]
    assert written[0] == written[1]
    for seq_id in range(3):
        for before, token in pairwise(written[0][seq_id]):
            assert token in allowed(seq_id, before).token_ids


def test_the_model_computes_before_masks_may_be_asked_for() -> None:
    """Whoever is told something else first draws."""
    for tell in ("result", "launch", "admit", "retire", "read", "write"):
        engine = cuda_engine(CONFIG, None)
        outputs = begin(engine)
        rows = [row_of(seq_id, outputs[seq_id]) for seq_id in (0, 3)]
        flying = engine.launch(Plan(1, tuple(rows)))
        asked: list[str] = []
        mask = Noting(asked)
        row = Row(0, (IN_FLIGHT,), rows[0].start + 1, table_of(0), (Draw(0, 2, 0, mask),))
        block = row.block_table[row.start // engine.block_size]
        pool = engine._pools.blocks  # the engine would draw first
        before = bytes(pool.read([block]))
        ahead = engine.launch(Plan(2, (row,)))
        assert bytes(pool.read([block])) != before
        flying.result()
        assert not asked
        match tell:
            case "launch":
                engine.launch(Plan(3, (Row(9, PROMPT[:3], 0, table_of(6)),))).result()
            case "admit":
                engine.admit(SequenceSeed(7, PARAMS[0], philox_key(7, 0, 7), PROMPT, [], frozenset()))
            case "retire":
                engine.retire(1)
            case "read":
                engine.read_blocks([0])
            case "write":
                engine.write_blocks([0], memoryview(bytes(engine.bytes_per_block)))
            case _:
                pass
        assert asked == ["mask"] * (tell != "result")
        assert ahead.result().token_ids[0] in (3, 4)
        assert asked == ["mask"]


def test_who_is_admitted_is_not_refused_for_a_step_that_cannot_be_drawn() -> None:
    engine = cuda_engine(CONFIG, None)
    outputs = begin(engine)
    first = row_of(0, outputs[0])
    flying = engine.launch(Plan(1, (first,)))
    row = Row(
        0, (IN_FLIGHT,), first.start + 1, table_of(0), (Draw(0, 2, 0, Mock(result=Mock(side_effect=ValueError))),)
    )
    engine.launch(Plan(2, (row,)))
    flying.result()
    with pytest.raises(RuntimeError, match="step 2 could not be drawn"):
        engine.admit(SequenceSeed(7, PARAMS[0], philox_key(7, 0, 7), PROMPT, [], frozenset()))


def test_what_was_computed_is_free_once_it_was_drawn_from() -> None:
    """While its handle goes on."""
    logits = torch.zeros(3)
    held, drawn = weakref.ref(logits), Step(lambda: None, np.array([5], np.int32), range(1))
    step = LaunchedStep(Plan(1, ()), partial(lambda *_: drawn, logits))
    del logits
    assert held() is not None
    step.draw()
    assert held() is None
    assert step.result().token_ids == [5]


@dataclass(frozen=True, slots=True)
class Noting:
    """A mask that notes that it was asked for."""

    asked: list[str]

    def result(self) -> np.ndarray:
        self.asked.append("mask")
        return Allowed((3, 4)).result()


@dataclass(slots=True)
class Waiting:
    """A mask that notes what the pool held of a block when it was asked for."""

    engine: CudaEngine
    block: int
    seen: bytes = b""

    def result(self) -> np.ndarray:
        self.seen = bytes(self.engine.read_blocks([self.block]))
        return Allowed((3, 4)).result()


@pytest.mark.parametrize("guesses", [(), (3, 5)], ids=["alone", "with guesses"])
def test_the_model_computes_while_masks_are_waited_for(guesses: tuple[int, ...]) -> None:
    """And while guesses are held against a grammar."""
    engine = cuda_engine(CONFIG, None)
    (output, *_) = begin(engine)
    row = row_of(0, output)
    block = row.block_table[row.start // engine.block_size]
    mask, before, num_followed = Waiting(engine, block), bytes(engine.read_blocks([block])), 0

    def follow(token: int) -> None:
        nonlocal num_followed
        assert token == guesses[0]
        assert bytes(engine.read_blocks([block])) != before
        num_followed += 1

    draws = (Draw(0, 1, 0, mask), *(Draw(0, 2 + index) for index in range(len(guesses))))
    tokens = (*row.token_ids, *guesses)
    guided = Row(0, tokens, row.start, row.block_table, draws, num_drafts=len(guesses), follow=follow)
    drawn = engine.launch(Plan(1, (guided,))).result().token_ids
    assert drawn[0] in (3, 4)
    assert list(drawn[1:]) == [NOT_DRAWN] * len(guesses), "the grammar lets nothing follow"
    assert mask.seen == bytes(engine.read_blocks([block])) != before
    assert num_followed == bool(guesses)
