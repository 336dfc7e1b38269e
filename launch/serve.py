"""`isthmus serve`: a router and its workers on this host, under one supervisor."""

import json
import logging
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from . import logs
from .access import hand_over, make_access, make_cors, with_environment
from .arguments import to_arguments
from .config import (
    ConnectionOptions,
    DecodeConfig,
    ModelOptions,
    PrefillConfig,
    RouterConfig,
    ServeConfig,
    TopologyOptions,
)
from .eagle_head import Head, find_head, needs_with_head
from .hardware import Hardware, probe
from .model import Model, find_model, served_names
from .process import ProcessSpec
from .resolve import GPU_TRANSPORTS, ConfigError, Resolved, choose_device, max_model_len, refuse_on_cpu, resolve
from .speculation import resolve_speculation, to_options
from .speculative_model import settle_speculation, with_draft
from .supervisor import GaveUp, StopOnSignals, Supervisor
from .threads import thread_environment
from .tls import hide_password, make_tls, with_password
from .tracing import check_tracing
from .workers import WorkerPlan, plan_workers
from .zmq_keys import host_of, refuse_exposed, router_keys, worker_keys

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settled:
    """What `serve` starts, with nothing left open: all processes, restarted ones too, get the same."""

    config: ServeConfig
    resolved: Resolved
    workers: Sequence[WorkerPlan]
    generates: bool = True
    """False of an encoder."""


def serve(config: ServeConfig) -> int:
    """Returns the exit code when told to stop. Raises ConfigError for what cannot work."""
    config = replace(config, access=with_environment(config.access), tls=with_password(config.tls))
    check_security(config)
    check_tracing(config.telemetry)
    with tempfile.TemporaryDirectory(prefix="isthmus-") as folder:
        settled = settle(config, probe(), Path(folder))
        for worker in settled.workers:
            log.info("%s", worker)
        supervisor = Supervisor(
            process_specs(settled),
            restart=config.topology.restart,
            drain_timeout_s=config.http.drain_timeout_s,
            on_log=logs.passing_on(config.process.log_format),
            on_ready=lambda facts: print(greeting(settled), flush=True),
        )
        with StopOnSignals(supervisor):
            try:
                supervisor.run()
            except GaveUp as death:
                log.error("%s", death)
                return 1
    return 0


def settle(config: ServeConfig, hardware: Hardware, folder: Path) -> Settled:
    """The model found, its context cut to what every worker can hold, workers placed, addresses and ports chosen.

    Raises ConfigError.
    """
    model, engine, transport = config.model, config.engine, config.data.kv_transport
    device = choose_device(engine, config.device, hardware)
    refuse_on_cpu(device, {f"--kv-transport {transport}": transport in GPU_TRANSPORTS})
    speculation = resolve_speculation(config.speculation)
    load_format = "dummy" if engine.engine == "fake" else model.load_format
    found = find_model(replace(model, load_format=load_format))
    topology = config.topology if found.generates else without_decode(config.topology)
    resolved = resolve(topology, engine, config.device, hardware)
    if not found.generates:
        resolved = replace(resolved, reason="an encoder needs no others")
    speculation = settle_speculation(speculation, found)
    head = find_head(speculation, found)
    workers, length = fit(with_draft(found, speculation), head, config, resolved)
    names = config.http.served_model_name or served_names(model.model)
    address = config.routing.worker_address or f"ipc://{folder}/router"
    settled = replace(
        config,
        model=ModelOptions(str(found.path), length, load_format),
        http=replace(config.http, served_model_name=names, port=checked_port(config.http.host, config.http.port)),
        routing=replace(config.routing, worker_address=address),
        device=replace(config.device, device=resolved.device),
        speculation=to_options(speculation),
    )
    return Settled(settled, resolved, workers, found.generates)


def without_decode(topology: TopologyOptions) -> TopologyOptions:
    """For an encoder, of which prefill workers alone make use. Raises ConfigError for others that were asked for."""
    if topology.decode:
        raise ConfigError(f"--decode {topology.decode}: the model is an encoder, only prefill workers can serve it")
    if topology.prefill == 0:
        raise ConfigError("--prefill 0: the model is an encoder, only prefill workers can serve it")
    return replace(topology, decode=0)


