"""What each process can be told. Options are small frozen dataclasses; `arguments` builds the command line from them.

A field's default is the flag's default, its metadata the help text. `None` means: decided by `resolve` or by the model.
"""

from dataclasses import dataclass
from typing import Literal

from ..text.reasoning import STYLES
from ..text.tool_calls.formats import FORMATS
from ..wire.sampling import MAX_SPECULATIVE_TOKENS
from .option import (
    at_least,
    fraction,
    indices,
    metrics_prefix,
    nonempty,
    nonempty_list,
    num_bytes,
    one_of,
    option,
    origins,
    seconds,
    some_bytes,
    traces_url,
)

DEFAULT_PORT = 2242
DEFAULT_WORKER_ADDRESS = "tcp://127.0.0.1:2243"


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
        (), "names that requests may give as their model; default: MODEL", metavar="NAME", parse=nonempty
    )
    chat_template: str | None = option(
        None, "jinja template for chats: a file, or the template itself; default: the model's", metavar="TEMPLATE"
    )
    max_logprobs: int = option(
        20, "likeliest tokens that a request may ask to see at each position", metavar="NUM", parse=at_least(0, 32)
    )
    max_waiting: int = option(1000, "answers that may wait in the queue; past it requests get a 503", parse=at_least(1))
    request_timeout_s: float = option(
        600.0, "a request that has no first token by then gets a 504; 0: never", metavar="SECONDS", parse=seconds
    )
    drain_timeout_s: float = option(
        10.0, "when told to end, wait this long for running answers", metavar="SECONDS", parse=seconds
    )
    max_body_bytes: int = option(
        32 << 20,
        "largest body of a request, as in 32M; larger ones get a 413. default: 32M",
        flag="--max-body-size",
        metavar="SIZE",
        parse=some_bytes,
    )
    kobold_lite: str | None = option(
        None, "your copy of Kobold Lite, for the page at /: its index.html, or the folder it is in", metavar="PATH"
    )
    tool_call_parser: str = option(
        "auto",
        "how the model writes calls of tools; auto tells it by the chat template, and takes hermes for one "
        "without tools. Others: none, " + ", ".join(FORMATS),
        metavar="NAME",
        parse=one_of("auto", "none", *FORMATS),
    )
    reasoning_parser: str = option(
        "auto",
        "how it marks what it thinks before it answers; auto tells it by the chat template. Others: none, "
        + ", ".join(STYLES),
        metavar="NAME",
        parse=one_of("auto", "none", *STYLES),
    )
    pooling: Literal["auto", "last", "mean", "cls"] = option(
        "auto",
        "what an embedding is made of: the last token's state, the mean over all tokens, or the first token's (cls); "
        "auto does as the model's folder says, and takes last where it says nothing",
    )


@dataclass(frozen=True, slots=True)
class AccessOptions:
    """Who may use it"""

    api_keys: tuple[str, ...] = option(
        (),
        "keys, separated by spaces or commas, of which every request must show one, as Authorization: Bearer KEY or "
        "X-API-Key: KEY. Others on this host can read them here: ISTHMUS_API_KEYS in the environment and "
        "--api-keys-file keep them to yourself. default: no key is needed",
        metavar="KEY",
        parse=nonempty_list,
    )
    api_keys_file: str | None = option(
        None,
        "more keys, one a line: KEY name=alice max-requests-per-minute=60 max-concurrent-requests=4 admin, all but KEY "
        "as you like. Read again when it changes",
        metavar="PATH",
        parse=nonempty,
    )
    admin_key: str | None = option(
        None,
        "key of the routes below /admin, and of all others; also ISTHMUS_ADMIN_KEY",
        metavar="KEY",
        parse=nonempty,
    )
    max_requests_per_minute: int = option(
        0, "of each key; past it requests get a 429. 0: no limit", metavar="NUM", parse=at_least(0)
    )
    max_concurrent_requests: int = option(
        0,
        "that are answered at a time, of each key; past it requests get a 429. 0: no limit",
        metavar="NUM",
        parse=at_least(0),
    )
    open_metrics: bool = option(False, "no key for /metrics, which shows names of keys and what each has used")


