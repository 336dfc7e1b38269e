"""The router process: HTTP on one side, workers on the other, until it is told to stop."""

import asyncio
import gc
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import uvicorn
import uvloop
import zmq
from fastapi import FastAPI

from ..text.chat_template import load_chat_template
from ..text.pooling_config import PoolingChoice, PoolingConfig
from ..text.reasoning import STYLES, detect_style
from ..text.tokenizer import Tokenizer, read_json
from ..text.tool_calls.formats import FORMATS, default_format
from ..wire.curve import ServerKeys
from ..wire.hub import Hub
from .access import Access
from .app import create_app
from .core import RouterCore
from .cors import ANY_SITE, Cors
from .exchange import Observer
from .http_head import HEAD_LIMITS, HeadLimits, limited_protocol
from .job import JobError
from .kobold_lite import lite_files
from .page import DEFAULT_PREFIX
from .served import Served
from .tls import Tls
from .workers import Deadlines

log = logging.getLogger(__name__)

LAST_WORDS_S = 2.0
"""For the error events of the streams that the drain deadline ends."""
KEEP_ALIVE_S = 75
"""Longer than common proxies keep a connection, so that it is they who close it."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the router can be reached, with the ports it was given."""

    host: str
    port: int
    worker_address: str


def run(
    *,
    host: str,
    port: int,
    worker_address: str,
    model: str,
    text_folder: Path,
    served_model_names: tuple[str, ...],
    max_model_len: int,
    generates: bool = True,
    chat_template: str | None = None,
    tool_call_parser: str = "auto",
    reasoning_parser: str = "auto",
    pooling: PoolingChoice = "auto",
    max_logprobs: int = 20,
    max_body_bytes: int = 32 << 20,
    access: Access | None = None,
    cors: Cors = ANY_SITE,
    tls: Tls | None = None,
    metrics_prefix: str = DEFAULT_PREFIX,
    observers: Sequence[Observer] = (),
    worker_keys: ServerKeys | None = None,
    max_waiting: int = 1000,
    request_timeout_s: float | None = 600.0,
    local_prefill_max_tokens: int = 64,
    max_bypass_s: float = 5.0,
    deadlines: Deadlines | None = None,
    drain_timeout_s: float = 10.0,
    kobold_lite: Path | None = None,
    on_ready: Callable[[Addresses], None] = lambda addresses: None,
) -> int:
    """Serves until SIGTERM or SIGINT; the exit status. `on_ready` is called once both sides listen.

    `model` is what workers without a MODEL of their own are told to load; `text_folder` is what `text.resolve` made of
    it. Port 0, and `*` as the port of `worker_address`, pick free ones. Without `access` everyone may use the router,
    without `tls` it speaks plain HTTP, and with `worker_keys` only workers that have theirs reach it. Raises OSError if
    an address cannot be bound, ValueError if the tokenizer, the chat template or Kobold Lite's page cannot be
    used.
    """
    served = load_served(
        text_folder,
        served_model_names,
        max_model_len,
        chat_template,
        max_logprobs=max_logprobs,
        max_body_bytes=max_body_bytes,
        tool_call_parser=tool_call_parser,
        reasoning_parser=reasoning_parser,
        pooling=pooling,
        generates=generates,
    )
    if kobold_lite is not None:
        served = replace(served, kobold_lite=lite_files(kobold_lite))

    def make_server(core: RouterCore) -> HttpServer:
        app = create_app(core, served, access, cors, metrics_prefix=metrics_prefix, observers=observers)
        return HttpServer(app, tls)

    with bound(host, port) as http, opened(worker_address, worker_keys) as hub:
        addresses = Addresses(host, http.getsockname()[1], hub.address)

        def make_core(on_crash: Callable[[Exception], None]) -> RouterCore:
            return RouterCore(
                hub,
                model=model,
                served_name=served.name,
                generates=generates,
                on_crash=on_crash,
                max_waiting=max_waiting,
                request_timeout_s=request_timeout_s,
                local_prefill_max_tokens=local_prefill_max_tokens,
                max_bypass_s=max_bypass_s,
                deadlines=deadlines,
                metrics_prefix=metrics_prefix,
            )

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(serve(make_core, make_server, http, drain_timeout_s, lambda: on_ready(addresses)))


