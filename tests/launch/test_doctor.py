import json
from pathlib import Path
from typing import Any

import pytest
from isthmus.launch import diagnosis, doctor
from isthmus.launch.config import DeviceOptions, DoctorConfig, DoctorOptions, EngineOptions, TopologyOptions
from isthmus.launch.diagnosis import Diagnosis, Pair, ask_child, diagnose, examine, measure_transfer
from isthmus.launch.gpus import GpuSurvey, Link, survey_gpus
from isthmus.launch.hardware import Hardware
from isthmus.launch.main import main
from isthmus.launch.resolve import resolve
from isthmus.launch.torch_facts import TorchFacts, loaded_libnccl, nccl_packages
from isthmus.tests.launch.fake_nvml import GIB, gpu

LIB = "/site/nvidia/nccl/lib/libnccl.so.2"
TORCH = TorchFacts("2.11.0+cu130", "13.0", "2.28.9", (LIB,))
CPU_TORCH = TorchFacts("2.13.0+cpu", None, None, ())
NVLINK, PCIE = Link(0, 1, True, 18), Link(0, 1, False, 0)
PACKAGE = "nvidia-nccl-cu13 2.28.9"


def found(num_gpus: int = 0, torch: TorchFacts | str = CPU_TORCH, packages: Any = (), *pairs: Pair) -> Diagnosis:
    gpus = tuple(gpu(index) for index in range(num_gpus))
    survey = GpuSurvey(gpus, "", "580.159.03", (13, 1)) if gpus else GpuSurvey(why_none="no NVIDIA driver")
    hardware = Hardware(16, 64 * GIB, gpus, survey.why_none)
    workers = resolve(TopologyOptions(), EngineOptions(), DeviceOptions(), hardware)
    return Diagnosis(hardware, workers, "ok", survey, torch, packages, pairs)


def test_a_machine_without_gpus_says_so_in_a_line() -> None:
    assert list(doctor.lines(found()))[1:] == [
        "CPU      16 cores, 64.0 GiB free",
        "workers  isthmus serve starts 1 prefill + 1 decode, 8 threads each (default: one of each on CPUs)",
        "shm      KV can move through shared memory",
        "torch    2.13.0+cpu, without CUDA",
        "GPU      none to use: no NVIDIA driver",
    ]
    assert found().problems() == []


def test_gpus_and_their_links_are_told() -> None:
    two = found(
        2,
        TORCH,
        (PACKAGE,),
        Pair(NVLINK, ("cuda_ipc", "nccl"), {"cuda_ipc": 343.1, "nccl": 230.2, "copy": 396.0}),
        Pair(PCIE, ("nccl",), {"nccl": "no answer"}),
    )
    assert two.problems() == []
    h100 = "NVIDIA H100 80GB HBM3, compute capability 9.0, 79.0 GiB of 80.0 GiB free"
    assert list(doctor.lines(two))[2:] == [
        "workers  isthmus serve starts 1 prefill + 1 decode, 8 threads each "
        "(default: 2 GPUs, split between prefill and decode)",
        "shm      KV can move through shared memory",
        f"torch    2.11.0+cu130 with CUDA 13.0 and NCCL 2.28.9 ({LIB})",
        "driver   580.159.03, runs CUDA up to 13.1",
        f"GPU 0    {h100}, 00000000:00:00.0, GPU-0",
        f"GPU 1    {h100}, 00000000:01:00.0, GPU-1",
        "GPU 0-1  18 NVLinks, peer access, KV by cuda_ipc or nccl, cuda_ipc 343 GB/s, nccl 230 GB/s, copy 396 GB/s",
        "GPU 0-1  PCIe, no peer access, KV by nccl, nccl not measured (no answer)",
    ]


@pytest.mark.parametrize(
    ("diagnosis", "said"),
    [
        (
            found(1, TORCH, (PACKAGE, "nvidia-nccl-cu12 2.27.3")),
            "cu13 2.28.9 and nvidia-nccl-cu12 2.27.3 are both inst",
        ),
        (found(1, TorchFacts("2.11", "13.0", "2.28", (LIB, "/usr/lib/libnccl.so.2"))), f"libnccl: {LIB}, /usr/lib"),
        (found(1, CPU_TORCH), "there are GPUs, but torch 2.13.0+cpu is a build without CUDA"),
        (found(0, "ImportError: no libc10"), "torch cannot be loaded: ImportError: no libc10"),
    ],
)
def test_what_has_to_be_put_right_is_a_sentence(diagnosis: Diagnosis, said: str) -> None:
    (problem,) = diagnosis.problems()
    assert said in problem


