"""How each running sequence draws its tokens, as device tensors that captured kernels read: a row a slot.

A slot is one row of each: its parameters, the program of its samplers where it needs one, counts, state.
Setting a slot is one upload from pinned memory and a few copies on the device; nothing waits for the device.
"""

from collections import Counter
from collections.abc import Sequence
from struct import Struct

import torch
from torch import Tensor

from .sampling_params import EPOCH, IN_PROMPT, PRESENCE, REPETITION, WORDS, SlotParams
from .sampling_program import WORDS as PROGRAM_WORDS
from .sampling_program import initial_state, needs_program, pack_program

__all__ = ["IN_PROMPT", "SamplingTable", "SlotParams"]


_ROW = (WORDS, PROGRAM_WORDS)
_STATE = Struct("<2f")


class SamplingTable:
    """Tensors made once, for graphs to read.

    `words` int32 [S, WORDS]: what the fused tail does with a sequence. `programs` int32 [S, PROGRAM_WORDS]: what is
    done instead, if anything, in which order. `counts` int32 [S, V]: how often a token stands in the output, plus
    IN_PROMPT where it stands in the prompt; kept for sequences with penalties only. `last_token` int32 [S]: the last
    drawn, or what `set` was given. `states` fp32 [S, 2]: what tokens do not determine (see `initial_state`)."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.vocab_size = vocab_size
        neutral = torch.frombuffer(bytearray(_pack(SlotParams())), dtype=torch.int32).repeat(num_slots, 1)
        self.words, self.programs = (part.contiguous().to(self.device) for part in neutral.split(_ROW, dim=1))
        self.counts = torch.zeros(num_slots, vocab_size, dtype=torch.int32, device=self.device)
        self.last_token = torch.zeros(num_slots, dtype=torch.int32, device=self.device)
        self.states = torch.zeros(num_slots, 2, device=self.device)

    @property
    def num_slots(self) -> int:
        return len(self.words)

    @property
    def floats(self) -> Tensor:
        """fp32 [S, WORDS], the same memory as `words`."""
        return self.words.view(torch.float32)

    @property
    def doubles(self) -> Tensor:
        """fp64 [S, WORDS / 2], the same memory as `words`."""
        return self.words.view(torch.float64)

    @property
    def numbers(self) -> Tensor:
        """fp64 [S, PROGRAM_WORDS / 2], the same memory as `programs`."""
        return self.programs.view(torch.float64)

    @property
    def is_penalised(self) -> Tensor:
        """bool [S]: whose drawn tokens are counted."""
        penalties = self.floats[:, REPETITION : PRESENCE + 1]
        return (penalties[:, 0] != 1) | (penalties[:, 1:] != 0).any(1)

    def set(
        self,
        slot: int,
        params: SlotParams,
        prompt_ids: Sequence[int] = (),
        output_ids: Sequence[int] = (),
        state: tuple[float, float] | None = None,
    ) -> None:
        """Begins a sequence in `slot`, ordered on the current stream. Output it already has counts as drawn
        here; `state` is the one after it, None before the first token.

        Raises ValueError where a token is not in the vocabulary, IndexError where there is no such slot."""
        if not 0 <= slot < self.num_slots:
            raise IndexError(f"slot {slot} of {self.num_slots}")
        seen = _count(params, prompt_ids, output_ids)
        if seen and not (min(seen) >= 0 and max(seen) < self.vocab_size):
            raise ValueError(f"a token id is not in the vocabulary of {self.vocab_size} tokens")
        last = output_ids[-1] if output_ids else prompt_ids[-1] if prompt_ids else 0
        head = _pack(params) + _STATE.pack(*(initial_state(params) if state is None else state))
        packed = self._upload([last, *seen.keys(), *seen.values()], head)
        words, program, states, last_token, entries = packed.split((*_ROW, 2, 1, 2 * len(seen)))
        self.words[slot].copy_(words)
        self.programs[slot].copy_(program)
        self.states[slot].copy_(states.view(torch.float32))
        self.last_token[slot : slot + 1].copy_(last_token)
        if params.is_penalised:
            ids, values = entries.view(2, -1)
            self.counts[slot].zero_().index_copy_(0, ids.long(), values)

    def set_epoch(self, slot: int, epoch: int) -> None:
        """How often the sequence was rewound: part of its noise from now on."""
        self.words[slot, EPOCH : EPOCH + 1].fill_(epoch)

    def _upload(self, numbers: list[int], head: bytes) -> Tensor:
        """int32 on the device: `head`, then `numbers`. Pinned memory comes from torch's allocator, which gives it
        away again only after the copy."""
        pinned = self.device.type == "cuda"
        size = len(head) // 4
        packed = torch.empty(size + len(numbers), dtype=torch.int32, pin_memory=pinned)
        packed[:size] = torch.frombuffer(bytearray(head), dtype=torch.int32)
        packed[size:] = torch.tensor(numbers, dtype=torch.int32)
        return packed.to(self.device, non_blocking=True)


def _pack(params: SlotParams) -> bytes:
    """A row of `words` and one of `programs`."""
    return params.pack(has_program=needs_program(params)) + pack_program(params)


def _count(params: SlotParams, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> dict[int, int]:
    """token -> its value in `counts`; empty where nothing reads it."""
    if not params.is_penalised:
        return {}
    seen = Counter(output_ids)
    if params.repetition != 1:
        seen.update(dict.fromkeys(prompt_ids, IN_PROMPT))
    return dict(seen)
