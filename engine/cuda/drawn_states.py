"""What tokens do not determine of the sequences that drew them, on its way from the device (`SequenceSeed.state`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class StatesPart:
    """Of draws that were made together."""

    first_place: int
    """Among all draws of the step."""
    sizes: Mapping[int, int]
    """Of each draw, counted from the first: its fp32 numbers, 0 for none."""
    numbers: Tensor
    """fp32 [n, 2] on the host, once the step is done."""


@dataclass(frozen=True, slots=True)
class DrawnStates:
    parts: Sequence[StatesPart]

    def by_place(self) -> dict[int, bytes]:
        """Packed as little-endian fp32."""
        return {
            part.first_place + row: part.numbers[row, :size].numpy().tobytes()
            for part in self.parts
            for row, size in part.sizes.items()
            if size
        }
