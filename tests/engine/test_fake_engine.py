from typing import Any

import pytest
from isthmus.engine.fake_engine import FakeEngine, extend_history
from isthmus.engine.plan import IN_FLIGHT, Draw, Engine, Handle, Plan, Row, SequenceSeed, ShippedDraw
from isthmus.wire.sampling import SamplingParams

KEY = (11, 22)
PROMPT = list(range(1, 11))
TABLE = [5, 2, 7, 0]


def engine(**options: Any) -> FakeEngine:
    return FakeEngine(8, 4, 50, **options)


def seed(seq_id: int = 0, prompt: list[int] = PROMPT, **params: Any) -> SequenceSeed:
    return SequenceSeed(seq_id, SamplingParams(**params), KEY, prompt, [], frozenset({0}))


def run(fake: FakeEngine, *rows: Row, copies: tuple[tuple[int, int], ...] = ()) -> list[int]:
    return list(fake.launch(Plan(0, rows, (), copies)).result().token_ids)


def decode(fake: FakeEngine, num_tokens: int, table: list[int] = TABLE, seq_id: int = 0) -> list[int]:
    """The whole prompt in one row, then a token at a time."""
    tokens = run(fake, Row(seq_id, PROMPT, 0, table, (Draw(seq_id, 0),)))
    while len(tokens) < num_tokens:
        draw = Draw(seq_id, len(tokens))
        tokens += run(fake, Row(seq_id, tokens[-1:], len(PROMPT) + len(tokens) - 1, table, (draw,)))
    return tokens


def test_it_is_an_engine() -> None:
    fake: Engine = engine()
    handle: Handle = fake.launch(Plan(0, ()))
    assert handle.result().token_ids == []


def test_tokens_are_the_oracles() -> None:
    fake = engine()
    fake.admit(seed())
    assert decode(fake, 6) == fake.expected_tokens(PROMPT, KEY, 6)


@pytest.mark.parametrize("chunk", [1, 3, 4, 7])
def test_chunks_change_nothing(chunk: int) -> None:
    fake = engine()
    fake.admit(seed())
    tokens: list[int] = []
    for start in range(0, len(PROMPT), chunk):
        ids = PROMPT[start : start + chunk]
        last = start + len(ids) == len(PROMPT)
        tokens += run(fake, Row(0, ids, start, TABLE, (Draw(0, 0),) if last else ()))
    assert tokens == fake.expected_tokens(PROMPT, KEY, 1)


def test_key_position_and_every_prompt_token_matter() -> None:
    fake = FakeEngine(8, 4, 100_000)
    first = fake.expected_tokens(PROMPT, KEY, 5)
    assert len(set(first)) == 5
    assert fake.expected_tokens(PROMPT, (11, 23), 5) != first
    for i in range(len(PROMPT)):
        changed = [*PROMPT[:i], 40, *PROMPT[i + 1 :]]
        assert fake.expected_tokens(changed, KEY, 1) != first[:1]


def test_shipped_kv_and_logits_give_the_same_tokens() -> None:
    prefill, fake = engine(), engine()
    row = Row(9, PROMPT, 0, TABLE, keep_logits=True)
    logits = prefill.launch(Plan(0, (row,))).result().logits[9]
    payload = prefill.read_blocks(TABLE[:3])
    assert payload.nbytes == 3 * prefill.bytes_per_block
    fake.write_blocks([1, 3, 6], payload)
    fake.admit(seed())
    shipped = ShippedDraw(fake.unpack_logits(prefill.pack_logits(logits)), (Draw(0, 0),))
    tokens = list(fake.launch(Plan(0, (), (shipped,))).result().token_ids)
    tokens += run(fake, Row(0, tokens, 10, [1, 3, 6], (Draw(0, 1),)))
    assert tokens == fake.expected_tokens(PROMPT, KEY, 2)


def test_a_step_in_flight_resolves_its_tokens() -> None:
    fake = engine()
    fake.admit(seed())
    first = fake.launch(Plan(0, (Row(0, PROMPT, 0, TABLE, (Draw(0, 0),)),)))
    second = fake.launch(Plan(1, (Row(0, (IN_FLIGHT,), 10, TABLE, (Draw(0, 1),)),)))
    with pytest.raises(AssertionError, match="in order"):
        second.result()
    assert [*first.result().token_ids, *second.result().token_ids] == fake.expected_tokens(PROMPT, KEY, 2)


def test_copies_carry_kv() -> None:
    fake = engine()
    for seq_id in (0, 1):
        fake.admit(seed(seq_id))
    tokens = run(fake, Row(0, PROMPT, 0, TABLE, (Draw(0, 0), Draw(1, 0))))
    other = [*TABLE[:2], 6]
    rows = [Row(0, tokens[:1], 10, TABLE, (Draw(0, 1),)), Row(1, tokens[1:], 10, other, (Draw(1, 1),))]
    assert run(fake, *rows, copies=((TABLE[2], 6),)) == fake.expected_tokens(PROMPT, KEY, 2)[1:] * 2


