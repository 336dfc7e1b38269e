import pytest
from isthmus.launch.config import DeviceOptions, EngineOptions, TopologyOptions
from isthmus.launch.hardware import Hardware
from isthmus.launch.resolve import (
    ConfigError,
    ModelFacts,
    Resolved,
    choose_device,
    max_model_len,
    num_blocks,
    refuse_on_cpu,
    resolve,
)
from isthmus.tests.launch.fake_nvml import GIB, gpu

AUTO = DeviceOptions()
NO_GPU = Hardware(8, 16 * GIB, (), "no NVIDIA driver")


def machine(num_gpus: int) -> Hardware:
    return Hardware(8, 16 * GIB, tuple(gpu(index) for index in range(num_gpus)))


@pytest.mark.parametrize(
    ("prefill", "decode", "cores", "expected"),
    [
        (None, None, 2, (1, 1, 1)),
        (None, None, 1, (1, 1, 1)),
        (None, None, 9, (1, 1, 4)),
        (0, None, 8, (0, 1, 8)),
        (0, 3, 8, (0, 3, 2)),
        (2, None, 8, (2, 1, 2)),
        (None, 3, 8, (1, 3, 2)),
        (4, 4, 2, (4, 4, 1)),
    ],
)
def test_cores_are_divided_between_the_workers(
    prefill: int | None, decode: int | None, cores: int, expected: tuple[int, int, int]
) -> None:
    topology = TopologyOptions(prefill=prefill, decode=decode)
    resolved = resolve(topology, EngineOptions(), AUTO, Hardware(cores, 16 * GIB))
    assert (resolved.num_prefill, resolved.num_decode, resolved.num_threads) == expected


@pytest.mark.parametrize(
    ("gpus", "prefill", "decode", "expected", "why"),
    [
        (0, None, None, (1, 1), "default: one of each on CPUs"),
        (0, 0, None, (0, 1), "--prefill as given; default: one of each on CPUs"),
        (0, None, 3, (1, 3), "--decode as given; default: one of each on CPUs"),
        (0, 4, 5, (4, 5), "as given"),
        (1, None, None, (0, 1), "default: no prefill worker on a single GPU"),
        (1, 1, None, (1, 1), "--prefill as given; default: no prefill worker on a single GPU"),
        (1, None, 1, (0, 1), "--decode as given; default: no prefill worker on a single GPU"),
        (1, None, 2, (0, 2), "--decode as given; default: no prefill worker on a single GPU"),
        (1, 1, 1, (1, 1), "as given"),
        (2, None, None, (1, 1), "default: 2 GPUs, split between prefill and decode"),
        (3, None, None, (1, 2), "default: 3 GPUs, split between prefill and decode"),
        (8, None, None, (4, 4), "default: 8 GPUs, split between prefill and decode"),
        (8, 0, None, (0, 8), "--prefill as given; default: 8 GPUs, split between prefill and decode"),
        (8, 2, None, (2, 6), "--prefill as given; default: 8 GPUs, split between prefill and decode"),
        (8, None, 7, (1, 7), "--decode as given; default: 8 GPUs, split between prefill and decode"),
        (8, 9, None, (9, 1), "--prefill as given; default: 8 GPUs, split between prefill and decode"),
        (8, None, 9, (0, 9), "--decode as given; default: 8 GPUs, split between prefill and decode"),
        (8, 1, 1, (1, 1), "as given"),
    ],
)
def test_gpus_decide_what_was_not_given(
    gpus: int, prefill: int | None, decode: int | None, expected: tuple[int, int], why: str
) -> None:
    resolved = resolve(TopologyOptions(prefill, decode), EngineOptions(), AUTO, machine(gpus))
    assert (resolved.num_prefill, resolved.num_decode) == expected
    assert resolved.reason == why


def test_kv_caches_share_a_quarter_of_the_free_memory_unless_told_otherwise() -> None:
    assert resolve(TopologyOptions(), EngineOptions(), AUTO, NO_GPU) == Resolved(
        "cpu", 1, 1, 4, 2 * GIB, "default: one of each on CPUs"
    )
    given = EngineOptions(kv_cache_memory_bytes=7 * GIB)
    assert resolve(TopologyOptions(), given, AUTO, NO_GPU).kv_cache_memory_bytes == 7 * GIB


