"""One worker process: the role's loop, over what `worker_load` loads."""

import logging
import os
import signal
import socket
from typing import TYPE_CHECKING

from .child import Lifeline
from .config import DecodeConfig, PrefillConfig
from .gpus import CUDA_ENVIRONMENT
from .hardware import num_cores
from .limits import Device, step_limits
from .resolve import GPU_TRANSPORTS, ConfigError, refuse_on_cpu
from .speculation import resolve_speculation
from .threads import thread_environment
from .worker_load import Loader
from .worker_place import find_place
from .zmq_keys import is_loopback, refuse_exposed, worker_keys

if TYPE_CHECKING:
    from ..engine.worker import Worker

log = logging.getLogger(__name__)


def run_prefill(config: PrefillConfig, lifeline: Lifeline) -> int:
    """Returns the exit code when told to stop. Raises ConfigError if it cannot load, or the router refuses it."""
    speculation = resolve_speculation(config.speculation)
    keys = worker_keys(config.curve)
    set_environment()
    from ..prefill.worker import make_worker

    def on_ready() -> None:
        begin_service(worker)
        lifeline.ready()

    place = find_place(config.engine, config.device, config.place)
    limits = step_limits(config.engine, place.device, "prefill")
    worker = make_worker(
        name=config.connection.name or default_name("prefill"),
        router_address=config.connection.router,
        model=config.model.model,
        load=Loader(config, place, limits, draws=False, speculation=speculation),
        keys=keys,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        enable_prefix_caching=config.engine.enable_prefix_caching,
        on_ready=on_ready,
    )
    return run(worker)


def run_decode(config: DecodeConfig, lifeline: Lifeline) -> int:
    """As `run_prefill`."""
    speculation = resolve_speculation(config.speculation)
    keys = worker_keys(config.curve)
    data_host = config.data.data_host
    refuse_exposed("--data-host", data_host, config.curve, insecure=config.exposure.insecure_zmq)
    set_environment()
    from ..decode.worker import make_worker

    def on_ready() -> None:
        begin_service(worker)
        lifeline.ready()

    place = find_place(config.engine, config.device, config.place)
    limits = step_limits(config.engine, place.device, "decode")
    worker = make_worker(
        name=config.connection.name or default_name("decode"),
        router_address=config.connection.router,
        model=config.model.model,
        load=Loader(config, place, limits, draws=True, speculation=speculation),
        keys=keys,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        enable_prefix_caching=config.engine.enable_prefix_caching,
        data_host=data_host,
        transports=covered(transports(config.data.kv_transport, place.device), config),
        speculation=speculation,
        on_ready=on_ready,
    )
    return run(worker)


def transports(asked: str, device: Device) -> tuple[str, ...]:
    """Names of those to receive KV over, the best first. Raises ConfigError for one that is not to be had here."""
    from ..kvtransfer.open import TRANSPORTS

    refuse_on_cpu(device, {f"--kv-transport {asked}": asked in GPU_TRANSPORTS})
    if asked == "auto":
        return tuple(name for name in TRANSPORTS if device == "cuda" or name not in GPU_TRANSPORTS)
    if asked not in TRANSPORTS:
        raise ConfigError(f"--kv-transport {asked}: this version has {', '.join(TRANSPORTS)}")
    return (asked,)


def covered(names: tuple[str, ...], config: DecodeConfig) -> tuple[str, ...]:
    """Those that keys cover, or that were asked for by name: over NCCL nobody shows a key, and nothing is encrypted."""
    if config.curve.zmq_keys is None or "nccl" not in names or is_loopback(config.data.data_host):
        return names
    if config.data.kv_transport == "nccl":
        log.warning("keys do not cover KV over NCCL: any machine that reaches %s can send some", config.data.data_host)
        return names
    log.info("no KV over NCCL, which keys do not cover: --kv-transport nccl asks for it")
    return tuple(name for name in names if name != "nccl")


def set_environment() -> None:
    """Threads for all cores, unless the environment says otherwise, and CUDA's order. Before torch is imported."""
    os.environ.update(thread_environment(num_cores()) | CUDA_ENVIRONMENT)


def default_name(role: str) -> str:
    return f"{role}-{socket.gethostname()}-{os.getpid()}"


def begin_service(worker: "Worker") -> None:
    from ..engine.heap import settle

    stop_on_signals(worker)
    settle()


def stop_on_signals(worker: "Worker") -> None:
    """From the moment it has something to say goodbye to; until then a signal just ends the process."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.stop())


def run(worker: "Worker") -> int:
    from ..engine.worker import Refused

    try:
        worker.run()
    except Refused as refusal:
        raise ConfigError(f"the router refuses this worker: {refusal}") from refusal
    return 0