def check_security(config: ServeConfig) -> None:
    """What the processes would find out too, later. Raises ConfigError."""
    make_access(config.access)
    make_cors(config.cors)
    make_tls(config.tls)
    router_keys(config.curve)
    worker_keys(config.curve)
    insecure = config.exposure.insecure_zmq
    refuse_exposed("--data-host", config.data.data_host, config.curve, insecure=insecure)
    if config.routing.worker_address is not None:
        refuse_exposed("--worker-address", host_of(config.routing.worker_address), config.curve, insecure=insecure)


def fit(model: Model, head: Head | None, config: ServeConfig, resolved: Resolved) -> tuple[list[WorkerPlan], int]:
    """The workers, and the longest request in tokens that each of them can hold."""
    facts, footprint = needs_with_head(
        model,
        head,
        dtype=config.engine.dtype,
        kv_cache_dtype=config.device.kv_cache_dtype,
        device=resolved.device,
        block_size=config.engine.block_size,
    )
    workers = plan_workers(resolved, config.engine, footprint, config.device.gpu_memory_utilization)
    wanted, smallest = config.model.max_model_len, min(worker.kv_bytes for worker in workers)
    length = max_model_len(wanted, facts, config.engine, smallest)
    if wanted is None and length < facts.max_model_len:
        log.warning("the KV cache has room for requests of %d tokens, not the model's %d", length, facts.max_model_len)
    return workers, length


def checked_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises ConfigError, before anything is loaded, if nobody can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}, port {port}: {error.strerror}; choose another --port"
            ) from error
        return int(trial.getsockname()[1])


def process_specs(settled: Settled) -> list[ProcessSpec]:
    config = settled.config
    access, keys = hand_over(config.access)
    tls, password = hide_password(config.tls)
    router = RouterConfig(
        config.model,
        config.http,
        access,
        config.cors,
        tls,
        config.telemetry,
        config.routing,
        config.curve,
        config.exposure,
        config.process,
    )
    workers = [_worker_spec(worker, config) for worker in settled.workers]
    return [ProcessSpec("router", command("router", router), {**keys, **password}, stop_first=True), *workers]


def _worker_spec(plan: WorkerPlan, config: ServeConfig) -> ProcessSpec:
    assert config.routing.worker_address is not None
    connection = ConnectionOptions(config.routing.worker_address, plan.name)
    engine = replace(config.engine, **asdict(plan.limits))
    if plan.gpu is None:
        engine = replace(engine, kv_cache_memory_bytes=plan.kv_bytes)
    rest = (engine, config.device, config.speculation, plan.place, config.fake, config.process)
    if plan.role == "prefill":
        worker: object = PrefillConfig(config.model, connection, config.curve, *rest)
    else:
        worker = DecodeConfig(config.model, connection, config.curve, config.data, config.exposure, *rest)
    return ProcessSpec(plan.name, command(plan.role, worker), thread_environment(plan.num_threads))


def command(name: str, config: object) -> list[str]:
    return [sys.executable, "-m", "isthmus.launch.main", name, *to_arguments(config)]


def greeting(settled: Settled) -> str:
    """What the terminal shows when all is ready: where, and a line to try."""
    config = settled.config
    host = "127.0.0.1" if config.http.host in ("0.0.0.0", "") else config.http.host
    scheme = "http" if config.tls.ssl_certfile is None else "https"
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{config.http.port}"
    name = config.http.served_model_name[0]
    lines = chat_lines(url, name) if settled.generates else [post(url, "embeddings", {"model": name, "input": "Hello"})]
    examples = "\n".join(f"  {line}" for line in lines)
    return f"Ready: {name} at {url} ({workers(settled.resolved)}). Try:\n\n{examples}\n"


def chat_lines(url: str, name: str) -> list[str]:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    body = {"model": name, "messages": messages, "max_tokens": 60, "temperature": 0}
    return [post(url, "chat/completions", body), f"isthmus chat --url {url}"]


def post(url: str, route: str, body: dict[str, object]) -> str:
    return f"curl {url}/v1/{route} -H 'Content-Type: application/json' -d '{json.dumps(body)}'"


def workers(resolved: Resolved) -> str:
    """`1 prefill + 1 decode workers, 4 threads each; default: one of each on CPUs`"""
    where = f", {resolved.num_threads} thread{'s' * (resolved.num_threads != 1)} each"
    if resolved.gpus:
        used = resolved.gpus[: resolved.num_prefill + resolved.num_decode]
        where = f" on GPU{'s' * (len(used) != 1)} {', '.join(str(gpu.index) for gpu in used)}"
    return f"{resolved.num_prefill} prefill + {resolved.num_decode} decode workers{where}; {resolved.reason}"
