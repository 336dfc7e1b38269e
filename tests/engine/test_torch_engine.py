"""What a step computes does not depend on how the work was cut, where the blocks lie or what else is in the plan."""

from collections.abc import Sequence

import pytest
import torch
from isthmus.decode.sampler import Samples
from isthmus.engine.kv_pool import KvPool
from isthmus.engine.models.llama import Llama
from isthmus.engine.plan import IN_FLIGHT, Draw, Engine, Plan, Row, SequenceSeed, ShippedDraw
from isthmus.engine.torch_engine import TorchEngine
from isthmus.tests.engine import tiny
from torch import Tensor

PROMPT = tiny.prompt(30)
RUN, SCATTERED = tuple(range(8, 20)), (41, 3, 20, 19, 1, 55, 56, 57, 30, 2, 60, 9)


@pytest.fixture(scope="module")
def model() -> Llama:
    return tiny.tiny_model(tiny.llama(), None, "dummy")


@pytest.fixture
def engine(model: Llama) -> TorchEngine:
    return tiny.nan_engine(model)


def generate(
    engine: TorchEngine, prompt: Sequence[int], table: Sequence[int], num_tokens: int, chunk: int
) -> list[int]:
    """Greedy tokens of one sequence, each step planned before the last one's result is read."""
    for start in range(0, len(prompt), chunk):
        draws = (Draw(1, 0),) if start + chunk >= len(prompt) else ()
        handle = engine.launch(Plan(start, (Row(1, prompt[start : start + chunk], start, table, draws),)))
    tokens: list[int] = []
    for position in range(1, num_tokens + 1):
        row = Row(1, (IN_FLIGHT,), len(prompt) + position - 1, table, (Draw(1, position),))
        ahead = engine.launch(Plan(position, (row,)))
        tokens += handle.result().token_ids
        handle = ahead
    return tokens


@pytest.fixture(scope="module")
def expected(model: Llama) -> list[int]:
    return generate(tiny.nan_engine(model), PROMPT, RUN, 16, 30)


def test_is_an_engine(engine: TorchEngine) -> None:
    checked: Engine = engine
    assert (checked.num_blocks, checked.block_size, checked.vocab_size) == (64, 4, 320)
    assert not checked.overlaps


def test_tokens_vary(expected: list[int]) -> None:
    assert len(set(expected)) > 3


@pytest.mark.parametrize("table", [RUN, SCATTERED], ids=["run", "scattered"])
@pytest.mark.parametrize("chunk", [1, 3, 16, 64])
def test_cut_and_place_change_nothing(model: Llama, expected: list[int], chunk: int, table: tuple[int, ...]) -> None:
    assert generate(tiny.nan_engine(model), PROMPT, table, 16, chunk) == expected


def test_mixed_batch_equals_each_alone(model: Llama) -> None:
    """Decoding, chunked and fresh rows in one plan; some in runs, some scattered; one needs no logits."""
    prompts = {1: PROMPT, 2: tiny.prompt(9, seed=2), 3: tiny.prompt(17, seed=3), 4: tiny.prompt(21, seed=4)}
    tables = {1: RUN, 2: (40, 44, 42), 3: (50, 51, 52, 53, 54), 4: (5, 30, 31, 32, 33, 2)}
    starts = {1: 29, 2: 8, 3: 0, 4: 10}

    def row(seq_id: int) -> Row:
        start = starts[seq_id]
        return Row(seq_id, prompts[seq_id][start:], start, tables[seq_id], keep_logits=seq_id != 2)

    together = tiny.nan_engine(model)
    alone = {seq_id: tiny.nan_engine(model) for seq_id in prompts}
    for seq_id, start in starts.items():
        if start:
            before = Row(seq_id, prompts[seq_id][:start], 0, tables[seq_id])
            for engine in (together, alone[seq_id]):
                assert engine.launch(Plan(0, (before,))).result().token_ids == []
    logits = together.launch(Plan(1, tuple(row(seq_id) for seq_id in prompts))).result().logits
    assert set(logits) == {1, 3, 4}
    for seq_id, given in logits.items():
        by_itself = alone[seq_id].launch(Plan(1, (row(seq_id),))).result().logits[seq_id]
        torch.testing.assert_close(given, by_itself, rtol=0, atol=2e-5)
    assert alone[2].launch(Plan(1, (row(2),))).result().logits == {}
    both = [engine.read_blocks(tables[2]) for engine in (together, alone[2])]
    first, second = (torch.frombuffer(bytearray(part), dtype=torch.float32).nan_to_num(7.0) for part in both)
    torch.testing.assert_close(first, second, rtol=0, atol=2e-5)


