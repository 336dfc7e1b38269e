"""A communicator of two processes, which sends one way: NCCL between GPUs, gloo between CPUs, used alike.

There is no global process group: a store names the pair, each builds its end, and one can be aborted without the
others noticing. Neither library notices a peer's death by itself while it waits, so a watchdog looks at the socket
beside it, and at the clock.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import PrefixStore, TCPStore

from .connection import Connection, Lost
from .mark import DONE, Mark

BUILD_S = 20.0
LOOK_S = 0.1
MAX_CHANNELS = 24
"""Each takes memory and, while something moves, a multiprocessor. Between two H100s 16 reach 258 GB/s and 24 reach 350;
more of them, no more."""


def start_store(host: str) -> TCPStore:
    """Where pairs meet: on a port of the system's choice, of `host` alone. Raises OSError if that is not this
    machine's."""
    listener = socket.create_server((host, 0))  # by itself, a store would listen on every address
    port = listener.getsockname()[1]
    return TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


class PairGroup:
    """Rank 0 sends, rank 1 receives, each on one thread and on a stream of its own, one buffer after another. All
    raise Lost when the pair is at its end."""

    def __init__(
        self,
        rank: int,
        connection: Connection,
        device: torch.device,
        *,
        name: str,
        store_host: str,
        store_port: int,
        stalled_s: float,
        on_abort: Callable[[str], None] = lambda error: None,
    ):
        """`on_abort` is called, by the watchdog, before an abort: what waits may not notice before its own deadline."""
        self._on_abort = on_abort
        self._connection = connection
        self._stalled_s = stalled_s
        self._busy_until: float | None = time.monotonic() + BUILD_S
        self._group: Any = None
        self._last = DONE
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device, priority=-1)
        self._error = ""
        self._closed = False
        self._watchdog = threading.Thread(target=self._watch, name="kv-pair-watchdog", daemon=True)
        self._watchdog.start()
        try:
            with self.lost_if_it_fails():
                self._build(rank, device, name, store_host, store_port)
        except Lost:
            self.close()
            raise

    def start_send(self, buffer: torch.Tensor) -> Mark:
        """Once all that was started before has left; marks when this has."""
        return self._start(lambda: self._group.send([buffer], 1, 0))

    def start_receive(self, buffer: torch.Tensor) -> Mark:
        """Once all that was started before has come; marks when this has."""
        return self._start(lambda: self._group.recv([buffer], 0, 0))

    def _start(self, begin: Callable[[], Any]) -> Mark:
        self._busy_until = time.monotonic() + self._stalled_s
        with self.lost_if_it_fails(), self._on_stream():
            if self._stream is None:
                self._last.wait()
                self._last = Mark(work=begin())
            else:
                begin().wait()  # the stream waits, not this thread
                self._last = Mark.of(self._stream)
        return self._last

    def finish(self) -> None:
        """Waits for all that was started."""
        with self.lost_if_it_fails():
            self._last.wait()
        self._last, self._busy_until = DONE, None

    def close(self) -> None:
        self._closed = True
        self._watchdog.join()
        self._abort("closed")

    @contextmanager
    def lost_if_it_fails(self) -> Iterator[None]:
        """For all that waits for what was started; also if the pair was aborted meanwhile."""
        try:
            yield
        except RuntimeError as error:
            raise Lost(self._error or str(error).partition("\n")[0]) from error
        if self._error:
            raise Lost(self._error)

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        with torch.cuda.device(self._stream.device), torch.cuda.stream(self._stream):
            yield

    def _build(self, rank: int, device: torch.device, name: str, store_host: str, store_port: int) -> None:
        wait = timedelta(seconds=BUILD_S)
        store = TCPStore(store_host, store_port, is_master=False, wait_for_workers=False, timeout=wait)
        named = PrefixStore(name, store)
        with self._on_stream():
            if self._stream is not None:
                self._group = _nccl(named, rank)
            else:
                self._group = _gloo(named, rank, self._connection.local_host, self._stalled_s)
            first = torch.zeros(1, dtype=torch.uint8, device=device)
        if rank == 0:
            self.start_send(first)
        else:
            self.start_receive(first)
        self.finish()

    def _watch(self) -> None:
        while not self._closed and not self._error:
            if self._connection.hung_up(LOOK_S):
                self._abort("it is gone")
            elif self._busy_until is not None and time.monotonic() > self._busy_until:
                self._abort("it has made no progress")

    def _abort(self, error: str) -> None:
        """Ends what waits on the GPU, on both streams and threads."""
        if self._error:
            return
        self._error = error
        if not self._closed:
            self._on_abort(error)
        self._connection.shut()
        group = self._group
        if group is not None:
            group.abort()


def _nccl(store: PrefixStore, rank: int) -> Any:
    from torch.distributed import ProcessGroupNCCL

    # Torch's own watchdog would end the process with the communicator; ours ends the pair.
    for name in ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_ENABLE_MONITORING", "TORCH_NCCL_DUMP_ON_TIMEOUT"):
        os.environ.setdefault(name, "0")
    options = ProcessGroupNCCL.Options(is_high_priority_stream=True)
    options.config.max_ctas = MAX_CHANNELS
    return ProcessGroupNCCL(store, rank, 2, options)


def _gloo(store: PrefixStore, rank: int, host: str, stalled_s: float) -> Any:
    from torch.distributed import ProcessGroupGloo

    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timedelta(seconds=stalled_s)
    options._devices = [ProcessGroupGloo.create_device(hostname=host)]
    return ProcessGroupGloo(store, rank, 2, options)
