"""EAGLE heads on the engine for GPUs: guesses are those of plain EAGLE over the whole sequence, and change no token.
Here over the kernels' references, on a GPU with the kernels."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from isthmus.decode.sampler import Sampler
from isthmus.engine.cuda import backlog
from isthmus.engine.cuda.engine import CudaEngine
from isthmus.engine.guesses import Guesses
from isthmus.engine.plan import DRAFT, IN_FLIGHT, NO_TOKEN, Draw, Plan, Row
from isthmus.tests.engine.cuda_tiny import cuda_engine
from isthmus.tests.engine.eagle_models import CONFIG, NUM_GUESSES, Headed, ignorant, knowing, reference_guesses
from isthmus.tests.engine.test_guesses import PARAMS, TABLE, assert_same, generate, nothing, seed_of
from isthmus.tests.engine.tiny import BLOCK_SIZE, NUM_BLOCKS, VOCAB_SIZE, prompt
from isthmus.wire.sampling import SamplingParams

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
NAMES = ["eagle", "eagle3", "eagle3, narrower, norm before fc", "eagle3 of qwen3"]
GREEDY = SamplingParams(temperature=0.0)
OTHER_TABLE = (*TABLE[:2], 40, 33, 51, 50, 49)


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=[True, False], ids=["captured", "launched"])
def captured(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module", params=NAMES)
def headed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Headed:
    return ignorant(request.param, tmp_path_factory.mktemp("headed"))


@pytest.fixture(scope="module")
def sure(tmp_path_factory: pytest.TempPathFactory) -> Headed:
    return knowing(tmp_path_factory.mktemp("sure"))


@pytest.fixture(scope="module")
def make(device: str, captured: bool) -> Callable[..., CudaEngine]:
    """Engines of heads; their pools hold NaN where nothing was stored."""
    made: dict[tuple[int, str], CudaEngine] = {}

    def engine(headed: Headed, name: str = "") -> CudaEngine:
        """The same for the same name."""
        key = id(headed), name
        if key not in made:
            made[key] = headed.cuda_engine(device, captured=captured, sampler=Sampler(VOCAB_SIZE, device))
        return made[key]

    return engine


class Writer:
    """Of one sequence on an engine, greedily, with the guesses that are made of it."""

    def __init__(
        self, engine: CudaEngine, tokens: Sequence[int], table: Sequence[int] = TABLE, seq_id: int = 0
    ) -> None:
        self.engine, self.tokens, self.table, self.seq_id = engine, list(tokens), table, seq_id
        self._num_prompt = len(tokens)
        engine.admit(replace(seed_of(GREEDY, tokens), seq_id=seq_id))

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.retire(self.seq_id)

    def rewind(self, num_tokens: int) -> None:
        """To so many, as a scheduler does it: the sequence begins anew."""
        del self.tokens[num_tokens:]
        self.engine.retire(self.seq_id)
        self.engine.admit(replace(seed_of(GREEDY, self.tokens), seq_id=self.seq_id))

    def compute(self, start: int, end: int, chunk: int) -> None:
        """The KV of these tokens."""
        for first in range(start, end, chunk):
            row = Row(self.seq_id, self.tokens[first : min(end, first + chunk)], first, self.table)
            self.engine.launch(Plan(0, (row,))).result()

    def lag(self, num_tokens: int) -> None:
        """The prompt, and so many tokens without guesses."""
        self.compute(0, len(self.tokens) - 1, 50)
        for _ in range(num_tokens):
            self.step(0)

    def row(self, num_guesses: int) -> Row:
        position = len(self.tokens) - self._num_prompt
        draws = tuple(Draw(self.seq_id, position + index) for index in range(1 + num_guesses))
        tokens, start = (self.tokens[-1], *(DRAFT,) * num_guesses), len(self.tokens) - 1
        return Row(self.seq_id, tokens, start, self.table, draws, num_drafts=num_guesses, history=self.tokens)

    def step(self, num_guesses: int = NUM_GUESSES) -> list[int]:
        """What was guessed; the tokens that came are added."""
        made = recorded(self.engine)
        drawn = self.engine.launch(Plan(1, (self.row(num_guesses),))).result().token_ids
        self.tokens += [token for token in drawn if token >= NO_TOKEN]
        return list(made[0].token_ids) if made else []


def recorded(engine: CudaEngine) -> list[Guesses]:
    """Guesses of every row, from now on."""
    made: list[Guesses] = []
    proposer: Any = engine._guessing._proposer
    proposer.verified = lambda rows, guesses: made.extend(guesses)
    return made


def catch_ups(engine: CudaEngine, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The slots of each, from now on."""
    made = list[list[int]]()
    catch_up = engine._head._catch_up
    run = catch_up._run

    def noted(due: np.ndarray) -> None:
        made.extend([due.tolist()] if len(due) else [])
        run(due)

    monkeypatch.setattr(catch_up, "_run", noted)
    return made


