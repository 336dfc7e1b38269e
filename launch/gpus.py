"""The NVIDIA GPUs that this process and its children may use, and the links between them, as the driver (NVML) tells.

No torch and no CUDA context: asking costs a few milliseconds and no GPU memory.
"""

import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any, TypeVar

Answer = TypeVar("Answer")

CUDA_ENVIRONMENT = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""For every process that uses GPUs, before CUDA starts there: only in this order do CUDA's indices mean ours."""
P2P_WRITE = 1
"""NVML_P2P_CAPS_INDEX_WRITE. What is asked is whether one GPU's kernels may store into the other's memory."""


@dataclass(frozen=True, slots=True)
class Gpu:
    index: int
    """CUDA's: the N of `cuda:N` in this process and its children."""
    uuid: str
    name: str
    pci_bus_id: str
    capability: tuple[int, int]
    """Compute capability."""
    total_bytes: int
    free_bytes: int
    """When it was asked for."""


@dataclass(frozen=True, slots=True)
class Link:
    """Between two GPUs, by index, the lower one first."""

    first: int
    second: int
    peer_access: bool
    """Each can be given access to the other's memory."""
    num_nvlinks: int


@dataclass(frozen=True, slots=True)
class GpuSurvey:
    gpus: tuple[Gpu, ...] = ()
    why_none: str = ""
    """Why there is no GPU, in a few words."""
    driver: str = ""
    cuda: tuple[int, int] | None = None
    """The newest CUDA that the driver can run."""
    links: tuple[Link, ...] = ()
    """Of every pair; only if they were asked for."""


def survey_gpus(*, links: bool = False, nvml: Any = None, given: Mapping[str, str] = os.environ) -> GpuSurvey:
    """Never fails: a machine without GPUs, driver or NVML has none. `nvml` stands in for the module pynvml."""
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return GpuSurvey(why_none="the package nvidia-ml-py is not installed")
    try:
        with _session(nvml):
            return _survey(nvml, given, links)
    except nvml.NVMLError_LibraryNotFound:
        return GpuSurvey(why_none="no NVIDIA driver")
    except nvml.NVMLError as error:
        return GpuSurvey(why_none=f"the NVIDIA driver says: {error}")


def free_bytes(uuid: str, nvml: Any = None) -> int:
    """Of this GPU's memory, now. Raises RuntimeError if the driver does not tell."""
    nvml = nvml or importlib.import_module("pynvml")
    try:
        with _session(nvml):
            return int(nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByUUID(uuid)).free)
    except nvml.NVMLError as error:
        raise RuntimeError(f"the free memory of {uuid} is not known: {error}") from error


def visible(gpus: Sequence[Gpu], listed: str | None) -> tuple[Gpu, ...]:
    """What CUDA_VISIBLE_DEVICES leaves of the machine's GPUs (given in PCI order), in its order and with new indices.

    As CUDA reads it: indices and UUIDs, which may be cut short; the first that names none ends the list; one that is
    named twice makes it empty. A slice of a GPU (`MIG-…`) counts as none: NVML's sizes are those of whole GPUs.
    """
    chosen: list[Gpu] = []
    for entry in [] if listed is None else listed.split(","):
        named = _named(entry.strip(), gpus)
        if named is None:
            break
        if named in chosen:
            return ()
        chosen.append(named)
    return tuple(replace(gpu, index=index) for index, gpu in enumerate(gpus if listed is None else chosen))


def _named(entry: str, gpus: Sequence[Gpu]) -> Gpu | None:
    if entry.isdecimal():
        return gpus[int(entry)] if int(entry) < len(gpus) else None
    found = [gpu for gpu in gpus if gpu.uuid.startswith(entry)] if entry.startswith("GPU-") else []
    return found[0] if len(found) == 1 else None


@contextmanager
def _session(nvml: Any) -> Iterator[None]:
    nvml.nvmlInit()
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def _survey(nvml: Any, given: Mapping[str, str], links: bool) -> GpuSurvey:
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    present = sorted((_gpu(nvml, handle) for handle in handles), key=lambda gpu: gpu.pci_bus_id)
    gpus = visible(present, given.get("CUDA_VISIBLE_DEVICES"))
    cuda = nvml.nvmlSystemGetCudaDriverVersion_v2()
    return GpuSurvey(
        gpus,
        why_none="" if gpus else _why_none(present, given),
        driver=str(nvml.nvmlSystemGetDriverVersion()),
        cuda=(cuda // 1000, cuda % 1000 // 10),
        links=tuple(_link(nvml, *pair) for pair in combinations(gpus, 2)) if links else (),
    )


def _why_none(present: Sequence[Gpu], given: Mapping[str, str]) -> str:
    if not present:
        return "the NVIDIA driver sees none"
    return f"CUDA_VISIBLE_DEVICES is {given['CUDA_VISIBLE_DEVICES']!r}, which names none of {len(present)}"


def _gpu(nvml: Any, handle: Any) -> Gpu:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(
        index=-1,  # given by `visible`
        uuid=str(nvml.nvmlDeviceGetUUID(handle)),
        name=str(nvml.nvmlDeviceGetName(handle)),
        pci_bus_id=_bus_id(nvml.nvmlDeviceGetPciInfo(handle)),
        capability=(major, minor),
        total_bytes=int(memory.total),
        free_bytes=int(memory.free),
    )


def _bus_id(pci: Any) -> str:
    return pci.busId.decode() if isinstance(pci.busId, bytes) else str(pci.busId)


def _link(nvml: Any, first: Gpu, second: Gpu) -> Link:
    one, other = (nvml.nvmlDeviceGetHandleByUUID(gpu.uuid) for gpu in (first, second))
    peer_access = all(_p2p(nvml, *pair, P2P_WRITE) for pair in ((one, other), (other, one)))
    nvlinks = _num_nvlinks(nvml, one, other, second) if _p2p(nvml, one, other, nvml.NVML_P2P_CAPS_INDEX_NVLINK) else 0
    return Link(first.index, second.index, peer_access, nvlinks)


def _p2p(nvml: Any, one: Any, other: Any, ability: int) -> bool:
    def ask() -> bool:
        return bool(nvml.nvmlDeviceGetP2PStatus(one, other, ability) == nvml.NVML_P2P_STATUS_OK)

    return _known(nvml, ask, False)


def _num_nvlinks(nvml: Any, one: Any, other: Any, second: Gpu) -> int:
    """Those from `one` straight to `second`; if there is none a switch is between them, and all of both count."""
    ends = _nvlink_ends(nvml, one)
    return ends.count(second.pci_bus_id) or min(len(ends), len(_nvlink_ends(nvml, other)))


def _nvlink_ends(nvml: Any, handle: Any) -> list[str]:
    """The PCI bus id at the other end of each NVLink that is up."""

    def end(number: int) -> str:
        up = nvml.nvmlDeviceGetNvLinkState(handle, number) == nvml.NVML_FEATURE_ENABLED
        return _bus_id(nvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, number)) if up else ""

    ends = (_known(nvml, partial(end, number), "") for number in range(nvml.NVML_NVLINK_MAX_LINKS))
    return [bus_id for bus_id in ends if bus_id]


def _known(nvml: Any, ask: Callable[[], Answer], otherwise: Answer) -> Answer:
    """Not every GPU and driver answers every question."""
    try:
        return ask()
    except nvml.NVMLError:
        return otherwise
