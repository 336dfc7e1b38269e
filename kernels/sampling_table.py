"""How each running sequence draws its tokens, as device tensors that captured kernels read: a row a slot.

A slot is one row of `words`, WORDS int32 of 4 bytes that hold its parameters, and one row of `counts`. Setting a slot
is one upload from pinned memory and a few copies on the device; nothing waits for the device.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct

import torch
from torch import Tensor

GREEDY_BELOW = 1e-5
MIN_TEMPERATURE = 0.01

IN_PROMPT = 1 << 30
"""The bit of a count that says: this token stands in the prompt."""

_LAYOUT = Struct("<dfiffffII24x")
"""top_p, temperature, top_k, log_min_p, repetition, frequency, presence, key."""
WORDS = _LAYOUT.size // 4
TOP_P = 0
"""Column of fp64; the others are columns of 4 bytes."""
TEMPERATURE, TOP_K, LOG_MIN_P, REPETITION, FREQUENCY, PRESENCE, KEY = range(2, 9)


@dataclass(frozen=True, slots=True)
class SlotParams:
    """Neutral by default. Ranges and meaning as in the request; `top_k` ≤ 0 is off."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    key: tuple[int, int] = (0, 0)

    @property
    def is_penalised(self) -> bool:
        return self.repetition != 1 or self.frequency != 0 or self.presence != 0

    def pack(self) -> bytes:
        """As a row of `SamplingTable.words`. Greedy is temperature 0, min_p its logarithm: the threshold on logits."""
        greedy = self.temperature < GREEDY_BELOW
        return _LAYOUT.pack(
            self.top_p,
            0.0 if greedy else max(self.temperature, MIN_TEMPERATURE),
            max(self.top_k, 0),
            math.log(self.min_p) if self.min_p > 0 else -math.inf,
            self.repetition,
            self.frequency,
            self.presence,
            *self.key,
        )


class SamplingTable:
    """`words` int32 [S, WORDS], `counts` int32 [S, V], `last_token` int32 [S]; each made once, for graphs to read.

    `counts[s, t]` is how often t stands in the output of s, plus IN_PROMPT where it stands in its prompt: kept for
    sequences with penalties only. `last_token[s]` is the last drawn, or what `set` was given."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.vocab_size = vocab_size
        neutral = torch.frombuffer(bytearray(SlotParams().pack()), dtype=torch.int32)
        self.words = neutral.repeat(num_slots, 1).to(self.device)
        self.counts = torch.zeros(num_slots, vocab_size, dtype=torch.int32, device=self.device)
        self.last_token = torch.zeros(num_slots, dtype=torch.int32, device=self.device)

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

    def set(
        self, slot: int, params: SlotParams, prompt_ids: Sequence[int] = (), output_ids: Sequence[int] = ()
    ) -> None:
        """Begins a sequence in `slot`, ordered on the current stream. Output it already has counts as drawn here.

        Raises ValueError where a token is not in the vocabulary, IndexError where there is no such slot."""
        if not 0 <= slot < self.num_slots:
            raise IndexError(f"slot {slot} of {self.num_slots}")
        seen = _count(params, prompt_ids, output_ids)
        if seen and not (min(seen) >= 0 and max(seen) < self.vocab_size):
            raise ValueError(f"a token id is not in the vocabulary of {self.vocab_size} tokens")
        last = output_ids[-1] if output_ids else prompt_ids[-1] if prompt_ids else 0
        packed = self._upload([last, *seen.keys(), *seen.values()], params.pack())
        self.words[slot].copy_(packed[:WORDS])
        self.last_token[slot : slot + 1].copy_(packed[WORDS : WORDS + 1])
        if params.is_penalised:
            ids, values = packed[WORDS + 1 :].view(2, -1)
            self.counts[slot].zero_().index_copy_(0, ids.long(), values)

    def clear(self, slot: int) -> None:
        """Ends a sequence: neutral parameters, so that a slot drawn by mistake stays cheap."""
        self.set(slot, SlotParams())

    def _upload(self, numbers: list[int], head: bytes) -> Tensor:
        """int32 on the device: `head`, then `numbers`. Pinned memory comes from torch's allocator, which gives it
        away again only after the copy."""
        pinned = self.device.type == "cuda"
        packed = torch.empty(WORDS + len(numbers), dtype=torch.int32, pin_memory=pinned)
        packed[:WORDS] = torch.frombuffer(bytearray(head), dtype=torch.int32)
        packed[WORDS:] = torch.tensor(numbers, dtype=torch.int32)
        return packed.to(self.device, non_blocking=True)


def _count(params: SlotParams, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> dict[int, int]:
    """token -> its value in `counts`; empty where nothing reads it."""
    if not params.is_penalised:
        return {}
    seen = Counter(output_ids)
    if params.repetition != 1:
        seen.update(dict.fromkeys(prompt_ids, IN_PROMPT))
    return dict(seen)
