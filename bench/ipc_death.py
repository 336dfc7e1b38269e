"""What two GPU processes do to each other: deaths while one stores into the other's memory, and what pushing KV costs.

    python bench/ipc_death.py [--only death,push,nccl]

Needs torch with CUDA and Triton, and nothing of this package. The questions, each asked of processes of their own:

death   P maps D's memory by CUDA IPC and a kernel of P stores into it. D is killed: does P's context live? Is D's
        memory held by P's mapping, until when, and when can a new D allocate as much? Then P is killed: does D live?
        On two GPUs, and on one.
push    Rate of such a kernel by grid and by size of the contiguous runs, alone and beside matmuls, and what the matmuls
        lose to it; the same for the copy engines.
nccl    Build time, memory and rate of a two-rank communicator by number of channels; what the matmuls lose to it; the
        peer killed in the middle: when is it noticed, does abort return, does the context live?

Prints a table and a verdict for each; every row goes to $OUT/ipc_death.jsonl too.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

Row = dict[str, Any]

LAZY_PEER_ACCESS = 1
MEMORY_DEVICE = 1
ACCESS_IN_STREAM_ORDER = 1
OVERLAP_WITH_COMPUTE = 1
MATMUL_SIZE = 8192
MIB = 1 << 20


# ---- driver API ---------------------------------------------------------------------------------------------------


class IpcHandle(ctypes.Structure):
    _fields_ = [("reserved", ctypes.c_byte * 64)]


class MemLocation(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("id", ctypes.c_int)]


class CopyAttributes(ctypes.Structure):
    _fields_ = [
        ("source_access_order", ctypes.c_int),
        ("source", MemLocation),
        ("destination", MemLocation),
        ("flags", ctypes.c_uint),
    ]


class Driver:
    """libcuda, in the context that is current: torch's, once it has touched a device."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL("libcuda.so.1")
        self._lib.cuIpcOpenMemHandle_v2.argtypes = [ctypes.POINTER(ctypes.c_uint64), IpcHandle, ctypes.c_uint]

    def call(self, name: str, *args: object) -> None:
        code = getattr(self._lib, name)(*args)
        if code:
            text = ctypes.c_char_p()
            self._lib.cuGetErrorName(code, ctypes.byref(text))
            raise RuntimeError(f"{name}: {(text.value or b'?').decode()} ({code})")

    def allocate(self, num_bytes: int) -> int:
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(num_bytes))
        return address.value

    def export(self, address: int) -> str:
        handle = IpcHandle()
        self.call("cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_uint64(address))
        return bytes(handle).hex()

    def open(self, handle: str) -> int:
        address = ctypes.c_uint64()
        flat = IpcHandle.from_buffer_copy(bytes.fromhex(handle))
        self.call("cuIpcOpenMemHandle_v2", ctypes.byref(address), flat, LAZY_PEER_ACCESS)
        return address.value

    def close(self, address: int) -> None:
        self.call("cuIpcCloseMemHandle", ctypes.c_uint64(address))

    def copy(self, destination: int, source: int, num_bytes: int, stream: int) -> None:
        at = (ctypes.c_uint64(destination), ctypes.c_uint64(source), ctypes.c_size_t(num_bytes))
        self.call("cuMemcpyDtoDAsync_v2", *at, ctypes.c_void_p(stream))

    def copy_batch(self, destinations: Any, sources: Any, sizes: Any, stream: int) -> None:
        """Arrays of 64-bit integers."""
        count = len(sources)
        attributes = CopyAttributes(ACCESS_IN_STREAM_ORDER, flags=OVERLAP_WITH_COMPUTE)
        first = ctypes.c_size_t(0)
        self.call(
            "cuMemcpyBatchAsync_v2",
            destinations,
            sources,
            sizes,
            ctypes.c_size_t(count),
            ctypes.byref(attributes),
            ctypes.byref(first),
            ctypes.c_size_t(1),
            ctypes.c_void_p(stream),
        )


# ---- the kernel ---------------------------------------------------------------------------------------------------

try:
    import triton
    import triton.language as tl
except ImportError:  # the parent needs none
    triton = None

if triton is not None:

    @triton.jit
    def push_kernel(source, peer_address, order, num_runs, run_words, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        """Run i of `source` goes to run `order[i]` behind `peer_address`; a fixed number of programs takes turns."""
        peer = tl.multiple_of(peer_address.to(tl.pointer_type(tl.int32)), 16)
        for run in range(tl.program_id(0), num_runs, tl.num_programs(0)):
            from_word = tl.cast(run, tl.int64) * run_words
            to_word = tl.load(order + run).to(tl.int64) * run_words
            for start in range(0, run_words, BLOCK):
                words = start + tl.arange(0, BLOCK)
                values = tl.load(source + from_word + words, mask=words < run_words)
                tl.store(peer + to_word + words, values, mask=words < run_words)


BLOCK_WORDS = {4: 1024, 8: 4096, 16: 8192, 32: 16384}
"""By warps: 32 to 64 bytes a thread on their way."""


class Pusher:
    """Stores `num_bytes` of this device into a peer's memory, in runs, in a shuffled order."""

    def __init__(self, peer_address: int, num_bytes: int):
        import torch

        self.peer_address = peer_address
        self.num_bytes = num_bytes
        self.source = torch.full((num_bytes // 4,), 7, dtype=torch.int32, device="cuda")
        self._orders: dict[int, torch.Tensor] = {}

    def order(self, run_bytes: int) -> Any:
        import torch

        if run_bytes not in self._orders:
            self._orders[run_bytes] = torch.randperm(self.num_bytes // run_bytes).to("cuda", torch.int32)
        return self._orders[run_bytes]

    def push(self, run_bytes: int, num_programs: int, num_warps: int) -> None:
        order = self.order(run_bytes)
        push_kernel[(num_programs,)](
            self.source,
            self.peer_address,
            order,
            order.numel(),
            run_bytes // 4,
            BLOCK=min(BLOCK_WORDS[num_warps], run_bytes // 4),
            num_warps=num_warps,
        )


# ---- processes and what they say to each other --------------------------------------------------------------------


def say(**row: object) -> None:
    print(json.dumps(row), flush=True)


def hear(timeout_s: float | None = None) -> Row | None:
    """The next command from the parent; None if there is none in time."""
    if not select.select([0], [], [], timeout_s)[0]:
        return None
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(0)
        line += byte
    command: Row = json.loads(line)
    return command


class Child:
    """A process that imports torch at once and waits for its role, so that starting many takes no time later."""

    def __init__(self, logs: Path, name: str):
        self.name = name
        self._log = (logs / f"{name}.log").open("wb")
        command = [sys.executable, __file__, "--child"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log)
        self._buffer = b""

    def tell(self, **command: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self, timeout_s: float = 40.0) -> Row:
        """Raises TimeoutError, or EOFError if the process ended."""
        row = self.peek(timeout_s)
        if row is None:
            raise TimeoutError(f"{self.name} said nothing for {timeout_s} s")
        return row

    def peek(self, timeout_s: float) -> Row | None:
        assert self._process.stdout is not None
        until = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left = max(0.0, until - time.monotonic())
            if not select.select([self._process.stdout], [], [], left)[0]:
                return None
            read = os.read(self._process.stdout.fileno(), 1 << 16)
            if not read:
                raise EOFError(f"{self.name} ended with {self._process.wait()}")
            self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\n")
        row: Row = json.loads(line)
        return row

    def ask(self, timeout_s: float = 40.0, **command: object) -> Row:
        self.tell(**command)
        return self.answer(timeout_s)

    def kill(self) -> float:
        """SIGKILL; seconds until the process was gone."""
        at = time.monotonic()
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        return time.monotonic() - at

    def alive(self) -> bool:
        return self._process.poll() is None


def attempt(work: Callable[[], object]) -> str | None:
    """Runs it; the error, if there was one."""
    try:
        work()
    except Exception as error:  # whatever a broken context raises is the answer
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def touch(device: int) -> None:
    """Makes the device's context current and proves that it computes."""
    import torch

    torch.cuda.set_device(device)
    a = torch.ones(1024, 1024, device="cuda")
    assert float((a @ a).sum()) == 1024**3
    torch.cuda.synchronize()


# ---- roles --------------------------------------------------------------------------------------------------------


def as_tensor(address: int, num_words: int) -> Any:
    import torch

    class Memory:
        def __init__(self) -> None:
            self.__cuda_array_interface__ = {
                "shape": (num_words,),
                "typestr": "<i4",
                "data": (address, False),
                "version": 3,
            }

    return torch.as_tensor(Memory(), device="cuda")


def play_observer(role: Row) -> None:
    """Says how much memory is free, as a third process sees it."""
    import torch

    for device in range(torch.cuda.device_count()):
        touch(device)
    say(ready=True)
    while hear() is not None:
        say(free=[torch.cuda.mem_get_info(device)[0] for device in range(torch.cuda.device_count())])


def play_owner(role: Row) -> None:
    """Allocates `num_bytes`, for as long as it takes, exports them, and checks on request that it still computes."""
    touch(role["device"])
    driver = Driver()
    at = time.monotonic()
    tries = 0
    while True:
        tries += 1
        try:
            address = driver.allocate(role["num_bytes"])
            break
        except RuntimeError as error:
            if time.monotonic() - at > role.get("patience_s", 0):
                say(error=str(error), tries=tries)
                return
            time.sleep(0.02)
    say(handle=driver.export(address), allocated_after_s=time.monotonic() - at, tries=tries)
    while True:
        command = hear()
        assert command is not None
        words = command["num_bytes"] // 4
        right: list[bool] = []
        broken = attempt(lambda: touch(role["device"]))
        broken = broken or attempt(lambda: right.append(bool((as_tensor(address, words) == 7).all())))  # noqa: B023
        say(error=broken, right=right == [True])


def play_writer(role: Row) -> None:
    """Opens what it is told, and stores into it without a pause until it is told otherwise."""
    import torch

    touch(role["device"])
    driver = Driver()
    pusher: Pusher | None = None
    events: list[torch.cuda.Event] = []
    num_launches = 0
    error: str | None = None

    def step() -> None:
        assert pusher is not None
        pusher.push(65536, 16, 8)
        events.append(torch.cuda.Event())
        events[-1].record()
        if len(events) > 4:
            events.pop(0).synchronize()

    storing = False
    while True:
        command = hear(0 if storing else None) or {}
        match command.get("do", "go on"):
            case "go on":
                error = error or attempt(step)
                num_launches += error is None
                storing = error is None
            case "open":
                at = time.monotonic()
                address = driver.open(command["handle"])
                took = time.monotonic() - at
                pusher = Pusher(address, command["num_bytes"])
                say(opened_s=took)
            case "store":
                storing = True
                step()
                torch.cuda.synchronize()
                say(storing=True)
            case "probe":
                waits = attempt(torch.cuda.synchronize)
                say(error=error or waits or attempt(lambda: touch(role["device"])), num_launches=num_launches)
            case "close":
                storing = False
                assert pusher is not None
                waits = attempt(torch.cuda.synchronize)
                events.clear()
                at = time.monotonic()
                failed = attempt(lambda: driver.close(pusher.peer_address))  # noqa: B023
                say(error=waits or failed, closed_s=time.monotonic() - at)


class Overlap:
    """Times a kind of push alone, then beside matmuls, and the matmuls without it."""

    def __init__(self) -> None:
        import torch

        shape = (MATMUL_SIZE, MATMUL_SIZE)
        self._a, self._b = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        self._c = torch.empty_like(self._a)
        self.compute = torch.cuda.Stream()
        self.side = {high: torch.cuda.Stream(priority=-1 if high else 0) for high in (False, True)}
        self._matmuls_ms = min(self._matmuls() for _ in range(4))

    def _matmuls(self, count: int = 24) -> float:
        import torch

        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        with torch.cuda.stream(self.compute):
            start.record()
            for _ in range(count):
                torch.mm(self._a, self._b, out=self._c)
            end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def alone(self, push: Callable[[], None], high: bool = False) -> float:
        """Milliseconds of one push."""
        import torch

        times = []
        for _ in range(3):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            with torch.cuda.stream(self.side[high]):
                start.record()
                push()
                end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        return min(times)

    def beside(self, push: Callable[[], None], alone_ms: float, high: bool) -> tuple[float, float]:
        """(how many pushes got done while the matmuls ran, by what part the matmuls got slower)."""
        import torch

        side = self.side[high]
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        ends = []
        torch.cuda.synchronize()
        with torch.cuda.stream(self.compute):
            torch.mm(self._a, self._b, out=self._c)
            start.record()
        side.wait_event(start)
        with torch.cuda.stream(self.compute):
            for _ in range(24):
                torch.mm(self._a, self._b, out=self._c)
            end.record()
        with torch.cuda.stream(side):
            for _ in range(max(2, round(1.4 * self._matmuls_ms / alone_ms))):
                push()
                ends.append(torch.cuda.Event(enable_timing=True))
                ends[-1].record()
        torch.cuda.synchronize()
        took = start.elapsed_time(end)
        done_at = [0.0] + [start.elapsed_time(each) for each in ends]
        done = sum(at <= took for at in done_at[1:])
        if done < len(ends):
            done += (took - done_at[done]) / (done_at[done + 1] - done_at[done])
        return done, took / self._matmuls_ms - 1

    def report(self, push: Callable[[], None], num_bytes: int, high: bool, **names: object) -> None:
        push()  # compiles
        alone_ms = self.alone(push, high)
        self._matmuls_ms = self._matmuls()  # anew: clocks move
        done, loss = self.beside(push, alone_ms, high)
        moved = done * num_bytes / (self._matmuls_ms * (1 + loss) * 1e6)
        say(**names, high_priority=high, alone_gb_s=num_bytes / alone_ms / 1e6, beside_gb_s=moved, matmuls_slower=loss)


def play_pusher(role: Row) -> None:
    import torch

    touch(role["device"])
    driver = Driver()
    num_bytes = 256 * MIB
    pusher = Pusher(driver.open(role["handle"]), num_bytes)
    overlap = Overlap()
    base, peer = pusher.source.data_ptr(), pusher.peer_address

    def batch(run_bytes: int) -> None:
        destinations, sources, sizes = batches[run_bytes]
        driver.copy_batch(destinations, sources, sizes, torch.cuda.current_stream().cuda_stream)

    def arrays(run_bytes: int) -> tuple[Any, Any, Any]:
        order = pusher.order(run_bytes).tolist()
        array = ctypes.c_uint64 * len(order)
        sources = [base + index * run_bytes for index in range(len(order))]
        return array(*[peer + index * run_bytes for index in order]), array(*sources), array(*[run_bytes] * len(order))

    def ranges(range_bytes: int) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        for offset in range(0, num_bytes, range_bytes):
            driver.copy(peer + offset, base + offset, range_bytes, stream)

    batches = {run_bytes: arrays(run_bytes) for run_bytes in (16384, 65536)}
    torch.cuda.synchronize()
    for programs in (4, 8, 16, 32, 64, 132):
        for run_bytes in (4096, 16384, 65536):
            for warps in (8,) if run_bytes < 65536 else (8, 16, 32):
                push = partial(pusher.push, run_bytes, programs, warps)
                names: Row = {"by": "kernel", "run_bytes": run_bytes, "programs": programs, "warps": warps}
                failed = attempt(lambda: overlap.report(push, num_bytes, True, **names))  # noqa: B023
                if failed:
                    say(**names, error=failed)
    for programs in (8, 16, 32):  # without priority
        overlap.report(
            partial(pusher.push, 65536, programs, 16),
            num_bytes,
            False,
            by="kernel",
            run_bytes=65536,
            programs=programs,
            warps=16,
        )
    for name, by, size in (
        ("copy engine, 1 MiB ranges", ranges, MIB),
        ("copy engine, 64 MiB ranges", ranges, 64 * MIB),
        ("copy engine, one batch", batch, 65536),
        ("copy engine, one batch", batch, 16384),
    ):
        push = partial(by, size)
        failed = attempt(lambda: overlap.report(push, num_bytes, False, by=name, run_bytes=size))  # noqa: B023
        if failed:
            say(by=name, run_bytes=size, error=failed)
    say(done=True)


def build_pair(role: Row) -> Any:
    """A two-rank NCCL communicator without a global process group."""
    import torch
    from torch.distributed import PrefixStore, ProcessGroupNCCL, TCPStore

    store = TCPStore("127.0.0.1", role["port"], is_master=False, wait_for_workers=False)
    options = ProcessGroupNCCL.Options(is_high_priority_stream=bool(role.get("high")))
    if role.get("max_ctas"):
        options.config.max_ctas = role["max_ctas"]
        options.config.min_ctas = 1
    return ProcessGroupNCCL(PrefixStore(role["name"], store), role["rank"], 2, options), torch


def play_nccl(role: Row) -> None:
    """One end of a pair: rank 0 sends, rank 1 receives."""
    os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
    os.environ["TORCH_NCCL_ENABLE_MONITORING"] = "0"
    os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] = "0"
    if role.get("channels"):
        os.environ["NCCL_MAX_NCHANNELS"] = os.environ["NCCL_MAX_P2P_NCHANNELS"] = str(role["channels"])
    touch(role["device"])
    import torch

    free = torch.cuda.mem_get_info()[0]
    at = time.monotonic()
    pair, _ = build_pair(role)
    small = torch.ones(1024, device="cuda")

    def move(tensor: torch.Tensor) -> Any:
        return pair.send([tensor], 1, 0) if role["rank"] == 0 else pair.recv([tensor], 0, 0)

    move(small).wait()
    torch.cuda.synchronize()
    say(built_s=time.monotonic() - at, takes_mib=(free - torch.cuda.mem_get_info()[0]) / MIB)
    if role["do"] == "rate":
        measure_nccl(role, move)
    else:
        die_nccl(role, move, pair)


def measure_nccl(role: Row, move: Callable[[Any], Any]) -> None:
    """Both ranks make the same calls: the receiver has no matmuls to run beside."""
    import torch

    for mib in (4, 64, 256):
        tensor = torch.ones(mib * MIB // 4, device="cuda")
        times = []
        for _ in range(6):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            move(tensor).wait()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        if role["rank"] == 0:
            say(mib=mib, gb_s=mib * MIB / min(times[1:]) / 1e6)
    tensor = torch.ones(256 * MIB // 4, device="cuda")
    count = 60
    if role["rank"] == 1:
        for _ in range(count):
            move(tensor).wait()
        torch.cuda.synchronize()
        say(done=True)
        return
    a, b = (torch.randn(MATMUL_SIZE, MATMUL_SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    c = torch.empty_like(a)

    def matmuls() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(16):
            torch.mm(a, b, out=c)
        end.record()
        matmuls_end.append(end)
        end.synchronize()
        return start.elapsed_time(end)

    matmuls_end: list[torch.cuda.Event] = []
    alone = min(matmuls() for _ in range(4))
    side = torch.cuda.Stream()
    start = torch.cuda.Event(enable_timing=True)
    start.record()
    ends = []
    with torch.cuda.stream(side):
        for _ in range(count):
            move(tensor).wait()
            ends.append(torch.cuda.Event(enable_timing=True))
            ends[-1].record()
    took = matmuls()
    torch.cuda.synchronize()
    total = start.elapsed_time(matmuls_end[-1])
    done = sum(start.elapsed_time(each) <= total for each in ends)
    say(done=True, matmuls_slower=took / alone - 1, beside_gb_s=done * 256 * MIB / total / 1e6, sends_done=done)


def die_nccl(role: Row, move: Callable[[Any], Any], pair: Any) -> None:
    """Moves without end; the one that is left says when it noticed, and what abort did."""
    import torch

    tensor = torch.ones(256 * MIB // 4, device="cuda")
    work = None
    while hear(0) is None:
        work = move(tensor)
        until = time.monotonic() + 0.5
        while not work.is_completed() and time.monotonic() < until:
            time.sleep(0.0005)
    # The peer is dead by now. One more move surely has no partner.
    at = time.monotonic()
    work = move(tensor)
    noticed: float | None = None
    while time.monotonic() - at < 2:
        if work.is_completed():
            noticed = time.monotonic() - at
            break
        time.sleep(0.01)
    say(noticed_s=noticed, wait_error=attempt(work.wait) if noticed else None)
    at = time.monotonic()
    returned: list[str | None] = []
    thread = threading.Thread(target=lambda: returned.append(attempt(pair.abort)), daemon=True)
    thread.start()
    thread.join(10)
    say(abort_s=None if thread.is_alive() else time.monotonic() - at, abort_error=(returned or [None])[0])
    say(context_error=attempt(lambda: touch(role["device"])))


ROLES = {
    "observer": play_observer,
    "owner": play_owner,
    "writer": play_writer,
    "pusher": play_pusher,
    "nccl": play_nccl,
}


# ---- the questions ------------------------------------------------------------------------------------------------


class Bench:
    def __init__(self, out: Path):
        self._out = (out / "ipc_death.jsonl").open("w")
        self._logs = out
        self._spare: list[Child] = []
        self._num_children = 0

    def prepare(self, count: int) -> None:
        for _ in range(count):
            self._num_children += 1
            self._spare.append(Child(self._logs, f"child{self._num_children:02}"))

    def child(self, **role: object) -> Child:
        if not self._spare:
            self.prepare(1)
        child = self._spare.pop(0)
        child.name += f" ({role['role']})"
        child.tell(**role)
        return child

    def note(self, question: str, **row: object) -> None:
        self._out.write(json.dumps({"question": question, **row}) + "\n")
        self._out.flush()
        shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        print(f"{question}: " + ", ".join(f"{k} {v}" for k, v in shown.items()), flush=True)

    @contextmanager
    def question(self, name: str) -> Iterator[list[Child]]:
        """Its processes end with it; what went wrong is its answer."""
        children: list[Child] = []
        at = time.monotonic()
        try:
            yield children
        except Exception as error:
            self.note(name, verdict="FAILED", error=f"{type(error).__name__}: {error}")
        finally:
            for child in children:
                child.kill()
            print(f"-- {name}: {time.monotonic() - at:.1f} s", flush=True)

    def close(self) -> None:
        for child in self._spare:
            child.kill()


def ask_death(bench: Bench, owner_device: int, writer_device: int) -> None:
    name = "death, two GPUs" if owner_device != writer_device else "death, one GPU"
    with bench.question(name) as children:
        observer = bench.child(role="observer")
        writer = bench.child(role="writer", device=writer_device)
        children += [observer, writer]
        observer.answer()
        free = lambda: observer.ask(do="free")["free"][owner_device]  # noqa: E731
        time.sleep(1)
        before = free()
        num_bytes = int(before * 0.55) // MIB * MIB
        owner = bench.child(role="owner", device=owner_device, num_bytes=num_bytes)
        children.append(owner)
        handle = owner.answer()["handle"]
        opened = writer.ask(do="open", handle=handle, num_bytes=256 * MIB)
        held = free()
        writer.ask(do="store")
        time.sleep(0.3)
        bench.note(
            name, owner_gib=num_bytes / 2**30, opened_s=opened["opened_s"], owner_takes_gib=(before - held) / 2**30
        )

        gone_s = owner.kill()
        first = writer.ask(do="probe")
        time.sleep(1.0)
        second = writer.ask(do="probe")
        faulted = second["error"] or first["error"]
        launches = second["num_launches"] - first["num_launches"]
        verdict = f"P's context FAULTS: {faulted}" if faulted else "P's context lives"
        bench.note(f"{name}, a) D killed", verdict=verdict, gone_s=gone_s, launches_since=launches)

        pinned = before - free()
        verdict = (
            "D's memory IS HELD by P's mapping" if pinned > num_bytes // 2 else "D's memory is free, P maps it still"
        )
        bench.note(f"{name}, b) D dead, P maps", verdict=verdict, held_gib=pinned / 2**30)

        restarted = bench.child(role="owner", device=owner_device, num_bytes=num_bytes, patience_s=12)
        children.append(restarted)
        early = restarted.peek(3.0)
        closed = writer.ask(do="close")
        at = time.monotonic()
        answer = early or restarted.answer()
        waited = time.monotonic() - at
        when = "while P still mapped the old one" if early else f"{waited:.3f} s after P closed its mapping"
        verdict = f"a new D allocates {when}" if "handle" in answer else f"a new D NEVER allocates: {answer}"
        bench.note(f"{name}, c) D again", verdict=verdict, closed=closed, tries=answer["tries"])
        bench.note(
            f"{name}, b) P closed", held_gib=(before - free()) / 2**30 - ("handle" in answer) * num_bytes / 2**30
        )

        writer.ask(do="open", handle=answer["handle"], num_bytes=256 * MIB)
        writer.ask(do="store")
        time.sleep(0.3)
        gone_s = writer.kill()
        check = restarted.ask(num_bytes=256 * MIB)
        time.sleep(1)
        again = restarted.ask(num_bytes=256 * MIB)
        error = check["error"] or again["error"]
        verdict = f"D's context FAULTS: {error}" if error else "D's context lives"
        bench.note(f"{name}, e) P killed", verdict=verdict, gone_s=gone_s, stored=again["right"])


def ask_push(bench: Bench, owner_device: int, writer_device: int) -> None:
    with bench.question("push") as children:
        owner = bench.child(role="owner", device=owner_device, num_bytes=256 * MIB)
        children.append(owner)
        handle = owner.answer()["handle"]
        pusher = bench.child(role="pusher", device=writer_device, handle=handle)
        children.append(pusher)
        while "done" not in (row := pusher.answer(60)):
            bench.note("push", **row)
        check = owner.ask(num_bytes=256 * MIB)
        bench.note("push", verdict="every byte arrived" if check["right"] else f"WRONG BYTES: {check}")


def start_pair(bench: Bench, children: list[Child], port: int, name: str, **how: object) -> tuple[Child, Child]:
    pair = [bench.child(role="nccl", rank=rank, device=rank, port=port, name=name, **how) for rank in (0, 1)]
    children += pair
    return pair[0], pair[1]


def ask_nccl(bench: Bench) -> None:
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for how in ({}, *({"channels": n, "high": True} for n in (2, 4, 8)), {"max_ctas": 4}):
        with bench.question(f"nccl, {how or 'as it comes'}") as children:
            sender, receiver = start_pair(bench, children, store.port, f"rate{how}", do="rate", **how)
            bench.note("nccl", **how, **sender.answer())
            receiver.answer()
            while "done" not in (row := sender.answer()):
                bench.note("nccl", **how, **row)
            bench.note("nccl", **how, **row)
    for killed in (1, 0):
        victim = ("sender", "receiver")[killed]
        with bench.question(f"nccl, {victim} killed") as children:
            pair = start_pair(bench, children, store.port, f"death{killed}", do="die")
            for each in pair:
                each.answer()
            left = pair[1 - killed]
            time.sleep(0.5)
            pair[killed].kill()
            left.tell(do="stop")
            for _ in range(3):
                bench.note(f"nccl, {victim} killed", **left.answer(20))
            time.sleep(0.5)
            bench.note(f"nccl, {victim} killed", verdict="survivor lives" if left.alive() else "survivor DIED")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="death,push,nccl")
    parser.add_argument("--child", action="store_true")
    args = parser.parse_args()
    if args.child:
        import torch  # takes seconds: before the role is known

        role = hear()
        assert role is not None
        ROLES[role["role"]](role)
        return
    import torch

    out = Path(os.environ.get("OUT") or tempfile.mkdtemp())
    only = args.only.split(",")
    bench = Bench(out)
    bench.prepare(6 * ("death" in only) + 2 * ("push" in only) + 8 * ("nccl" in only))
    two = torch.cuda.device_count() > 1
    if "death" in only and two:
        ask_death(bench, 1, 0)
    if "death" in only:
        ask_death(bench, 0, 0)
    if "push" in only:
        ask_push(bench, int(two), 0)
    if "nccl" in only and two:
        ask_nccl(bench)
    bench.close()
    print(f"rows and logs in {out}")


if __name__ == "__main__":
    main()
