"""RMS normalisation (Zhang and Sennrich, 2019)."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension; statistics in fp32."""
    if x.dtype == torch.float32:
        return torch.mul(x, _scale(x, eps)).mul_(weight)
    wide = x.float()
    return wide.mul_(_scale(wide, eps)).to(x.dtype).mul_(weight)


def _scale(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x²) + eps) by way of the norm: two passes fewer than with x².mean()."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return length.square_().mul_(1.0 / x.shape[-1]).add_(eps).rsqrt_()