def test_batch_size_changes_no_bit(model: Llama) -> None:
    """Decode rows alone, in pairs and in tens: the CPU's packed layers promise it."""
    engine = tiny.nan_engine(model)
    rows = []
    for seq_id in range(10):
        ids, table = tiny.prompt(8, seed=seq_id), (3 * seq_id, 3 * seq_id + 1, 3 * seq_id + 2)
        engine.launch(Plan(0, (Row(seq_id, ids, 0, table),)))
        rows.append(Row(seq_id, [seq_id], 8, table, keep_logits=True))
    alone = [engine.launch(Plan(1, (row,))).result().logits[row.seq_id] for row in rows]
    for size in (2, 5, 10):
        together = engine.launch(Plan(1, tuple(rows[:size]))).result().logits
        for seq_id in range(size):
            torch.testing.assert_close(together[seq_id], alone[seq_id], rtol=0, atol=1e-6)


def test_n_choices_share_a_prompt_and_its_partial_block(model: Llama, expected: list[int]) -> None:
    """30 tokens fill 7½ blocks: the second choice gets a copy of the last one and goes on by itself."""
    engine = tiny.nan_engine(model)
    draws = (Draw(1, 0), Draw(2, 0))
    first = engine.launch(Plan(0, (Row(9, PROMPT, 0, RUN, draws),))).result().token_ids
    assert first == [expected[0]] * 2
    own = (*RUN[:7], 40, 41, 42, 43)
    tokens: dict[int, list[int]] = {1: [], 2: []}
    for step in range(1, 8):
        rows = tuple(
            Row(seq_id, (IN_FLIGHT,), 29 + step, table, (Draw(seq_id, step),)) for seq_id, table in ((1, RUN), (2, own))
        )
        result = engine.launch(Plan(step, rows, copies=((RUN[7], 40),) if step == 1 else ())).result()
        for seq_id, token in zip((1, 2), result.token_ids, strict=True):
            tokens[seq_id].append(token)
    assert tokens == {1: expected[1:8], 2: expected[1:8]}


