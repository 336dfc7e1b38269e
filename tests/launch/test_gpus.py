import subprocess
import sys

import pytest
from isthmus.launch.gpus import Gpu, GpuSurvey, Link, free_bytes, survey_gpus, visible
from isthmus.tests.launch.fake_nvml import GIB, FakeGpu, FakeNvml, NVMLError, NVMLError_LibraryNotFound, gpu

ONE = FakeGpu("GPU-8932f937", "00000000:04:00.0", free=10 * GIB)
OTHER = FakeGpu("GPU-89aa0000", "00000000:17:00.0", capability=(8, 6), total=24 * GIB, name="NVIDIA A10")
THIRD = FakeGpu("GPU-d72c11ef", "00000000:9A:00.0")


def test_a_survey_tells_all_gpus_in_pci_order() -> None:
    nvml = FakeNvml(OTHER, ONE)
    found = survey_gpus(nvml=nvml, given={})
    assert found == GpuSurvey(
        (
            Gpu(0, ONE.uuid, ONE.name, ONE.bus, (9, 0), 80 * GIB, 10 * GIB),
            Gpu(1, OTHER.uuid, "NVIDIA A10", OTHER.bus, (8, 6), 24 * GIB, 79 * GIB),
        ),
        driver="580.159.03",
        cuda=(13, 1),
    )
    assert nvml.sessions == 0


@pytest.mark.parametrize(
    ("nvml", "given", "why"),
    [
        (FakeNvml(init=NVMLError_LibraryNotFound("NVML Shared Library Not Found")), {}, "no NVIDIA driver"),
        (FakeNvml(init=NVMLError("Driver Not Loaded")), {}, "the NVIDIA driver says: Driver Not Loaded"),
        (FakeNvml(), {}, "the NVIDIA driver sees none"),
        (FakeNvml(ONE), {"CUDA_VISIBLE_DEVICES": "4"}, "CUDA_VISIBLE_DEVICES is '4', which names none of 1"),
    ],
)
def test_a_survey_without_gpus_says_why(nvml: FakeNvml, given: dict[str, str], why: str) -> None:
    found = survey_gpus(links=True, nvml=nvml, given=given)
    assert (found.gpus, found.links, found.why_none) == ((), (), why)
    assert nvml.sessions == 0


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (None, [ONE, OTHER, THIRD]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("2", [THIRD]),
        ("2, 0", [THIRD, ONE]),
        ("0,3,1", [ONE]),  # what follows an invalid one is not seen
        ("0,1,1", []),
        ("GPU-d72c,1", [THIRD, OTHER]),
        ("GPU-89,1", []),  # two begin like this
        ("GPU-d72c11ef,2", []),  # twice the same
        ("MIG-3f7d22b8", []),
    ],
)
def test_cuda_s_list_hides_and_reorders(listed: str | None, expected: list[FakeGpu]) -> None:
    given = {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}
    found = survey_gpus(nvml=FakeNvml(ONE, OTHER, THIRD), given=given).gpus
    assert [gpu.uuid for gpu in found] == [gpu.uuid for gpu in expected]
    assert [gpu.index for gpu in found] == list(range(len(expected)))


def test_indices_are_those_cuda_gives() -> None:
    assert [gpu.index for gpu in visible([gpu(-1), gpu(-1)], None)] == [0, 1]


def links(nvml: FakeNvml) -> tuple[Link, ...]:
    return survey_gpus(links=True, nvml=nvml, given={}).links


def test_every_pair_has_a_link() -> None:
    assert links(FakeNvml(ONE, OTHER, THIRD, nvlink=False)) == (
        Link(0, 1, True, 0),
        Link(0, 2, True, 0),
        Link(1, 2, True, 0),
    )


def test_nvlinks_to_the_other_gpu_count_and_not_those_that_are_down() -> None:
    one = FakeGpu("GPU-1", "00000000:04:00.0", nvlinks=("00000000:17:00.0", "", "00000000:17:00.0", "00000000:9A:00.0"))
    assert links(FakeNvml(one, OTHER)) == (Link(0, 1, True, 2),)


def test_behind_a_switch_all_nvlinks_count() -> None:
    one = FakeGpu("GPU-1", "00000000:04:00.0", nvlinks=("00000000:C0:00.0",) * 18)
    other = FakeGpu("GPU-2", "00000000:17:00.0", nvlinks=("00000000:C0:00.0",) * 17)
    assert links(FakeNvml(one, other)) == (Link(0, 1, True, 17),)


def test_a_pair_without_peer_access() -> None:
    assert links(FakeNvml(ONE, OTHER, peers=False, nvlink=False)) == (Link(0, 1, False, 0),)


def test_free_memory_is_asked_for_by_uuid() -> None:
    nvml = FakeNvml(OTHER, ONE)
    assert free_bytes(ONE.uuid, nvml) == 10 * GIB
    with pytest.raises(RuntimeError, match="the free memory of GPU-none is not known: Not Found"):
        free_bytes("GPU-none", nvml)
    assert nvml.sessions == 0


def test_the_real_pynvml_has_what_the_fake_has() -> None:
    pynvml = pytest.importorskip("pynvml")
    used = [name for name in dir(FakeNvml) if name.lower().startswith("nvml")]
    assert [name for name in used if not hasattr(pynvml, name)] == []
    constants = [name for name in used if name.startswith("NVML_")]
    assert {name: getattr(pynvml, name) for name in constants} == {name: getattr(FakeNvml, name) for name in constants}


def test_asking_the_machine_loads_no_torch_and_never_fails() -> None:
    script = "import sys; from isthmus.launch.hardware import probe; probe(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
