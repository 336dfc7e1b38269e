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


def resolve(topology: TopologyOptions, engine: EngineOptions, hardware: Hardware) -> Resolved:
    """On CPUs: one prefill and one decode worker unless told otherwise, the cores divided between all workers."""
    num_prefill = 1 if topology.prefill is None else topology.prefill
    num_decode = 1 if topology.decode is None else topology.decode
    num_workers = num_prefill + num_decode
    return Resolved(
        num_prefill,
        num_decode,
        max(1, hardware.num_cores // num_workers),
        kv_cache_memory(engine, hardware, num_workers),
    )


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