def test_gpus_are_used_where_there_are_some() -> None:
    found = resolve(TopologyOptions(), EngineOptions(), AUTO, machine(2))
    assert (found.device, [one.index for one in found.gpus]) == ("cuda", [0, 1])
    found = resolve(TopologyOptions(), EngineOptions(), DeviceOptions(device="cpu"), machine(2))
    assert (found.device, found.gpus, found.reason) == ("cpu", (), "default: one of each on CPUs")


def test_the_fake_engine_needs_no_gpu() -> None:
    found = resolve(TopologyOptions(), EngineOptions("fake"), AUTO, machine(2))
    assert (found.device, found.num_prefill, found.num_decode) == ("cpu", 1, 1)


def test_listed_gpus_alone_are_used_in_the_order_given() -> None:
    found = resolve(TopologyOptions(gpus="3, 1"), EngineOptions(), AUTO, machine(4))
    assert ([one.index for one in found.gpus], found.reason) == (
        [3, 1],
        "default: 2 GPUs, split between prefill and decode",
    )
    assert resolve(TopologyOptions(gpus="2"), EngineOptions(), AUTO, machine(4)).num_prefill == 0


@pytest.mark.parametrize(
    ("topology", "engine", "options", "hardware", "said"),
    [
        ({}, {}, {"device": "cuda"}, NO_GPU, "--device cuda: there is no GPU to use (no NVIDIA driver)"),
        ({}, {"engine": "fake"}, {"device": "cuda"}, machine(1), "--engine fake computes nothing"),
        ({"gpus": "0"}, {}, {}, NO_GPU, "--gpus needs workers that compute on GPUs"),
        ({"gpus": "0,2"}, {}, {}, machine(2), "there is no GPU 2 to use, only 0, 1"),
        ({}, {"dtype": "float16"}, {}, NO_GPU, "--dtype float16 needs workers that compute on GPUs"),
        ({}, {}, {"kv_cache_dtype": "fp8_e5m2"}, NO_GPU, "--kv-cache-dtype fp8_e5m2 needs workers that"),
        ({}, {}, {"kv_cache_dtype": "fp8_e4m3", "device": "cpu"}, machine(1), "--kv-cache-dtype fp8_e4m3 needs"),
    ],
)
def test_what_this_machine_cannot_do_is_refused(
    topology: dict, engine: dict, options: dict, hardware: Hardware, said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        resolve(TopologyOptions(**topology), EngineOptions(**engine), DeviceOptions(**options), hardware)
    assert said in str(refused.value)


def test_what_needs_a_gpu_is_not_refused_on_one() -> None:
    options = DeviceOptions(kv_cache_dtype="fp8_e4m3")
    assert choose_device(EngineOptions(dtype="float16"), options, machine(1)) == "cuda"
    refuse_on_cpu("cuda", {"--kv-transport nccl": True})
    refuse_on_cpu("cpu", {"--kv-transport nccl": False})


MODEL = ModelFacts(max_model_len=8192, kv_bytes_per_token=1000)


@pytest.mark.parametrize(
    ("wanted", "memory", "blocks", "length"),
    [
        (None, 10_000_000, None, 8192),
        (None, 1_000_000, None, 992),  # 62 blocks of 16
        (500, 1_000_000, None, 500),
        (None, 1_000_000, 100, 1600),
        (1600, 0, 100, 1600),
    ],
)
def test_requests_are_as_long_as_model_and_memory_allow(
    wanted: int | None, memory: int, blocks: int | None, length: int
) -> None:
    assert max_model_len(wanted, MODEL, EngineOptions(num_blocks=blocks), memory) == length


@pytest.mark.parametrize(
    ("wanted", "memory", "said"),
    [
        (993, 1_000_000, "--max-model-len 993 does not fit: the KV cache of a worker holds 992 tokens"),
        (8193, 10_000_000, "--max-model-len 8193 is more than the model's 8192"),
        (None, 20_000, "holds only 16 tokens"),
    ],
)
def test_what_cannot_fit_is_refused(wanted: int | None, memory: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        max_model_len(wanted, MODEL, EngineOptions(), memory)


@pytest.mark.parametrize(
    ("options", "memory", "expected"),
    [
        (EngineOptions(), 10**9, 4 * 64),  # no more than can be used
        (EngineOptions(), 1_600_000, 100),
        (EngineOptions(num_blocks=5), 10**9, 5),
    ],
)
def test_blocks_fill_the_memory_but_no_more_than_is_useful(options: EngineOptions, memory: int, expected: int) -> None:
    found = num_blocks(options, 4, max_model_len=1009, bytes_per_block=16_000, kv_memory_bytes=memory)
    assert found == expected
