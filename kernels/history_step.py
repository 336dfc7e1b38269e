"""What the tokens so far say about the next one, done to logits on the device: bad words, DRY, repetition over a range,
n-grams.

    logits fp32 [B, V] (changed in place), slots and positions int32 [B], last_tokens int32 [S], a HistoryTable

One launch, one program for each row, which returns at once where its slot asks for nothing. A program first takes up
the token that the step before has drawn, `last_tokens[slot]`, if the output has grown to `positions[row]` tokens:
nothing has to be told to the table between steps, and steps may be launched ahead. Then, in the order of decode's
steps: bans of bad words, DRY and the repetition penalty, bans of repeated n-grams. Masks and biases come before,
presence and frequency penalties and all else after, in the tail.

DRY keeps the length of the common suffix with the text d tokens earlier for each distance d, so a step reads the tokens
within its range once, 4 bytes each, and 16 more for each that is equal to the last one. Of several matches before one
token the longest counts: the least of their logits is kept by atomic minimum, whose order makes no difference.

Asserted: contiguous logits, slots of the table or −1 (padding: nothing done), each slot at most once; a step for each
output position in turn.
Sources: as in history_rules.py; bans as transformers' NoRepeatNGramLogitsProcessor.
"""

# mypy: allow-incomplete-defs

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from . import history_table
from .dispatch import launches
from .history_bans import ban_ngrams, ban_words
from .history_penalties import penalise_repetition, subtract_dry
from .history_rules import dry_penalty, find_matches, longest_repeats, older_repetition, repetition_bounds
from .history_table import Held, HistoryTable

CONFIG = {"BLOCK": 2048, "num_warps": 8}
"""Tokens read at once, as many as the registers do for."""

_NUM_RULES: tl.constexpr = tl.constexpr(history_table.NUM_RULES)
_RUNS_PADDING: tl.constexpr = tl.constexpr(history_table.RUNS_PADDING)
_BLOCK: tl.constexpr = tl.constexpr(history_table.BLOCK)
_CAPACITY: tl.constexpr = tl.constexpr(history_table.CAPACITY)
_PROMPT_LEN: tl.constexpr = tl.constexpr(history_table.PROMPT_LEN)
_TABLE: tl.constexpr = tl.constexpr(history_table.TABLE)
_WORDS: tl.constexpr = tl.constexpr(history_table.WORDS)
_NUM_WORDS: tl.constexpr = tl.constexpr(history_table.NUM_WORDS)
_LONGEST_WORD: tl.constexpr = tl.constexpr(history_table.LONGEST_WORD)
_ALLOWED_LENGTH: tl.constexpr = tl.constexpr(history_table.ALLOWED_LENGTH)
_DRY_RANGE: tl.constexpr = tl.constexpr(history_table.DRY_RANGE)
_NGRAM_SIZE: tl.constexpr = tl.constexpr(history_table.NGRAM_SIZE)
_REPETITION_RANGE: tl.constexpr = tl.constexpr(history_table.REPETITION_RANGE)
_REPETITION_FIRST: tl.constexpr = tl.constexpr(history_table.REPETITION_FIRST)
_LOG_MULTIPLIER: tl.constexpr = tl.constexpr(history_table.LOG_MULTIPLIER)
_LOG_BASE: tl.constexpr = tl.constexpr(history_table.LOG_BASE)
_REPETITION: tl.constexpr = tl.constexpr(history_table.REPETITION)
_OLDER_REPETITION: tl.constexpr = tl.constexpr(history_table.OLDER_REPETITION)


def apply_history(logits: Tensor, slots: Tensor, positions: Tensor, last_tokens: Tensor, table: HistoryTable) -> Tensor:
    """`logits`, changed. `positions`: of the tokens to be drawn, in their outputs. Raises ValueError for wrong shapes,
    dtypes or layouts."""
    _check(logits, slots, positions, last_tokens, table)
    if not launches(logits):
        return ref_apply_history(logits, slots, positions, last_tokens, table)
    return launch_history(logits, slots, positions, last_tokens, table, CONFIG)


