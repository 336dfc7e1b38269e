"""The GPU's engine computes what transformers and the CPU's engine do: here with the kernels' references, and on a GPU
with the kernels and captured graphs."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from isthmus.decode.sampler import Sampler
from isthmus.engine.plan import IN_FLIGHT, NO_TOKEN, Draw, Engine, Plan, Row, SequenceSeed, ShippedDraw
from isthmus.tests.engine import tiny
from isthmus.tests.engine.cuda_tiny import cuda_engine
from isthmus.tests.engine.test_models import CONFIGS as CPU_CONFIGS
from isthmus.wire.noise import philox_key
from isthmus.wire.sampling import SamplingParams

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CONFIGS = {
    name: {**config, "head_dim": 48} if config.get("head_dim") == 24 else config for name, config in CPU_CONFIGS.items()
}
"""Kernels take head dimensions that are multiples of 16."""
TOKENS = tiny.prompt(45)
SCATTERED = (30, 2, 17, 16, 9, 40, 41, 42, 5, 11, 60, 3, 7)
GREEDY = SamplingParams(temperature=0)
SEEDED = SamplingParams(temperature=0.8, top_p=0.9, top_k=40, min_p=0.01)
PENALISED = SamplingParams(
    temperature=1.2, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.2, logit_bias={5: 4.0, 9: -3.0}
)
MIN_TOKENS = SamplingParams(temperature=0.9, min_tokens=6)


def seed_of(seq_id: int, params: SamplingParams, prompt: list[int], output: list[int] | None = None) -> SequenceSeed:
    return SequenceSeed(seq_id, params, philox_key(7, 0, seq_id), prompt, output or [], frozenset((1, 2, 3)))


def generate(
    engine: Engine,
    prompts: dict[int, list[int]],
    params: dict[int, SamplingParams],
    num_tokens: int,
    *,
    ahead: bool = False,
) -> dict[int, list[int]]:
    """Tokens of each sequence, all in one batch; the prompts are computed in two chunks. `ahead`: each step is launched
    before the one before has given its tokens."""
    tables = {seq_id: list(range(12 + 12 * seq_id, 24 + 12 * seq_id)) for seq_id in prompts}
    for table in tables.values():
        random.Random(1).shuffle(table)
    for seq_id, prompt in prompts.items():
        engine.launch(Plan(0, (Row(seq_id, prompt[:10], 0, tables[seq_id]),))).result()
        engine.admit(seed_of(seq_id, params[seq_id], prompt))
    last = tuple(Row(seq_id, prompt[10:], 10, tables[seq_id], (Draw(seq_id, 0),)) for seq_id, prompt in prompts.items())
    handles = [engine.launch(Plan(1, last))]
    outputs: dict[int, list[int]] = {seq_id: [] for seq_id in prompts}

    def take() -> None:
        handle = handles.pop(0)
        for draw, token in zip(handle.plan.draws, handle.result().token_ids, strict=True):
            assert draw.position == len(outputs[draw.seq_id])
            outputs[draw.seq_id].append(token)

    for position in range(1, num_tokens):
        if not ahead:
            take()
        rows = tuple(
            Row(
                seq_id,
                (IN_FLIGHT if ahead else outputs[seq_id][-1],),
                len(prompt) + position - 1,
                tables[seq_id],
                (Draw(seq_id, position),),
            )
            for seq_id, prompt in prompts.items()
        )
        handles.append(engine.launch(Plan(position + 1, rows)))
        if ahead:
            take()
    while handles:
        take()
    for seq_id in prompts:
        engine.retire(seq_id)
    return outputs


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name: str, captured: bool, device: str, tmp_path: Path) -> None:
    reference = tiny.reference_model(CONFIGS[name])
    expected = tiny.reference_logits(reference, TOKENS)
    engine = cuda_engine(CONFIGS[name], tiny.save(reference, tmp_path), device, draws=False, captured=captured)
    for chunk in (45, 16, 7):
        logits = tiny.prefill(engine, TOKENS, SCATTERED, chunk)
        torch.testing.assert_close(logits, expected[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("captured", "ahead"), [(True, False), (True, True), (False, True)])
@pytest.mark.parametrize("name", ["llama", "mistral, window", "qwen3, tied, biases, yarn"])
def test_tokens_equal_the_cpu_engine(name: str, captured: bool, ahead: bool, device: str, tmp_path: Path) -> None:
    weights = tiny.save(tiny.reference_model(CONFIGS[name]), tmp_path)
    prompts = {0: TOKENS[:21], 1: TOKENS[3:16], 2: TOKENS[20:45], 3: TOKENS[7:18]}
    params = {0: GREEDY, 1: SEEDED, 2: PENALISED, 3: MIN_TOKENS}
    theirs = tiny.engine_of(CONFIGS[name], weights, sampler=Sampler(tiny.VOCAB_SIZE))
    expected = generate(theirs, prompts, params, 16)
    engine = cuda_engine(CONFIGS[name], weights, device, captured=captured)
    assert generate(engine, prompts, params, 16, ahead=ahead) == expected
    alone = generate(engine, {2: prompts[2]}, params, 16, ahead=ahead)
    assert alone[2] == expected[2]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return tiny.save(tiny.reference_model(CONFIGS["llama"]), tmp_path)


@pytest.mark.parametrize("device", DEVICES)
def test_blocks_and_logits_travel_through_the_host(llama: Path, device: str) -> None:
    """From a prefill engine to a decode engine, and to and from the CPU's: one layout on the way."""
    params, prompt = {0: SEEDED}, TOKENS[:35]
    expected = generate(cuda_engine(CONFIGS["llama"], llama, device), {0: prompt}, params, 12)[0]
    prefill = cuda_engine(CONFIGS["llama"], llama, device, draws=False)
    on_cpu = tiny.engine_of(CONFIGS["llama"], llama, sampler=Sampler(tiny.VOCAB_SIZE))
    for source in (prefill, on_cpu):
        decode = cuda_engine(CONFIGS["llama"], llama, device)
        row = Row(9, prompt, 0, SCATTERED, keep_logits=True)
        logits = source.launch(Plan(0, (row,))).result().logits[9]
        table = list(range(50, 41, -1))
        decode.write_blocks(table, source.read_blocks(SCATTERED[:9]))
        decode.admit(seed_of(0, SEEDED, prompt))
        shipped = decode.unpack_logits(source.pack_logits(logits))
        tokens = list(decode.launch(Plan(1, (), (ShippedDraw(shipped, (Draw(0, 0),)),))).result().token_ids)
        table += [20, 21, 19]
        for position in range(1, 12):
            step = Row(0, tokens[-1:], 34 + position, table, (Draw(0, position),))
            tokens += decode.launch(Plan(position + 1, (step,))).result().token_ids
        assert tokens == expected


