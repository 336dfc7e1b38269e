"""KV of whole prompts between the pools of two processes, a GPU each, beside a plain copy between the GPUs.

    python -m isthmus.bench.transfer_gpu [--sender 0 --receiver 1]

A child with the sender's pool hands over a prompt's blocks, chunk by chunk; this process takes them as a decode worker
does. The blocks are neighbours in each pool, as in one with room, or scattered all over both. Every byte that arrived
is compared. With one GPU both ends share it.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..kvtransfer.cuda_ipc import open_ipc_receiver, open_ipc_sender
from ..kvtransfer.device_pool import DevicePool
from ..kvtransfer.nccl import open_nccl_receiver, open_nccl_sender
from ..kvtransfer.transport import Done, Event, Failed, Piece, PoolBlocks, Receiver
from .report import Report, Row

NUM_LAYERS, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM = 32, 8, 16, 128
TOKENS = (16, 2048, 8192, 32768)
CHUNK_TOKENS = 8192
NUM_BLOCKS = 2 * TOKENS[-1] // BLOCK_SIZE
REPEATS = 7
PATIENCE_S = 60.0
COPY_BYTES = 1 << 30
LAYOUTS = ("neighbours", "scattered")
SENDER_SEED, RECEIVER_SEED = 5, 12
SETTLE_S = 0.005
BUDGET = 0.85
BUDGET_TOKENS = 8192
NOTES = (
    "from the call of send, in one process, until the last piece is in the receiver's pool and the loop of the other "
    "process knows; the pair is warm and the transfer is prepared, as it is while a prompt is computed; 16 tokens show "
    "what is fixed",
    "peer: one copy_ of 1 GiB from GPU to GPU in the sender's process, in the same run",
    "first: a pair's first transfer, unprepared, which also maps the pool, or builds the communicator",
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m isthmus.bench.transfer_gpu", description=__doc__)
    parser.add_argument("--sender", type=int, default=0, help="GPU")
    parser.add_argument("--receiver", type=int, default=min(1, torch.cuda.device_count() - 1), help="GPU")
    parser.add_argument("--transports", nargs="+", default=["cuda_ipc", "nccl"], choices=["cuda_ipc", "nccl"])
    parser.add_argument("--send", metavar="ENDPOINT", help=argparse.SUPPRESS)
    parser.add_argument("--num-blocks", type=int, default=NUM_BLOCKS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.send:
        send(options.send, options.sender, options.receiver, options.num_blocks)
        return 0
    load_average = os.getloadavg()[0]
    if options.sender == options.receiver:
        options.transports = ["cuda_ipc"]  # NCCL connects no GPU with itself
    cases = tuple(itertools.product(TOKENS, LAYOUTS))
    rows = []
    for name in options.transports:
        measured = measure(name, options.sender, options.receiver, cases, options.num_blocks)
        rows += [
            measured.row(f"{name}, {num_tokens} tokens, {layout}", num_tokens, layout) for num_tokens, layout in cases
        ]
    where = f"GPU {options.sender} to GPU {options.receiver}, {torch.cuda.get_device_name(options.receiver)}"
    print(Report(f"KV from {where}", rows, NOTES, ("torch", "triton"), load_average).markdown())
    return 0


def make_pool(device: int, num_blocks: int) -> DevicePool:
    torch.cuda.set_device(device)
    shape = (NUM_LAYERS, num_blocks, NUM_KV_HEADS, 2, BLOCK_SIZE, HEAD_DIM)
    return DevicePool(torch.empty(shape, dtype=torch.bfloat16, device=f"cuda:{device}"))


def block_ids(num_tokens: int, layout: str, seed: int, num_blocks: int) -> list[int]:
    """Of a prompt, in the pool of an end that has its own `seed`. A shorter prompt's are the first ones of a longer."""
    if layout == "neighbours":
        return list(range(seed, seed + num_tokens // BLOCK_SIZE))
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(num_blocks, generator=generator)[: num_tokens // BLOCK_SIZE].tolist()


def fill(pool: DevicePool, ids: Sequence[int]) -> None:
    """Block i of the transfer is made of numbers that only block i, in that layer, has."""
    pool.kv.view(torch.int32)[:, ids] = numbers(pool, len(ids))[:, :, None, None, None, None]


def is_filled(pool: DevicePool, ids: Sequence[int]) -> bool:
    got = pool.kv.view(torch.int32)[:, ids].flatten(2)
    return bool((got == numbers(pool, len(ids))[:, :, None]).all())


def numbers(pool: DevicePool, num_blocks: int) -> torch.Tensor:
    """int32 [num_layers, num_blocks], all different, none 0."""
    count = torch.arange(1, NUM_LAYERS * num_blocks + 1, dtype=torch.int32, device=pool.device)
    return count.view(num_blocks, NUM_LAYERS).T


# The receiver.


@dataclass(frozen=True, slots=True)
class Measured:
    copy_gb_per_s: float
    """The ceiling."""
    first_s: float
    seconds: dict[tuple[int, str], float]
    """The median, by tokens and layout."""
    num_bytes: dict[tuple[int, str], int]

    def gb_per_s(self, num_tokens: int, layout: str) -> float:
        return self.num_bytes[num_tokens, layout] / self.seconds[num_tokens, layout] / 1e9

    def row(self, what: str, num_tokens: int, layout: str) -> Row:
        rate, ceiling = self.gb_per_s(num_tokens, layout), self.copy_gb_per_s
        counts = num_tokens >= BUDGET_TOKENS
        return Row(
            what,
            f"{rate:.0f} GB/s ({self.seconds[num_tokens, layout] * 1e3:.2f} ms; "
            f"first of the pair {self.first_s * 1e3:.0f} ms)",
            f"{ceiling:.0f} GB/s",
            f"{rate / ceiling:.2f} ×",
            f"≥ {BUDGET} ×" if counts else "",
            rate >= BUDGET * ceiling if counts else None,
        )


def measure(
    transport: str, sender_gpu: int, receiver_gpu: int, cases: Sequence[tuple[int, str]], num_blocks: int
) -> Measured:
    """`cases`: (tokens of a prompt, layout); pools of `num_blocks`. Raises RuntimeError if anything fails or arrives
    wrong."""
    pool, arrived = make_pool(receiver_gpu, num_blocks), threading.Event()
    opens: dict[str, Callable[[DevicePool, Callable[[], None]], Receiver]]
    opens = {"cuda_ipc": open_ipc_receiver, "nccl": open_nccl_receiver}
    receiver = opens[transport](pool, arrived.set)
    try:
        with child(receiver.endpoint, sender_gpu, receiver_gpu, num_blocks) as process:
            copy_rate = float(say(process, "copy"))
            line = Line(receiver, pool, arrived, process)
            first_s, _ = line.transfer(*cases[0], "first", prepared=False)
            runs = {case: [line.transfer(*case, str(n)) for n in range(REPEATS)] for case in cases}
    finally:
        receiver.close()
    seconds = {case: statistics.median(seconds for seconds, _ in taken) for case, taken in runs.items()}
    return Measured(copy_rate, first_s, seconds, {case: taken[0][1] for case, taken in runs.items()})


class Line:
    """Between this process's receiver and the child's sender."""

    def __init__(self, receiver: Receiver, pool: DevicePool, arrived: threading.Event, process: subprocess.Popen[str]):
        self._receiver = receiver
        self._pool = pool
        self._arrived = arrived
        self._process = process

    def transfer(self, num_tokens: int, layout: str, name: str, *, prepared: bool = True) -> tuple[float, int]:
        """(seconds, bytes of one prompt). Raises RuntimeError if it fails or arrives wrong."""
        ids = block_ids(num_tokens, layout, RECEIVER_SEED, self._pool.num_blocks)
        transfer_id = f"{num_tokens} {layout} {name}"
        claims: list[str] = []

        def claim() -> bool:
            claims.append(transfer_id)
            return True

        self._pool.kv.zero_()
        torch.cuda.synchronize()
        self._receiver.register(transfer_id, len(ids), no_store, PoolBlocks(ids, claim))
        say(self._process, f"{'prepare' if prepared else 'ready'} {transfer_id}")
        while prepared and not claims:
            self._look()
        time.sleep(SETTLE_S)
        tell(self._process, "go")
        while not (events := self._look()):
            pass
        end = time.monotonic()
        seconds = end - float(answer(self._process))
        if not isinstance(events[0], Done):
            raise RuntimeError(str(events[0]))
        if not is_filled(self._pool, ids):
            raise RuntimeError("not what was sent")
        return seconds, events[0].num_bytes

    def _look(self) -> list[Event]:
        """As a worker's loop that has nothing else to do."""
        if not self._arrived.wait(PATIENCE_S):
            raise RuntimeError(f"nothing came within {PATIENCE_S:.0f} s")
        self._arrived.clear()
        return self._receiver.poll()


def no_store(first_block: int, num_blocks: int, payload: memoryview) -> None:
    raise AssertionError("transports between devices store by themselves")


@contextmanager
def child(endpoint: str, sender_gpu: int, receiver_gpu: int, num_blocks: int) -> Iterator[subprocess.Popen[str]]:
    ends = ["--sender", str(sender_gpu), "--receiver", str(receiver_gpu), "--num-blocks", str(num_blocks)]
    command = [sys.executable, "-m", "isthmus.bench.transfer_gpu", "--send", endpoint, *ends]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


def tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def say(process: subprocess.Popen[str], line: str) -> str:
    """The answer to a line. Raises RuntimeError if the child has ended."""
    tell(process, line)
    return answer(process)


def answer(process: subprocess.Popen[str]) -> str:
    """A line of it. Raises RuntimeError if the child has ended."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("the sender ended")
    return line


# The sender.


def send(endpoint: str, sender_gpu: int, receiver_gpu: int, num_blocks: int) -> None:
    """The child: does what each line says."""
    pool = make_pool(sender_gpu, num_blocks)
    sender = open_ipc_sender(pool) if endpoint.startswith("cuda_ipc:") else open_nccl_sender(pool)
    parts: list[Piece] = []
    transfer_id = ""
    for line in sys.stdin:
        match line.split(maxsplit=1):
            case ["copy"]:
                print(copy_rate(sender_gpu, receiver_gpu), flush=True)
            case ["prepare" | "ready" as how, rest]:
                transfer_id = rest.strip()
                num_tokens, layout, _ = transfer_id.split()
                parts = pieces(int(num_tokens), layout, pool)
                if how == "prepare":
                    sender.prepare(transfer_id, endpoint)
                print(how, flush=True)
            case ["go"]:
                start = time.monotonic()  # the same clock in all processes
                for piece in parts:
                    sender.send(transfer_id, endpoint, piece)
                while not (events := sender.poll()):
                    time.sleep(0.0002)
                if isinstance(events[0], Failed):
                    print(events[0].error, file=sys.stderr)
                print(start, flush=True)
    sender.close()


def pieces(num_tokens: int, layout: str, pool: DevicePool) -> list[Piece]:
    """A chunk each, as prefill makes them; the pool holds them."""
    ids = block_ids(num_tokens, layout, SENDER_SEED, pool.num_blocks)
    fill(pool, ids)
    torch.cuda.synchronize()
    step = CHUNK_TOKENS // BLOCK_SIZE
    starts = range(0, len(ids), step)
    return [piece(pool, first, ids[first : first + step], first == starts[-1]) for first in starts]


def piece(pool: DevicePool, first: int, ids: list[int], last: bool) -> Piece:
    return Piece(first, len(ids), pool.bytes_per_block, no_read, last, {}, ids)


def no_read(first_block: int, num_blocks: int, out: memoryview | None) -> memoryview:
    raise AssertionError("transports between devices read by themselves")


def copy_rate(source: int, target: int) -> float:
    """GB/s of a large copy between the GPUs, bytes counted once."""
    a = torch.ones(COPY_BYTES, dtype=torch.uint8, device=f"cuda:{source}")
    b = torch.empty(COPY_BYTES, dtype=torch.uint8, device=f"cuda:{target}")
    times = []
    for _ in range(5):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(source)
        start.record()
        b.copy_(a)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return COPY_BYTES / min(times) / 1e6


if __name__ == "__main__":
    sys.exit(main())
