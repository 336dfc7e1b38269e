"""Heads at work: their guesses are those of plain EAGLE over the whole sequence, and change no token."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from isthmus.engine.eagle import follower
from isthmus.engine.plan import DRAFT, NO_TOKEN, Draw, Plan, Row
from isthmus.engine.torch_engine import TorchEngine
from isthmus.tests.engine.eagle_models import NUM_GUESSES, Headed, ignorant, knowing, reference_guesses
from isthmus.tests.engine.eagle_reference import Reference
from isthmus.tests.engine.test_guesses import PARAMS, TABLE, assert_same, generate, nothing, seed_of
from isthmus.tests.engine.tiny import BLOCK_SIZE, VOCAB_SIZE, Greedy, prompt
from isthmus.wire.sampling import SamplingParams
from msgspec.structs import replace as replace_struct

NAMES = ["eagle", "eagle3", "eagle3, narrower, norm before fc", "eagle3 of qwen3"]
GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(scope="module", params=NAMES)
def headed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Headed:
    return ignorant(request.param, tmp_path_factory.mktemp("headed"))


@pytest.fixture(scope="module")
def sure(tmp_path_factory: pytest.TempPathFactory) -> Headed:
    return knowing(tmp_path_factory.mktemp("sure"))


def greedy_engine(headed: Headed) -> TorchEngine:
    """Its pools hold NaN where nothing was stored."""
    engine = headed.engine(sampler=Greedy())
    engine._pool.kv.fill_(float("nan"))
    engine._follower.cache.kv.kv.fill_(float("nan"))
    engine._follower.cache._hidden.fill_(float("nan"))
    return engine


def compute(engine: TorchEngine, tokens: list[int], start: int, chunk: int, table: tuple[int, ...] = TABLE) -> None:
    """The KV of `tokens` from position `start` on."""
    for first in range(start, len(tokens), chunk):
        engine.launch(Plan(0, (Row(0, tokens[first : first + chunk], first, table),))).result()


def say(engine: TorchEngine, tokens: list[int], count: int, table: Sequence[int] = TABLE, seq_id: int = 0) -> None:
    """Draws so many without guesses, and adds them to `tokens`."""
    for _ in range(count):
        row = Row(seq_id, (tokens[-1],), len(tokens) - 1, table, (Draw(seq_id, 0),))
        tokens += engine.launch(Plan(0, (row,))).result().token_ids


def ask(engine: TorchEngine, tokens: list[int], table: tuple[int, ...] = TABLE, seq_id: int = 0) -> list[int]:
    """What is guessed to follow, the last of `tokens` being the one without KV."""
    draws = tuple(Draw(seq_id, index) for index in range(1 + NUM_GUESSES))
    row = Row(seq_id, (tokens[-1], *(DRAFT,) * NUM_GUESSES), len(tokens) - 1, table, draws, num_drafts=NUM_GUESSES)
    with torch.inference_mode():
        return list(engine._proposer.propose([row])[0].token_ids)


@pytest.mark.parametrize("chunk", [1, 3, 4, 50])
@pytest.mark.parametrize("length", [2, 5, 9, 30])
def test_guesses_are_those_of_the_book(headed: Headed, length: int, chunk: int) -> None:
    engine, tokens = greedy_engine(headed), prompt(length, seed=length)
    compute(engine, tokens[:-1], 0, chunk)
    assert ask(engine, tokens) == reference_guesses(headed, tokens)


def test_they_still_are_after_wrong_and_right_guesses(headed: Headed, sure: Headed) -> None:
    for one, expects_right in ((headed, False), (sure, True)):
        engine, tokens = greedy_engine(one), prompt(6)
        compute(engine, tokens[:-1], 0, 50)
        num_right = 0
        while len(tokens) < 24:
            assert ask(engine, tokens) == reference_guesses(one, tokens)
            draws = tuple(Draw(0, index) for index in range(1 + NUM_GUESSES))
            row = Row(0, (tokens[-1], *(DRAFT,) * NUM_GUESSES), len(tokens) - 1, TABLE, draws, num_drafts=NUM_GUESSES)
            drawn = [token for token in engine.launch(Plan(0, (row,))).result().token_ids if token >= 0]
            num_right += len(drawn) - 1
            tokens += drawn
        assert (num_right > 10) == expects_right


def test_a_step_without_guesses_keeps_the_head_in_step(headed: Headed) -> None:
    engine, tokens = greedy_engine(headed), prompt(14)
    compute(engine, tokens[:9], 0, 50)
    compute(engine, tokens[:-1], 9, 1)
    assert ask(engine, tokens) == reference_guesses(headed, tokens)


@pytest.mark.parametrize("count", [1, 3, 4, 8])
def test_what_waits_is_followed_in_time(headed: Headed, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Of two sequences, at most three tokens each."""
    monkeypatch.setattr(follower, "MAX_LATE", 3)
    engine, first, second, other = greedy_engine(headed), prompt(6), prompt(9, seed=3), (32, 33, 34, 35, 36)
    compute(engine, first[:-1], 0, 50)
    compute(engine, second[:-1], 0, 50, other)
    say(engine, first, 2)
    for _ in range(count):
        say(engine, first, 1)
        say(engine, second, 1, other, seq_id=1)
        assert all(len(late.token_ids) < 3 for late in engine._follower._late.values())
    assert ask(engine, second, other, seq_id=1) == reference_guesses(headed, second)
    assert ask(engine, first) == reference_guesses(headed, first)


