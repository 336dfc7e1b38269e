"""Keeps an EAGLE head in step with the model on the device: see engine/eagle/follower.py.

K and V of every token of a step are stored, of wrong guesses too: as in the target's own pool, later rows begin there
and write over them. Tokens that come without guesses are left in the backlog, and followed some at a time.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ..eagle.cache import FIRST_SLOT
from ..eagle.head import EagleHead
from ..streams import Streams
from .attention import AttentionState, StepAttention
from .backlog import Backlog, LaggingStreams
from .head_cache import HeadCache
from .inputs import TokenInputs


class DeviceFollower:
    def __init__(
        self, head: EagleHead, attention: AttentionState, cache: HeadCache, backlog: Backlog, num_layers: int
    ) -> None:
        """`attention` is over the head's pool, from FIRST_SLOT on; `num_layers`: the target's."""
        assert attention.first_position == FIRST_SLOT
        self.head, self.attention, self.cache, self.backlog = head, attention, cache, backlog
        self._stream_ids = head.aux_layers or (num_layers,)

    def streams(self, inputs: TokenInputs, num_lagging: int, last_tokens: Tensor) -> Streams:
        """To leave the step's first tokens in the backlog, and to catch what `follow` takes of the others."""
        if not num_lagging:
            return Streams(self._stream_ids)
        return LaggingStreams(self._stream_ids, self.backlog, inputs, num_lagging, last_tokens)

    def follow(self, inputs: TokenInputs, embedded: Tensor, features: Tensor, num_single: int, stride: int) -> Tensor:
        """After the target has computed a step, of the tokens that do not lag, [T, hidden] and [T, feature_size]; of
        them `num_single` are a grid, of turns of `stride`. What `keep` takes once they are drawn, [T, hidden]."""
        hidden = self.head.fuse(features)
        before = self._before(inputs, hidden, num_single, stride)
        self.head.store(embedded, before, self._step(inputs.rows, inputs.positions))
        return hidden

    def keep(self, inputs: TokenInputs, hidden: Tensor, turns: Sequence[Tensor]) -> None:
        """Hidden states of the last positions that stay. `turns`: of each turn of the grid, int32 [stride], not
        negative where its token stays."""
        stays = [turn >= 0 for turn in turns]
        lasts = [now & ~then for now, then in pairwise(stays)] + stays[-1:]
        chunks = inputs.rows[sum(map(len, stays)) :]
        if len(chunks):
            stays.append(chunks >= 0)
            lasts.append(stays[-1] & ~_goes_on(chunks))
        stay = torch.cat(stays)
        is_last = torch.cat(lasts) | (stay & self.cache.ends_block(inputs.positions))
        self.cache.keep(inputs.rows, inputs.positions, hidden, is_last)

    def catch_up(self, slots: Tensor) -> None:
        """With the backlog of these sequences, int32 [S], −1 for none."""
        taken = self.cache.take(slots, self.backlog)
        hidden = self.head.fuse(self.backlog.features[taken.slots].flatten(0, 1))
        before = self.cache.before_taken(taken, hidden)
        self.head.store(self.head.embed(taken.token_ids), before, self._step(taken.rows, taken.positions))
        self.cache.keep_taken(taken, hidden)

    def _step(self, rows: Tensor, positions: Tensor) -> StepAttention:
        return StepAttention(self.attention, rows, positions, len(rows))

    def _before(self, inputs: TokenInputs, hidden: Tensor, num_single: int, stride: int) -> Tensor:
        """The hidden state before each token: from this step, or of its sequence's last position before it."""
        before = self.cache.before(inputs.rows, inputs.positions)
        if num_single > stride:
            before[stride:num_single] = hidden[: num_single - stride]
        chunks = inputs.rows[num_single:]
        if len(chunks):
            is_inner = _goes_on(chunks)[:-1, None]
            before[num_single + 1 :] = torch.where(is_inner, hidden[num_single:-1], before[num_single + 1 :])
        return before


def _goes_on(rows: Tensor) -> Tensor:
    """int32 [T], T > 0, of chunks -> bool [T]: whether the token after each is of the same chunk."""
    return F.pad(rows[1:] == rows[:-1], (0, 1))
