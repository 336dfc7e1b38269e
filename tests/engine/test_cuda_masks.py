"""Grammars' masks on the engine for GPUs: here with the kernels' references, and on a GPU with the kernels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from isthmus.decode.sampler import Sampler
from isthmus.engine.cuda.engine import CudaEngine
from isthmus.engine.plan import NOT_DRAWN, Draw, Engine, Plan, Row, SequenceSeed
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


def begin(engine: Engine) -> list[list[int]]:
    """First tokens of four sequences, of which some have grammars."""
    for seq_id, params in enumerate(PARAMS):
        engine.admit(SequenceSeed(seq_id, params, philox_key(7, 0, seq_id), PROMPT, [], frozenset()))
    rows = [Row(seq_id, PROMPT, 0, table_of(seq_id), (draw_of(seq_id, 0),)) for seq_id in range(len(PARAMS))]
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
