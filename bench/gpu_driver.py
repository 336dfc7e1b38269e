"""What the experiments on GPU processes need of the driver's own interface."""

import ctypes

LAZY_PEER_ACCESS = 1


class IpcHandle(ctypes.Structure):
    _fields_ = [("reserved", ctypes.c_byte * 64)]


class Driver:
    """libcuda, in the context that is current: torch's, once it has touched a device."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL("libcuda.so.1")
        self._lib.cuIpcOpenMemHandle_v2.argtypes = [ctypes.POINTER(ctypes.c_uint64), IpcHandle, ctypes.c_uint]

    def call(self, name: str, *args: object) -> None:
        code = getattr(self._lib, name)(*args)
        if code:
            text = ctypes.c_char_p()
            self._lib.cuGetErrorName(code, ctypes.byref(text))
            raise RuntimeError(f"{name}: {(text.value or b'?').decode()} ({code})")

    def allocate(self, num_bytes: int) -> int:
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(num_bytes))
        return address.value

    def export(self, address: int) -> str:
        handle = IpcHandle()
        self.call("cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_uint64(address))
        return bytes(handle).hex()

    def open(self, handle: str) -> int:
        address = ctypes.c_uint64()
        flat = IpcHandle.from_buffer_copy(bytes.fromhex(handle))
        self.call("cuIpcOpenMemHandle_v2", ctypes.byref(address), flat, LAZY_PEER_ACCESS)
        return address.value

    def close(self, address: int) -> None:
        self.call("cuIpcCloseMemHandle", ctypes.c_uint64(address))

    def copy(self, destination: int, source: int, num_bytes: int, stream: int) -> None:
        at = (ctypes.c_uint64(destination), ctypes.c_uint64(source), ctypes.c_size_t(num_bytes))
        self.call("cuMemcpyDtoDAsync_v2", *at, ctypes.c_void_p(stream))
