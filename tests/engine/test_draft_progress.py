"""What a draft model's pool is said to hold is what it holds, whatever blocks go through."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from isthmus.engine.draft_progress import CATCH_UP_TOKENS, DraftProgress
from isthmus.engine.plan import Row

BLOCK_SIZE = 4


def kv_of(tokens: Sequence[int]) -> int:
    """Of the last of these: it depends on all before it."""
    return hash(tuple(tokens))


@dataclass
class Text:
    """A sequence: its last token has no KV yet."""

    seq_id: int
    tokens: list[int]
    table: list[int]

    def row(self) -> Row:
        return Row(self.seq_id, self.tokens[-1:], len(self.tokens) - 1, self.table, history=self.tokens)


@dataclass
class Model:
    """A pool whose slots hold what was stored in them last, and what is said of it."""

    num_blocks: int
    progress: DraftProgress = field(init=False)
    slots: dict[tuple[int, int], int] = field(default_factory=dict)
    num_computed: int = 0

    def __post_init__(self) -> None:
        self.progress = DraftProgress(self.num_blocks, BLOCK_SIZE)

    def store(self, text: Text, tokens: Sequence[int], start: int) -> None:
        for position in range(start, len(tokens)):
            block = text.table[position // BLOCK_SIZE]
            self.slots[block, position % BLOCK_SIZE] = kv_of(tokens[: position + 1])

    def catch_up(self, text: Text) -> bool:
        """As a draft model does before it guesses: whether it then may."""
        row = text.row()
        missing = self.progress.missing(row)
        known = row.start if missing is None else missing.start
        if missing is not None:
            self.assert_holds(text, known)
            end = missing.start + len(missing.token_ids)
            assert list(missing.token_ids) == text.tokens[missing.start : end]
            assert len(missing.token_ids) <= CATCH_UP_TOKENS
            self.store(text, text.tokens[:end], missing.start)
            self.num_computed += len(missing.token_ids)
            self.progress.computed(missing)
        if self.progress.is_ready(row):
            self.assert_holds(text, row.start)
            return True
        return False

    def guess(self, text: Text, guesses: Sequence[int]) -> None:
        """Stores its last token and all guesses but the last, which is never read."""
        stored = [text.tokens[-1], *guesses][: len(guesses)]
        self.store(text, [*text.tokens[:-1], *stored], len(text.tokens) - 1)
        self.progress.guessed(text.row(), stored)

    def assert_holds(self, text: Text, count: int) -> None:
        for position in range(count):
            slot = text.table[position // BLOCK_SIZE], position % BLOCK_SIZE
            assert self.slots.get(slot) == kv_of(text.tokens[: position + 1]), position


def num_blocks_for(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_SIZE)


class Walk:
    """Sequences that come, share beginnings, go on with guesses and without, and leave their blocks to others."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.model = Model(num_blocks=16)
        self.free = list(range(16))
        self.texts: list[Text] = []
        self.num_begun = self.num_ready = 0

    def step(self) -> None:
        action = self.rng.random()
        if action < 0.1 or not self.texts:
            self.begin()
        elif action < 0.17:
            self.end(self.rng.choice(self.texts))
        elif action < 0.22:
            self.rewind(self.rng.choice(self.texts))
        elif action < 0.5:
            self.go_on(self.rng.choice(self.texts), self.new_tokens(self.rng.randrange(1, 6)))
        else:
            self.go_on_with_guesses(self.rng.choice(self.texts))

    def new_tokens(self, count: int) -> list[int]:
        return [self.rng.randrange(3) for _ in range(count)]

    def begin(self) -> None:
        """With full blocks of another's beginning, or with a beginning that others had, perhaps in the same blocks."""
        shared: list[int] = []
        tokens = [self.rng.randrange(2)] * self.rng.randrange(2 * BLOCK_SIZE + 1)
        if self.texts and self.rng.random() < 0.4:
            other = self.rng.choice(self.texts)
            shared = other.table[: self.rng.randrange(len(other.tokens) // BLOCK_SIZE + 1)]
            tokens = other.tokens[: len(shared) * BLOCK_SIZE]
        tokens = tokens + self.new_tokens(self.rng.randrange(1, 6))
        text = Text(self.num_begun, tokens, shared)
        self.num_begun += 1
        if self.grow(text, 0):
            self.texts.append(text)

    def grow(self, text: Text, num_guesses: int) -> bool:
        missing = num_blocks_for(len(text.tokens) + num_guesses) - len(text.table)
        if missing > len(self.free):
            return False
        if self.rng.random() < 0.2:
            self.rng.shuffle(self.free)
        text.table += [self.free.pop() for _ in range(missing)]
        return True

    def end(self, text: Text) -> None:
        self.texts.remove(text)
        kept = {block for other in self.texts for block in other.table}
        self.free += [block for block in text.table if block not in kept]
        self.model.progress.retire(text.seq_id)

    def rewind(self, text: Text) -> None:
        """Its last tokens are taken back, and it begins anew, perhaps in another block; never in one of others."""
        num_left = self.rng.randrange(1, len(text.tokens) + 1)
        index = (num_left - 1) // BLOCK_SIZE
        if any({*text.table[index:]} & {*other.table} for other in self.texts if other is not text):
            return
        del text.tokens[num_left:]
        self.model.progress.retire(text.seq_id)
        if self.free:
            self.free.append(text.table[index])
            text.table[index] = self.free.pop(0)

    def go_on(self, text: Text, tokens: Sequence[int]) -> None:
        text.tokens += tokens
        if not self.grow(text, 0):
            self.end(text)

    def go_on_with_guesses(self, text: Text) -> None:
        guesses = self.new_tokens(self.rng.randrange(1, 5))
        if not self.grow(text, len(guesses)):
            self.end(text)
            return
        if self.model.catch_up(text):
            self.num_ready += 1
            self.model.guess(text, guesses)
            num_right = self.rng.randrange(len(guesses) + 1)
            self.go_on(text, [*guesses[:num_right], 7])


@pytest.mark.parametrize("seed", range(20))
def test_what_is_said_to_be_there_is_there(seed: int) -> None:
    walk = Walk(seed)
    for _ in range(600):
        walk.step()
    assert walk.num_ready > 50
    assert walk.num_begun > 20


def test_right_guesses_are_not_computed_again() -> None:
    model, text = Model(40), Text(0, [1, 2, 3], list(range(10)))
    assert model.catch_up(text)
    assert model.num_computed == 2
    for num_right in (3, 0, 2, 3):
        guesses = [4, 5, 6]
        model.guess(text, guesses)
        text.tokens += [*guesses[:num_right], 9]
        before = model.num_computed
        assert model.catch_up(text)
        # The last guess was not stored: it is computed where it was right.
        assert model.num_computed - before == (num_right == 3)


def test_wrong_guesses_are_overwritten() -> None:
    model, text = Model(40), Text(0, [1, 2, 3], list(range(10)))
    model.catch_up(text)
    model.guess(text, [4, 5, 6, 8])
    text.tokens += [4, 7, 7]
    assert model.catch_up(text)
    assert model.num_computed == 2 + 1


def test_what_an_earlier_sequence_left_is_found() -> None:
    """In the blocks that they share, as far as these are full."""
    model, tokens = Model(40), list(range(30))
    assert model.catch_up(Text(0, tokens, list(range(8))))
    assert model.num_computed == 29
    model.progress.retire(0)
    assert model.catch_up(Text(1, [*tokens[:28], 5, 5, 5], [*range(7), 20]))
    assert model.num_computed == 29 + 2
    model.progress.retire(1)
    assert model.catch_up(Text(2, [9, *tokens[1:30]], list(range(8)))), "another text in the same blocks"
    assert model.num_computed == 29 + 2 + 29


def test_a_long_prompt_takes_some_steps() -> None:
    length = 2 * CATCH_UP_TOKENS + 10
    model, text = Model(400), Text(0, [3] * length, list(range(300)))
    assert [model.catch_up(text) for _ in range(3)] == [False, False, True]
    assert model.num_computed == length - 1