async def serve(
    make_core: Callable[[Callable[[Exception], None]], RouterCore],
    make_server: Callable[[RouterCore], "HttpServer"],
    http: socket.socket,
    drain_timeout_s: float,
    on_ready: Callable[[], None],
) -> int:
    """One router's life on the running loop; the exit status: 1 if the core crashed."""
    stopping = asyncio.Event()
    crashes: list[Exception] = []

    def on_crash(error: Exception) -> None:
        crashes.append(error)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    core = make_core(on_crash)
    server = make_server(core)
    core.start()
    try:
        serving = asyncio.create_task(server.serve(sockets=[http]))
        await server.listening(serving)
        gc.collect()
        gc.freeze()  # what lives as long as the process is not looked through again: that took 30 ms each time
        on_ready()
        await stopping.wait()
        await drain(server, serving, core, 0.0 if crashes else drain_timeout_s)
    finally:
        core.close()
    return 1 if crashes else 0


async def drain(server: "HttpServer", serving: "asyncio.Task[None]", core: RouterCore, timeout_s: float) -> None:
    """Accepts nothing more and lets open requests finish; past the deadline they end with an error event."""
    log.info("draining: up to %g s for open requests", timeout_s)
    server.should_exit = True
    await asyncio.wait([serving], timeout=timeout_s)
    if not serving.done():
        core.fail_all(JobError(503, "the server is shutting down"))
        await asyncio.wait([serving], timeout=LAST_WORDS_S)
    server.force_exit = True
    await serving


class HttpServer(uvicorn.Server):
    """uvicorn without signal handlers of its own, draining is ours, and with limits for heads."""

    def __init__(self, app: FastAPI, tls: Tls | None = None, heads: HeadLimits = HEAD_LIMITS):
        super().__init__(
            uvicorn.Config(
                app,
                http=limited_protocol(heads),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                **(tls.for_uvicorn() if tls else {}),
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def listening(self, serving: "asyncio.Task[None]") -> None:
        """Returns once requests are accepted. Raises what kept the server from it."""
        while not self.started:
            if serving.done():
                await serving
                raise RuntimeError("the HTTP server ended at once")
            await asyncio.sleep(0.005)


def load_served(
    folder: Path,
    names: tuple[str, ...],
    max_model_len: int,
    chat_template: str | None,
    *,
    max_logprobs: int = 20,
    max_body_bytes: int = 32 << 20,
    tool_call_parser: str = "auto",
    reasoning_parser: str = "auto",
    pooling: PoolingChoice = "auto",
    generates: bool = True,
) -> Served:
    """What the HTTP handlers need of the model. Raises ValueError."""
    tokenizer = Tokenizer.from_folder(folder)
    template = load_chat_template(folder, chat_template)
    source = "" if template is None else template.source
    return Served(
        model_names=names,
        tokenizer=tokenizer,
        chat_template=template,
        max_model_len=max_model_len,
        eos_ids=tuple(sorted(tokenizer.eos_ids)),
        created=int(time.time()),
        max_logprobs=max_logprobs,
        max_body_bytes=max_body_bytes,
        call_format=default_format(source) if tool_call_parser == "auto" else FORMATS.get(tool_call_parser),
        reasoning=detect_style(source) if reasoning_parser == "auto" else STYLES.get(reasoning_parser),
        pooling=PoolingConfig.from_folder(folder, pooling),
        hidden_size=read_json(folder / "config.json").get("hidden_size"),
        generates=generates,
    )


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A TCP socket at this address, not listening yet. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as http:
        http.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        http.bind(address)
        yield http


@contextmanager
def opened(worker_address: str, keys: ServerKeys | None = None) -> Iterator[Hub]:
    """Raises OSError."""
    try:
        hub = Hub(worker_address, keys)
    except zmq.ZMQError as error:
        raise OSError(error.errno, f"cannot listen for workers at {worker_address}: {error.strerror}") from error
    try:
        yield hub
    finally:
        hub.close()
