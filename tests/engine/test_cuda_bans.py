"""Bans of single draws on the engine for GPUs: here with the kernels' references, and on a GPU with the kernels."""

import math
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch
from isthmus.engine.cuda.engine import CudaEngine
from isthmus.engine.cuda.sampler import DeviceSampler
from isthmus.engine.plan import Draw, Plan, Row, SequenceSeed
from isthmus.tests.engine import tiny
from isthmus.tests.engine.cuda_tiny import cuda_engine
from isthmus.wire.sampling import SamplingParams

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
VOCAB_SIZE = 40
STOP = frozenset([2, 9])


def sampler(allowed: tuple[int, ...] = (), **params: Any) -> DeviceSampler:
    """With one sequence, in slot 0."""
    device = DeviceSampler(2, VOCAB_SIZE, 64, torch.device("cpu"))
    asked = SamplingParams(allowed_token_ids=allowed, **params)
    device.set(0, SequenceSeed(0, asked, (1, 2), (5, 6), (), STOP))
    return device


def mask(*allowed: int) -> Future[Any]:
    bits = np.zeros(64, bool)
    bits[list(allowed)] = True
    done: Future[Any] = Future()
    done.set_result(np.packbits(bits, bitorder="little").view(np.uint32))
    return done


def edits(device: DeviceSampler, draw: Draw, slot: int = 0) -> dict[int, float] | None:
    found = device.edits([slot], [draw])
    if found is None:
        return None
    assert len(set(found.ids.tolist())) == len(found)
    assert set(found.rows.tolist()) == {0}
    return dict(zip(found.ids.tolist(), found.values.tolist(), strict=True))


def test_bans_are_edits() -> None:
    assert edits(sampler(), Draw(0, 0)) is None
    assert edits(sampler(), Draw(0, 0, bans=(3, 7))) == {3: -math.inf, 7: -math.inf}
    assert edits(sampler(), Draw(0, 0, bans=(3,)), slot=-1) is None


def test_a_banned_token_is_not_edited_twice() -> None:
    device = sampler(logit_bias={3: 1.0, 4: 2.0}, min_tokens=2)
    stops = dict.fromkeys(STOP, -math.inf)
    assert edits(device, Draw(0, 0)) == {3: 1.0, 4: 2.0, **stops}
    assert edits(device, Draw(0, 0, bans=(3, 9))) == {4: 2.0, 3: -math.inf, **stops}
    assert edits(device, Draw(0, 2, bans=(3, 9))) == {4: 2.0, 3: -math.inf, 9: -math.inf}


def test_bans_that_leave_nothing_are_not_done() -> None:
    assert edits(sampler((3, 7)), Draw(0, 0, bans=(3, 7))) is None
    assert edits(sampler((3, 7)), Draw(0, 0, bans=(3,))) == {3: -math.inf}
    assert edits(sampler(), Draw(0, 0, mask=mask(3, 7), bans=(3, 7))) is None
    assert edits(sampler((3, 8)), Draw(0, 0, mask=mask(3, 7), bans=(3,))) is None
    assert edits(sampler(), Draw(0, 0, bans=tuple(range(VOCAB_SIZE)))) is None


def test_stop_tokens_come_where_bans_leave_nothing_else() -> None:
    device = sampler((2, 3), min_tokens=5)
    assert edits(device, Draw(0, 0)) == dict.fromkeys(STOP, -math.inf)
    assert edits(device, Draw(0, 0, bans=(3,))) == {3: -math.inf}


@pytest.fixture(scope="module", params=DEVICES)
def engine(request: pytest.FixtureRequest) -> CudaEngine:
    return cuda_engine(tiny.llama(), None, request.param)


def begin(engine: CudaEngine, seq_id: int) -> None:
    engine.admit(SequenceSeed(seq_id, SamplingParams(temperature=0), (1, seq_id), (5,), (), frozenset()))


@pytest.mark.parametrize("num_rows", [1, 3])
def test_in_captured_steps(engine: CudaEngine, num_rows: int) -> None:
    """Greedily from the same row again and again, all but one sequence without what they have drawn before."""
    drawn: list[list[int]] = [[] for _ in range(num_rows)]
    for epoch in range(12):
        for seq_id in range(num_rows):
            begin(engine, seq_id)
        bans = [() if seq_id == 1 else tuple(drawn[seq_id]) for seq_id in range(num_rows)]
        rows = [Row(i, (5,), 0, (i + 1,), (Draw(i, 0, epoch, bans=bans[i]),)) for i in range(num_rows)]
        for seq_id, token in enumerate(engine.launch(Plan(epoch, tuple(rows))).result().token_ids):
            drawn[seq_id].append(token)
            engine.retire(seq_id)
    assert [len(set(tokens)) for tokens in drawn] == [12, 1, 12][:num_rows]
    assert all(tokens == drawn[0] for tokens in drawn[2:])
