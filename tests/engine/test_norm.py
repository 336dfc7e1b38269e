import pytest
import torch
from isthmus.engine.norm import RmsNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 100.0])
def test_equals_transformers(dtype: torch.dtype, scale: float) -> None:
    torch.manual_seed(0)
    reference = LlamaRMSNorm(48, eps=1e-5).to(dtype)
    reference.weight.data = torch.randn(48).to(dtype)
    x = (torch.randn(7, 48) * scale).to(dtype)
    before = x.clone()
    with torch.no_grad():
        torch.testing.assert_close(RmsNorm(reference.weight.detach(), 1e-5)(x), reference(x))
    assert torch.equal(x, before)


def test_zeros_stay_finite() -> None:
    assert torch.equal(RmsNorm(torch.ones(8), 1e-6)(torch.zeros(2, 8)), torch.zeros(2, 8))
