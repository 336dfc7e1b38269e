"""One step's tokens on a GPU, and what they see: first those of rows with one token, then chunks of prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.decode_partition import DecodeWorkspace, decode_workspace, partition_decode
from ...kernels.paged_decode_attention import paged_decode_attention
from ...kernels.prefill_attention import prefill_attention
from ...kernels.rope_store import rope_store
from ...kernels.vendor_attention import Run
from ..config import ModelConfig
from .parts import HeadNorm
from .pool import CudaKvPool


class AttentionState:
    """What the attention of every step of an engine shares."""

    def __init__(
        self,
        config: ModelConfig,
        pool: CudaKvPool,
        cos_sin: Tensor,
        block_tables: Tensor,
        max_batch: int,
        max_turns: int = 1,
        *,
        pdl: bool,
        first_position: int = 0,
    ) -> None:
        """`cos_sin` fp32 [max_positions, 2, head_dim / 2]; `block_tables` int32 [R, max_blocks]. At most `max_batch`
        rows that are drawn for in a step, of up to `max_turns` tokens. Positions before `first_position` are not seen;
        chunks then cannot be attended."""
        self.config, self.pool, self.pdl, self.first_position = config, pool, pdl, first_position
        self.cos_sin, self.block_tables = cos_sin, block_tables
        self.scale = config.head_dim**-0.5
        self.workspaces: dict[int | None, DecodeWorkspace] = {
            window: decode_workspace(
                max_batch,
                config.num_heads,
                config.num_kv_heads,
                config.head_dim,
                pool.kv.dtype,
                pool.kv.device,
                window=window,
                run_length=max_turns,
            )
            for window in dict.fromkeys(config.windows)
        }


@dataclass(frozen=True, slots=True)
class Chunks:
    """Runs of consecutive tokens, each of one sequence, after the rows of one token."""

    starts: Tensor
    """int32 [runs + 1]: of each run's tokens, counted from the first token of them all."""
    max_tokens: int
    """Of a run, at most."""
    max_context: int
    """Of a run's last token, at most: position + 1."""
    runs: Sequence[Run] | None = None
    """The same on the host. None in a captured step, which is replayed with others."""


@dataclass(frozen=True, slots=True)
class StepAttention:
    """See models.llama.Attention. Tokens 0 … num_single − 1 are rows that are drawn for: `num_turns` consecutive tokens
    of each, turn by turn (see Grid), some of them padding. The others lie in `chunks`."""

    state: AttentionState
    rows: Tensor
    """int32 [T]: each token's row of `block_tables`, −1 for padding."""
    positions: Tensor
    num_single: int
    chunks: Chunks | None = None
    num_turns: int = 1
    lengths: Tensor | None = None
    """int32 [num_single / num_turns]: tokens of each row, where that is not one."""

    @classmethod
    def of(
        cls,
        state: AttentionState,
        rows: Tensor,
        positions: Tensor,
        num_single: int,
        chunks: Chunks | None = None,
        num_turns: int = 1,
    ) -> "StepAttention":
        lengths = None
        if num_turns > 1:
            lengths = (rows[:num_single].view(num_turns, -1) >= 0).sum(0, dtype=torch.int32).clamp(min=1)
        return cls(state, rows, positions, num_single, chunks, num_turns, lengths)

    @property
    def num_rows(self) -> int:
        """Of those that are drawn for."""
        return self.num_single // self.num_turns

    def begin(self) -> None:
        """Before the first layer, which begins with an ordinary launch: see CudaParts."""
        n = self.num_rows
        for workspace in self.state.workspaces.values() if n else ():
            partition_decode(
                self.rows[:n],
                self.positions[:n],
                workspace=workspace,
                run_length=self.num_turns,
                lengths=self.lengths,
            )

    def attend(self, layer_id: int, qkv: Tensor, head_norm: HeadNorm | None) -> Tensor:
        q = self.store(layer_id, qkv, head_norm)
        if self.chunks is None:
            out = torch.empty_like(q)
            self._attend_single(layer_id, q, out)
            return out.flatten(1)
        if not self.num_single:
            return self._attend_chunks(layer_id, self.chunks, q, None).flatten(1)
        out, n = torch.empty_like(q), self.num_single
        self._attend_single(layer_id, q[:n], out[:n])
        self._attend_chunks(layer_id, self.chunks, q[n:], out[n:])
        return out.flatten(1)

    def store(self, layer_id: int, qkv: Tensor, head_norm: HeadNorm | None) -> Tensor:
        """K and V, to the pool; Q, rotated, is given back."""
        state = self.state
        return rope_store(
            qkv,
            state.pool.layers[layer_id],
            state.block_tables,
            self.rows,
            self.positions,
            state.cos_sin,
            num_heads=state.config.num_heads,
            q_norm=head_norm.q_norm if head_norm else None,
            k_norm=head_norm.k_norm if head_norm else None,
            eps=head_norm.eps if head_norm else 0.0,
            pdl=state.pdl,
        )

    def _attend_single(self, layer_id: int, q: Tensor, out: Tensor) -> None:
        state, n, window = self.state, self.num_rows, self.state.config.windows[layer_id]
        if self.num_turns > 1:
            q, out = (tokens.unflatten(0, (self.num_turns, n)).transpose(0, 1) for tokens in (q, out))
        paged_decode_attention(
            q,
            state.pool.layers[layer_id],
            state.block_tables,
            self.rows[:n],
            self.positions[:n],
            scale=state.scale,
            workspace=state.workspaces[window],
            lengths=self.lengths,
            window=window,
            first_position=state.first_position,
            out=out,
            pdl=state.pdl,
        )

    def _attend_chunks(self, layer_id: int, chunks: Chunks, q: Tensor, out: Tensor | None) -> Tensor:
        state, n = self.state, self.num_single
        assert not state.first_position
        return prefill_attention(
            q,
            state.pool.layers[layer_id],
            state.block_tables,
            self.rows[n:],
            self.positions[n:],
            chunks.starts,
            max_row_tokens=chunks.max_tokens,
            max_context=chunks.max_context,
            scale=state.scale,
            window=state.config.windows[layer_id],
            out=out,
            runs=chunks.runs,
        )