@pytest.mark.parametrize("device", DEVICES)
def test_a_joining_sequence_beside_running_ones(llama: Path, device: str) -> None:
    """Shipped logits and decode rows in one plan; a copy of a shared block before them."""
    engine = cuda_engine(CONFIGS["llama"], llama, device)
    cpu: Any = tiny.engine_of(CONFIGS["llama"], llama, sampler=Sampler(tiny.VOCAB_SIZE))
    results = []
    for one in (engine, cpu):
        prompt = TOKENS[:10]
        row = Row(0, prompt, 0, [1, 2, 3], (Draw(0, 0), Draw(1, 0)), keep_logits=True)
        for seq_id in (0, 1):
            one.admit(seed_of(seq_id, SEEDED, prompt))
        first = one.launch(Plan(0, (row,))).result()
        one.admit(seed_of(2, PENALISED, prompt))
        logits = one.unpack_logits(one.pack_logits(first.logits[0]))
        rows = (
            Row(0, first.token_ids[:1], 10, [1, 2, 3], (Draw(0, 1),)),
            Row(1, first.token_ids[1:], 10, [1, 2, 7], (Draw(1, 1),)),
        )
        plan = Plan(1, rows, (ShippedDraw(logits, (Draw(2, 0),)),), copies=((3, 7),))
        results.append((list(first.token_ids), list(one.launch(plan).result().token_ids)))
    assert results[0] == results[1]


@pytest.mark.parametrize("device", DEVICES)
def test_logits_without_a_largest_one_draw_nothing(llama: Path, device: str) -> None:
    engine = cuda_engine(CONFIGS["llama"], llama, device)
    engine.admit(seed_of(0, SEEDED, TOKENS))
    logits = engine.unpack_logits(memoryview(bytearray(b"\xff" * 4 * tiny.VOCAB_SIZE)))
    assert engine.launch(Plan(0, (), (ShippedDraw(logits, (Draw(0, 0),)),))).result().token_ids == [NO_TOKEN]


def test_refusals(llama: Path) -> None:
    engine = cuda_engine(CONFIGS["llama"], llama)
    with pytest.raises(ValueError, match="logit_bias 320 is not in the vocabulary"):
        engine.admit(seed_of(0, SamplingParams(logit_bias={320: 1.0}), [1]))
    with pytest.raises(ValueError, match="10 bytes given for 1 blocks"):
        engine.write_blocks([1], memoryview(bytes(10)))
    with pytest.raises(ValueError, match="3 bytes given for logits"):
        engine.unpack_logits(memoryview(bytes(3)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kv_dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_fp8_kv_is_near(kv_dtype: torch.dtype, device: str, tmp_path: Path) -> None:
    config = tiny.llama(initializer_range=0.05)
    reference = tiny.reference_model(config)
    expected = tiny.reference_logits(reference, TOKENS)[-1]
    engine = cuda_engine(config, tiny.save(reference, tmp_path), device, kv_dtype=kv_dtype, draws=False)
    logits = tiny.prefill(engine, TOKENS, SCATTERED, 16)
    error = (logits - expected).norm() / expected.norm()
    assert 1e-4 < error < (0.08 if kv_dtype == torch.float8_e4m3fn else 0.16)