def launch_history(
    logits: Tensor, slots: Tensor, positions: Tensor, last_tokens: Tensor, table: HistoryTable, config: dict[str, int]
) -> Tensor:
    """The kernel of `apply_history` in a given configuration."""
    num_rows, vocab_size = logits.shape
    if num_rows:
        # Contracted multiply-adds would round penalties otherwise than the reference does.
        _apply[(num_rows,)](
            logits, slots, positions, last_tokens, table.rules, table.rules.view(torch.float64), table.progress,
            table.offsets, table.data, vocab_size, enable_fp_fusion=False, **config,
        )  # fmt: skip
    return logits


def ref_apply_history(
    logits: Tensor, slots: Tensor, positions: Tensor, last_tokens: Tensor, table: HistoryTable
) -> Tensor:
    """`apply_history` on the host, a row at a time, from all tokens of a sequence anew."""
    for row, slot in enumerate(slots.tolist()):
        held = table.held.get(slot)
        if held is None:
            continue
        keys = _ref_take_up(held, table.progress[slot], int(positions[row]), int(last_tokens[slot]))
        _ref_row(logits[row], keys, held)
    return logits


def _ref_take_up(held: Held, progress: Tensor, position: int, token: int) -> np.ndarray:
    """The keys of the sequence, int32 [n]."""
    num_tokens, state = progress.tolist()
    if num_tokens < held.prompt_len + position:
        breakers, is_breaker = held.params.breakers, False
        if breakers is not None and held.table is not None:
            state, is_breaker = breakers.step(state, token)
        held.block.keys[num_tokens] = ~token if is_breaker else token
        num_tokens += 1
        progress.copy_(torch.tensor([num_tokens, state]))
    return held.block.keys[:num_tokens].cpu().numpy()


def _ref_row(row: Tensor, keys: np.ndarray, held: Held) -> None:
    params = held.params
    tokens = np.where(keys < 0, ~keys, keys).tolist()
    output = tuple(tokens[held.prompt_len :])
    _ref_ban(row, {word[-1] for word in params.bad_words if output[len(output) - len(word) + 1 :] == word[:-1]})
    steps = [_ref_dry, _ref_repetition]
    for step in steps[::-1] if params.repetition_first else steps:
        step(row, keys, held)
    size = params.no_repeat_ngram_size
    if 0 < size <= len(tokens):
        grams = (tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1))
        _ref_ban(row, {gram[-1] for gram in grams if gram[:-1] == tuple(tokens[len(tokens) - size + 1 :])})


def _ref_ban(row: Tensor, tokens: set[int]) -> None:
    banned = row.index_fill(0, torch.tensor(sorted(tokens), dtype=torch.int64, device=row.device), -torch.inf)
    if bool((banned != -torch.inf).any()):
        row.copy_(banned)


def _ref_dry(row: Tensor, keys: np.ndarray, held: Held) -> None:
    params = held.params
    if params.dry_multiplier:
        matches, allowed = find_matches(keys, max(0, params.dry_range)), params.dry_allowed_length
        ids, lengths = longest_repeats(keys, matches, allowed, max(0, params.dry_range))
        penalties = dry_penalty(lengths, params.dry_multiplier, params.dry_base, allowed)
        row[torch.from_numpy(ids).long().to(row.device)] -= torch.from_numpy(penalties).to(row.device)


def _ref_repetition(row: Tensor, keys: np.ndarray, held: Held) -> None:
    params = held.params
    if params.repetition_penalty == 1:
        return
    first, middle = repetition_bounds(len(keys), params.repetition_penalty_range)
    tokens = torch.from_numpy(np.where(keys < 0, ~keys, keys)).long().to(row.device)
    former = row.clone()
    older = older_repetition(params.repetition_penalty, params.repetition_penalty_slope)
    for part, penalty in ((tokens[first:middle], older), (tokens[middle:], params.repetition_penalty)):
        logits, divisor = former[part], torch.tensor(penalty, dtype=torch.float32)
        row[part] = torch.where(logits > 0, logits / divisor, logits * divisor)