@pytest.mark.parametrize("as_json", [True, False])
def test_a_problem_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    broken = found(1, TORCH, (PACKAGE, "nvidia-nccl-cu12 2.27.3"))
    monkeypatch.setattr(doctor, "diagnose", lambda measure: broken)
    assert doctor.doctor(DoctorConfig(DoctorOptions(as_json))) == 1
    shown = capsys.readouterr()
    assert "isthmus doctor: nvidia-nccl-cu13 2.28.9 and" in shown.err
    if as_json:
        assert json.loads(shown.out)["problems"] == broken.problems()


def test_a_pair_uses_the_best_transport_that_works() -> None:
    asked = []

    def measure(*pair: Any) -> dict[str, float | str]:
        asked.append(pair)
        return {pair[0]: 7.0, "copy": 9.0}

    works = {"cuda_ipc": True, "nccl": True, "shm": False, "zmq": True}
    both = {"cuda_ipc": 7.0, "nccl": 7.0, "copy": 9.0}
    assert examine(NVLINK, works, measure) == Pair(NVLINK, ("cuda_ipc", "nccl", "zmq"), both)
    assert examine(PCIE, works, measure) == Pair(PCIE, ("nccl", "zmq"), {"nccl": 7.0, "copy": 9.0})
    assert examine(PCIE, {**works, "nccl": False}, measure) == Pair(PCIE, ("zmq",), {})
    assert examine(NVLINK, works, None).gb_per_s == {}
    assert asked == [("cuda_ipc", 0, 1), ("nccl", 0, 1), ("nccl", 0, 1)]


@pytest.mark.parametrize(
    ("torch", "shared_memory", "expected"),
    [
        (TORCH, "ok", {"cuda_ipc": True, "nccl": True, "shm": True, "zmq": True}),
        (TorchFacts("2", "13.0", None, ()), "ok", {"cuda_ipc": True, "nccl": False, "shm": True, "zmq": True}),
        (CPU_TORCH, "no memfd", {"cuda_ipc": False, "nccl": False, "shm": False, "zmq": True}),
        ("broken", "ok", {"cuda_ipc": False, "nccl": False, "shm": True, "zmq": True}),
    ],
)
def test_transports_need_what_they_are_made_of(
    monkeypatch: pytest.MonkeyPatch, torch: TorchFacts | str, shared_memory: str, expected: dict[str, bool]
) -> None:
    monkeypatch.setattr("isthmus.kvtransfer.open.TRANSPORTS", tuple(expected))
    assert diagnosis.working_transports(torch, shared_memory) == expected


def test_the_libnccl_that_is_loaded_is_read_from_the_memory_map() -> None:
    maps = f"""\
7f10-7f20 r-xp 00000000 08:01 11 {LIB}
7f20-7f30 r--p 00010000 08:01 11 {LIB}
7f30-7f40 r-xp 00000000 08:01 12 /usr/lib/x86 64/libnccl.so.2.27
7f40-7f50 r-xp 00000000 08:01 13 /opt/hpcx/libnccl-net.so
7f50-7f60 rw-p 00000000 00:00 0
"""
    assert loaded_libnccl(maps) == (LIB, "/usr/lib/x86 64/libnccl.so.2.27")


def test_installed_packages_with_a_libnccl_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, version in (("nvidia-nccl-cu12", "2.27.3"), ("nvidia_nccl_cu13", "2.28.9"), ("nvidia-cublas", "13.0")):
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert nccl_packages() == ("nvidia-nccl-cu12 2.27.3", "nvidia-nccl-cu13 2.28.9")


def test_a_child_that_fails_gives_its_last_line() -> None:
    answer = ask_child("transfer_rate", "nccl", "0", "not a number")
    assert isinstance(answer, str)
    assert "invalid literal for int()" in answer


def test_doctor_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--json", "--no-measure"])
    report = json.loads(capsys.readouterr().out)
    assert code == (1 if report["problems"] else 0)
    assert report["hardware"]["num_cores"] >= 1
    assert report["workers"]["num_decode"] >= 1
    torch = pytest.importorskip("torch")
    assert report["torch"]["version"] == str(torch.__version__)
    assert (report["torch"]["nccl"] is None) == (torch.version.cuda is None)


@pytest.mark.multi_gpu
def test_the_driver_and_cuda_agree_on_gpus_and_peer_access() -> None:
    torch = pytest.importorskip("torch")
    report = survey_gpus(links=True)
    uuids = [f"GPU-{torch.cuda.get_device_properties(one).uuid}" for one in range(torch.cuda.device_count())]
    assert [one.uuid for one in report.gpus] == uuids
    for link in report.links:
        assert link.peer_access == torch.cuda.can_device_access_peer(link.first, link.second)


@pytest.mark.multi_gpu
def test_links_of_this_machine_are_measured() -> None:
    report = diagnose(measure_transfer)
    assert [pair.link for pair in report.pairs] == list(report.survey.links)
    for rate in report.pairs[0].gb_per_s.values():
        assert isinstance(rate, float), rate
        assert rate > 1