def assert_by_the_book(headed: Headed, sequence: Writer, num_steps: int = 3) -> None:
    for _ in range(num_steps):
        expected = reference_guesses(headed, sequence.tokens)
        assert sequence.step() == expected


@pytest.mark.parametrize(("length", "chunk"), [(2, 1), (5, 50), (9, 3), (30, 4), (30, 50)])
def test_guesses_are_those_of_the_book(
    headed: Headed, make: Callable[..., CudaEngine], length: int, chunk: int
) -> None:
    with Writer(make(headed), prompt(length, seed=length)) as sequence:
        sequence.compute(0, length - 1, chunk)
        assert_by_the_book(headed, sequence)


def test_right_guesses_leave_it_in_step(sure: Headed, make: Callable[..., CudaEngine]) -> None:
    """As many as there can be, over the ends of blocks."""
    with Writer(make(sure), prompt(6)) as sequence:
        sequence.compute(0, 5, 50)
        assert_by_the_book(sure, sequence, num_steps=8)
        assert len(sequence.tokens) >= 6 + 8 * NUM_GUESSES


def test_steps_without_guesses_leave_it_in_step(headed: Headed, make: Callable[..., CudaEngine]) -> None:
    """Launched ahead, too: of a token that is not known yet."""
    engine = make(headed)
    with Writer(engine, prompt(7)) as sequence:
        sequence.lag(4)
        flying = engine.launch(Plan(1, (sequence.row(0),)))
        row = Row(0, (IN_FLIGHT,), len(sequence.tokens), TABLE, (Draw(0, len(sequence.tokens) - 6),))
        ahead = engine.launch(Plan(2, (row,)))
        sequence.tokens += [*flying.result().token_ids, *ahead.result().token_ids]
        assert_by_the_book(headed, sequence)


@pytest.mark.parametrize("num_steps", [1, 3, 4, 9])
def test_a_backlog_that_fills_up(
    headed: Headed, make: Callable[..., CudaEngine], monkeypatch: pytest.MonkeyPatch, num_steps: int
) -> None:
    """Of two sequences with room for three tokens each; the second joins late, and goes on where the first ends."""
    monkeypatch.setattr(backlog, "MAX_LENGTH", 3)
    engine, others = make(headed, "short"), range(32, 48)
    assert engine._head.follower.backlog.length == 3
    with Writer(engine, prompt(6)) as first:
        first.lag(2)
        with Writer(engine, prompt(9, seed=3), others, seq_id=1) as second:
            second.compute(0, 8, 4)
            for _ in range(num_steps):
                drawn = engine.launch(Plan(1, (first.row(0), second.row(0)))).result().token_ids
                for sequence, token in zip((first, second), drawn, strict=True):
                    sequence.tokens.append(token)
            assert_by_the_book(headed, second, 1)
            second.step(0)
            assert_by_the_book(headed, second, 1)
        assert_by_the_book(headed, first, 1)