@triton.jit(do_not_specialize_on_alignment=["slots", "positions"])
def _apply(
    logits, slots, positions, last_tokens, rules, doubles, progress, offsets, data, V, BLOCK: tl.constexpr
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + index).to(tl.int64)
    if slot < 0:
        return
    rules, doubles = rules + slot * _NUM_RULES, doubles + slot * _NUM_RULES
    memory = tl.load(rules + _BLOCK)
    if memory == 0:
        return
    row, capacity = logits + index * V, tl.load(rules + _CAPACITY)
    runs = memory.to(tl.pointer_type(tl.int64))
    keys = memory.to(tl.pointer_type(tl.int32)) + 2 * (capacity + _RUNS_PADDING)
    found = keys + capacity
    num_words = tl.load(rules + _NUM_WORDS).to(tl.int32)
    values = (found + tl.maximum(capacity, num_words)).to(tl.pointer_type(tl.float32), bitcast=True)
    num_output = tl.load(positions + index)
    num_tokens = tl.load(rules + _PROMPT_LEN).to(tl.int32) + num_output
    if (num_tokens == 0) | (num_tokens > capacity):
        return
    spelling = (tl.load(rules + _TABLE), offsets, data)
    _take_up(keys, num_tokens, last_tokens + slot, progress + 2 * slot, spelling)

    sequence, lists = (runs, keys, num_tokens), (found, values)
    if num_words > 0:
        words = tl.load(rules + _WORDS).to(tl.pointer_type(tl.int32))
        longest = tl.load(rules + _LONGEST_WORD).to(tl.int32)
        ban_words(row, sequence, lists, words, num_words, longest, num_output, V, BLOCK)
    allowed = tl.load(rules + _ALLOWED_LENGTH).to(tl.int32)
    penalty = tl.load(doubles + _REPETITION)
    dry_turn = tl.load(rules + _REPETITION_FIRST).to(tl.int32)
    for turn in range(2):
        if (turn == dry_turn) & (allowed >= 0):
            limits = (allowed, tl.load(rules + _DRY_RANGE).to(tl.int32))
            logarithms = (tl.load(doubles + _LOG_MULTIPLIER), tl.load(doubles + _LOG_BASE))
            subtract_dry(row, sequence, lists, limits, logarithms, BLOCK)
        if (turn != dry_turn) & (penalty != 1):
            window, older = tl.load(rules + _REPETITION_RANGE).to(tl.int32), tl.load(doubles + _OLDER_REPETITION)
            penalise_repetition(
                row, sequence, values, window, penalty.to(tl.float32), older.to(tl.float32), BLOCK
            )  # fmt: skip
    size = tl.load(rules + _NGRAM_SIZE).to(tl.int32)
    if size > 0:
        ban_ngrams(row, sequence, lists, size, V, BLOCK)


@triton.jit
def _take_up(keys, num_tokens, last_token, progress, spelling):
    """Appends the token drawn since the step before, as a breaker if it is one."""
    table, offsets, data = spelling
    if tl.load(progress) < num_tokens:
        token = tl.load(last_token)
        state, is_breaker = tl.load(progress + 1), 0
        if table != 0:
            states = table.to(tl.pointer_type(tl.int16))
            for place in range(tl.load(offsets + token), tl.load(offsets + token + 1)):
                entry = tl.load(states + state * 256 + tl.load(data + place)).to(tl.int32)
                is_breaker |= (entry >> 15) & 1
                state = entry & 0x7FFF
        tl.debug_barrier()  # all have read `progress`
        tl.store(keys + num_tokens - 1, tl.where(is_breaker != 0, ~token, token))
        tl.store(progress, num_tokens)
        tl.store(progress + 1, state)
        tl.debug_barrier()


def _check(logits: Tensor, slots: Tensor, positions: Tensor, last_tokens: Tensor, table: HistoryTable) -> None:
    if logits.dim() != 2 or logits.dtype != torch.float32 or not logits.is_contiguous():
        raise ValueError(f"logits must be contiguous fp32 [B, V], not {logits.dtype} {tuple(logits.shape)}")
    if logits.shape[1] != table.vocab_size:
        raise ValueError(f"{logits.shape[1]} logits, table for {table.vocab_size}")
    for name, tensor, length in (
        ("slots", slots, len(logits)),
        ("positions", positions, len(logits)),
        ("last_tokens", last_tokens, len(table.rules)),
    ):
        if tensor.shape != (length,) or tensor.dtype != torch.int32 or not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous int32 [{length}], not {tensor.dtype} {tuple(tensor.shape)}")