def test_what_waits_is_there_for_who_comes_after(headed: Headed) -> None:
    """Of sequences that have ended, were copied, sent, went on with a chunk, or back."""
    engine, tokens = greedy_engine(headed), prompt(7)
    compute(engine, tokens[:-1], 0, 50)
    say(engine, tokens, 6)
    engine.launch(Plan(0, (), copies=((TABLE[2], 44),))).result()
    copy = (*TABLE[:2], 44, 45)
    assert ask(engine, tokens, copy, seq_id=1) == reference_guesses(headed, tokens)
    say(engine, tokens, 2)
    tokens += [5, 6, 7]
    compute(engine, tokens[:-1], 14, 50)
    assert ask(engine, tokens) == reference_guesses(headed, tokens)
    say(engine, tokens, 6)
    del tokens[-2:]
    tokens[-1] = 9
    assert len(tokens) % BLOCK_SIZE != 1, "where a hidden state is kept anyway"
    say(engine, tokens, 2)
    assert ask(engine, tokens) == reference_guesses(headed, tokens)
    say(engine, tokens, 1)
    receiver = greedy_engine(headed)
    hand_over(engine, receiver, len(tokens) - 1)
    assert ask(receiver, tokens) == reference_guesses(headed, tokens)
    say(engine, tokens, 1)
    engine.retire(0)
    assert ask(engine, tokens, seq_id=1) == reference_guesses(headed, tokens)


def test_a_table_that_has_shrunk_since(headed: Headed) -> None:
    """It is the scheduler's own list: a sequence that goes back, or ends, gives blocks back before the engine hears."""
    engine, tokens, table = greedy_engine(headed), prompt(7), list(TABLE)
    compute(engine, tokens[:-1], 0, 50)
    say(engine, tokens, 6, table)
    table.clear()
    engine.retire(0)
    assert ask(engine, tokens, seq_id=1) == reference_guesses(headed, tokens)


def test_a_prefix_that_another_sequence_computed(headed: Headed) -> None:
    """Two full blocks are shared, and what follows them differs."""
    engine, first, second = greedy_engine(headed), prompt(17), prompt(15, seed=8)
    second[: 2 * BLOCK_SIZE] = first[: 2 * BLOCK_SIZE]
    compute(engine, first[:-1], 0, 50)
    other = (*TABLE[:2], 40, 33, 51)
    compute(engine, second[:-1], 2 * BLOCK_SIZE, 5, other)
    assert ask(engine, second, other) == reference_guesses(headed, second)
    assert ask(engine, first) == reference_guesses(headed, first)


