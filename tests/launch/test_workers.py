import pytest
from isthmus.launch.config import DeviceOptions, EngineOptions, PlaceOptions, TopologyOptions
from isthmus.launch.gpu_memory import FIXED_BYTES, Footprint
from isthmus.launch.hardware import Hardware
from isthmus.launch.limits import StepLimits
from isthmus.launch.resolve import ConfigError, resolve
from isthmus.launch.workers import WorkerPlan, plan_workers
from isthmus.tests.launch.fake_nvml import GIB, gpu

SMALL = Footprint(weight_bytes=GIB, bytes_per_batched_token=0, bytes_per_seq=0)
MOST_OF_AN_80_GB_CARD = Footprint(weight_bytes=35 * GIB, bytes_per_batched_token=0, bytes_per_seq=0)


def plan(
    num_gpus: int, prefill: int | None, decode: int | None, footprint: Footprint = SMALL, **engine: int
) -> list[WorkerPlan]:
    hardware = Hardware(8, 16 * GIB, tuple(gpu(index) for index in range(num_gpus)))
    options = EngineOptions(**engine)
    resolved = resolve(TopologyOptions(prefill, decode), options, DeviceOptions(), hardware)
    return plan_workers(resolved, options, footprint, 0.9)


def places(plans: list[WorkerPlan]) -> dict[str, int | None]:
    return {one.name: one.place.gpu for one in plans}


@pytest.mark.parametrize(
    ("num_gpus", "prefill", "decode", "expected"),
    [
        (1, None, None, {"decode-0": 0}),
        (1, 1, 1, {"prefill-0": 0, "decode-0": 0}),
        (2, 1, 1, {"prefill-0": 0, "decode-0": 1}),
        (2, None, None, {"prefill-0": 0, "decode-0": 1}),
        (2, 2, 2, {"prefill-0": 0, "prefill-1": 1, "decode-0": 0, "decode-1": 1}),
        (2, 1, 2, {"prefill-0": 0, "decode-0": 1, "decode-1": 0}),
        (3, 2, 2, {"prefill-0": 0, "prefill-1": 1, "decode-0": 2, "decode-1": 0}),
        (4, 1, 1, {"prefill-0": 0, "decode-0": 1}),
        (3, None, None, {"prefill-0": 0, "decode-0": 1, "decode-1": 2}),
        (2, 0, 3, {"decode-0": 0, "decode-1": 1, "decode-2": 0}),
    ],
)
def test_every_worker_has_a_gpu_and_shares_it_only_if_it_must(
    num_gpus: int, prefill: int | None, decode: int | None, expected: dict[str, int]
) -> None:
    assert places(plan(num_gpus, prefill, decode)) == expected


def test_a_worker_alone_may_use_all_that_is_allowed() -> None:
    (prefill, decode) = plan(2, 1, 1)
    budget = int(80 * GIB * 0.9)
    for one in (prefill, decode):
        assert (one.gpu_memory_bytes, one.place.gpu_memory_share) == (budget, 1.0)
        assert one.kv_bytes == budget - GIB - FIXED_BYTES
    assert (prefill.limits, decode.limits) == (StepLimits(256, 8192), StepLimits(256, 2048))


def test_on_a_shared_gpu_decode_gets_twice_the_kv_of_prefill() -> None:
    prefill, decode = plan(1, 1, 1)
    rest = int(80 * GIB * 0.9) - 2 * (GIB + FIXED_BYTES)
    assert prefill.kv_bytes == pytest.approx(rest / 3, rel=1e-3)
    assert decode.kv_bytes == pytest.approx(rest * 2 / 3, rel=1e-3)
    assert prefill.gpu_memory_share + decode.gpu_memory_share == pytest.approx(1.0, abs=2e-4)
    assert prefill.gpu_memory_bytes + decode.gpu_memory_bytes <= int(80 * GIB * 0.9)


def test_two_copies_that_do_not_fit_are_refused_and_one_copy_is_not() -> None:
    with pytest.raises(ConfigError, match=r"2 workers do not fit one GPU.* on one GPU, --prefill 0 holds"):
        plan(1, 1, 1, MOST_OF_AN_80_GB_CARD)
    assert places(plan(1, 0, 1, MOST_OF_AN_80_GB_CARD)) == {"decode-0": 0}
    assert places(plan(2, 1, 1, MOST_OF_AN_80_GB_CARD)) == {"prefill-0": 0, "decode-0": 1}


def test_a_kv_cache_is_as_large_as_it_was_asked_for() -> None:
    assert [one.kv_bytes for one in plan(1, 1, 1, kv_cache_memory_bytes=GIB)] == [GIB, GIB]


def test_on_the_cpu_there_is_no_place() -> None:
    plans = plan(0, 1, 2)
    assert [one.name for one in plans] == ["prefill-0", "decode-0", "decode-1"]
    assert {one.place for one in plans} == {PlaceOptions()}
    assert {one.limits for one in plans} == {StepLimits(32, 512)}
    assert {one.kv_bytes for one in plans} == {16 * GIB // 4 // 3}


def test_a_plan_says_where_and_how_much() -> None:
    assert [str(one) for one in plan(2, 1, 1)] == [
        "prefill-0 on GPU 0 (NVIDIA H100 80GB HBM3), 72.0 GiB: steps of at most 8192 tokens, 256 answers at a time",
        "decode-0 on GPU 1 (NVIDIA H100 80GB HBM3), 72.0 GiB: steps of at most 2048 tokens, 256 answers at a time",
    ]
    assert [str(one) for one in plan(0, 0, 1)] == [
        "decode-0 on the CPU, 8 threads: steps of at most 512 tokens, 32 answers at a time"
    ]
