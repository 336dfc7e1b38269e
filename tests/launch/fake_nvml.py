"""Stands in for the module pynvml: a machine with the GPUs it is given."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from isthmus.launch.gpus import Gpu

GIB = 1 << 30


@dataclass(frozen=True)
class FakeGpu:
    uuid: str
    bus: str
    capability: tuple[int, int] = (9, 0)
    total: int = 80 * GIB
    free: int = 79 * GIB
    name: str = "NVIDIA H100 80GB HBM3"
    nvlinks: tuple[str, ...] = ()
    """The bus ids at the other ends; an empty one: the link is down."""


class NVMLError(Exception):
    pass


class NVMLError_LibraryNotFound(NVMLError):
    pass


class FakeNvml:
    """Handles are the fake GPUs themselves. Each `open` session must be closed again."""

    NVMLError = NVMLError
    NVMLError_LibraryNotFound = NVMLError_LibraryNotFound
    NVML_P2P_CAPS_INDEX_NVLINK = 2
    NVML_P2P_STATUS_OK = 0
    NVML_FEATURE_ENABLED = 1
    NVML_NVLINK_MAX_LINKS = 36

    def __init__(self, *gpus: FakeGpu, init: Exception | None = None, peers: bool = True, nvlink: bool = True):
        self.gpus = gpus
        self.init = init
        self.peers = peers
        self.nvlink = nvlink
        self.sessions = 0

    def nvmlInit(self) -> None:
        if self.init is not None:
            raise self.init
        self.sessions += 1

    def nvmlShutdown(self) -> None:
        self.sessions -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.159.03"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 13010

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeGpu:
        for gpu in self.gpus:
            if gpu.uuid == uuid:
                return gpu
        raise NVMLError("Not Found")

    def nvmlDeviceGetUUID(self, gpu: FakeGpu) -> str:
        return gpu.uuid

    def nvmlDeviceGetName(self, gpu: FakeGpu) -> str:
        return gpu.name

    def nvmlDeviceGetPciInfo(self, gpu: FakeGpu) -> Any:
        return SimpleNamespace(busId=gpu.bus.encode())

    def nvmlDeviceGetMemoryInfo(self, gpu: FakeGpu) -> Any:
        return SimpleNamespace(total=gpu.total, free=gpu.free, used=gpu.total - gpu.free)

    def nvmlDeviceGetCudaComputeCapability(self, gpu: FakeGpu) -> tuple[int, int]:
        return gpu.capability

    def nvmlDeviceGetP2PStatus(self, one: FakeGpu, other: FakeGpu, ability: int) -> int:
        assert one is not other
        if ability == self.NVML_P2P_CAPS_INDEX_NVLINK:
            return 0 if self.nvlink else 2
        return 0 if self.peers else 1

    def nvmlDeviceGetNvLinkState(self, gpu: FakeGpu, number: int) -> int:
        if number >= len(gpu.nvlinks):
            raise NVMLError("Invalid Argument")
        return int(gpu.nvlinks[number] != "")

    def nvmlDeviceGetNvLinkRemotePciInfo(self, gpu: FakeGpu, number: int) -> Any:
        return SimpleNamespace(busId=gpu.nvlinks[number])


def gpu(index: int, *, total: int = 80 * GIB, free: int = 79 * GIB, name: str = "NVIDIA H100 80GB HBM3") -> Gpu:
    """As a survey would report it."""
    return Gpu(index, f"GPU-{index}", name, f"00000000:0{index}:00.0", (9, 0), total, free)
