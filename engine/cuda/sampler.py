"""Drawing tokens on the device, inside captured steps: each sequence has a slot of the tables that the kernels read.

What is sparse and rare, biases, bans and stop tokens held back, is written down by the host for each step as `Edits`.
Order: masks, edits, what the tokens so far say (`history_step`), then all samplers (`sampling_tail`).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from struct import unpack

import numpy as np
import torch
from torch import Tensor

from ...kernels.history_step import apply_history
from ...kernels.history_table import HistoryParams, HistoryTable
from ...kernels.sampling_mask import MaskTable, SlotMask, apply_masks
from ...kernels.sampling_program import can_run
from ...kernels.sampling_table import SamplingTable, SlotParams
from ...kernels.sampling_tail import TailWorkspace, sample_tail
from ...kernels.sparse_edits import apply_edits
from ...text.phrases import Phrases
from ...wire.sampling import SamplingParams
from ...wire.sampling_order import active_steps, is_adaptive, is_greedy, order_of
from ..plan import Draw, SequenceSeed
from ..token_mask import allowed_words, check_ids


@dataclass(frozen=True, slots=True)
class Edits:
    """Added to logits before anything else: values[i] to token ids[i] of draw rows[i]. −inf takes it out."""

    rows: np.ndarray
    ids: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class _Rules:
    """Each a pair of arrays: token ids, and what is added to their logits."""

    early: tuple[np.ndarray, np.ndarray]
    """Of the first `min_tokens` output tokens."""
    later: tuple[np.ndarray, np.ndarray]
    min_tokens: int

    @classmethod
    def of(cls, params: SamplingParams, stop_ids: frozenset[int]) -> "_Rules":
        held_back = {**params.logit_bias, **dict.fromkeys(stop_ids, -math.inf)}
        return cls(_arrays(held_back), _arrays(params.logit_bias), params.min_tokens)

    def at(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        return self.early if position < self.min_tokens else self.later


_NO_EDITS = np.empty(0, np.int32), np.empty(0, np.float32)


def _arrays(edits: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    return np.fromiter(edits, np.int32), np.fromiter(edits.values(), np.float32)


def can_draw(params: SamplingParams) -> bool:
    """Whether the kernels here draw for a request. Not if logprobs are asked for of what the samplers made, nor what
    `can_run` refuses, nor where the tokens so far come into play after other samplers."""
    if params.logprobs is not None and params.logprobs_mode == "processed":
        return False
    steps = active_steps(params)
    ours = [step for step in steps if step in _HISTORY and (step != "penalties" or _repeats_in_history(params))]
    first = [step for step in steps if step not in _HISTORY]
    late = bool(ours and first) and max(map(steps.index, ours)) > min(map(steps.index, first))
    return not late and can_run(_slot_params(params, (0, 0)))


class DeviceSampler:
    """`num_slots` sequences at most; rows of a step are numbered by its draws."""

    def __init__(
        self,
        num_slots: int,
        vocab_size: int,
        max_model_len: int,
        device: torch.device,
        phrases: Phrases | None = None,
        max_drafts: int = 0,
    ) -> None:
        """`phrases` finds the strings of DRY's breakers and bad_words in tokens; without it they are refused. A
        sequence draws up to 1 + `max_drafts` tokens in a step, one a turn."""
        self.table = SamplingTable(num_slots, vocab_size, device)
        self._first_masks = MaskTable(num_slots, vocab_size, device)
        self._later_masks = MaskTable(num_slots, vocab_size, device, max_drafts)
        """Of what is drawn after guesses."""
        vocabulary = None if phrases is None else (phrases.vocabulary.offsets, phrases.vocabulary.data)
        self.history = HistoryTable(num_slots, vocab_size, device, vocabulary)
        self._workspace = TailWorkspace(num_slots, vocab_size, device)
        self._max_model_len = max_model_len
        self._phrases = phrases
        self._rules: dict[int, _Rules] = {}
        self._allowed: dict[int, np.ndarray] = {}
        self._epochs: dict[int, int] = {}

    def set(self, slot: int, seed: SequenceSeed) -> None:
        """Begins a sequence. Raises ValueError where a token id that the request names is not in the vocabulary, where
        it allows none, where `seed.state` is not that of its sampler, and for strings that cannot be looked for."""
        params: SamplingParams = seed.params
        vocab_size = self.table.vocab_size
        check_ids("logit_bias", params.logit_bias, vocab_size)
        check_ids("stop token", seed.stop_ids, vocab_size)
        allowed = allowed_words(params, vocab_size)
        prompt_ids = seed.prompt_ids if params.repetition_penalty != 1 and not _repeats_in_history(params) else ()
        state = _unpack_state(seed.state, params)
        self.history.set(slot, self._history_params(params), seed.prompt_ids, seed.output_ids, self._longest(seed))
        self.table.set(slot, _slot_params(params, seed.key), prompt_ids, seed.output_ids, state)
        if allowed is not None:
            self._allowed[slot] = allowed
            self._first_masks.keep(slot, allowed)
            self._later_masks.keep(slot, allowed)
        if params.logit_bias or params.min_tokens > len(seed.output_ids):
            self._rules[slot] = _Rules.of(params, _not_alone(seed.stop_ids, allowed))

    def clear(self, slot: int) -> None:
        """Ends it."""
        for known in (self._rules, self._allowed, self._epochs):
            known.pop(slot, None)
        self._first_masks.clear(slot)
        self._later_masks.clear(slot)
        self.history.clear(slot)  # what the table holds of it is not read until another sequence is set there

    def prepare(self, slots: Sequence[int], draws: Sequence[Draw]) -> None:
        """Tells the device what draws bring along: masks, which are waited for, and epochs."""
        for slot, draw in zip(slots, draws, strict=True):
            if draw.epoch and draw.epoch != self._epochs.get(slot):
                self._epochs[slot] = draw.epoch
                self.table.set_epoch(slot, draw.epoch)
        self._first_masks.set(
            [
                SlotMask(0, slot, self._within_bans(slot, draw.mask.result()))
                for slot, draw in zip(slots, draws, strict=True)
                if draw.mask is not None
            ]
        )

    def set_later_masks(self, slots: Sequence[int], draws: Sequence[Sequence[Draw]]) -> None:
        """Of each slot, the draws after its first in the order of turns: their masks are waited for."""
        self._later_masks.set(
            [
                SlotMask(turn, slot, self._within_bans(slot, draw.mask.result()))
                for slot, those in zip(slots, draws, strict=True)
                for turn, draw in enumerate(those)
                if draw.mask is not None
            ]
        )

    def _within_bans(self, slot: int, words: np.ndarray) -> np.ndarray:
        """Guidance wins where bans and guidance leave nothing."""
        allowed = self._allowed.get(slot)
        if allowed is None:
            return words
        both = words.view(np.int32) & allowed
        return both if both.any() else words

    def may_edit(self, draws: Iterable[Draw]) -> bool:
        """Whether there may be edits of these, or of any that come with nothing."""
        return bool(self._rules) or any(draw.bans for draw in draws)

    def edits(self, slots: Sequence[int], draws: Sequence[Draw]) -> Edits | None:
        """Of draws in these slots, −1 for those made elsewhere; None where there are none."""
        if not self.may_edit(draws):
            return None
        found = [self._edits_of(slot, draw) for slot, draw in zip(slots, draws, strict=True)]
        lengths = [len(ids) for ids, _ in found]
        if not sum(lengths):
            return None
        rows = np.repeat(np.arange(len(found), dtype=np.int32), lengths)
        ids, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return Edits(rows, ids, values)

    def _edits_of(self, slot: int, draw: Draw) -> tuple[np.ndarray, np.ndarray]:
        """Token ids, each once, and what is added to their logits."""
        ids, values = self._rules[slot].at(draw.position) if slot in self._rules else _NO_EDITS
        if slot < 0 or not draw.bans:
            return ids, values
        left, bans = self._unmasked(slot, draw), np.array(draw.bans, np.int32)
        left[bans] = False
        if not left.any():  # bans that leave nothing are not done
            return ids, values
        left[ids[values == -math.inf]] = False
        stays = ~np.isin(ids, bans) & ((values > -math.inf) | left.any())
        banned = np.full(len(bans), -math.inf, np.float32)
        return np.concatenate((ids[stays], bans)), np.concatenate((values[stays], banned))

    def _unmasked(self, slot: int, draw: Draw) -> np.ndarray:
        """bool [V]: what masks let come."""
        words = self._allowed.get(slot)
        if draw.mask is not None:
            words = self._within_bans(slot, draw.mask.result())
        if words is None:
            return np.ones(self.table.vocab_size, bool)
        bits = np.unpackbits(words.view(np.uint8), bitorder="little", count=self.table.vocab_size)
        return bits.astype(bool)

    def sample(
        self,
        logits: Tensor,
        slots: Tensor,
        positions: Tensor,
        edits: tuple[Tensor, Tensor, Tensor, Tensor] | None,
        out: Tensor,
        turn: int = 0,
    ) -> None:
        """int32 `out` [N] from fp32 `logits` [N, V], which are overwritten; `slots` and `positions` int32 [N], −1 for
        padding. `edits`: rows, ids, values and, int32 [1], how many of them count."""
        masks, number = (self._later_masks, turn - 1) if turn else (self._first_masks, 0)
        apply_masks(logits, slots, masks, number)
        if edits is not None:
            apply_edits(logits, *edits)
        apply_history(logits, slots, positions, self.table.last_token, self.history)
        sample_tail(logits, slots, positions, self.table, workspace=self._workspace, out=out)

    # Guesses are drawn from another model's logits, and have not come.

    def save(self) -> tuple[Tensor, Tensor]:
        return self.table.last_token.clone(), self.table.states.clone()

    def guess(self, logits: Tensor, slots: Tensor, positions: Tensor, out: Tensor, *, is_first: bool) -> None:
        """As `sample`, without edits; with masks and history where it is the first guess of a step."""
        if is_first:
            self.sample(logits, slots, positions, None, out)
        else:
            sample_tail(logits, slots, positions, self.table, workspace=self._workspace, out=out)

    def restore(self, saved: tuple[Tensor, Tensor], guessed: Sequence[tuple[Tensor, Tensor]]) -> None:
        """The tables are as they were at `save`, before these (slots, tokens) were guessed."""
        table = self.table
        table.last_token.copy_(saved[0])
        table.states.copy_(saved[1])
        slots, tokens = (torch.cat(parts) for parts in zip(*guessed, strict=True))
        at = slots.clamp(min=0).long()
        is_counted = (slots >= 0) & table.is_penalised[at]
        table.counts.view(-1).index_add_(0, at * table.vocab_size + tokens, -is_counted.int())

    @property
    def states(self) -> Tensor:
        """fp32 [N, 2]: what tokens do not determine, after the tokens of the last `sample`; of rows that have it."""
        return self._workspace.states

    def _longest(self, seed: SequenceSeed) -> int:
        """Tokens that a sequence grows to at most."""
        wanted = seed.params.max_tokens
        return self._max_model_len if wanted is None else min(self._max_model_len, len(seed.prompt_ids) + wanted)

    def _history_params(self, params: SamplingParams) -> HistoryParams:
        """Raises ValueError, naming the field, where strings cannot be looked for."""
        steps, strings = active_steps(params), params.dry_sequence_breakers
        dry, repeats = "dry" in steps, _repeats_in_history(params)
        breakers = self._known("dry_sequence_breakers").breakers(strings) if dry and strings else None
        words = self._known("bad_words").bad_words(params.bad_words) if params.bad_words else ()
        return HistoryParams(
            dry_multiplier=params.dry_multiplier if dry else 0.0,
            dry_base=params.dry_base,
            dry_allowed_length=params.dry_allowed_length,
            dry_range=params.dry_range,
            breakers=breakers,
            no_repeat_ngram_size=params.no_repeat_ngram_size,
            repetition_penalty=params.repetition_penalty if repeats else 1.0,
            repetition_penalty_range=params.repetition_penalty_range,
            repetition_penalty_slope=params.repetition_penalty_slope,
            repetition_first=dry and repeats and steps.index("penalties") < steps.index("dry"),
            bad_words=words,
        )

    def _known(self, field: str) -> Phrases:
        if self._phrases is None:
            raise ValueError(f"{field} needs the model's tokenizer, which this worker does not have")
        return self._phrases


_HISTORY = ("dry", "penalties", "no_repeat_ngram")


def _repeats_in_history(params: SamplingParams) -> bool:
    """Whether repetition is penalised by the history's kernel: over a range or by age, which the tail's counts do not
    know, or before DRY."""
    steps = active_steps(params)
    if params.repetition_penalty == 1 or "penalties" not in steps:
        return False
    is_aged = params.repetition_penalty_range > 0 or params.repetition_penalty_slope != 1
    return is_aged or ("dry" in steps and steps.index("penalties") < steps.index("dry"))


def _not_alone(stop_ids: frozenset[int], allowed: np.ndarray | None) -> frozenset[int]:
    """The stop tokens to hold back: not those that nothing else is allowed beside."""
    if allowed is None:
        return stop_ids
    others = np.unpackbits(allowed.view(np.uint8), bitorder="little")
    others[list(stop_ids)] = 0
    return stop_ids if others.any() else frozenset()


_SAME_NAME = (
    "dynatemp_min",
    "dynatemp_max",
    "dynatemp_exponent",
    "smoothing_factor",
    "smoothing_curve",
    "nsigma",
    "top_a",
    "tfs",
    "typical_p",
    "eta_cutoff",
    "epsilon_cutoff",
    "xtc_threshold",
    "xtc_probability",
    "skew",
    "mirostat_mode",
    "mirostat_tau",
    "mirostat_eta",
    "adaptive_target",
    "adaptive_decay",
)


def _slot_params(params: SamplingParams, key: tuple[int, int]) -> SlotParams:
    return SlotParams(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition=1.0 if _repeats_in_history(params) else params.repetition_penalty,
        frequency=params.frequency_penalty,
        presence=params.presence_penalty,
        key=key,
        order=order_of(params),
        **{name: getattr(params, name) for name in _SAME_NAME},
    )


def state_size(params: SamplingParams) -> int:
    """fp32 numbers that tokens do not determine: Mirostat's one, adaptive-p's two."""
    if is_greedy(params):
        return 0
    return 1 if params.mirostat_mode else 2 * is_adaptive(params)


def _unpack_state(packed: bytes, params: SamplingParams) -> tuple[float, float] | None:
    """As `SamplingTable.set` takes it. Raises ValueError where it is another sampler's."""
    if not packed:
        return None
    size = state_size(params)
    if len(packed) != 4 * size:
        raise ValueError(f"a sampler state of {len(packed)} bytes is not one of {4 * size}")
    first, *rest = unpack(f"<{size}f", packed)
    return first, rest[0] if rest else 0.0