@dataclass(frozen=True, slots=True)
class CorsOptions:
    """Pages of other sites, in browsers"""

    allowed_origins: tuple[str, ...] = option(
        ("*",),
        "sites whose pages may use the server, as in https://lite.koboldai.net; '' is none. default: *, any",
        metavar="ORIGIN",
        parse=origins,
    )
    allowed_methods: tuple[str, ...] = option(("*",), "HTTP methods they may use. default: *, any", metavar="METHOD")
    allowed_headers: tuple[str, ...] = option(("*",), "headers they may send. default: *, any", metavar="HEADER")
    allow_credentials: bool = option(False, "they may send cookies and client certificates; needs --allowed-origins")


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """HTTPS"""

    ssl_keyfile: str | None = option(None, "the certificate's key, PEM; default: in --ssl-certfile", metavar="PATH")
    ssl_certfile: str | None = option(None, "the server's certificate, PEM with its chain", metavar="PATH")
    ssl_ca_certs: str | None = option(None, "who signs clients' certificates, PEM", metavar="PATH")
    ssl_cert_reqs: int = option(
        0,
        "clients' certificates: 0 none is asked for, 1 one that is shown must be good, 2 all need one",
        metavar="NUM",
        parse=at_least(0, 2),
    )
    ssl_keyfile_password: str | None = option(
        None,
        "the key's passphrase, if it has one. Others on this host can read it here: better "
        "ISTHMUS_SSL_KEYFILE_PASSWORD in the environment",
        metavar="TEXT",
    )


@dataclass(frozen=True, slots=True)
class TelemetryOptions:
    """Metrics and traces"""

    metrics_prefix: str = option(
        "isthmus",
        "what names in /metrics begin with, before a colon: vllm makes them those of dashboards for vLLM",
        metavar="NAME",
        parse=metrics_prefix,
    )
    otlp_traces_endpoint: str | None = option(
        None,
        "where a collector takes OpenTelemetry's traces over HTTP, as in http://127.0.0.1:4318/v1/traces; needs "
        "isthmus[tracing]. default: no traces",
        metavar="URL",
        parse=traces_url,
    )


@dataclass(frozen=True, slots=True)
class CurveOptions:
    """Keys between processes"""

    zmq_keys: str | None = option(
        None,
        "folder of keys made by `isthmus keys`: router and workers prove to each other that they have theirs, and what "
        "they send over ZeroMQ is encrypted",
        metavar="DIR",
    )


@dataclass(frozen=True, slots=True)
class ExposureOptions:
    """Without keys between processes"""

    insecure_zmq: bool = option(
        False, "other machines may connect without --zmq-keys: you trust every machine on that network"
    )


@dataclass(frozen=True, slots=True)
class RoutingOptions:
    """Routing"""

    worker_address: str | None = option(
        None,
        "ZeroMQ address at which workers reach the router; with --zmq-keys other machines may. default: for `serve` a "
        "private socket, for `router` " + DEFAULT_WORKER_ADDRESS,
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
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "type of weights and KV; auto: what is fast here, on a GPU the checkpoint's; float16 needs a GPU"
    )
    block_size: int = option(16, "tokens of a KV block; equal on all workers", metavar="TOKENS", parse=at_least(1))
    num_blocks: int | None = option(
        None, "KV blocks of each worker, instead of as many as fit into --kv-cache-memory", parse=at_least(2)
    )
    kv_cache_memory_bytes: int | None = option(
        None,
        "memory for the KV cache of each worker, as in 512M or 4G; default: its part of a quarter of the free memory, "
        "on a GPU what --gpu-memory-utilization leaves",
        flag="--kv-cache-memory",
        metavar="SIZE",
        parse=num_bytes,
    )
    max_num_seqs: int | None = option(
        None,
        "answers that are generated at the same time, on each worker; default: 32 on a CPU, 256 on a GPU",
        parse=at_least(1),
    )
    max_num_batched_tokens: int | None = option(
        None,
        "tokens that one step computes at most: the size of a prompt's chunks; default: 512 on a CPU, on a GPU 8192 "
        "for prefill and 2048 for decode workers",
        parse=at_least(1),
    )
    enable_prefix_caching: bool = option(True, "keep the KV of finished prompts, for those that begin alike")
    enable_chunked_prefill: bool = option(True, "always on: long prompts are computed in chunks, between decode steps")


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """What it runs on"""

    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", "auto: cuda where there is a GPU of compute capability 8.0 or more, and torch can use it"
    )
    gpu_memory_utilization: float = option(
        0.9,
        "part of a GPU's memory that its workers use, for weights, KV and computing together",
        metavar="PART",
        parse=fraction,
    )
    kv_cache_dtype: Literal["auto", "fp8_e4m3", "fp8_e5m2"] = option(
        "auto",
        "type of the KV on GPUs; auto: that of --dtype; with fp8 twice as much fits, and answers differ slightly",
    )
    enforce_eager: bool = option(False, "no CUDA graphs: starts sooner, generates more slowly")


