"""Logprobs are those of transformers' logits, on every way a token is drawn, and whoever else is in the batch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from isthmus.decode.sampler import Sampler
from isthmus.engine.plan import IN_FLIGHT, Draw, Engine, Plan, Result, Row, Scoring, SequenceSeed, ShippedDraw
from isthmus.engine.token_logprobs import token_logprobs
from isthmus.tests.engine import tiny
from isthmus.tests.engine.cuda_tiny import cuda_engine
from isthmus.wire.logprobs import TokenLogprobs
from isthmus.wire.noise import philox_key
from isthmus.wire.sampling import SamplingParams
from torch import Tensor

ENGINES = ["torch", "cuda on the host", pytest.param("cuda", marks=pytest.mark.gpu)]
CONFIG = tiny.llama()
TOKENS = tiny.prompt(45)
TABLE = (30, 2, 17, 16, 9, 40, 41, 42, 5, 11, 60, 3, 7)
OTHER = (20, 21, 22, 23, 24, 25, 26)


@pytest.fixture(scope="module")
def reference() -> Any:
    return tiny.reference_model(CONFIG)


@pytest.fixture(scope="module")
def weights(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(reference, tmp_path_factory.mktemp("logprobs"))


def make_engine(kind: str, weights: Path) -> Engine:
    if kind == "torch":
        return tiny.engine_of(CONFIG, weights, sampler=Sampler(tiny.VOCAB_SIZE))
    return cuda_engine(CONFIG, weights, "cuda" if kind == "cuda" else "cpu")


def admit(engine: Engine, seq_id: int, num_top: int | None, prompt: Sequence[int]) -> None:
    params = SamplingParams(temperature=1.3, top_k=50, repetition_penalty=1.2, logprobs=num_top)
    engine.admit(SequenceSeed(seq_id, params, philox_key(5, 0, seq_id), prompt, (), frozenset()))


def launch(engine: Engine, *rows: Row, shipped: tuple[ShippedDraw, ...] = ()) -> Result:
    return engine.launch(Plan(0, rows, shipped)).result()


def check(given: TokenLogprobs | None, logits: Tensor, token: int, num_top: int) -> None:
    assert given is not None
    expected = logits.log_softmax(-1)
    assert given.chosen == pytest.approx(float(expected[token]), abs=1e-4)
    best = expected.topk(num_top)
    assert [token_id for token_id, _ in given.top] == best.indices.tolist()
    assert [logprob for _, logprob in given.top] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert given.rank == 1 + int((expected > expected[token]).sum())


@pytest.mark.parametrize("kind", ENGINES)
def test_at_a_chunk_s_end_while_decoding_and_from_shipped_logits(kind: str, reference: Any, weights: Path) -> None:
    engine = make_engine(kind, weights)
    prompt = TOKENS[:21]
    admit(engine, 1, 4, prompt)
    launch(engine, Row(1, prompt[:10], 0, TABLE))
    results = [launch(engine, Row(1, prompt[10:], 10, TABLE, (Draw(1, 0),)))]
    for position in range(1, 5):
        row = Row(1, results[-1].token_ids, 20 + position, TABLE, (Draw(1, position),))
        results.append(launch(engine, row))
    tokens = [result.token_ids[0] for result in results]
    logits = tiny.reference_logits(reference, [*prompt, *tokens])
    for index, (result, token) in enumerate(zip(results, tokens, strict=True)):
        check(result.logprobs[0], logits[20 + index], token, 4)
    shipped = launch(engine, Row(9, prompt, 0, OTHER, keep_logits=True)).logits[9]
    admit(engine, 2, 4, prompt)
    travelled = engine.unpack_logits(engine.pack_logits(shipped))
    result = launch(engine, shipped=(ShippedDraw(travelled, (Draw(2, 0),)),))
    check(result.logprobs[0], logits[20], result.token_ids[0], 4)


@pytest.mark.parametrize("kind", ENGINES)
def test_only_those_who_ask_and_the_same_alone_and_in_a_batch(kind: str, weights: Path) -> None:
    """Three sequences decode while the fourth begins; the plan's order is not that in which draws are made."""

    def run(seq_ids: Sequence[int]) -> dict[int, list[TokenLogprobs | None]]:
        engine = make_engine(kind, weights)
        tables = {seq_id: tuple(range(12 * seq_id, 12 * seq_id + 10)) for seq_id in seq_ids}
        prompts = {seq_id: TOKENS[seq_id : seq_id + 11] for seq_id in seq_ids}
        for seq_id in seq_ids:
            admit(engine, seq_id, None if seq_id == 2 else seq_id, prompts[seq_id])
        found: dict[int, list[TokenLogprobs | None]] = {seq_id: [] for seq_id in seq_ids}
        drawn: dict[int, int] = {}
        flying: list[Any] = []

        def take() -> None:
            handle = flying.pop(0)
            result = handle.result()
            for draw, (token, logprobs, _) in zip(handle.plan.draws, result.drawn, strict=True):
                drawn[draw.seq_id] = token
                found[draw.seq_id].append(logprobs)

        for step in range(5):
            rows = []
            for seq_id in seq_ids:
                began = 2 if seq_id == 3 else 0
                if step == began:
                    rows.append(Row(seq_id, prompts[seq_id], 0, tables[seq_id], (Draw(seq_id, 0),)))
                elif step > began:
                    position = step - began
                    rows.append(Row(seq_id, (IN_FLIGHT,), 10 + position, tables[seq_id], (Draw(seq_id, position),)))
            if not rows:
                continue
            flying.append(engine.launch(Plan(step, tuple(reversed(rows)))))
            if len(flying) == 2:
                take()
        take()
        return found

    together = run([0, 1, 2, 3])
    assert together[2] == [None] * 5
    assert [len(one.top) for one in together[3] if one] == [3] * 3
    for seq_id in (0, 1, 3):
        for alone, beside in zip(run([seq_id])[seq_id], together[seq_id], strict=True):
            assert alone is not None
            assert beside is not None
            assert beside.chosen == pytest.approx(alone.chosen, abs=1e-4)
            assert [i for i, _ in beside.top] == [i for i, _ in alone.top]


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("chunk", [45, 16, 1])
def test_of_a_prompt(kind: str, chunk: int, reference: Any, weights: Path) -> None:
    """In chunks, while another sequence decodes and one prompt nobody asks about is computed."""
    engine = make_engine(kind, weights)
    admit(engine, 2, None, TOKENS[:5])
    launch(engine, Row(2, TOKENS[:5], 0, OTHER, (Draw(2, 0),)))
    found: list[TokenLogprobs] = []
    for step, start in enumerate(range(0, 45, chunk)):
        ids, targets = TOKENS[start : start + chunk], TOKENS[start + 1 : start + chunk + 1]
        scoring = Scoring(targets, 3) if targets else None
        row = Row(1, ids, start, TABLE, keep_logits=not targets, prompt_logprobs=scoring)
        rows: tuple[Row, ...] = (row, Row(3, TOKENS[:7], 0, (50, 51)))
        if step < 20:
            rows = (Row(2, (IN_FLIGHT,), 5 + step, OTHER, (Draw(2, step + 1),)), *rows)
        result = launch(engine, *rows)
        found += result.prompt_logprobs.get(1, ())
        assert set(result.prompt_logprobs) <= {1}
        assert not any(result.logprobs)
    assert len(found) == 44
    logits = tiny.reference_logits(reference, TOKENS)
    for index, one in enumerate(found):
        check(one, logits[index], TOKENS[index + 1], 3)


def test_long_prompts_are_measured_in_pieces(reference: Any, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isthmus.engine.token_logprobs.ROWS_AT_ONCE", 7)
    test_of_a_prompt("torch", 45, reference, weights)
    test_of_a_prompt("cuda on the host", 45, reference, weights)


def test_what_has_no_chance_is_left_out_and_ties_are_in_the_order_of_ids() -> None:
    logits = torch.tensor([[-torch.inf, 1.0, 2.0, 1.0, -torch.inf], [0.0, 0.0, 0.0, 0.0, 0.0]])
    first, second = token_logprobs(logits, torch.tensor([3, 4]), [5, 2])
    assert [token_id for token_id, _ in first.top] == [2, 1, 3]
    assert first.rank == 3
    assert [token_id for token_id, _ in second.top] == [0, 1]
    assert second.rank == 5
    assert second.chosen == pytest.approx(-1.6094379, abs=1e-6)


def test_no_row_is_no_result() -> None:
    assert token_logprobs(torch.empty(0, 5), torch.empty(0, dtype=torch.int64), []) == []
