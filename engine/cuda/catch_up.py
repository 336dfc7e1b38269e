"""When a head that follows the model catches up with what was left for later (see Backlog): before its sequence is
guessed for, where the backlog is full, and once a sequence has ended or is copied. Who has ended goes before anybody
else, who may have his blocks already."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .follower import DeviceFollower
from .inputs import to_device
from .lag import Lag
from .runtime import Runtime

MAX_TOKENS, MAX_BYTES = 4096, 32 << 20
"""At once, of features; of more sequences one after the other."""


class CatchUp:
    def __init__(self, follower: DeviceFollower, runtime: Runtime, num_slots: int) -> None:
        self._follower, self._runtime = follower, runtime
        length, features = follower.backlog.length, follower.backlog.features
        self._lag = Lag(num_slots, length)
        self._ended: list[int] = []
        """Slots of sequences that have ended, and that nobody has taken since."""
        self._ended_blocks: set[int] = set()
        self._given: set[int] = set()
        """Of those, blocks that are others' by now."""
        most = max(1, min(num_slots, MAX_TOKENS // length, MAX_BYTES // features[0].nbytes))
        self._sizes = [*(1 << i for i in range((most - 1).bit_length())), most]
        self._slots = torch.full((most,), -1, dtype=torch.int32, device=runtime.device)
        self._graphs: dict[int, Callable[[], None]] = {}

    def capture(self) -> None:
        """Catching up is replayed from now on."""
        self._slots.fill_(-1)
        for size in reversed(self._sizes):
            run = partial(self._follower.catch_up, self._slots[:size])
            run()
            self._graphs[size] = self._runtime.capture(run)

    def end(self, slot: int, blocks: Iterable[int]) -> None:
        """Its sequence, which had these blocks, has ended. What it left is followed by `settle`, which must come before
        its slot is taken or anything is stored in its blocks: the later, the more of them at once."""
        if not self._given.isdisjoint(blocks):
            self.settle()  # together both would store something there at once
        self._ended.append(slot)
        self._ended_blocks.update(blocks)

    def give(self, blocks: Sequence[int]) -> None:
        """They are begun by others, who lag: so nothing is stored there before these are caught up with."""
        self._given.update(self._ended_blocks.intersection(blocks))

    def settle(self) -> None:
        """Of all that have ended."""
        if self._ended:
            ended, self._ended = self._ended, []
            self._ended_blocks.clear()
            self._given.clear()
            self._catch_up(ended)

    def later(self, slots: np.ndarray) -> None:
        """The next step leaves a token of each of these behind."""
        if self._lag.is_full:
            self.settle()
        due = self._lag.add(slots)
        if len(due):
            self._run(due)

    def now(self, slots: Sequence[int] | np.ndarray) -> None:
        """What comes next needs all that was left of these."""
        self.settle()
        if len(slots):
            self._catch_up(slots)

    def all(self) -> bool:
        """Of every sequence; whether there was any."""
        had_ended = bool(self._ended)
        self.settle()
        due = self._lag.slots
        self.now(due)
        return had_ended or bool(len(due))

    def _catch_up(self, slots: Sequence[int] | np.ndarray) -> None:
        due = self._lag.of(np.asarray(slots, np.int64))
        self._lag.clear(due)
        self._run(due)

    def _run(self, due: np.ndarray) -> None:
        most = self._sizes[-1]
        for first in range(0, len(due), most):
            part = due[first : first + most]
            size = next(size for size in self._sizes if size >= len(part))
            slots = self._slots[:size]
            self._tell(slots, part)
            graph = self._graphs.get(size)
            self._follower.catch_up(slots) if graph is None else graph()

    def _tell(self, slots: Tensor, part: np.ndarray) -> None:
        """Most often a sequence ends by itself, and then no memory need be found for the way to the device."""
        if len(part) == 1:
            slots.fill_(int(part[0]))
            return
        filled = np.full(len(slots), -1, np.int32)
        filled[: len(part)] = part
        to_device(self._runtime, filled, out=slots)
