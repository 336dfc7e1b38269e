"""RMS normalisation (Zhang and Sennrich, 2019)."""

import torch
from torch import Tensor


class RmsNorm:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension; statistics in fp32, the result in x's dtype."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight, self.eps = weight, torch.tensor([eps])
        self.share = 1.0 / weight.shape[-1]

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return torch.mul(x, self._scale(x)).mul_(self.weight)
        wide = x.float()
        return wide.mul_(self._scale(wide)).to(x.dtype).mul_(self.weight)

    def _scale(self, x: Tensor) -> Tensor:
        """1 / sqrt(mean(x²) + eps), from the norm: the fewest passes and operators."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return torch.addcmul(self.eps, length, length, value=self.share).rsqrt_()
