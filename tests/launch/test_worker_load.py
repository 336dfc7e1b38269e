"""What a worker hands to the engine of its place; the engine on a GPU is a recorder."""

import logging
from dataclasses import replace
from typing import Any

import pytest
from isthmus.decode.sampler import Sampler
from isthmus.engine.cuda.load import Memory
from isthmus.engine.fake_engine import FakeEngine
from isthmus.engine.speculation_config import SpeculationConfig
from isthmus.launch import worker_load
from isthmus.launch.config import (
    ConnectionOptions,
    CurveOptions,
    DataOptions,
    DecodeConfig,
    DeviceOptions,
    EngineOptions,
    ExposureOptions,
    FakeEngineOptions,
    ModelOptions,
    PlaceOptions,
    ProcessOptions,
    SpeculationOptions,
)
from isthmus.launch.limits import StepLimits
from isthmus.launch.model import find_model
from isthmus.launch.resolve import ConfigError
from isthmus.launch.worker_load import Loader
from isthmus.launch.worker_place import WorkerPlace
from isthmus.tests.helpers import demo_model_path
from isthmus.tests.launch.fake_nvml import GIB, gpu
from isthmus.tests.minilm import minilm_path
from isthmus.text.phrases import Phrases

MODEL = str(demo_model_path())
LIMITS = StepLimits(256, 2048)
OFF = SpeculationConfig()
CONFIG = DecodeConfig(
    ModelOptions(),
    ConnectionOptions(),
    CurveOptions(),
    DataOptions(),
    ExposureOptions(),
    EngineOptions(),
    DeviceOptions(gpu_memory_utilization=0.8, kv_cache_dtype="fp8_e4m3", enforce_eager=True),
    SpeculationOptions(),
    PlaceOptions(3, 0.5),
    FakeEngineOptions(),
    ProcessOptions(),
)
ON_GPU = WorkerPlace("cuda", gpu(3), 32 * GIB)
ON_CPU = WorkerPlace("cpu", None, 0)


class CudaEngines:
    """Takes the place of `load_cuda_engine`."""

    def __init__(self, error: str = ""):
        self.error = error
        self.given: tuple[Any, ...] = ()
        self.options: dict[str, Any] = {}
        self.engine = FakeEngine(10, 16, 100)

    def __call__(self, *given: Any, **options: Any) -> tuple[FakeEngine, int]:
        if self.error:
            raise ValueError(self.error)
        self.given, self.options = given, options
        return self.engine, 4321


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> CudaEngines:
    made = CudaEngines()
    monkeypatch.setattr("isthmus.engine.cuda.load.load_cuda_engine", made)
    monkeypatch.setattr(worker_load, "free_bytes", lambda uuid: 79 * GIB)
    return made


def test_the_engine_on_a_gpu_gets_what_the_options_say(engines: CudaEngines) -> None:
    config = replace(CONFIG, model=ModelOptions(max_model_len=4096), engine=EngineOptions(num_blocks=99))
    loaded = Loader(config, ON_GPU, LIMITS, draws=True, speculation=OFF)(MODEL)
    assert (loaded.engine, loaded.max_model_len) == (engines.engine, 4321)
    assert (engines.given[0]["num_hidden_layers"], str(engines.given[1])) == (30, MODEL)
    phrases, sampler = engines.options.pop("phrases"), engines.options.pop("sampler")
    assert (type(phrases), type(sampler)) == (Phrases, Sampler)
    assert engines.options == {
        "device_index": 3,
        "dtype": "bfloat16",
        "load_format": "auto",
        "block_size": 16,
        "kv_cache_dtype": "fp8_e4m3",
        "memory": Memory(0.8, 0.5, 99, None),
        "max_num_seqs": 256,
        "max_num_batched_tokens": 2048,
        "max_model_len": 4096,
        "enforce_eager": True,
        "draws": True,
        "speculation": OFF,
        "draft": None,
    }


def test_workers_with_kv_of_one_type_are_alike_wherever_they_compute(engines: CudaEngines) -> None:
    model = find_model(ModelOptions(MODEL))
    config = replace(CONFIG, device=DeviceOptions())
    on_gpu = Loader(config, ON_GPU, LIMITS, draws=False, speculation=OFF)(MODEL).fingerprint
    assert on_gpu == model.fingerprint(16, "bfloat16", "torch")
    fp8 = Loader(CONFIG, ON_GPU, LIMITS, draws=False, speculation=OFF)(MODEL).fingerprint
    assert {group.dtype for group in fp8.layout} == {"fp8_e4m3"}
    assert fp8 != on_gpu


