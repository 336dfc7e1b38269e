"""What it costs to push KV into a peer's memory, by a kernel and by the copy engines: the rate by grid and by size of
the runs, alone and beside matmuls, and what the matmuls lose to it."""

from collections.abc import Callable
from functools import partial

import torch
import triton
import triton.language as tl

from .gpu_driver import Driver
from .gpu_processes import Bench, Row, attempt, say, touch

MATMUL_SIZE = 8192
MIB = 1 << 20


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
        self.peer_address = peer_address
        self.num_bytes = num_bytes
        self.source = torch.full((num_bytes // 4,), 7, dtype=torch.int32, device="cuda")
        self._orders: dict[int, torch.Tensor] = {}

    def order(self, run_bytes: int) -> torch.Tensor:
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


class Overlap:
    """Times a kind of push alone, then beside matmuls, and the matmuls without it."""

    def __init__(self) -> None:
        shape = (MATMUL_SIZE, MATMUL_SIZE)
        self._a, self._b = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        self._c = torch.empty_like(self._a)
        self.compute = torch.cuda.Stream()
        self.side = {high: torch.cuda.Stream(priority=-1 if high else 0) for high in (False, True)}
        self._matmuls_ms = min(self._matmuls() for _ in range(4))

    def _matmuls(self, count: int = 24) -> float:
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
    touch(role["device"])
    driver = Driver()
    num_bytes = 256 * MIB
    pusher = Pusher(driver.open(role["handle"]), num_bytes)
    overlap = Overlap()
    base, peer = pusher.source.data_ptr(), pusher.peer_address

    def ranges(range_bytes: int) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        for offset in range(0, num_bytes, range_bytes):
            driver.copy(peer + offset, base + offset, range_bytes, stream)

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
    for size in (MIB, 64 * MIB):
        overlap.report(partial(ranges, size), num_bytes, False, by="copy engine", run_bytes=size)
    say(done=True)


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
