"""One step's tokens on a GPU, and what they see: first those of rows with one token, then chunks of prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, field

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
        self, config: ModelConfig, pool: CudaKvPool, cos_sin: Tensor, block_tables: Tensor, max_batch: int, *, pdl: bool
    ) -> None:
        """`cos_sin` fp32 [max_positions, 2, head_dim / 2]; `block_tables` int32 [R, max_blocks]. At most `max_batch`
        rows of one token in a step."""
        self.config, self.pool, self.pdl = config, pool, pdl
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
            )
            for window in dict.fromkeys(config.windows)
        }


@dataclass(frozen=True, slots=True)
class StepAttention:
    """See models.llama.Attention. Tokens 0 … num_single − 1 are rows of one token, the others lie in `runs`."""

    state: AttentionState
    rows: Tensor
    """int32 [T]: each token's row of `block_tables`, −1 for padding."""
    positions: Tensor
    num_single: int
    runs: Sequence[Run] = ()
    """Their `first_token` counts from `num_single`."""
    run_starts: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int32))
    """int32 [len(runs) + 1], on the device."""

    def begin(self) -> None:
        """Before the step's embedding: what it prepares is read by kernels that do not wait for the ones before them,
        so an ordinary launch has to come in between."""
        if self.num_single:
            for workspace in self.state.workspaces.values():
                partition_decode(self.rows[: self.num_single], self.positions[: self.num_single], workspace=workspace)

    def attend(self, layer_id: int, qkv: Tensor, head_norm: HeadNorm | None) -> Tensor:
        state, config = self.state, self.state.config
        kv_layer, window = state.pool.layers[layer_id], config.windows[layer_id]
        tables, rows, positions = state.block_tables, self.rows, self.positions
        q = rope_store(
            qkv,
            kv_layer,
            tables,
            rows,
            positions,
            state.cos_sin,
            num_heads=config.num_heads,
            pdl=state.pdl and not self.runs,
            q_norm=head_norm.q_norm if head_norm else None,
            k_norm=head_norm.k_norm if head_norm else None,
            eps=head_norm.eps if head_norm else 0.0,
        )
        out, n = torch.empty_like(q), self.num_single
        if n:
            paged_decode_attention(
                q[:n],
                kv_layer,
                tables,
                rows[:n],
                positions[:n],
                scale=state.scale,
                workspace=state.workspaces[window],
                window=window,
                out=out[:n],
                pdl=state.pdl and not self.runs,
            )
        if self.runs:
            prefill_attention(
                q[n:],
                kv_layer,
                tables,
                rows[n:],
                positions[n:],
                self.run_starts,
                max_row_tokens=max(run.num_tokens for run in self.runs),
                max_context=max(run.start + run.num_tokens for run in self.runs),
                scale=state.scale,
                window=window,
                out=out[n:],
                runs=self.runs,
            )
        return out.flatten(1)