def test_a_copied_block(headed: Headed) -> None:
    """As the choices of one prompt have it: of the block that is not full, each has its own."""
    engine, tokens, other = greedy_engine(headed), prompt(7), (TABLE[0], 44, 45)
    compute(engine, tokens[:-1], 0, 50)
    engine.launch(Plan(0, (), copies=((TABLE[1], 44),))).result()
    compute(engine, [*tokens[:-1], 5, 6], 6, 1)
    assert ask(engine, tokens, other) == reference_guesses(headed, tokens)


def hand_over(sender: TorchEngine, receiver: TorchEngine, num_tokens: int, *, with_hidden: bool = True) -> None:
    blocks = TABLE[: -(-num_tokens // BLOCK_SIZE)]
    receiver.write_blocks(blocks, sender.read_blocks(blocks))
    hidden = sender.read_hidden(blocks[-1])
    assert hidden is not None
    if with_hidden:
        receiver.write_hidden(blocks[-1], hidden)


@pytest.mark.parametrize("length", [2, 8, 9, 30])
def test_guesses_after_the_hand_over_are_as_if_there_were_none(headed: Headed, length: int) -> None:
    sender, receiver, tokens = greedy_engine(headed), greedy_engine(headed), prompt(length, seed=length)
    compute(sender, tokens[:-1], 0, 5)
    hand_over(sender, receiver, length - 1)
    assert ask(receiver, tokens) == ask(sender, tokens) == reference_guesses(headed, tokens)


def test_without_the_hidden_state_nothing_is_guessed_until_it_is_back(headed: Headed) -> None:
    sender, receiver, tokens = greedy_engine(headed), greedy_engine(headed), prompt(10)
    compute(sender, tokens[:-1], 0, 50)
    hand_over(sender, receiver, 9, with_hidden=False)
    assert ask(receiver, tokens) == []
    longer = [*tokens, 7]
    compute(receiver, tokens, 9, 1)
    guesses = ask(receiver, longer)  # one slot is a little wrong: they need not be those of the book
    assert len(guesses) == NUM_GUESSES
    assert all(0 <= token < VOCAB_SIZE for token in guesses)


def test_what_blocks_held_before_they_were_received_is_forgotten(headed: Headed) -> None:
    sender, receiver, tokens = greedy_engine(headed), greedy_engine(headed), prompt(10)
    compute(sender, tokens[:-1], 0, 50)
    compute(receiver, prompt(9, seed=4), 0, 50)
    hand_over(sender, receiver, 9, with_hidden=False)
    assert ask(receiver, tokens) == []


def test_a_stale_hidden_state_is_not_used(headed: Headed) -> None:
    """The sequence has gone back: its block's hidden state is that of a later position."""
    engine, tokens = greedy_engine(headed), prompt(11)
    compute(engine, tokens, 0, 50)
    assert ask(engine, tokens[:10]) == []
    assert ask(engine, tokens[:9]) == reference_guesses(headed, tokens[:9])  # the full block before has its own


@pytest.mark.parametrize("params", PARAMS, ids=["greedy", "sampled", "mixed"])
def test_guesses_change_no_token(headed: Headed, params: SamplingParams) -> None:
    expected, _ = generate(headed.plain(), params, prompt(11), nothing)
    drawn, num_right = generate(headed.engine(), params, prompt(11), lambda tokens: (DRAFT,) * NUM_GUESSES)
    assert_same(drawn, expected)
    assert num_right < len(drawn) // 2


@pytest.mark.parametrize("params", PARAMS, ids=["greedy", "sampled", "mixed"])
def test_a_head_that_knows_is_right(sure: Headed, params: SamplingParams) -> None:
    expected, _ = generate(sure.plain(), params, prompt(11), nothing)
    drawn, num_right = generate(sure.engine(), params, prompt(11), lambda tokens: (DRAFT,) * NUM_GUESSES)
    assert_same(drawn, expected)
    if not params.mirostat_mode:  # its state is not known ahead
        assert num_right >= (len(drawn) - 1) * NUM_GUESSES // (1 + NUM_GUESSES) - NUM_GUESSES


def mask_of(allowed: set[int]) -> "Future[Any]":
    bits = np.zeros(-(-VOCAB_SIZE // 32), np.uint32)
    for token in allowed:
        bits[token // 32] |= np.uint32(1 << token % 32)
    future: Future[Any] = Future()
    future.set_result(bits.view(np.int32))
    return future


def guided(engine: TorchEngine, allowed: set[int], num_guesses: int) -> list[int]:
    """Greedy, of allowed tokens only."""
    tokens, mask, num_prompt = prompt(9), mask_of(allowed), 9
    engine.admit(seed_of(GREEDY, tokens))
    first = Row(0, tokens, 0, TABLE, (Draw(0, 0, mask=mask),))
    tokens = [*tokens, *engine.launch(Plan(0, (first,))).result().token_ids]
    while len(tokens) < 30:
        num_output = len(tokens) - num_prompt
        draws = tuple(Draw(0, num_output + index) for index in range(1 + num_guesses))
        row = Row(
            0,
            (tokens[-1], *(DRAFT,) * num_guesses),
            len(tokens) - 1,
            TABLE,
            (replace_struct(draws[0], mask=mask), *draws[1:]),
            num_drafts=num_guesses,
            follow=lambda token: mask if token in allowed else None,
        )
        drawn = engine.launch(Plan(0, (row,))).result().token_ids
        tokens += [token for token in drawn if token >= NO_TOKEN]
    return tokens[num_prompt:30]


@pytest.mark.parametrize("kind", ["all that are even", "none that the head can propose"])
def test_masks_hold_for_guesses(headed: Headed, kind: str) -> None:
    ids = Reference(headed.checkpoint, headed.tensors).tensors.get("d2t")
    known = set() if ids is None else {index + int(offset) for index, offset in enumerate(ids.tolist())}
    allowed = set(range(0, VOCAB_SIZE, 2)) if kind.startswith("all") else set(range(VOCAB_SIZE)) - known
    expected = guided(headed.plain(), allowed, 0)
    assert guided(headed.engine(), allowed, NUM_GUESSES) == expected
    assert set(expected) <= allowed


def test_the_guesses_of_a_head_that_knows_are_right_under_a_mask(sure: Headed) -> None:
    allowed = set(range(0, VOCAB_SIZE, 3))
    engine, launched = sure.engine(), 0
    launch = engine.launch

    def counting(plan: Plan) -> Any:
        nonlocal launched
        launched += 1
        return launch(plan)

    engine.launch = counting  # type: ignore[method-assign]
    assert guided(engine, allowed, NUM_GUESSES) == guided(sure.plain(), allowed, 0)
    assert launched <= 2 + 21 // (1 + NUM_GUESSES)


def test_blocks_hold_the_head_s_kv_too(headed: Headed) -> None:
    target, engine = headed.plain(), headed.engine()
    layer = engine._follower.head.layer_config
    own = 2 * layer.num_kv_heads * layer.head_dim * BLOCK_SIZE * 4
    assert engine.bytes_per_block == target.bytes_per_block + own
    assert target.read_hidden(0) is None
    sized = headed.engine(num_blocks=None, kv_memory_bytes=5 * (engine.bytes_per_block + 4 * layer.hidden_size) + 3)
    assert sized.num_blocks == 5
    with pytest.raises(ValueError, match="bytes given for 1 blocks"):
        engine.write_blocks([1], target.read_blocks([1]))
    with pytest.raises(ValueError, match="bytes given for a hidden state, which takes"):
        engine.write_hidden(1, memoryview(b"too little"))


def test_a_folder_without_a_head(headed: Headed, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        replace(headed, head=tmp_path).engine()
    (tmp_path / "config.json").write_text((headed.head / "config.json").read_text())
    with pytest.raises(ValueError, match=r"has neither model\.safetensors nor pytorch_model\.bin"):
        replace(headed, head=tmp_path).engine()
