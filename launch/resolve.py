"""What was left open on the command line, decided from the machine and the model. Pure."""

from dataclasses import dataclass

from .config import EngineOptions, TopologyOptions
from .hardware import Hardware

KV_SHARE = 4
"""The KV caches of all workers get one part in so many of the free memory; weights and buffers need the rest."""


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
    num_prefill: int
    num_decode: int
    num_threads: int
    """Of each worker."""
    kv_cache_memory_bytes: int
    """Of each worker."""
    reason: str
    """Why there are as many workers as there are, for the user."""


def resolve(topology: TopologyOptions, engine: EngineOptions, hardware: Hardware) -> Resolved:
    """Workers by `num_workers`; the cores and the memory for KV are divided between them."""
    prefill, decode = num_workers(topology, hardware.num_gpus)
    return Resolved(
        prefill,
        decode,
        max(1, hardware.num_cores // (prefill + decode)),
        kv_cache_memory(engine, hardware, prefill + decode),
        reason(topology, hardware.num_gpus),
    )


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
    if engine.num_blocks is not None:
        room = engine.num_blocks * engine.block_size
    else:
        room = kv_memory_bytes // (model.kv_bytes_per_token * engine.block_size) * engine.block_size
    if wanted is not None and wanted > model.max_model_len:
        raise ConfigError(f"--max-model-len {wanted} is more than the model's {model.max_model_len}")
    if wanted is not None and wanted > room:
        raise ConfigError(
            f"--max-model-len {wanted} does not fit: the KV cache of a worker holds {room} tokens; "
            "lower it, or give --kv-cache-memory or --num-blocks more"
        )
    if room < 2 * engine.block_size:
        raise ConfigError(f"the KV cache of a worker holds only {room} tokens: give --kv-cache-memory more")
    return wanted or min(model.max_model_len, room)


def num_blocks(engine: EngineOptions, max_model_len: int, bytes_per_block: int, kv_memory_bytes: int) -> int:
    """KV blocks of a worker: what was asked for, else what fits, and no more than `max_num_seqs` full-length
    sequences can use."""
    if engine.num_blocks is not None:
        return engine.num_blocks
    useful = engine.max_num_seqs * -(-max_model_len // engine.block_size)
    return min(useful, kv_memory_bytes // bytes_per_block)
