"""Drawing tokens on the device, inside captured steps: each sequence has a slot of the tables that the kernels read.

What is sparse and rare, biases and stop tokens held back, is written down by the host for each step as `Edits`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...kernels.sampling_table import SamplingTable, SlotParams
from ...kernels.sampling_tail import TailWorkspace, sample_tail
from ...kernels.sparse_edits import apply_edits
from ...wire.sampling import SamplingParams
from ..plan import SequenceSeed

NO_TOKEN = -1
"""What a row without a finite largest logit draws."""


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


def _arrays(edits: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    return np.fromiter(edits, np.int32), np.fromiter(edits.values(), np.float32)


class DeviceSampler:
    """`num_slots` sequences at most; rows of a step are numbered by its draws."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self.table = SamplingTable(num_slots, vocab_size, device)
        self._workspace = TailWorkspace(num_slots, vocab_size, device)
        self._rules: dict[int, _Rules] = {}

    def set(self, slot: int, seed: SequenceSeed) -> None:
        """Begins a sequence. Raises ValueError where a token id that the request names is not in the vocabulary."""
        params: SamplingParams = seed.params
        self._check_ids("logit_bias", params.logit_bias)
        self._check_ids("stop token", seed.stop_ids)
        prompt_ids = seed.prompt_ids if params.repetition_penalty != 1 else ()
        self.table.set(slot, _slot_params(params, seed.key), prompt_ids, seed.output_ids)
        if params.logit_bias or params.min_tokens > len(seed.output_ids):
            self._rules[slot] = _Rules.of(params, seed.stop_ids)

    def clear(self, slot: int) -> None:
        """Ends it."""
        self._rules.pop(slot, None)
        self.table.clear(slot)

    def edits(self, slots: Sequence[int], positions: Sequence[int]) -> Edits | None:
        """Of draws in these slots, each at its output position; None where there are none."""
        if not self._rules:
            return None
        ruled = [(row, slot) for row, slot in enumerate(slots) if slot in self._rules]
        found = [self._rules[slot].at(positions[row]) for row, slot in ruled]
        lengths = [len(ids) for ids, _ in found]
        if not sum(lengths):
            return None
        rows = np.repeat(np.array([row for row, _ in ruled], np.int32), lengths)
        ids, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return Edits(rows, ids, values)

    def sample(
        self,
        logits: Tensor,
        slots: Tensor,
        positions: Tensor,
        edits: tuple[Tensor, Tensor, Tensor, Tensor] | None,
        out: Tensor,
    ) -> None:
        """int32 `out` [N] from fp32 `logits` [N, V], which are overwritten; `slots` and `positions` int32 [N], −1 for
        padding. `edits`: rows, ids, values and, int32 [1], how many of them count."""
        if edits is not None:
            apply_edits(logits, *edits)
        sample_tail(logits, slots, positions, self.table, workspace=self._workspace, out=out)

    def _check_ids(self, what: str, ids: Mapping[int, float] | frozenset[int]) -> None:
        for token in ids:
            if not 0 <= token < self.table.vocab_size:
                raise ValueError(f"{what} {token} is not in the vocabulary of {self.table.vocab_size} tokens")


def _slot_params(params: SamplingParams, key: tuple[int, int]) -> SlotParams:
    return SlotParams(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition=params.repetition_penalty,
        frequency=params.frequency_penalty,
        presence=params.presence_penalty,
        key=key,
    )
