"""KV bandwidth between two processes, over each transport, beside a memcpy and a plain loopback socket in the same run.

A child sends pieces; this process receives them and copies each into a pool, as a decode worker does. The peers are
one copy within a process, and a TCP socket whose receiver does nothing with the bytes but take them into one buffer.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np

from ..kvtransfer.open import HOST_TRANSPORTS, open_receiver, open_sender
from ..kvtransfer.transport import Event, Failed, Piece
from .report import Report, Row

BLOCK_BYTES = 64 << 10
SIZES = tuple(64 << 10 << shift for shift in range(0, 13, 2))
BYTES_A_RUN = 512 << 20
REPEATS = 5
PATIENCE_S = 60.0
POLL_S = 0.001
"""What a prefill worker waits between polls while it sends; a decode worker is woken."""
NOTES = (
    "shm, zmq: on a warm connection, from the word to start until the last piece is in the receiver's pool. A piece is "
    "copied out of the sender's pool and into the receiver's; zmq's passes the kernel between the two.",
    "socket: sendall and recv_into, always the same bytes, no pool at either end.",
    "memcpy: one copy within one process, between two buffers of a piece's size.",
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m isthmus.bench.transfer", description=__doc__)
    parser.add_argument("--max-bytes", type=int, default=SIZES[-1], help="largest piece")
    parser.add_argument("--bytes-a-run", type=int, default=BYTES_A_RUN, help="moved for each figure, at least a piece")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="figures are medians over as many")
    parser.add_argument("--send", nargs=3, metavar=("ENDPOINT", "BYTES", "COUNT"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.send:
        endpoint, num_bytes, count = options.send
        (send_plain if endpoint.startswith("plain:") else send)(endpoint, int(num_bytes), int(count))
        return 0
    load_average = os.getloadavg()[0]
    rows: list[Row] = []
    for size in (size for size in SIZES if size <= options.max_bytes):
        rows += table_rows(size, measure(size, max(1, options.bytes_a_run // size), options.repeats))
    print(
        Report("KV transfer between two processes", rows, NOTES, ("numpy", "pyzmq", "msgspec"), load_average).markdown()
    )
    return 0


def measure(num_bytes: int, count: int, repeats: int) -> dict[str, float]:
    """GB/s of each way to move `count` pieces of `num_bytes`; repeats alternate, so that a disturbance hits all."""
    ways: dict[str, Callable[[], float]] = {name: partial(receive, name, num_bytes, count) for name in HOST_TRANSPORTS}
    ways["memcpy"] = partial(copy, num_bytes, count)
    ways["socket"] = partial(receive_plain, num_bytes, count)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            seconds[name].append(way())
    return {name: num_bytes * count / statistics.median(each) / 1e9 for name, each in seconds.items()}


def table_rows(num_bytes: int, rates: dict[str, float]) -> list[Row]:
    socket_rate, memcpy_rate = rates["socket"], rates["memcpy"]
    peers = f"{socket_rate:.2f} GB/s socket, {memcpy_rate:.2f} GB/s memcpy"
    return [
        Row(
            f"{name}, pieces of {num_bytes >> 10} KiB",
            f"{rates[name]:.2f} GB/s",
            peers,
            f"{rates[name] / socket_rate:.2f} × socket, {rates[name] / memcpy_rate:.2f} × memcpy",
        )
        for name in HOST_TRANSPORTS
    ]


# Ours.


def receive(transport: str, num_bytes: int, count: int) -> float:
    """Seconds."""
    arrived = threading.Event()
    receiver = open_receiver(arrived.set, transports=[transport])
    num_blocks = num_bytes // BLOCK_BYTES
    pool = np.ones(num_bytes, np.uint8)

    def store(first_block: int, num_blocks: int, payload: memoryview) -> None:
        first = first_block % (num_bytes // BLOCK_BYTES) * BLOCK_BYTES
        pool[first : first + len(payload)] = np.frombuffer(payload, np.uint8)

    try:
        receiver.register("warm", num_blocks, store)
        receiver.register("timed", num_blocks * count, store)
        with child(receiver.endpoint, num_bytes, count) as process:
            wait_for(receiver.poll, arrived)
            tell(process)
            start = time.perf_counter()
            wait_for(receiver.poll, arrived)
            return time.perf_counter() - start
    finally:
        receiver.close()


def send(endpoint: str, num_bytes: int, count: int) -> None:
    """The child: one piece to warm up, then on a line from the parent `count` of them, as one transfer."""
    source = np.ones(num_bytes, np.uint8)
    num_blocks = num_bytes // BLOCK_BYTES

    def read(first_block: int, num_blocks: int, out: memoryview | None) -> memoryview:
        first = first_block % (num_bytes // BLOCK_BYTES) * BLOCK_BYTES
        into = np.empty(num_blocks * BLOCK_BYTES, np.uint8) if out is None else np.frombuffer(out, np.uint8)
        into[:] = source[first : first + into.size]
        return into.data

    sender = open_sender()
    sender.send("warm", endpoint, Piece(0, num_blocks, BLOCK_BYTES, read, True))
    wait_for(sender.poll, threading.Event())
    sys.stdin.readline()
    for index in range(count):
        last = index + 1 == count
        sender.send("timed", endpoint, Piece(index * num_blocks, num_blocks, BLOCK_BYTES, read, last))
    wait_for(sender.poll, threading.Event())
    sys.stdin.read()
    sender.close()


def wait_for(poll: Callable[[], Sequence[Event]], arrived: threading.Event) -> None:
    """The end of one transfer, polling as workers do. Raises RuntimeError if it fails."""
    deadline = time.monotonic() + PATIENCE_S
    while not (events := poll()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"no end within {PATIENCE_S:.0f} s")
        arrived.wait(POLL_S)
        arrived.clear()
    if isinstance(events[0], Failed):
        raise RuntimeError(events[0].error)


@contextmanager
def child(endpoint: str, num_bytes: int, count: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "isthmus.bench.transfer", "--send", endpoint, str(num_bytes), str(count)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


# The peers.


def copy(num_bytes: int, count: int) -> float:
    """Seconds."""
    source, target = np.ones(num_bytes, np.uint8), np.ones(num_bytes, np.uint8)
    start = time.perf_counter()
    for _ in range(count):
        np.copyto(target, source)
    return time.perf_counter() - start


def receive_plain(num_bytes: int, count: int) -> float:
    """Seconds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        with child(f"plain:{server.getsockname()[1]}", num_bytes, count) as process:
            server.settimeout(PATIENCE_S)
            connection, _ = server.accept()
            with connection:
                buffer = memoryview(bytearray(num_bytes))
                tell(process)
                start, left = time.perf_counter(), num_bytes * count
                while left:
                    left -= connection.recv_into(buffer[: min(left, num_bytes)])
                return time.perf_counter() - start


def send_plain(endpoint: str, num_bytes: int, count: int) -> None:
    payload = bytes(num_bytes)
    with socket.create_connection(("127.0.0.1", int(endpoint.removeprefix("plain:")))) as connection:
        sys.stdin.readline()
        for _ in range(count):
            connection.sendall(payload)
        sys.stdin.read()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