class Recorder:
    """A sampler that keeps what it was given and spoils the logits, as it may."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, list[Draw]]] = []
        self.log: list[object] = []

    def admit(self, seed: SequenceSeed) -> None:
        self.log.append(("admit", seed.seq_id))

    def retire(self, seq_id: int) -> None:
        self.log.append(("retire", seq_id))

    def sample(self, logits: Tensor, draws: Sequence[Draw]) -> Samples:
        self.calls.append((logits.clone(), list(draws)))
        logits.fill_(float("nan"))
        return Samples(torch.arange(len(draws)), [None] * len(draws), [b""] * len(draws))


def recording(model: Llama) -> tuple[TorchEngine, Recorder]:
    pool = KvPool(num_layers=2, num_blocks=64, block_size=4, num_kv_heads=2, head_dim=16, dtype=torch.float32)
    sampler = Recorder()
    return TorchEngine(model, pool, sampler), sampler


def test_rows_of_logits_follow_the_draws(model: Llama) -> None:
    engine, sampler = recording(model)
    kept = engine.launch(
        Plan(0, (Row(1, PROMPT, 0, RUN, keep_logits=True), Row(2, [5], 0, (40,), keep_logits=True)))
    ).result().logits  # fmt: skip
    shipped = engine.unpack_logits(engine.pack_logits(torch.randn(tiny.VOCAB_SIZE)))
    plan = Plan(
        1,
        (
            Row(1, PROMPT, 0, RUN, (Draw(1, 0), Draw(11, 0)), keep_logits=True),
            Row(3, PROMPT[:4], 0, (50,)),
            Row(2, [5], 0, (40,), (Draw(2, 4),)),
        ),
        shipped=(ShippedDraw(shipped, (Draw(5, 0), Draw(6, 0))),),
    )
    result = engine.launch(plan).result()
    logits, draws = sampler.calls[0]
    assert draws == plan.draws
    assert result.token_ids == [0, 1, 2, 3, 4]
    expected = torch.stack([kept[1], kept[1], kept[2], shipped, shipped])
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(result.logits[1], kept[1], rtol=0, atol=2e-5)


def test_a_shipped_prompt_decodes_like_a_local_one(model: Llama, expected: list[int]) -> None:
    """Prefill in one engine, blocks and logits moved as bytes, decode in another with other block ids."""
    prefill, decode = tiny.nan_engine(model), tiny.nan_engine(model)
    row = Row(1, PROMPT, 0, RUN, keep_logits=True)
    logits = prefill.pack_logits(prefill.launch(Plan(0, (row,))).result().logits[1])
    decode.write_blocks(SCATTERED[:8], memoryview(bytes(prefill.read_blocks(RUN[:8]))))
    shipped = ShippedDraw(decode.unpack_logits(memoryview(bytes(logits))), (Draw(1, 0),))
    tokens = list(decode.launch(Plan(0, (), (shipped,))).result().token_ids)
    for step in range(1, 16):
        row = Row(1, (IN_FLIGHT,), 29 + step, SCATTERED, (Draw(1, step),))
        tokens += decode.launch(Plan(step, (row,))).result().token_ids
    assert tokens == expected


def test_a_step_may_only_copy(engine: TorchEngine) -> None:
    engine.write_blocks([0], memoryview(bytes(engine.bytes_per_block)))
    assert engine.launch(Plan(0, (), copies=((0, 7),))).result().token_ids == []
    assert bytes(engine.read_blocks([7])) == bytes(engine.bytes_per_block)


def test_neighbouring_blocks_stay(engine: TorchEngine) -> None:
    before = bytes(engine.read_blocks(range(64)))
    engine.launch(Plan(0, (Row(1, PROMPT[:6], 0, (10, 11)),)))
    after, size = bytes(engine.read_blocks(range(64))), engine.bytes_per_block
    for block in range(64):
        same = before[block * size : (block + 1) * size] == after[block * size : (block + 1) * size]
        assert same == (block not in (10, 11)), block


def test_logits_of_another_size_are_refused(engine: TorchEngine) -> None:
    with pytest.raises(ValueError, match="bytes given for logits"):
        engine.unpack_logits(memoryview(bytes(4 * 319)))


def test_an_unresolved_token_is_a_bug(engine: TorchEngine) -> None:
    with pytest.raises(KeyError):
        engine.launch(Plan(0, (Row(1, (IN_FLIGHT,), 0, (0,)),)))


def test_admission_goes_to_the_sampler(model: Llama) -> None:
    engine, sampler = recording(model)
    engine.admit(SequenceSeed(7, None, (0, 0), [], [], frozenset()))
    engine.retire(7)
    assert sampler.log == [("admit", 7), ("retire", 7)]


def test_sliding_window_reads_nothing_older() -> None:
    """Tokens 20 to 29 with a window of 8 see back to 13: the three blocks before may be lost."""
    windowed = tiny.tiny_model(tiny.mistral(), None, "dummy")
    kept, lost = tiny.nan_engine(windowed), tiny.nan_engine(windowed)
    rows = [Row(1, PROMPT[:20], 0, RUN), Row(1, PROMPT[20:], 20, RUN, keep_logits=True)]
    first, second = (engine.launch(Plan(0, (rows[0],))) for engine in (kept, lost))
    assert first.result().token_ids == second.result().token_ids == []
    lost.write_blocks(RUN[:3], memoryview(b"\xff" * (3 * lost.bytes_per_block)))
    logits = [engine.launch(Plan(1, (rows[1],))).result().logits[1] for engine in (kept, lost)]
    assert torch.equal(*logits)
    assert not logits[0].isnan().any()
