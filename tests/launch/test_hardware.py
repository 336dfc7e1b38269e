from collections.abc import Iterable
from pathlib import Path

import pytest
from isthmus.launch import hardware
from isthmus.launch.hardware import free_memory_bytes, num_cores, num_gpus, probe


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


def devices(folder: Path, names: Iterable[str]) -> Path:
    for name in names:
        (folder / name).touch()
    return folder


NOT_GPUS = ("nvidiactl", "nvidia-uvm", "nvidia-modeset", "nvidia-caps", "null")


@pytest.mark.parametrize(
    ("present", "nvidia", "cuda", "expected"),
    [
        (0, None, None, 0),
        (1, None, None, 1),
        (12, None, None, 12),
        (0, "all", "0,1", 0),
        (4, "all", None, 4),
        (4, "void", None, 4),
        (4, "", None, 4),
        (4, "none", None, 0),
        (4, "1,3", None, 2),
        (2, "5,6,7", None, 2),  # a container that was given three sees as many files as there are
        (4, None, "", 0),
        (4, None, "-1", 0),
        (4, None, "NoDevFiles", 0),
        (4, None, "2", 1),
        (4, None, "3, 1", 2),
        (4, None, "0,4,1", 1),  # what follows an invalid one is not seen
        (4, None, "0,1,1,2", 2),
        (4, None, "GPU-8932f937,GPU-d72c11ef", 2),
        (1, None, "MIG-3f7d22b8", 1),
        (4, "0,1", "0,1,2", 2),
        (4, "none", "0", 0),
    ],
)
def test_gpus_are_those_present_less_what_the_environment_hides(
    tmp_path: Path, present: int, nvidia: str | None, cuda: str | None, expected: int
) -> None:
    given = {"NVIDIA_VISIBLE_DEVICES": nvidia, "CUDA_VISIBLE_DEVICES": cuda}
    folder = devices(tmp_path, (*NOT_GPUS, *(f"nvidia{index}" for index in range(present))))
    assert num_gpus(folder, {name: value for name, value in given.items() if value is not None}) == expected


def test_gpus_count_only_where_the_engine_can_use_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "num_gpus", lambda: 8)
    assert probe().num_gpus == 0
    monkeypatch.setattr(hardware, "ENGINE_USES_GPUS", True)
    assert probe().num_gpus == 8
