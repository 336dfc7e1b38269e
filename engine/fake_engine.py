"""An engine without a model: the whole contract of plan.py, deterministic tokens, settable timing, no torch.

Its "KV" of a slot is the token, its position, and a running hash of all tokens up to it. A row reads its history back
through its block table and checks it, so a block that is corrupted, missing, misplaced or reused too early changes
the tokens or raises AssertionError. A token is a pure function of that history, the sequence's key and the output
position: nothing else, so every path (chunks, prefix hits, shipped KV, replay) must give the same ones. Where Mirostat
or adaptive-p is asked for, it is also one of a state, which each token changes: a replay without it goes astray.
After a rewind it is one of the epoch too. Three of four tokens that it is asked to guess are what will be drawn.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from itertools import chain
from struct import Struct
from typing import Any

import numpy as np
import numpy.typing as npt

from ..wire.logprobs import TokenLogprobs
from .guesses import followed
from .plan import DRAFT, IN_FLIGHT, NOT_DRAWN, Draw, Plan, Result, Row, SequenceSeed
from .pooling import pooled_positions

_MULTIPLIER = 0x5851_F42D_4C95_7F2D  # Knuth's MMIX
_MASK = 0xFFFF_FFFF_FFFF_FFFF
_LOGITS = Struct("<Q")
_DRAW = Struct("<QIIII")
_SCORE = Struct("<Qq")
_STATE = Struct("<Q")
_NOWHERE = -1
HIDDEN_SIZE = 8
"""Of the vectors of prompts."""


def extend_history(history: int, token_ids: Iterable[int]) -> list[int]:
    """The running hash (64 bits) after each of these tokens."""
    histories = []
    for token in token_ids:
        history = (history * _MULTIPLIER + token + 1) & _MASK
        histories.append(history)
    return histories


def hidden_states(histories: Sequence[int]) -> npt.NDArray[np.float32]:
    """[T, HIDDEN_SIZE], one for each history: multiples of 1/256 below 1, so that sums of them are exact."""
    words = np.array(histories, "<u8").view(np.uint8).reshape(-1, HIDDEN_SIZE)
    return words.astype(np.float32) / np.float32(256)


def has_state(params: Any) -> bool:
    """Whether tokens alone do not determine what a sequence with these parameters draws."""
    return bool(params.mirostat_mode) or params.adaptive_target >= 0


def next_state(state: bytes, token: int) -> bytes:
    """After a token; nothing where there was none."""
    return state and _STATE.pack(extend_history(_STATE.unpack(state)[0], (token, 1))[-1])


def mixed(history: int, state: bytes, epoch: int = 0) -> int:
    """What a draw depends on, besides key and position."""
    seen = history ^ _STATE.unpack(state)[0] if state else history
    return extend_history(seen, (epoch,))[0] if epoch else seen


class FakeHandle:
    """Computes when the result is asked for: until then its blocks must stay as they are."""

    def __init__(self, engine: "FakeEngine", plan: Plan, ready_at: float):
        self.plan = plan
        self.ready_at = ready_at
        self._engine = engine

    def result(self) -> Result:
        return self._engine.finish(self)


class FakeEngine:
    """`step_s` seconds a step and `token_s` a prompt token. Draws come from `token_ids` (default: the whole vocabulary
    but `eos_id`), and with `eos_probability` are `eos_id`. `overlaps` as in `Engine`."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        vocab_size: int,
        *,
        token_ids: Sequence[int] | None = None,
        eos_id: int | None = None,
        eos_probability: float = 0.0,
        step_s: float = 0.0,
        token_s: float = 0.0,
        overlaps: bool = True,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.vocab_size = vocab_size
        self.overlaps = overlaps
        self._block = np.dtype([("tokens", "<i4", block_size), ("positions", "<i4", block_size), ("parent", "<u8")])
        self.bytes_per_block: int = self._block.itemsize
        self._pool = np.zeros(num_blocks, self._block)
        self._tokens, self._positions = self._pool["tokens"], self._pool["positions"]
        self._parents = self._pool["parent"]
        self._positions[:] = _NOWHERE
        self._histories: npt.NDArray[np.uint64] = np.zeros((num_blocks, block_size), np.uint64)
        self._alphabet = token_ids if token_ids is not None else [i for i in range(vocab_size) if i != eos_id]
        self._eos_id = eos_id
        self._eos_below = int(eos_probability * 2**32) if eos_id is not None else 0
        self._step_s, self._token_s = step_s, token_s
        self._clock, self._sleep = clock, sleep
        self._busy_until = float("-inf")
        self._flying: list[FakeHandle] = []
        self._seeds: dict[int, SequenceSeed] = {}
        self._drawn: dict[int, list[int]] = {}
        self._states: dict[int, bytes] = {}

    def launch(self, plan: Plan) -> FakeHandle:
        assert len(self._flying) < 2, "two steps are in flight"
        assert all(draw.seq_id in self._seeds for draw in plan.draws), "a draw for a sequence that was not admitted"
        for row in plan.rows:
            assert len(row.block_table) * self.block_size >= row.start + len(row.token_ids), "a table is too short"
        num_prompt_tokens = sum(
            len(row.token_ids) for row in plan.rows if len(row.token_ids) > 1 and not row.num_drafts
        )
        start = max(self._busy_until, self._clock())
        self._busy_until = start + self._step_s + num_prompt_tokens * self._token_s
        handle = FakeHandle(self, plan, self._busy_until)
        self._flying.append(handle)
        return handle

    def finish(self, handle: FakeHandle) -> Result:
        """The result of the oldest handle in flight."""
        assert self._flying[:1] == [handle], "results are taken in order, once"
        if (wait_s := handle.ready_at - self._clock()) > 0:
            self._sleep(wait_s)
        plan = handle.plan
        for source, destination in plan.copies:
            self._pool[destination] = self._pool[source]
            self._histories[destination] = self._histories[source]
        histories = self._read_histories(plan.rows)
        computed = [self._compute(row, history) for row, history in zip(plan.rows, histories, strict=True)]
        drawn: list[int] = []
        logprobs: list[TokenLogprobs | None] = []
        states: list[bytes] = []
        ends = [(*_followed(row, guesses), seen) for row, (seen, guesses) in zip(plan.rows, computed, strict=True)]
        ends += [(part.draws, None, [part.logits]) for part in plan.shipped]
        for draws, guesses, seen in ends:
            for index, draw in enumerate(draws):
                end = seen[index] if guesses is not None else seen[-1]
                is_drawn = guesses is None or not index or drawn[-1:] == guesses[index - 1 : index]
                drawn.append(self._draw(draw, end) if is_drawn else NOT_DRAWN)
                logprobs.append(self._logprobs(draw, end, drawn[-1]) if is_drawn else None)
                states.append(self._states.get(draw.seq_id, b""))
        logits = {row.seq_id: seen[-1] for row, (seen, _) in zip(plan.rows, computed, strict=True) if row.keep_logits}
        scored = {
            row.seq_id: self._score(row, history)
            for row, history in zip(plan.rows, histories, strict=True)
            if row.prompt_logprobs is not None
        }
        pooled = {
            row.seq_id: self._pool_row(row, history)
            for row, history in zip(plan.rows, histories, strict=True)
            if row.pooling is not None
        }
        self._flying.pop(0)
        return Result(drawn, logits, logprobs, states, scored, pooled)

    def read_blocks(self, block_ids: Sequence[int], out: memoryview | None = None) -> memoryview:
        assert not self._written_in_flight() & set(block_ids), "read while a plan in flight writes"
        payload = memoryview(self._pool[list(block_ids)].tobytes())
        if out is None:
            return payload
        out[:] = payload
        return out

    def write_blocks(self, block_ids: Sequence[int], payload: memoryview) -> None:
        if payload.nbytes != len(block_ids) * self.bytes_per_block:
            raise ValueError(f"{payload.nbytes} bytes for {len(block_ids)} blocks of {self.bytes_per_block}")
        assert not self._used_in_flight() & set(block_ids), "written while a plan in flight uses them"
        self._pool[list(block_ids)] = np.frombuffer(payload, self._block)
        for block in block_ids:
            stored = self._pool[block]
            self._histories[block] = extend_history(int(stored["parent"]), stored["tokens"].tolist())

    def pack_logits(self, logits: Any) -> memoryview:
        return memoryview(_LOGITS.pack(logits))

    def unpack_logits(self, payload: memoryview) -> Any:
        """Raises ValueError on a wrong size."""
        if payload.nbytes != _LOGITS.size:
            raise ValueError(f"{payload.nbytes} bytes of logits, {_LOGITS.size} expected")
        return _LOGITS.unpack(payload)[0]

    def admit(self, seed: SequenceSeed) -> None:
        assert seed.seq_id not in self._seeds, f"sequence {seed.seq_id} was admitted twice"
        self._seeds[seed.seq_id] = seed
        self._drawn[seed.seq_id] = []
        if has_state(seed.params):
            assert bool(seed.state) == bool(seed.output_ids), f"sequence {seed.seq_id}: a state without its tokens"
            self._states[seed.seq_id] = seed.state or _STATE.pack(0)

    def retire(self, *seq_ids: int) -> None:
        flying = {draw.seq_id for handle in self._flying for draw in handle.plan.draws}
        for seq_id in seq_ids:
            assert seq_id not in flying, f"sequence {seq_id} retires while a plan in flight draws for it"
            del self._seeds[seq_id], self._drawn[seq_id]
            self._states.pop(seq_id, None)

    def expected_tokens(
        self,
        prompt_ids: Sequence[int],
        key: tuple[int, int],
        num_tokens: int,
        stop_ids: frozenset[int] = frozenset(),
        min_tokens: int = 0,
        *,
        with_state: bool = False,
    ) -> list[int]:
        """What a sequence must produce if nothing ends it: the oracle of tests."""
        history = extend_history(0, prompt_ids)[-1]
        tokens: list[int] = []
        state = _STATE.pack(0) if with_state else b""
        for position in range(num_tokens):
            banned = stop_ids if position < min_tokens else frozenset()
            tokens.append(self._pick(mixed(history, state), key, position, banned))
            state = next_state(state, tokens[-1])
            (history,) = extend_history(history, tokens[-1:])
        return tokens

    def expected_logprobs(self, token_ids: Sequence[int], num_top: int) -> list[TokenLogprobs]:
        """Of each token after the first, where it follows those before it: the oracle of tests."""
        histories = extend_history(0, token_ids)
        return [self._score_one(h, token, num_top) for h, token in zip(histories, token_ids[1:], strict=False)]

    def _read_histories(self, rows: Sequence[Row]) -> list[int]:
        """The running hash before each row: follows its block table from slot 0 and checks every slot on the way."""
        size = self.block_size
        read = [row for row in rows if row.start]
        if not read:
            return [0] * len(rows)
        num_blocks = np.array([-(-row.start // size) for row in read])
        first = np.cumsum(num_blocks) - num_blocks
        tables = (row.block_table[: -(-row.start // size)] for row in read)
        blocks = np.fromiter(chain.from_iterable(tables), np.int64, int(num_blocks.sum()))
        index = np.arange(len(blocks)) - np.repeat(first, num_blocks)
        starts = np.array([row.start for row in read])
        expected = index[:, None] * size + np.arange(size)
        unread = expected >= np.repeat(starts, num_blocks)[:, None]
        assert np.all((self._positions[blocks] == expected) | unread), "a slot of another position"
        past = np.where(index > 0, self._histories[np.roll(blocks, 1), -1], 0)
        assert np.array_equal(self._parents[blocks], past), "a block of another history"
        ends = iter(self._histories[blocks[first + num_blocks - 1], (starts - 1) % size].tolist())
        return [next(ends) if row.start else 0 for row in rows]

    def _compute(self, row: Row, history: int) -> tuple[list[int], list[int]]:
        """Stores the row's slots; the history after each of its tokens, which stands for logits, and its guesses."""
        end = row.start + len(row.token_ids)
        tokens = self._tokens_of(row, history)
        histories = extend_history(history, tokens)
        first = row.start
        while first < end:
            index, offset = divmod(first, self.block_size)
            block, done, count = row.block_table[index], first - row.start, min(self.block_size - offset, end - first)
            if offset == 0:
                self._parents[block] = histories[done - 1] if done else history
            slots = slice(offset, offset + count)
            self._tokens[block, slots] = tokens[done : done + count]
            self._positions[block, slots] = range(first, first + count)
            self._histories[block, slots] = histories[done : done + count]
            first += count
        return histories, tokens[len(tokens) - row.num_drafts :]

    def _tokens_of(self, row: Row, history: int) -> list[int]:
        tokens: list[int] = []
        for index, token in enumerate(row.token_ids):
            if token == IN_FLIGHT:
                token = self._drawn[row.seq_id][-1]
            elif token == DRAFT:
                assert row.history[-1] == tokens[0], "the tokens of a sequence do not end with its last"
                token = self._guess(row.draws[index - 1], extend_history(history, tokens)[-1])
            tokens.append(token)
        return tokens

    def _guess(self, draw: Draw, history: int) -> int:
        """What will be drawn, as far as tokens, key and position tell; now and then another token."""
        key = self._seeds[draw.seq_id].key
        right = self._pick(mixed(history, b"", draw.epoch), key, draw.position, frozenset())
        return self._alphabet[0] if history % 4 == 0 else right

    def _draw(self, draw: Draw, history: int) -> int:
        seed, drawn = self._seeds[draw.seq_id], self._drawn[draw.seq_id]
        assert draw.position == len(seed.output_ids) + len(drawn), f"sequence {draw.seq_id}: a draw out of turn"
        banned = seed.stop_ids if draw.position < seed.params.min_tokens else frozenset()
        state = self._states.get(draw.seq_id, b"")
        if any(token not in banned and token not in draw.bans for token in self._alphabet):
            banned |= set(draw.bans)
        drawn.append(self._pick(mixed(history, state, draw.epoch), seed.key, draw.position, banned))
        if state:
            self._states[draw.seq_id] = next_state(state, drawn[-1])
        return drawn[-1]

    def _logprobs(self, draw: Draw, history: int, token: int) -> TokenLogprobs | None:
        num_top = self._seeds[draw.seq_id].params.logprobs
        return None if num_top is None else self._score_one(history, token, num_top)

    def _score(self, row: Row, history: int) -> list[TokenLogprobs]:
        assert row.prompt_logprobs is not None
        histories, targets = extend_history(history, row.token_ids), row.prompt_logprobs.targets
        return [
            self._score_one(h, token, row.prompt_logprobs.num_top) for h, token in zip(histories, targets, strict=False)
        ]

    def _pool_row(self, row: Row, history: int) -> npt.NDArray[np.float32]:
        positions = pooled_positions(row)
        return hidden_states(extend_history(history, row.token_ids)[positions.start : positions.stop]).sum(0)

    def _score_one(self, history: int, token: int, num_top: int) -> TokenLogprobs:
        """Numbers that only this token after this history has, exact in fp32; alternatives with falling ones."""
        top = tuple(((history + i) % self.vocab_size, -(1 + i) / 64) for i in range(min(num_top, self.vocab_size)))
        digest = blake2b(_SCORE.pack(history, token), digest_size=2).digest()
        word = int.from_bytes(digest, "little")
        return TokenLogprobs(-word / 4096, top, 1 + word % self.vocab_size)

    def _pick(self, history: int, key: tuple[int, int], position: int, banned: frozenset[int]) -> int:
        for attempt in range(64):
            digest = blake2b(_DRAW.pack(history, *key, position, attempt), digest_size=8).digest()
            word, eos_word = int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")
            is_eos = self._eos_id is not None and eos_word < self._eos_below
            token = self._eos_id if is_eos and self._eos_id is not None else self._alphabet[word % len(self._alphabet)]
            if token not in banned:
                return token
        left = [token for token in self._alphabet if token not in banned]
        if not left:
            raise ValueError("every token is a stop token")
        return left[word % len(left)]

    def _written_in_flight(self) -> set[int]:
        written = {block for handle in self._flying for _, block in handle.plan.copies}
        for row in (row for handle in self._flying for row in handle.plan.rows):
            end = row.start + len(row.token_ids)
            written.update(row.block_table[row.start // self.block_size : -(-end // self.block_size)])
        return written

    def _used_in_flight(self) -> set[int]:
        used = {block for handle in self._flying for copy in handle.plan.copies for block in copy}
        used.update(block for handle in self._flying for row in handle.plan.rows for block in row.block_table)
        return used


def _followed(row: Row, token_ids: Sequence[int]) -> tuple[Sequence[Draw], list[int] | None]:
    """The row's draws with their masks, and its guesses, no more than its grammar allows; None if it has none."""
    if not row.num_drafts:
        return row.draws, None
    if row.look_ahead is not None and row.seq_id % 2:  # as some engines do, and others do not
        row.look_ahead(token_ids)
    guesses = followed(row, token_ids)
    return guesses.draws, list(guesses.token_ids)
