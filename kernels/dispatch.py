"""Where an operator runs: the one decision that every wrapper asks for."""

import os

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton reads it when a kernel is defined, so it cannot change within a process."""

# Triton 3.9 warns unless this is decided. Contracted multiply-adds are what every version before it did.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")


def launches(tensor: Tensor) -> bool:
    """Whether an operator on `tensor` launches its kernel: on a GPU, and under Triton's interpreter. Else it computes
    its reference."""
    return tensor.is_cuda or INTERPRETED


def num_multiprocessors(device: torch.device) -> int:
    """Of a GPU; a small number under the interpreter, where a program costs a millisecond."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
