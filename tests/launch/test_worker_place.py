import pytest
from isthmus.launch.config import DeviceOptions, EngineOptions, PlaceOptions
from isthmus.launch.hardware import Hardware
from isthmus.launch.resolve import ConfigError
from isthmus.launch.worker_place import WorkerPlace, find_place
from isthmus.launch.worker_process import transports
from isthmus.tests.launch.fake_nvml import GIB, gpu

TWO = Hardware(8, 16 * GIB, (gpu(1), gpu(2, total=40 * GIB)))
NONE = Hardware(8, 16 * GIB, (), "no NVIDIA driver")


def test_a_worker_takes_the_gpu_it_is_given_or_the_first() -> None:
    assert find_place(EngineOptions(), DeviceOptions(), PlaceOptions(), TWO) == WorkerPlace(
        "cuda", gpu(1), int(80 * GIB * 0.9)
    )
    place = find_place(EngineOptions(), DeviceOptions(gpu_memory_utilization=0.5), PlaceOptions(2, 0.25), TWO)
    assert place == WorkerPlace("cuda", gpu(2, total=40 * GIB), 5 * GIB)


def test_without_a_gpu_it_computes_on_the_cpu() -> None:
    cpu = WorkerPlace("cpu", None, 0)
    assert find_place(EngineOptions(), DeviceOptions(), PlaceOptions(), NONE) == cpu
    assert find_place(EngineOptions(), DeviceOptions(device="cpu"), PlaceOptions(), TWO) == cpu
    assert find_place(EngineOptions("fake"), DeviceOptions(), PlaceOptions(), TWO) == cpu


@pytest.mark.parametrize(
    ("device", "index", "hardware", "said"),
    [
        ("auto", 0, TWO, "--gpu 0: there is no such GPU to use, only 1, 2"),
        ("auto", 0, NONE, "--gpu 0 needs workers that compute on GPUs"),
        ("cpu", 1, TWO, "--gpu 1 needs workers that compute on GPUs"),
        ("cuda", None, NONE, "--device cuda: there is no GPU to use (no NVIDIA driver)"),
    ],
)
def test_a_place_that_is_not_there_is_refused(device: str, index: int | None, hardware: Hardware, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        find_place(EngineOptions(), DeviceOptions(device), PlaceOptions(index), hardware)
    assert said in str(refused.value)


def test_ways_for_kv_that_lead_from_gpu_to_gpu_are_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isthmus.kvtransfer.open.TRANSPORTS", ("cuda_ipc", "nccl", "shm"))
    assert transports("auto", "cuda") == ("cuda_ipc", "nccl", "shm")
    assert transports("auto", "cpu") == ("shm",)
    assert transports("shm", "cpu") == ("shm",)
    assert transports("nccl", "cuda") == ("nccl",)
    with pytest.raises(ConfigError, match="--kv-transport nccl needs workers that compute on GPUs"):
        transports("nccl", "cpu")
    with pytest.raises(ConfigError, match="--kv-transport zmq: this version has cuda_ipc, nccl, shm"):
        transports("zmq", "cpu")
