from pathlib import Path

import pytest
from isthmus.launch.gpus import GpuSurvey, survey_gpus
from isthmus.launch.hardware import free_memory_bytes, num_cores, torch_cuda, usable
from isthmus.tests.launch.fake_nvml import FakeGpu, FakeNvml, gpu


@pytest.mark.parametrize(
    ("quota", "most"), [("max 100000", 10**6), ("50000 100000", 1), ("100000 100000", 1), ("", 10**6)]
)
def test_a_container_limits_cores(tmp_path: Path, quota: str, most: int) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    assert 1 <= num_cores(tmp_path) <= most


def test_a_container_limits_memory(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:   800 kB\n")
    assert free_memory_bytes(tmp_path, tmp_path / "meminfo") == 800 * 1024
    (tmp_path / "memory.max").write_text("500000\n")
    (tmp_path / "memory.current").write_text("200000\n")
    assert free_memory_bytes(tmp_path, tmp_path / "meminfo") == 300000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory_bytes(tmp_path, tmp_path / "meminfo") == 800 * 1024


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n", None),
        ("__version__ = '2.11.0+cu130'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", "13.0"),
        ("__version__ = '2.11.0'\ncuda = '12.8'\n", "12.8"),
        ("__version__ = '2.11.0'\ncuda: Optional[str] = None\nhip: Optional[str] = '6.4'\n", None),
    ],
)
def test_torch_s_cuda_is_read_without_loading_torch(tmp_path: Path, text: str, expected: str | None) -> None:
    (tmp_path / "version.py").write_text(text)
    assert torch_cuda(tmp_path / "version.py") == expected


def test_torch_s_cuda_is_what_torch_says() -> None:
    torch = pytest.importorskip("torch")
    assert torch_cuda() == torch.version.cuda


def test_usable_gpus_have_a_torch_and_the_capability_it_takes() -> None:
    assert usable(GpuSurvey((gpu(0), gpu(1))), "13.0") == ((gpu(0), gpu(1)), "")
    assert usable(GpuSurvey(why_none="no NVIDIA driver"), "13.0") == ((), "no NVIDIA driver")
    assert usable(GpuSurvey((gpu(0),)), None) == ((), "torch is a build without CUDA")


def test_an_old_gpu_is_left_out_and_the_others_keep_their_indices() -> None:
    old = FakeGpu("GPU-old", "00000000:01:00.0", capability=(7, 5), name="Tesla T4")
    new = FakeGpu("GPU-new", "00000000:02:00.0", capability=(8, 0))
    gpus, why = usable(survey_gpus(nvml=FakeNvml(old, new), given={}), "13.0")
    assert ([found.index for found in gpus], why) == ([1], "")
    gpus, why = usable(survey_gpus(nvml=FakeNvml(old), given={}), "13.0")
    assert (gpus, why) == ((), "Tesla T4 has a compute capability below 8.0")
