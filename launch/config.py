"""What each process can be told. Options are small frozen dataclasses; `arguments` builds the command line from them.

A field's default is the flag's default, its metadata the help text. `None` means: decided by `resolve` or by the model.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

DEFAULT_PORT = 2242
DEFAULT_WORKER_ADDRESS = "tcp://127.0.0.1:2243"


def option(
    default: Any,
    help: str,
    *,
    flag: str | None = None,
    metavar: str | None = None,
    parse: Callable[[str], Any] | None = None,
    positional: bool = False,
) -> Any:
    """A field with what its flag needs. `parse` turns the given text into a value, or raises ValueError saying why."""
    metadata = {"help": help, "flag": flag, "metavar": metavar, "parse": parse, "positional": positional}
    return field(default=default, metadata=metadata)


def at_least(low: int, high: int | None = None) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if value < low:
            raise ValueError(f"must be at least {low}")
        if high is not None and value > high:
            raise ValueError(f"must be at most {high}")
        return value

    return parse


def seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError("must be a number of seconds, 0 or more")
    return value


_BYTE_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def num_bytes(text: str) -> int:
    """`4096`, `512M`, `1.5G`, `2GiB`: binary units."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError("must be a size such as 512M or 4G")
    return int(float(match[1]) * _BYTE_UNITS[match[2].upper()])


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """The model"""

    model: str | None = option(
        None,
        "a folder in Hugging Face layout, a .gguf file, or a hub id; left out: a small demo model, fetched once",
        metavar="MODEL",
        positional=True,
    )
    max_model_len: int | None = option(
        None,
        "longest prompt plus answer, in tokens; default: what the model was trained for",
        metavar="TOKENS",
        parse=at_least(2),
    )
    load_format: Literal["auto", "dummy"] = option(
        "auto", "auto reads the weights; dummy makes random ones, to measure speed without a download"
    )


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """The HTTP server"""

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 lets other machines in")
    port: int = option(DEFAULT_PORT, "TCP port; 0 picks a free one", parse=at_least(0, 65535))
    served_model_name: tuple[str, ...] = option(
        (), "names that requests may give as their model; default: MODEL", metavar="NAME"
    )
    chat_template: str | None = option(
        None, "jinja template for chats: a file, or the template itself; default: the model's", metavar="TEMPLATE"
    )
    max_waiting: int = option(1000, "answers that may wait in the queue; past it requests get a 503", parse=at_least(1))
    request_timeout_s: float = option(
        600.0, "a request that has no first token by then gets a 504; 0: never", metavar="SECONDS", parse=seconds
    )
    drain_timeout_s: float = option(
        10.0, "when told to end, wait this long for running answers", metavar="SECONDS", parse=seconds
    )


@dataclass(frozen=True, slots=True)
class RoutingOptions:
    """Routing"""

    worker_address: str | None = option(
        None,
        "ZeroMQ address at which workers reach the router. It has no password: leave it on the loopback interface, "
        "or on a network where you trust every machine. default: for `serve` a private socket, for `router` "
        + DEFAULT_WORKER_ADDRESS,
        metavar="ADDRESS",
    )
    local_prefill_max_tokens: int = option(
        64,
        "prompts of at most this many tokens may be computed by a decode worker itself, if that is faster",
        metavar="TOKENS",
        parse=at_least(0),
    )


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The engine"""

    engine: Literal["torch", "fake"] = option(
        "torch", "fake computes nothing and makes up tokens at a set speed: for testing all that is around an engine"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = option("auto", "type of weights and KV; auto: what is fast here")
    block_size: int = option(16, "tokens of a KV block; equal on all workers", metavar="TOKENS", parse=at_least(1))
    num_blocks: int | None = option(
        None, "KV blocks of each worker, instead of as many as fit into --kv-cache-memory", parse=at_least(2)
    )
    kv_cache_memory_bytes: int | None = option(
        None,
        "memory for the KV cache of each worker, as in 512M or 4G; default: its part of a quarter of the free memory",
        flag="--kv-cache-memory",
        metavar="SIZE",
        parse=num_bytes,
    )
    max_num_seqs: int = option(32, "answers that are generated at the same time, on each worker", parse=at_least(1))
    max_num_batched_tokens: int = option(
        512, "tokens that one step computes at most: the size of a prompt's chunks", parse=at_least(1)
    )
    enable_prefix_caching: bool = option(True, "keep the KV of finished prompts, for those that begin alike")
    enable_chunked_prefill: bool = option(True, "always on: long prompts are computed in chunks, between decode steps")


@dataclass(frozen=True, slots=True)
class FakeEngineOptions:
    """The fake engine"""

    fake_step_s: float = option(
        0.0, "seconds that a step takes", flag="--fake-step-s", metavar="SECONDS", parse=seconds
    )
    fake_token_s: float = option(
        0.0, "seconds that a prompt token takes", flag="--fake-token-s", metavar="SECONDS", parse=seconds
    )


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """The worker's place"""

    router: str = option(DEFAULT_WORKER_ADDRESS, "the router's --worker-address", metavar="ADDRESS")
    name: str | None = option(
        None, "name in logs and metrics, different for each worker; default: role, host name and process id"
    )