def test_what_the_engine_refuses_is_a_config_error(monkeypatch: pytest.MonkeyPatch, engines: CudaEngines) -> None:
    engines.error = "the KV cache holds only 5 tokens"
    with pytest.raises(ConfigError, match="the KV cache holds only 5 tokens"):
        Loader(CONFIG, ON_GPU, LIMITS, draws=True, speculation=OFF)(MODEL)
    with pytest.raises(ConfigError, match="--max-model-len 9000 is more than the model's 8192"):
        Loader(replace(CONFIG, model=ModelOptions(max_model_len=9000)), ON_GPU, LIMITS, draws=True, speculation=OFF)(
            MODEL
        )


@pytest.mark.parametrize(
    ("engine", "needed"),
    [
        (EngineOptions(), 32 * GIB),
        (EngineOptions(kv_cache_memory_bytes=5 * GIB), "5 GiB of KV"),
        (EngineOptions(num_blocks=100), "100 blocks of KV"),
    ],
)
def test_it_waits_for_the_memory_it_is_going_to_use(
    monkeypatch: pytest.MonkeyPatch, engines: CudaEngines, engine: EngineOptions, needed: Any
) -> None:
    model = find_model(ModelOptions(MODEL))
    kv_bytes = {"5 GiB of KV": 5 * GIB, "100 blocks of KV": 100 * 16 * 2 * 30 * 3 * 64}
    if isinstance(needed, str):
        needed = kv_bytes[needed] + model.footprint("bfloat16").of_worker(LIMITS)
    asked = []

    def enough(num_bytes: int, *_: Any, **__: Any) -> bool:
        asked.append(num_bytes)
        return True

    monkeypatch.setattr(worker_load, "wait_for_memory", enough)
    Loader(replace(CONFIG, engine=engine), ON_GPU, LIMITS, draws=True, speculation=OFF)(MODEL)
    assert asked == [needed]


def test_it_says_that_it_waits_and_loads_all_the_same(
    monkeypatch: pytest.MonkeyPatch, engines: CudaEngines, caplog: pytest.LogCaptureFixture
) -> None:
    def never(needed: int, free: Any, *, on_wait: Any) -> bool:
        on_wait(free())
        return False

    monkeypatch.setattr(worker_load, "wait_for_memory", never)
    with caplog.at_level(logging.INFO):
        Loader(CONFIG, ON_GPU, LIMITS, draws=True, speculation=OFF)(MODEL)
    assert engines.options
    assert "waiting for memory of GPU 3: 79.0 GiB is free, 32.0 GiB needed" in caplog.text
    assert "GPU 3 still has less than 32.0 GiB free: other processes use it" in caplog.text


def test_the_fake_engine_has_the_limits_blocks(engines: CudaEngines) -> None:
    config = replace(CONFIG, engine=EngineOptions("fake"), model=ModelOptions(max_model_len=64), device=DeviceOptions())
    loaded = Loader(config, ON_CPU, StepLimits(4, 512), draws=True, speculation=OFF)(MODEL)
    assert isinstance(loaded.engine, FakeEngine)
    assert (loaded.engine.num_blocks, loaded.max_model_len) == (4 * 4, 64)
    assert not engines.options


@pytest.mark.parametrize("place", [ON_GPU, ON_CPU], ids=["gpu", "cpu"])
def test_layers_that_guess_must_be_fewer_than_the_models(engines: CudaEngines, place: WorkerPlace) -> None:
    asked = SpeculationConfig("first-layers", num_layers=30)
    with pytest.raises(ConfigError, match="--speculative-layers 30: must be fewer than the model's 30 layers"):
        Loader(CONFIG, place, LIMITS, draws=True, speculation=asked)(MODEL)
    assert not engines.options, "told before anything is loaded"


def test_no_decode_worker_for_an_encoder(engines: CudaEngines) -> None:
    with pytest.raises(ConfigError, match="is an encoder: only prefill workers can serve it"):
        Loader(CONFIG, ON_CPU, LIMITS, draws=True, speculation=OFF)(str(minilm_path()))
