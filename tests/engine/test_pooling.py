"""Pooled vectors are those of transformers' last hidden states, however a prompt is cut and whoever is in the batch."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from isthmus.decode.sampler import Sampler
from isthmus.engine.fake_engine import FakeEngine, extend_history, hidden_states
from isthmus.engine.plan import Draw, Engine, Plan, Row, Scoring, SequenceSeed
from isthmus.engine.pooling import Pooler, needs_all, pooled_positions
from isthmus.tests.engine import tiny
from isthmus.tests.engine.cuda_tiny import cuda_engine
from isthmus.wire.messages import Pooling
from isthmus.wire.sampling import SamplingParams

ENGINES = ["torch", "cuda on the host", pytest.param("cuda", marks=pytest.mark.gpu)]
KINDS: list[Pooling] = ["last", "mean", "cls"]
TOKENS = tiny.prompt(45)
TABLE = (30, 2, 17, 16, 9, 40, 41, 42, 5, 11, 60, 3, 7)
OTHER = (20, 21, 22, 23, 24, 25, 26)
FOREIGN = (50, 51)


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict, Path]:
    config = tiny.llama() if request.param == "llama" else tiny.qwen3(head_dim=32)
    model = tiny.reference_model(config)
    return model, config, tiny.save(model, tmp_path_factory.mktemp("pooling"))


def make_engine(kind: str, config: dict, weights: Path) -> Engine:
    if kind == "torch":
        return tiny.engine_of(config, weights, sampler=Sampler(tiny.VOCAB_SIZE))
    return cuda_engine(config, weights, "cuda" if kind == "cuda" else "cpu")


def expected(model: Any, pooling: Pooling) -> np.ndarray:
    with torch.inference_mode():
        states = model.model(torch.tensor([TOKENS])).last_hidden_state[0]
    return {"last": states[-1], "mean": states.mean(0), "cls": states[0]}[pooling].numpy()


def pool(engine: Engine, pooling: Pooling, chunk: int, *beside: Row) -> np.ndarray:
    """The vector of TOKENS, computed in chunks beside these rows."""
    pooler = Pooler(pooling, len(TOKENS))
    for start in range(0, len(TOKENS), chunk):
        ids = TOKENS[start : start + chunk]
        row = Row(1, ids, start, TABLE, pooling=pooler.of_row(start, len(ids)))
        result = engine.launch(Plan(0, (*beside, row))).result()
        assert set(result.pooled) == ({1} if row.pooling else set())
        if row.pooling:
            assert result.pooled[1].dtype == np.float32
            pooler.add(result.pooled[1])
    return np.frombuffer(pooler.packed(), "<f4")


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("pooling", KINDS)
def test_vectors_equal_transformers(kind: str, pooling: Pooling, reference: tuple[Any, dict, Path]) -> None:
    model, config, weights = reference
    engine = make_engine(kind, config, weights)
    for chunk in (45, 16, 1):
        np.testing.assert_allclose(pool(engine, pooling, chunk), expected(model, pooling), rtol=1e-4, atol=1e-4)


def test_a_checkpoint_without_output_layer(tmp_path: Path) -> None:
    """As embedding models are published: tensors are named without `model.`."""
    config = tiny.qwen3(head_dim=32, tie_word_embeddings=True)
    model = tiny.reference_model(config)
    weights = tiny.save(model.model, tmp_path)
    vector = pool(make_engine("torch", config, weights), "last", 45)
    np.testing.assert_allclose(vector, expected(model, "last"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("pooling", KINDS)
def test_beside_rows_that_draw_score_and_ask_nothing(
    kind: str, pooling: Pooling, reference: tuple[Any, dict, Path]
) -> None:
    model, config, weights = reference
    engine = make_engine(kind, config, weights)
    engine.admit(SequenceSeed(2, SamplingParams(temperature=0), (1, 2), TOKENS[:5], (), frozenset()))
    draws = Row(2, TOKENS[:5], 0, OTHER, (Draw(2, 0),))
    scores = Row(3, TOKENS[:7], 0, FOREIGN, prompt_logprobs=Scoring(TOKENS[1:8], 2))
    vector = pool(engine, pooling, 45, draws, scores)
    np.testing.assert_allclose(vector, expected(model, pooling), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling", KINDS)
def test_the_fake_engine_pools_what_it_says_it_does(pooling: Pooling) -> None:
    states = hidden_states(extend_history(0, TOKENS))
    right = {"last": states[-1], "mean": states.mean(0), "cls": states[0]}[pooling]
    for chunk in (45, 7):
        assert np.array_equal(pool(FakeEngine(64, 4, tiny.VOCAB_SIZE), pooling, chunk), right)


@pytest.mark.parametrize(
    ("pooling", "rows", "positions"),
    [
        ("mean", ["mean", "mean", "mean"], [range(4), range(4), range(2)]),
        ("cls", ["cls", None, None], [range(1), range(0), range(0)]),
        ("last", [None, None, "last"], [range(0), range(0), range(1, 2)]),
        ("score", [None, None, "score"], [range(0), range(0), range(1, 2)]),
    ],
)
def test_rows_that_a_vector_depends_on(pooling: Pooling, rows: list[Any], positions: list[range]) -> None:
    pooler = Pooler(pooling, 10)
    spans = [(0, 4), (4, 4), (8, 2)]
    assert [pooler.of_row(*span) for span in spans] == rows
    made = [Row(1, [0] * size, start, (), pooling=pooler.of_row(start, size)) for start, size in spans]
    assert [pooled_positions(row) for row in made] == positions


def test_what_a_prefix_cache_may_answer() -> None:
    assert [kind for kind in get_args(Pooling) if needs_all(kind)] == ["mean", "cls"]
    assert not needs_all(None)