@dataclass(frozen=True, slots=True)
class SpeculationOptions:
    """Speculation: tokens are guessed and then checked by the model at once, so that the same answers come sooner"""

    speculative_method: Literal["off", "ngram", "first-layers", "draft", "eagle"] | None = option(
        None,
        "who guesses. ngram: what followed the same tokens before; first-layers: the model's own first layers; draft: "
        "a smaller model with the same tokenizer; eagle: a head trained for the model. default: off, or "
        "draft where --speculative-model is given",
    )
    speculative_model: str | None = option(
        None, "the smaller model or the head: a folder, a .gguf file (draft only), or a hub id", metavar="MODEL"
    )
    num_speculative_tokens: int | None = option(
        None,
        "tokens guessed at once for an answer, at most: fewer where guesses turn out wrong. default: 4",
        metavar="TOKENS",
        parse=at_least(1, MAX_SPECULATIVE_TOKENS),
    )
    speculative_layers: int | None = option(
        None,
        "layers that guess, with --speculative-method first-layers. default: a third of the model's",
        metavar="N",
        parse=at_least(1),
    )


@dataclass(frozen=True, slots=True)
class PlaceOptions:
    """The worker's GPU"""

    gpu: int | None = option(
        None, "CUDA index of its GPU, in PCI order; default: the first that can be used", parse=at_least(0)
    )
    gpu_memory_share: float = option(
        1.0,
        "this worker's part of what --gpu-memory-utilization allows, where several share a GPU",
        metavar="PART",
        parse=fraction,
    )


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
    kv_transport: Literal["auto", "cuda_ipc", "nccl", "shm", "zmq"] = option(
        "auto",
        "how KV comes in: cuda_ipc is one GPU storing into another of this host, nccl goes from GPU to GPU too, shm is "
        "shared memory of one host, zmq is TCP; auto: the first of these that works",
    )


@dataclass(frozen=True, slots=True)
class ProcessOptions:
    """The process"""

    log_level: Literal["debug", "info", "warning", "error"] = option("info", "what is worth a log line")
    log_format: Literal["text", "json"] = option(
        "text", "json: an object a line, with the id of the request it is about"
    )


@dataclass(frozen=True, slots=True)
class TopologyOptions:
    """Processes"""

    prefill: int | None = option(
        None,
        "prefill workers; 0: the decode workers compute prompts too. default: 1 on CPUs, 0 on a single GPU, half of "
        "several GPUs",
        metavar="N",
        parse=at_least(0),
    )
    decode: int | None = option(
        None,
        "decode workers. default: 1 on CPUs; on GPUs, one on each that prefill workers leave, and at least 1",
        metavar="M",
        parse=at_least(1),
    )
    gpus: str | None = option(
        None,
        "GPUs to use, by CUDA index in PCI order; default: all that can be used. More workers than GPUs share them",
        metavar="0,1",
        parse=indices,
    )
    restart: bool = option(True, "start a process again when it dies; --no-restart: the death of one ends all")


@dataclass(frozen=True, slots=True)
class ServeConfig:
    topology: TopologyOptions
    model: ModelOptions
    http: HttpOptions
    access: AccessOptions
    cors: CorsOptions
    tls: TlsOptions
    telemetry: TelemetryOptions
    routing: RoutingOptions
    data: DataOptions
    curve: CurveOptions
    exposure: ExposureOptions
    engine: EngineOptions
    device: DeviceOptions
    speculation: SpeculationOptions
    fake: FakeEngineOptions
    process: ProcessOptions


@dataclass(frozen=True, slots=True)
class RouterConfig:
    model: ModelOptions
    http: HttpOptions
    access: AccessOptions
    cors: CorsOptions
    tls: TlsOptions
    telemetry: TelemetryOptions
    routing: RoutingOptions
    curve: CurveOptions
    exposure: ExposureOptions
    process: ProcessOptions


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    model: ModelOptions
    connection: ConnectionOptions
    curve: CurveOptions
    engine: EngineOptions
    device: DeviceOptions
    speculation: SpeculationOptions
    place: PlaceOptions
    fake: FakeEngineOptions
    process: ProcessOptions


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    model: ModelOptions
    connection: ConnectionOptions
    curve: CurveOptions
    data: DataOptions
    exposure: ExposureOptions
    engine: EngineOptions
    device: DeviceOptions
    speculation: SpeculationOptions
    place: PlaceOptions
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
    api_key: str | None = option(None, "one of its keys; default: the first in ISTHMUS_API_KEYS", metavar="KEY")
    model: str | None = option(None, "one of the server's model names; default: its first")


@dataclass(frozen=True, slots=True)
class ChatConfig:
    server: ServerOptions
    sampling: SamplingOptions


@dataclass(frozen=True, slots=True)
class KeysOptions:
    """The keys"""

    folder: str = option("isthmus-keys", "where to; it must have none", positional=True)


@dataclass(frozen=True, slots=True)
class KeysConfig:
    keys: KeysOptions


@dataclass(frozen=True, slots=True)
class DoctorOptions:
    """The report"""

    json: bool = option(False, "print it for programs")
    measure: bool = option(True, "copy between each two GPUs and tell how fast that is; takes seconds for each")


@dataclass(frozen=True, slots=True)
class DoctorConfig:
    doctor: DoctorOptions
