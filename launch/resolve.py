"""What was left open on the command line, decided from the machine and the model. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .config import DeviceOptions, EngineOptions, TopologyOptions
from .gpus import Gpu
from .hardware import Hardware
from .limits import Device
from .option import split_indices

KV_SHARE = 4
"""The KV caches of all workers get one part in so many of the free memory; weights and buffers need the rest."""
GPU_TRANSPORTS = ("cuda_ipc", "nccl")
"""Ways of --kv-transport that lead from GPU to GPU."""
CONFIG_ERROR_CODE = 2
"""What a process exits with after a ConfigError, as argparse does."""


class ConfigError(ValueError):
    """What was asked for cannot work; the message is a sentence for the user."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    max_model_len: int
    """Tokens the model was trained for."""
    kv_bytes_per_token: int
    """Over all layers; the largest that the chosen dtype can mean."""


@dataclass(frozen=True, slots=True)
class Resolved:
    device: Device
    num_prefill: int
    num_decode: int
    num_threads: int
    """Of each worker."""
    kv_cache_memory_bytes: int
    """Of each worker, on the CPU."""
    reason: str
    """Why there are as many workers as there are, for the user."""
    gpus: tuple[Gpu, ...] = ()
    """For the workers; none on the CPU."""


def resolve(topology: TopologyOptions, engine: EngineOptions, options: DeviceOptions, hardware: Hardware) -> Resolved:
    """Workers by `num_workers`; the cores, and on the CPU the memory for KV, are divided between them.

    Raises ConfigError for what this machine cannot do.
    """
    device = choose_device(engine, options, hardware)
    refuse_on_cpu(device, {"--gpus": topology.gpus is not None})
    gpus = choose_gpus(topology.gpus, hardware.gpus) if device == "cuda" else ()
    prefill, decode = num_workers(topology, len(gpus))
    return Resolved(
        device,
        prefill,
        decode,
        max(1, hardware.num_cores // (prefill + decode)),
        kv_cache_memory(engine, hardware, prefill + decode),
        reason(topology, len(gpus)),
        gpus,
    )


def choose_device(engine: EngineOptions, options: DeviceOptions, hardware: Hardware) -> Device:
    """Raises ConfigError if there is no such device, or something was asked for that it cannot do."""
    if engine.engine == "fake" and options.device == "cuda":
        raise ConfigError("--engine fake computes nothing: --device cuda does not go with it")
    if options.device == "cuda" and not hardware.gpus:
        raise ConfigError(f"--device cuda: there is no GPU to use ({hardware.why_no_gpu})")
    on_gpu = options.device != "cpu" and engine.engine != "fake" and bool(hardware.gpus)
    device: Device = "cuda" if on_gpu else "cpu"
    asked = {f"--kv-cache-dtype {options.kv_cache_dtype}": options.kv_cache_dtype != "auto"}
    refuse_on_cpu(device, asked | {"--dtype float16": engine.dtype == "float16"})
    return device


def refuse_on_cpu(device: Device, asked: Mapping[str, bool]) -> None:
    """Raises ConfigError, on the CPU, for the first of these that was asked for."""
    for what, given in asked.items():
        if given and device == "cpu":
            raise ConfigError(f"{what} needs workers that compute on GPUs, and these compute on the CPU")


def choose_gpus(listed: str | None, gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Those of `gpus` that `--gpus` lists. Raises ConfigError if one is not there."""
    if listed is None:
        return tuple(gpus)
    by_index = {gpu.index: gpu for gpu in gpus}
    for index in split_indices(listed):
        if index not in by_index:
            raise ConfigError(f"there is no GPU {index} to use, only {', '.join(map(str, by_index))}")
    return tuple(by_index[index] for index in split_indices(listed))


def num_workers(topology: TopologyOptions, num_gpus: int) -> tuple[int, int]:
    """Prefill and decode workers. A number that was given stays as it is; without one:

    no GPU     one of each, so that a long prompt does not stall the answers that are being written
    one GPU    no prefill worker: two workers would share the GPU, and each hold the weights
    N GPUs     a worker on each, half of them for prefill; an odd one is for decode. If one number was given, the other
               role gets the GPUs that are left. There is always one decode worker.
    """
    prefill, decode = topology.prefill, topology.decode
    if num_gpus == 0:
        return 1 if prefill is None else prefill, 1 if decode is None else decode
    if prefill is None:
        prefill = num_gpus // 2 if decode is None else max(0, num_gpus - decode)
    if decode is None:
        decode = max(1, num_gpus - prefill)
    return prefill, decode


def reason(topology: TopologyOptions, num_gpus: int) -> str:
    """The rule of `num_workers` that applied, in a few words."""
    given = [
        flag for flag, number in (("--prefill", topology.prefill), ("--decode", topology.decode)) if number is not None
    ]
    match num_gpus:
        case 0:
            rule = "one of each on CPUs"
        case 1:
            rule = "no prefill worker on a single GPU"
        case _:
            rule = f"{num_gpus} GPUs, split between prefill and decode"
    if len(given) == 2:
        return "as given"
    return f"{given[0]} as given; default: {rule}" if given else f"default: {rule}"


def kv_cache_memory(engine: EngineOptions, hardware: Hardware, num_workers: int) -> int:
    """Bytes for one worker's KV cache: what was asked for, else its part of a quarter of the free memory."""
    if engine.kv_cache_memory_bytes is not None:
        return engine.kv_cache_memory_bytes
    return hardware.free_memory_bytes // KV_SHARE // num_workers


def max_model_len(wanted: int | None, model: ModelFacts, engine: EngineOptions, kv_memory_bytes: int) -> int:
    """Longest request in tokens: what was asked for, else the model's own, cut to what the KV cache can hold.

    Raises ConfigError if what was asked for does not fit.
    """
    check_model_len(wanted, model)
    if engine.num_blocks is not None:
        room = engine.num_blocks * engine.block_size
    else:
        room = max(0, kv_memory_bytes) // (model.kv_bytes_per_token * engine.block_size) * engine.block_size
    if wanted is not None and wanted > room:
        raise ConfigError(
            f"--max-model-len {wanted} does not fit: the KV cache of a worker holds {room} tokens; "
            "lower it, or give --kv-cache-memory or --num-blocks more"
        )
    if room < 2 * engine.block_size:
        raise ConfigError(f"the KV cache of a worker holds only {room} tokens: give --kv-cache-memory more")
    return wanted or min(model.max_model_len, room)


def check_model_len(wanted: int | None, model: ModelFacts) -> None:
    """Raises ConfigError if that is longer than what the model can do."""
    if wanted is not None and wanted > model.max_model_len:
        raise ConfigError(f"--max-model-len {wanted} is more than the model's {model.max_model_len}")


def num_blocks(
    engine: EngineOptions, max_num_seqs: int, max_model_len: int, bytes_per_block: int, kv_memory_bytes: int
) -> int:
    """KV blocks of a worker on the CPU: what was asked for, else what fits, and no more than `max_num_seqs`
    full-length sequences can use."""
    if engine.num_blocks is not None:
        return engine.num_blocks
    useful = max_num_seqs * -(-max_model_len // engine.block_size)
    return min(useful, kv_memory_bytes // bytes_per_block)
