"""One allocation straight from the driver, which other processes can map whole, whatever torch's allocator does.

Never freed: what lives in it lives as long as its process.
"""

import ctypes

import torch
from torch import Tensor


def allocate(num_bytes: int, device: torch.device) -> Tensor:
    """uint8 [num_bytes], uninitialised. Raises MemoryError where the device has no such room."""
    if device.type != "cuda":
        return torch.empty(num_bytes, dtype=torch.uint8, device=device)
    torch.cuda.synchronize(device)  # the driver's context of this device is current from here on
    address = ctypes.c_uint64()
    code = ctypes.CDLL("libcuda.so.1").cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(num_bytes))
    if code:
        raise MemoryError(f"the GPU has no {num_bytes / 2**30:.2f} GiB in one piece (CUDA error {code})")
    return torch.as_tensor(_Memory(address.value, num_bytes), device=device)


class _Memory:
    """What torch's `as_tensor` takes for device memory."""

    def __init__(self, address: int, num_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (num_bytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }
