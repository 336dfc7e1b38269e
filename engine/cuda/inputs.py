"""What a step is told: a few integers for each token, packed into one upload.

Two host buffers are used in turn: the upload of one step may still be read when the next step is packed, but not when
the one after that is, since a step is launched only when the last but one has given its result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from ...wire.sampling import MAX_RANGE_BANS
from ..plan import MAX_BANS
from .runtime import Runtime
from .sampler import Edits
from .step_sizes import StepSize

FIELDS = ("token_ids", "rows", "positions", "draw_positions", "new_indices", "new_blocks", "kept_places")
PADDING = (0, -1, 0, 0, -1, 0, -1)
_PADDING_COLUMN = np.array(PADDING, np.int32)[:, None]
ALIGNED = 16
MAX_SEQUENCE_EDITS = 1024 + 256 + 32 + MAX_RANGE_BANS + MAX_BANS
"""Of one draw: as many biases, stop and banned tokens as a request may name, ends of a sequence, bans of phrases."""


@dataclass(frozen=True, slots=True)
class TokenInputs:
    """int32 [T] each, on the device. See `begin_step`, `sample_tail` and `keep_rows`."""

    token_ids: Tensor
    rows: Tensor
    positions: Tensor
    draw_positions: Tensor
    new_indices: Tensor
    new_blocks: Tensor
    kept_places: Tensor

    def after(self, count: int) -> "TokenInputs":
        """Without the first `count` tokens."""
        return TokenInputs(*(getattr(self, name)[count:] for name in FIELDS))


class Inputs:
    """Fields begin at multiples of ALIGNED: kernels are compiled anew for pointers of another alignment."""

    def __init__(self, runtime: Runtime, max_tokens: int) -> None:
        size = len(FIELDS) * _aligned(max_tokens)
        self._device = torch.zeros(size, dtype=torch.int32, device=runtime.device)
        self._host = [runtime.pinned(size) for _ in range(2)]
        self.counting = torch.arange(max_tokens, dtype=torch.int32, device=runtime.device)
        # Views that are made once: making one takes about as long as the copy.
        self._inputs: dict[int, TokenInputs] = {}
        self._uploads: dict[tuple[int, int], tuple[np.ndarray, Tensor, Tensor]] = {}

    def of(self, num_tokens: int) -> TokenInputs:
        """Where `upload` puts the inputs of so many tokens: always the same place."""
        inputs = self._inputs.get(num_tokens)
        if inputs is None:
            fields = self._device[: len(FIELDS) * _aligned(num_tokens)].view(len(FIELDS), -1)
            inputs = self._inputs[num_tokens] = TokenInputs(*fields[:, :num_tokens].unbind(0))
        return inputs

    def upload(self, parity: int, tokens: np.ndarray, given: StepSize, size: StepSize) -> None:
        """`tokens` int32 [fields, n]: those of rows that are drawn for, then those of chunks, as many as `given` says.
        Each kind is filled up with padding to what `size` says."""
        num_single = given.num_decode_tokens
        table, host, device = self._upload_of(parity, _aligned(size.num_tokens))
        if given != size:
            table[:] = _PADDING_COLUMN
        table[:, :num_single] = tokens[:, :num_single]
        if given.num_chunk_tokens:
            first = size.num_decode_tokens
            table[:, first : first + given.num_chunk_tokens] = tokens[:, num_single:]
        device.copy_(host, non_blocking=True)

    def _upload_of(self, parity: int, width: int) -> tuple[np.ndarray, Tensor, Tensor]:
        """Host memory for fields of `width` tokens, [fields, width] and as what is copied, and where that goes."""
        found = self._uploads.get((parity, width))
        if found is None:
            length = len(FIELDS) * width  # what is between fields is never read
            host = self._host[parity][:length]
            found = self._uploads[parity, width] = (
                host.numpy().reshape(len(FIELDS), width),
                host,
                self._device[:length],
            )
        return found


class ChunkInputs:
    """Where the chunks of a captured step begin and end."""

    def __init__(self, runtime: Runtime, max_chunks: int) -> None:
        self._max_chunks = max_chunks
        self._device = torch.zeros(2 * max_chunks + 1, dtype=torch.int32, device=runtime.device)
        self._host = [runtime.pinned(2 * max_chunks + 1) for _ in range(2)]

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """int32: [max_chunks + 1] first tokens of chunks, counted among their tokens; [max_chunks] the last tokens of
        those whose logits are needed, counted among all."""
        return self._device[: self._max_chunks + 1], self._device[self._max_chunks + 1 :]

    def upload(self, parity: int, lengths: Sequence[int], num_single: int, needing: Sequence[int]) -> None:
        """`lengths` of the chunks, after `num_single` rows of one token, padding included; `needing` are the indices
        of those whose last logits are needed. Chunks that are not there begin and end with the last one."""
        ends = list(accumulate(lengths))
        filled = [0, *ends, *[ends[-1] if ends else 0] * (self._max_chunks - len(ends))]
        last = [num_single + ends[index] - 1 for index in needing]
        last += [num_single] * (self._max_chunks - len(last))
        self._host[parity].copy_(torch.tensor([*filled, *last], dtype=torch.int32))
        self._device.copy_(self._host[parity], non_blocking=True)


class EditInputs:
    """Edits of captured steps. `count` is 0 unless the last upload held some."""

    def __init__(self, runtime: Runtime, max_rows: int) -> None:
        self._runtime = runtime
        self._capacity = max_rows * MAX_SEQUENCE_EDITS
        self.rows = torch.zeros(self._capacity, dtype=torch.int32, device=runtime.device)
        self.ids = torch.zeros_like(self.rows)
        self.values = torch.zeros(self._capacity, dtype=torch.float32, device=runtime.device)
        self.count = torch.zeros(1, dtype=torch.int32, device=runtime.device)
        self._num_uploaded = 0

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `DeviceSampler.sample` takes them."""
        return self.rows, self.ids, self.values, self.count

    def upload(self, edits: Edits | None) -> None:
        """Raises ValueError where there are more than MAX_SEQUENCE_EDITS for each row."""
        num_edits = 0 if edits is None else len(edits)
        if num_edits > self._capacity:
            raise ValueError(
                f"{num_edits} biased or held back tokens in one step; at most {self._capacity} are possible"
            )
        if num_edits == self._num_uploaded == 0:
            return
        self._num_uploaded = num_edits
        if edits is not None:
            for tensor, values in ((self.rows, edits.rows), (self.ids, edits.ids), (self.values, edits.values)):
                to_device(self._runtime, values, out=tensor[:num_edits])
        self.count.fill_(num_edits)


def _aligned(num_tokens: int) -> int:
    return -(-num_tokens // ALIGNED) * ALIGNED


def edits_to_device(runtime: Runtime, edits: Edits) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `DeviceSampler.sample` takes them, for steps that are not captured."""
    count = np.array([len(edits)], np.int32)
    rows, ids, values, counted = (to_device(runtime, x) for x in (edits.rows, edits.ids, edits.values, count))
    return rows, ids, values, counted


def to_device(runtime: Runtime, values: np.ndarray, out: Tensor | None = None) -> Tensor:
    """A copy, in `out` if given, without waiting for the device."""
    given = torch.from_numpy(values)
    host = runtime.pinned(*given.shape, dtype=given.dtype)
    host.copy_(given)
    return host.to(runtime.device, non_blocking=True) if out is None else out.copy_(host, non_blocking=True)


def to_host(runtime: Runtime, tensor: Tensor) -> Tensor:
    """A copy that is there once the device has come so far."""
    host = runtime.pinned(*tensor.shape, dtype=tensor.dtype)
    return host.copy_(tensor, non_blocking=True)
