"""`isthmus serve`: a router and its workers on this host, under one supervisor."""

import json
import logging
import socket
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from ..wire.messages import Role
from . import logs
from .arguments import to_arguments
from .config import (
    ConnectionOptions,
    DecodeConfig,
    ModelOptions,
    PrefillConfig,
    RouterConfig,
    ServeConfig,
)
from .hardware import probe
from .model import find_model, served_names
from .process import ProcessSpec
from .resolve import ConfigError, Resolved, max_model_len, resolve
from .supervisor import GaveUp, StopOnSignals, Supervisor
from .threads import thread_environment

log = logging.getLogger(__name__)


def serve(config: ServeConfig) -> int:
    """Returns the exit code when told to stop. Raises ConfigError for what cannot work."""
    resolved = resolve(config.topology, config.engine, probe())
    with tempfile.TemporaryDirectory(prefix="isthmus-") as folder:
        config = settle(config, resolved, Path(folder))
        supervisor = Supervisor(
            process_specs(config, resolved),
            restart=config.topology.restart,
            drain_timeout_s=config.http.drain_timeout_s,
            on_log=logs.pass_on,
            on_ready=lambda facts: print(greeting(config, resolved), flush=True),
        )
        with StopOnSignals(supervisor):
            try:
                supervisor.run()
            except GaveUp as death:
                log.error("%s", death)
                return 1
    return 0


def settle(config: ServeConfig, resolved: Resolved, folder: Path) -> ServeConfig:
    """The config with nothing left open: all processes, restarted ones too, get the same model, addresses, sizes."""
    model, engine = config.model, config.engine
    load_format = "dummy" if engine.engine == "fake" else model.load_format
    found = find_model(replace(model, load_format=load_format))
    facts = found.facts(engine.dtype)
    length = max_model_len(model.max_model_len, facts, engine, resolved.kv_cache_memory_bytes)
    if model.max_model_len is None and length < facts.max_model_len:
        log.warning("the KV cache has room for requests of %d tokens, not the model's %d", length, facts.max_model_len)
    names = config.http.served_model_name or served_names(model.model)
    address = config.routing.worker_address or f"ipc://{folder}/router"
    return replace(
        config,
        model=ModelOptions(str(found.path), length, load_format),
        http=replace(config.http, served_model_name=names, port=checked_port(config.http.host, config.http.port)),
        routing=replace(config.routing, worker_address=address),
        engine=replace(engine, kv_cache_memory_bytes=resolved.kv_cache_memory_bytes),
    )


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


def process_specs(config: ServeConfig, resolved: Resolved) -> list[ProcessSpec]:
    router = RouterConfig(config.model, config.http, config.routing, config.process)
    prefill = [_worker_spec("prefill", index, config, resolved) for index in range(resolved.num_prefill)]
    decode = [_worker_spec("decode", index, config, resolved) for index in range(resolved.num_decode)]
    return [ProcessSpec("router", command("router", router), stop_first=True), *prefill, *decode]


def _worker_spec(role: Role, index: int, config: ServeConfig, resolved: Resolved) -> ProcessSpec:
    assert config.routing.worker_address is not None
    name = f"{role}-{index}"
    connection = ConnectionOptions(config.routing.worker_address, name)
    if role == "prefill":
        worker: object = PrefillConfig(config.model, connection, config.engine, config.fake, config.process)
    else:
        worker = DecodeConfig(config.model, connection, config.data, config.engine, config.fake, config.process)
    return ProcessSpec(name, command(role, worker), thread_environment(resolved.num_threads))


def command(name: str, config: object) -> list[str]:
    return [sys.executable, "-m", "isthmus.launch.main", name, *to_arguments(config)]


def greeting(config: ServeConfig, resolved: Resolved) -> str:
    """What the terminal shows when all is ready: where, and a line to try."""
    host = "127.0.0.1" if config.http.host in ("0.0.0.0", "") else config.http.host
    url = f"http://{f'[{host}]' if ':' in host else host}:{config.http.port}"
    name = config.http.served_model_name[0]
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    body = json.dumps({"model": name, "messages": messages, "max_tokens": 60, "temperature": 0})
    return f"""\
Ready: {name} at {url} ({workers(resolved)}). Try:

  curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'
  isthmus chat --url {url}
"""


def workers(resolved: Resolved) -> str:
    """`1 prefill + 1 decode workers, 4 threads each; default: one of each on CPUs`"""
    threads = f"{resolved.num_threads} thread{'s' * (resolved.num_threads != 1)} each"
    return f"{resolved.num_prefill} prefill + {resolved.num_decode} decode workers, {threads}; {resolved.reason}"