@pytest.mark.parametrize("table", [[5, 7, 2], [5, 2, 3], [2, 5, 7], [5, 5, 7], [5, 2, 6]])
def test_misplaced_and_missing_blocks_raise(table: list[int]) -> None:
    fake = engine()
    fake.admit(seed())
    tokens = decode(fake, 1)
    with pytest.raises(AssertionError, match=r"position|history"):
        run(fake, Row(0, tokens, 10, table, (Draw(0, 1),)))


def test_a_table_that_is_too_short_raises() -> None:
    with pytest.raises(AssertionError, match="too short"):
        run(engine(), Row(0, PROMPT, 0, TABLE[:2]))


def test_a_block_of_another_sequence_raises() -> None:
    fake = engine()
    fake.admit(seed())
    tokens = decode(fake, 1)
    run(fake, Row(1, [9] * 8, 0, [1, 3]))
    with pytest.raises(AssertionError, match="another history"):
        run(fake, Row(0, tokens, 10, [5, 3, 7], (Draw(0, 1),)))


@pytest.mark.parametrize("offset", [0, 4, 8, 36])
@pytest.mark.parametrize("block", [0, 1, 2])
def test_corrupted_bytes_raise_or_change_the_token(block: int, offset: int) -> None:
    fake = FakeEngine(8, 4, 100_000)
    fake.admit(seed())
    expected = decode(fake, 1)
    payload = bytearray(fake.read_blocks(TABLE[:3]))
    payload[block * fake.bytes_per_block + offset] ^= 1
    slot = block * 4 + offset // 4
    fake.write_blocks(TABLE[:3], memoryview(payload))
    try:
        token = run(fake, Row(0, expected, 10, TABLE, (Draw(0, 1),)))
    except AssertionError:
        return
    unused = slot in (10, 11)
    assert (token == fake.expected_tokens(PROMPT, KEY, 2)[1:]) == unused


def test_wrong_sizes_are_refused() -> None:
    fake = engine()
    with pytest.raises(ValueError, match="for 2 blocks"):
        fake.write_blocks([0, 1], memoryview(bytes(fake.bytes_per_block)))
    with pytest.raises(ValueError, match="8 expected"):
        fake.unpack_logits(memoryview(b"1234"))


def test_blocks_in_flight_are_guarded() -> None:
    fake = engine()
    payload = memoryview(bytes(fake.bytes_per_block))
    handle = fake.launch(Plan(0, (Row(0, PROMPT[:3], 0, TABLE),)))
    with pytest.raises(AssertionError, match="while a plan in flight"):
        fake.write_blocks([5], payload)
    with pytest.raises(AssertionError, match="while a plan in flight"):
        fake.read_blocks([5])
    fake.write_blocks([6], payload)
    handle.result()
    fake.read_blocks([5])


def test_sequences_are_admitted_once_and_retired_after_their_last_step() -> None:
    fake = engine()
    row = Row(0, PROMPT, 0, TABLE, (Draw(0, 0),))
    with pytest.raises(AssertionError, match="not admitted"):
        fake.launch(Plan(0, (row,)))
    fake.admit(seed())
    with pytest.raises(AssertionError, match="twice"):
        fake.admit(seed())
    handle = fake.launch(Plan(0, (row,)))
    with pytest.raises(AssertionError, match="retires"):
        fake.retire(0)
    handle.result()
    with pytest.raises(AssertionError, match="out of turn"):
        run(fake, row)


def test_draws_stay_in_the_alphabet_and_eos_comes_as_often_as_asked() -> None:
    fake = engine(token_ids=[20, 21, 22], eos_id=0, eos_probability=0.25)
    tokens = fake.expected_tokens(PROMPT, KEY, 2000)
    assert set(tokens) == {0, 20, 21, 22}
    assert 400 < tokens.count(0) < 600
    assert 0 not in engine(eos_id=0).expected_tokens(PROMPT, KEY, 2000)


def test_min_tokens_holds_stops_back() -> None:
    fake = engine(token_ids=[20, 21], eos_id=0, eos_probability=0.9)
    fake.admit(seed(min_tokens=5))
    tokens = decode(fake, 6)
    assert 0 not in tokens[:5]
    assert tokens == fake.expected_tokens(PROMPT, KEY, 6, frozenset({0}), 5)


def test_an_alphabet_of_stop_tokens_is_an_error() -> None:
    with pytest.raises(ValueError, match="stop token"):
        engine(token_ids=[3]).expected_tokens(PROMPT, KEY, 1, frozenset({3}), 1)


def test_time_passes_by_the_clock_given() -> None:
    slept: list[float] = []
    fake = engine(step_s=1.0, token_s=0.5, clock=lambda: 100.0, sleep=slept.append)
    first = fake.launch(Plan(0, (Row(0, PROMPT, 0, TABLE),)))
    second = fake.launch(Plan(1, (Row(0, [1], 10, TABLE),)))
    first.result()
    second.result()
    assert slept == [6.0, 7.0]


def test_history_is_chained() -> None:
    assert extend_history(extend_history(0, PROMPT[:4])[-1], PROMPT[4:]) == extend_history(0, PROMPT)[4:]