def test_what_lags_is_there_for_who_comes_after(headed: Headed, make: Callable[..., CudaEngine]) -> None:
    """Sequences that have ended, were copied or read, and one that goes on with a chunk or was rewound."""
    engine = make(headed)
    with Writer(engine, prompt(7, seed=21)) as sequence:
        sequence.lag(6)
        tokens = list(sequence.tokens)
    with (
        Writer(engine, prompt(2), seq_id=1),  # in its slot, and waiting
        Writer(engine, [*tokens[:12], 5, 9], (*TABLE[:3], *OTHER_TABLE[2:])) as sequence,
    ):
        sequence.compute(12, 13, 50)
        assert_by_the_book(headed, sequence, 1)
    with Writer(engine, prompt(6)) as sequence:
        sequence.compute(0, 5, 50)
        sequence.step(0)
        engine.launch(Plan(0, (), copies=((TABLE[1], 44),))).result()
        for _ in range(2):
            sequence.step(0)
        copied = Writer(engine, sequence.tokens[:7], (TABLE[0], 44, 45, 46, 47), seq_id=1)
        assert_by_the_book(headed, copied, 1)
        engine.retire(1)
        sequence.tokens += [8, 3]
        sequence.compute(8, 10, 50)
        assert_by_the_book(headed, sequence, 1)
        for _ in range(5):
            sequence.step(0)
        end = (len(sequence.tokens) - 2) // BLOCK_SIZE * BLOCK_SIZE + 1  # where a hidden state is kept
        sequence.rewind(end)
        sequence.step(0)
        assert_by_the_book(headed, sequence, 1)


@pytest.mark.parametrize("meanwhile", ["nothing", "a step", "guesses", "a sequence"])
def test_who_has_ended_while_others_go_on(headed: Headed, make: Callable[..., CudaEngine], meanwhile: str) -> None:
    """What it left is followed before anything is stored where its blocks are others'."""
    engine, apart = make(headed), range(23, 32)
    with Writer(engine, prompt(9, seed=3), apart, seq_id=1) as other:
        other.compute(0, 8, 50)
        other.step(0)
        with Writer(engine, prompt(7, seed=21)) as sequence:
            sequence.lag(6)
            tokens = list(sequence.tokens)
        if meanwhile == "a step":
            other.step(0)
        elif meanwhile == "guesses":
            other.step()
        elif meanwhile == "a sequence":
            tokens = prompt(14, seed=5)
            engine.launch(Plan(0, (Row(2, tokens[:13], 0, TABLE),))).result()  # in its blocks, and not begun yet
            with Writer(engine, tokens, seq_id=2) as third:
                assert_by_the_book(headed, third, 2)
            return
        with Writer(engine, [*tokens[:12], 5, 9], (*TABLE[:3], *OTHER_TABLE[2:])) as finder:
            finder.compute(12, 13, 50)
            assert_by_the_book(headed, finder, 1)
        assert_by_the_book(headed, other, 1)


@pytest.mark.parametrize("has_ended", [False, True])
def test_who_has_ended_is_followed_before_who_has_his_blocks(
    headed: Headed, make: Callable[..., CudaEngine], monkeypatch: pytest.MonkeyPatch, has_ended: bool
) -> None:
    """All at once who have ended until then, when the other has guesses or ends: what he left goes over what they
    left."""
    engine = make(headed)
    followed = catch_ups(engine, monkeypatch)
    with Writer(engine, prompt(9, seed=4), range(23, 32), seq_id=3) as third:
        third.compute(0, 8, 50)
        other = Writer(engine, prompt(11, seed=3), (32, 33, 34), seq_id=1)
        other.compute(0, 10, 50)
        ending = [Writer(engine, prompt(7), table, seq_id) for seq_id, table in ((0, TABLE), (2, range(40, 50)))]
        for sequence in ending:
            sequence.lag(2)
        slots = [engine._sequences.slot(sequence.seq_id) for sequence in (*ending, other)]
        followed.clear()
        for sequence in ending:
            engine.retire(sequence.seq_id)
            other.step(0)
        other.table = (32, 33, 34, TABLE[1], 50, 51, 52)
        while len(other.tokens) < 16:
            other.step(0)
        assert not followed
        if has_ended:
            engine.retire(other.seq_id)
            assert followed == [slots[:2]]
            third.step(0)
            other = Writer(engine, [*other.tokens, 5], other.table, seq_id=4)
            other.compute(15, 16, 50)
        assert_by_the_book(headed, other)
        assert followed[:2] == [slots[:2], slots[2:]]
        engine.retire(other.seq_id)


