"""Where a worker computes, from its options and this machine."""

from dataclasses import dataclass

from .config import DeviceOptions, EngineOptions, PlaceOptions
from .gpus import Gpu
from .hardware import Hardware, probe
from .limits import Device
from .resolve import ConfigError, choose_device, refuse_on_cpu


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    device: Device
    gpu: Gpu | None
    """None on the CPU."""
    memory_bytes: int
    """The part of the GPU's memory that this worker may use."""


def find_place(
    engine: EngineOptions, options: DeviceOptions, place: PlaceOptions, hardware: Hardware | None = None
) -> WorkerPlace:
    """Raises ConfigError if there is no such place here."""
    hardware = hardware or probe()
    device = choose_device(engine, options, hardware)
    refuse_on_cpu(device, {f"--gpu {place.gpu}": place.gpu is not None})
    if device == "cpu":
        return WorkerPlace(device, None, 0)
    gpu = _find_gpu(place.gpu, hardware)
    return WorkerPlace(device, gpu, int(gpu.total_bytes * options.gpu_memory_utilization * place.gpu_memory_share))


def _find_gpu(index: int | None, hardware: Hardware) -> Gpu:
    for gpu in hardware.gpus:
        if index in (None, gpu.index):
            return gpu
    there = ", ".join(str(gpu.index) for gpu in hardware.gpus)
    raise ConfigError(f"--gpu {index}: there is no such GPU to use, only {there}")
