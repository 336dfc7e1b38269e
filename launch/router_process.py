"""The router process, from its options."""

from pathlib import Path

from ..router import server
from .access import make_access, make_cors, with_environment
from .child import Lifeline
from .config import DEFAULT_WORKER_ADDRESS, RouterConfig
from .model import find_model, served_names
from .resolve import ConfigError
from .tls import make_tls, with_password
from .tracing import check_tracing, opened_tracing
from .zmq_keys import host_of, refuse_exposed, router_keys


def run_router(config: RouterConfig, lifeline: Lifeline) -> int:
    """Returns the exit code when told to stop. Raises ConfigError."""
    check_tracing(config.telemetry)
    model = find_model(config.model)
    http, routing = config.http, config.routing
    access = make_access(with_environment(config.access))
    address = routing.worker_address or DEFAULT_WORKER_ADDRESS
    refuse_exposed("--worker-address", host_of(address), config.curve, insecure=config.exposure.insecure_zmq)
    longest = model.config.max_position_embeddings
    names = http.served_model_name or served_names(config.model.model)
    try:
        with opened_tracing(config.telemetry, names[0]) as tracing:
            return server.run(
                host=http.host,
                port=http.port,
                worker_address=address,
                model=model.name_for_workers,
                text_folder=model.resolved.folder,
                served_model_names=names,
                generates=model.generates,
                max_model_len=min(config.model.max_model_len or longest, longest),
                chat_template=http.chat_template,
                tool_call_parser=http.tool_call_parser,
                reasoning_parser=http.reasoning_parser,
                pooling=http.pooling,
                max_logprobs=http.max_logprobs,
                max_body_bytes=http.max_body_bytes,
                access=access,
                cors=make_cors(config.cors),
                tls=make_tls(with_password(config.tls)),
                metrics_prefix=config.telemetry.metrics_prefix,
                observers=(tracing,) if tracing else (),
                worker_keys=router_keys(config.curve),
                max_waiting=http.max_waiting,
                request_timeout_s=http.request_timeout_s or None,
                local_prefill_max_tokens=routing.local_prefill_max_tokens,
                drain_timeout_s=http.drain_timeout_s,
                kobold_lite=Path(http.kobold_lite) if http.kobold_lite else None,
                on_ready=lambda addresses: lifeline.ready(port=addresses.port, worker_address=addresses.worker_address),
            )
    except OSError as error:
        raise ConfigError(f"cannot listen on {http.host}, port {http.port}, or {address}: {error}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
