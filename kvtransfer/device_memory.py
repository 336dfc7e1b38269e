"""Memory of one process's GPU, mapped into another process: CUDA IPC, straight from the driver.

The driver's library is all it takes, which is there wherever torch finds a GPU. A handle is opened in the context of
the device whose kernels will use it, with peer access: memory opened as its owner's device could only be copied.
"""

import ctypes
import logging
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_LAZY_ENABLE_PEER_ACCESS = 1
HANDLE_BYTES = 64
_DEVICE = 2
"""CU_MEMORYTYPE_DEVICE"""


class DeviceMemoryError(RuntimeError):
    """The driver refused; the text says what and why."""


class Mapper(Protocol):
    """Both ends of a mapping. All calls raise DeviceMemoryError where memory cannot be shared."""

    def export(self, memory: Tensor) -> tuple[bytes, int]:
        """(handle of the allocation that `memory` lies in, offset of its beginning)."""

    def open(self, handle: bytes, device: torch.device) -> int:
        """The address of the allocation, for kernels of `device`. Once at a time for each handle."""

    def close(self, address: int, device: torch.device) -> None:
        """Nothing that uses it may be in flight."""


class CudaMapper:
    def export(self, memory: Tensor) -> tuple[bytes, int]:
        _make_current(memory.device)
        base, size, handle = ctypes.c_uint64(), ctypes.c_size_t(), _Handle()
        address = ctypes.c_uint64(memory.data_ptr())
        _call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), address)
        _call("cuIpcGetMemHandle", ctypes.byref(handle), address)
        return bytes(handle), address.value - base.value

    def open(self, handle: bytes, device: torch.device) -> int:
        if len(handle) != HANDLE_BYTES:
            raise DeviceMemoryError(f"a handle of {len(handle)} bytes")
        _make_current(device)
        address = ctypes.c_uint64()
        flat = _Handle.from_buffer_copy(handle)
        _call("cuIpcOpenMemHandle_v2", ctypes.byref(address), flat, _LAZY_ENABLE_PEER_ACCESS)
        return address.value

    def close(self, address: int, device: torch.device) -> None:
        _make_current(device)
        _call("cuIpcCloseMemHandle", ctypes.c_uint64(address))


def copy_rows_async(
    target: int, source: int, *, pitches: tuple[int, int], row_bytes: int, num_rows: int, stream: int
) -> None:
    """By a copy engine, between any two addresses that this process has; in the current context. `pitches`: bytes from
    a row to the next, of the target and of the source. Raises DeviceMemoryError."""
    copy = _RowsCopy(
        source_kind=_DEVICE,
        source=source,
        source_pitch=pitches[1],
        target_kind=_DEVICE,
        target=target,
        target_pitch=pitches[0],
        row_bytes=row_bytes,
        num_rows=num_rows,
    )
    _call("cuMemcpy2DAsync_v2", ctypes.byref(copy), ctypes.c_void_p(stream))


class _RowsCopy(ctypes.Structure):
    """CUDA_MEMCPY2D."""

    _fields_ = (
        ("source_x", ctypes.c_size_t),
        ("source_y", ctypes.c_size_t),
        ("source_kind", ctypes.c_uint),
        ("source_host", ctypes.c_void_p),
        ("source", ctypes.c_uint64),
        ("source_array", ctypes.c_void_p),
        ("source_pitch", ctypes.c_size_t),
        ("target_x", ctypes.c_size_t),
        ("target_y", ctypes.c_size_t),
        ("target_kind", ctypes.c_uint),
        ("target_host", ctypes.c_void_p),
        ("target", ctypes.c_uint64),
        ("target_array", ctypes.c_void_p),
        ("target_pitch", ctypes.c_size_t),
        ("row_bytes", ctypes.c_size_t),
        ("num_rows", ctypes.c_size_t),
    )


class _Handle(ctypes.Structure):
    """CUipcMemHandle, which is passed by value."""

    _fields_ = (("reserved", ctypes.c_byte * HANDLE_BYTES),)


@cache
def _driver() -> ctypes.CDLL:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise DeviceMemoryError(f"no driver: {error}") from error
    driver.cuIpcOpenMemHandle_v2.argtypes = [ctypes.POINTER(ctypes.c_uint64), _Handle, ctypes.c_uint]
    return driver


def _call(name: str, *arguments: object) -> None:
    code = getattr(_driver(), name)(*arguments)
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorName(code, ctypes.byref(text))
        raise DeviceMemoryError(f"{name}: {(text.value or b'unknown error').decode()}")


def _make_current(device: torch.device) -> None:
    """The device's context, which torch uses, on this thread."""
    torch.cuda.set_device(device)
    torch.cuda.synchronize(device)