@dataclass(frozen=True, slots=True)
class DataOptions:
    """KV transfer"""

    data_host: str = option(
        "127.0.0.1",
        "where prefill workers reach this host, to send it KV: its address, or the name of a network interface",
        metavar="HOST",
    )
    kv_transport: Literal["auto", "shm", "zmq"] = option(
        "auto", "how KV comes in: shm is shared memory of one host, zmq is TCP; auto: shm where it works, else zmq"
    )


@dataclass(frozen=True, slots=True)
class ProcessOptions:
    """The process"""

    log_level: Literal["debug", "info", "warning", "error"] = option("info", "what is worth a log line")


@dataclass(frozen=True, slots=True)
class TopologyOptions:
    """Processes"""

    prefill: int | None = option(
        None,
        "prefill workers; 0: the decode workers compute prompts too. default: 1 on CPUs, 0 on a single GPU, half of "
        "several GPUs. Workers of this version compute on the CPU, also where there are GPUs: so 1",
        metavar="N",
        parse=at_least(0),
    )
    decode: int | None = option(
        None,
        "decode workers. default: 1 on CPUs; on GPUs, one on each that prefill workers leave, and at least 1",
        metavar="M",
        parse=at_least(1),
    )
    restart: bool = option(True, "start a process again when it dies; --no-restart: the death of one ends all")


@dataclass(frozen=True, slots=True)
class ServeConfig:
    topology: TopologyOptions
    model: ModelOptions
    http: HttpOptions
    routing: RoutingOptions
    data: DataOptions
    engine: EngineOptions
    fake: FakeEngineOptions
    process: ProcessOptions


@dataclass(frozen=True, slots=True)
class RouterConfig:
    model: ModelOptions
    http: HttpOptions
    routing: RoutingOptions
    process: ProcessOptions


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    model: ModelOptions
    connection: ConnectionOptions
    engine: EngineOptions
    fake: FakeEngineOptions
    process: ProcessOptions


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    model: ModelOptions
    connection: ConnectionOptions
    data: DataOptions
    engine: EngineOptions
    fake: FakeEngineOptions
    process: ProcessOptions


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """The answers"""

    system: str | None = option(None, "system prompt", metavar="TEXT")
    temperature: float | None = option(None, "0 takes the likeliest token; default: the server's", parse=float)
    top_p: float | None = option(None, "smallest set of tokens with this probability", parse=float)
    min_p: float | None = option(None, "drop tokens less likely than this part of the likeliest", parse=float)
    max_tokens: int | None = option(None, "longest answer, in tokens", parse=at_least(1))
    seed: int | None = option(None, "same seed, same answers", parse=int)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """The server"""

    url: str = option(f"http://127.0.0.1:{DEFAULT_PORT}", "where it listens")
    model: str | None = option(None, "one of the server's model names; default: its first")


@dataclass(frozen=True, slots=True)
class ChatConfig:
    server: ServerOptions
    sampling: SamplingOptions
