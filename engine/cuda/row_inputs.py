"""What the device is told of a step's rows, token by token."""

from collections.abc import Sequence

import numpy as np

from ..plan import IN_FLIGHT, Row
from .drawing import Drawing
from .grid import Grid
from .inputs import FIELDS, PADDING
from .sequences import Sequences


class RowInputs:
    """As `Inputs.upload` takes it: int32 [fields, tokens], in the order of `FIELDS`."""

    def __init__(self, sequences: Sequences, drawing: Drawing) -> None:
        self._sequences, self._drawing = sequences, drawing

    def grid(self, grid: Grid) -> np.ndarray:
        """Padding included."""
        columns: list[tuple[int, ...]] = [PADDING] * grid.num_tokens
        num_kept = 0
        self._sequences.begin_step()
        for index, row in enumerate(grid.rows):
            slot = self._sequences.slot(row.seq_id)
            asks = self._drawing.tells_logprobs(row.seq_id)
            new_block = self._sequences.new_block(slot, row)
            for turn, token in enumerate(row.token_ids):
                given = -1 if token == IN_FLIGHT else token
                position, drawn_at = row.start + turn, row.draws[turn].position
                kept_at = num_kept if asks else -1
                columns[index + turn * grid.stride] = given, slot, position, drawn_at, *new_block, kept_at
                new_block = -1, 0
                num_kept += asks
        return np.array(columns, np.int32).reshape(-1, len(FIELDS)).T

    def chunks(self, parity: int, rows: Sequence[Row]) -> np.ndarray:
        """One after the other, of one row at least. `parity`: the step's."""
        parts = []
        for index, row in enumerate(rows):
            num_tokens = len(row.token_ids)
            part = np.zeros((len(FIELDS), num_tokens), np.int32)
            part[0] = row.token_ids if row.token_ids[0] != IN_FLIGHT else self._drawing.eager.last(row.seq_id)
            part[1] = self._sequences.chunk_row(parity, index, row)
            part[2] = np.arange(row.start, row.start + num_tokens)
            part[4] = part[6] = -1
            parts.append(part)
        return np.concatenate(parts, axis=1)