def test_who_has_ended_is_followed_where_there_will_be_no_step(
    headed: Headed, make: Callable[..., CudaEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(headed)
    followed = catch_ups(engine, monkeypatch)
    with Writer(engine, prompt(7)) as sequence:
        sequence.lag(2)
        followed.clear()
    assert len(followed) == 1


def test_a_block_that_was_another_s_in_between(
    headed: Headed, make: Callable[..., CudaEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong guesses had it first, and gave it back: it stands where the device knows it. Who had it then, and ended, is
    followed before who has it now."""
    engine = make(headed)
    followed = catch_ups(engine, monkeypatch)
    with Writer(engine, prompt(3), range(50, 60), seq_id=9) as other:
        other.compute(0, 2, 50)
        with Writer(engine, prompt(8, seed=1), TABLE[:3], seq_id=0) as sequence:
            sequence.compute(0, 7, 50)
            sequence.step()
            del sequence.tokens[9:]
            with Writer(engine, prompt(3, seed=5), (20, TABLE[2]), seq_id=1) as between:
                between.lag(6)
                slot = engine._sequences.slot(1)
            followed.clear()
            for _ in range(3):
                sequence.step(0)
            assert not followed
            sequence.table = TABLE
            assert_by_the_book(headed, sequence, 1)
            assert followed == [[slot], [engine._sequences.slot(0)]]


@pytest.mark.parametrize("what", ["blocks", "hidden"])
def test_who_has_ended_is_followed_before_its_blocks_are_written(
    headed: Headed, make: Callable[..., CudaEngine], what: str
) -> None:
    """With what comes from elsewhere, for another sequence."""
    sender, engine, blocks = make(headed), make(headed, "another"), TABLE[:3]
    with Writer(sender, prompt(12, seed=9)) as sent:
        sent.compute(0, 11, 50)
        payload, hidden = sender.read_blocks(blocks), sender.read_hidden(blocks[-1])
    with Writer(engine, prompt(9, seed=3), range(32, 48), seq_id=1) as other:
        other.compute(0, 8, 50)
        with Writer(engine, prompt(7, seed=21)) as sequence:
            sequence.lag(4)
        if what == "hidden":
            engine.write_hidden(blocks[-1], hidden)
        engine.write_blocks(blocks, payload)
        engine.write_hidden(blocks[-1], hidden)
        with Writer(engine, sent.tokens, seq_id=2) as receiver:
            assert_by_the_book(headed, receiver, 1)


@pytest.mark.parametrize("has_step", [False, True])
def test_who_has_ended_is_followed_before_a_peer_writes_its_blocks(
    headed: Headed, make: Callable[..., CudaEngine], has_step: bool
) -> None:
    """By itself, into the pools."""
    sender, engine, blocks = make(headed), make(headed, "another"), list(TABLE[:3])
    assert sender.kv is not None
    assert engine.kv is not None
    with Writer(sender, prompt(12, seed=9)) as sent:
        sent.compute(0, 11, 50)
        sender.read_blocks(blocks)
        hidden, kv = sender.read_hidden(blocks[-1]), sender.kv[:, blocks].clone()
    with Writer(engine, prompt(9, seed=3), range(32, 48), seq_id=1) as other:
        other.compute(0, 8, 50)
        with Writer(engine, prompt(7, seed=21)) as sequence:
            sequence.lag(4)
        engine.lend_blocks(blocks)
        engine.kv[:, blocks] = kv
        if has_step:
            other.step(0)
        engine.write_hidden(blocks[-1], hidden)
        with Writer(engine, sent.tokens, seq_id=2) as receiver:
            assert_by_the_book(headed, receiver, 1)


def test_blocks_that_are_read_have_been_caught_up_with(headed: Headed, make: Callable[..., CudaEngine]) -> None:
    sender, engine, blocks = make(headed), make(headed, "another"), TABLE[:3]
    for read_first in ("blocks", "hidden"):
        with Writer(sender, prompt(7)) as sequence:
            sequence.lag(4)
            hidden = sender.read_hidden(blocks[-1]) if read_first == "hidden" else None
            payload = sender.read_blocks(blocks)
            hidden = hidden or sender.read_hidden(blocks[-1])
        with Writer(engine, sequence.tokens, TABLE) as receiver:
            engine.write_blocks(blocks, payload)
            engine.write_hidden(blocks[-1], hidden)
            assert_by_the_book(headed, receiver, 1)


def test_a_prefix_that_another_sequence_computed(headed: Headed, make: Callable[..., CudaEngine]) -> None:
    """Two full blocks are shared, and what follows them differs."""
    engine, first, second = make(headed), prompt(17), prompt(15, seed=8)
    second[: 2 * BLOCK_SIZE] = first[: 2 * BLOCK_SIZE]
    with Writer(engine, first) as sequence:
        sequence.compute(0, 16, 50)
    with Writer(engine, second, OTHER_TABLE) as sequence:
        sequence.compute(2 * BLOCK_SIZE, 14, 5)
        assert_by_the_book(headed, sequence)


def test_a_prefix_of_a_sequence_that_goes_on(headed: Headed, make: Callable[..., CudaEngine]) -> None:
    """What it lags behind has been followed before another goes on from there."""
    engine = make(headed)
    with Writer(engine, prompt(7, seed=21)) as first:
        first.lag(6)
        with Writer(engine, [*first.tokens[:12], 5, 9], (*TABLE[:3], *OTHER_TABLE[2:]), seq_id=1) as second:
            second.compute(12, 13, 50)
            assert_by_the_book(headed, second, 1)
        assert_by_the_book(headed, first, 1)


def test_a_whole_prompt_but_its_last_token_of_a_sequence_that_goes_on(
    headed: Headed, make: Callable[..., CudaEngine]
) -> None:
    """So that its first row draws and has one token, as those of sequences that run."""
    engine = make(headed)
    with Writer(engine, prompt(7, seed=21)) as first:
        first.lag(6)
        with Writer(engine, [*first.tokens[:12], 5], (*TABLE[:3], *OTHER_TABLE[2:]), seq_id=1) as second:
            assert_by_the_book(headed, second, 1)
        assert_by_the_book(headed, first, 1)


def test_a_copied_block(headed: Headed, make: Callable[..., CudaEngine]) -> None:
    """As the choices of one prompt have it: of the block that is not full, each has its own."""
    engine, tokens = make(headed), prompt(7)
    with Writer(engine, tokens) as sequence:
        sequence.compute(0, 6, 50)
        engine.launch(Plan(0, (), copies=((TABLE[1], 44),))).result()
        sequence.step()
    with Writer(engine, tokens, (TABLE[0], 44, 45, 46, 47)) as sequence:
        assert_by_the_book(headed, sequence)


@pytest.mark.parametrize("length", [2, 8, 9, 30])
def test_a_prompt_from_a_prefill_worker(
    headed: Headed, make: Callable[..., CudaEngine], device: str, captured: bool, length: int
) -> None:
    """Which has no sampler, or is the CPU's."""
    tokens, table = prompt(length, seed=length), (30, *TABLE)
    blocks = TABLE[: -(-(length - 1) // BLOCK_SIZE)]
    sender, theirs = headed.cuda_engine(device, captured=captured, draws=False), headed.engine()
    senders: tuple[Any, ...] = (sender, theirs)
    for one in senders:
        for first in range(0, length - 1, 5):
            one.launch(Plan(0, (Row(0, tokens[first : length - 1][:5], first, TABLE),))).result()
    engine = make(headed)
    for one in senders:
        with Writer(engine, tokens, table[1:]) as sequence:
            engine.write_blocks(blocks, one.read_blocks(blocks))
            engine.write_hidden(blocks[-1], one.read_hidden(blocks[-1]))
            assert_by_the_book(headed, sequence, 1)


def test_without_the_hidden_state_guesses_are_wrong_for_once(sure: Headed, make: Callable[..., CudaEngine]) -> None:
    """And what blocks held before is forgotten."""
    tokens = prompt(10)
    sender, engine = make(sure, "another"), make(sure)
    with Writer(sender, tokens) as sequence:
        sequence.compute(0, 9, 50)
    with Writer(engine, tokens) as sequence:
        sequence.compute(0, 9, 50)
        engine.write_blocks(TABLE[:3], sender.read_blocks(TABLE[:3]))
        assert int(engine._head.cache._positions[list(TABLE[:3])].max()) == -1
        assert len(sequence.step()) == NUM_GUESSES
        assert_by_the_book(sure, sequence)


def test_rows_of_several_lengths_beside_each_other(headed: Headed, make: Callable[..., CudaEngine]) -> None:
    """Padding and neighbours change nothing."""
    engine = make(headed)
    prompts = {seq_id: prompt(length, seed=length) for seq_id, length in ((0, 9), (1, 4), (2, 13), (3, 6))}
    sequences = {}
    for seq_id, tokens in prompts.items():
        table = range(seq_id * 16, seq_id * 16 + 16)
        sequences[seq_id] = Writer(engine, tokens, table, seq_id)
    chunks = tuple(Row(s.seq_id, s.tokens[:-1], 0, s.table) for s in sequences.values())
    engine.launch(Plan(0, chunks)).result()
    made = recorded(engine)
    for _ in range(3):
        counts = dict(zip(sequences.values(), (3, 0, 1, 2), strict=True))
        expected = [reference_guesses(headed, one.tokens)[:count] for one, count in counts.items() if count]
        made.clear()
        rows = tuple(one.row(count) for one, count in counts.items())
        drawn = list(engine.launch(Plan(1, rows)).result().token_ids)
        assert [list(one.token_ids) for one in made] == expected
        for one, row in zip(counts, rows, strict=True):
            own = [drawn.pop(0) for _ in row.draws]
            one.tokens += [token for token in own if token >= NO_TOKEN]
    for seq_id in sequences:
        engine.retire(seq_id)


@pytest.fixture(scope="module")
def plain(device: str, captured: bool) -> Callable[[Path], CudaEngine]:
    """The engine of these weights, without a head."""
    return cache(
        lambda weights: cuda_engine(CONFIG, weights, device, captured=captured, sampler=Sampler(VOCAB_SIZE, device))
    )


def always(_: Sequence[int]) -> Sequence[int]:
    return (DRAFT,) * NUM_GUESSES


each_params = pytest.mark.parametrize("params", PARAMS, ids=["greedy", "sampled", "mixed"])


@each_params
def test_guesses_change_no_token(
    headed: Headed, make: Callable[..., CudaEngine], plain: Callable[[Path], CudaEngine], params: SamplingParams
) -> None:
    expected, _ = generate(plain(headed.weights), params, prompt(11), nothing)
    drawn, _ = generate(make(headed), params, prompt(11), always)
    assert_same(drawn, expected)


@each_params
def test_right_guesses_change_no_token(
    sure: Headed, make: Callable[..., CudaEngine], plain: Callable[[Path], CudaEngine], params: SamplingParams
) -> None:
    expected, _ = generate(plain(sure.weights), params, prompt(11), nothing)
    drawn, num_right = generate(make(sure), params, prompt(11), always)
    assert_same(drawn, expected)
    if not params.mirostat_mode:
        assert num_right >= (len(drawn) - 1) * NUM_GUESSES // (1 + NUM_GUESSES) - NUM_GUESSES


def test_blocks_hold_the_head_s_kv_too(headed: Headed, make: Callable[..., CudaEngine]) -> None:
    engine, theirs = make(headed), headed.engine()
    assert engine.bytes_per_block == theirs.bytes_per_block
    assert engine.kv is not None
    assert engine.kv.shape[:2] == (CONFIG["num_hidden_layers"] + 1, NUM_BLOCKS)
    with pytest.raises(ValueError, match="bytes given for a hidden state, which takes"):
        engine.write_hidden(1, memoryview(b"too little"))
