"""A communicator of two ranks, by number of channels: time to build it, its memory, its rate, and what matmuls beside
it lose. Its peer killed in the middle: when is that noticed, does abort return, does the context live?"""

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from .gpu_processes import Bench, Child, Row, attempt, hear, say, touch
from .push_cost import MATMUL_SIZE, MIB


def build_pair(role: Row) -> Any:
    """A two-rank NCCL communicator without a global process group."""
    from torch.distributed import PrefixStore, ProcessGroupNCCL, TCPStore

    store = TCPStore("127.0.0.1", role["port"], is_master=False, wait_for_workers=False)
    options = ProcessGroupNCCL.Options(is_high_priority_stream=bool(role.get("high")))
    if role.get("max_ctas"):
        options.config.max_ctas = role["max_ctas"]
        options.config.min_ctas = 1
    return ProcessGroupNCCL(PrefixStore(role["name"], store), role["rank"], 2, options)


def play_nccl(role: Row) -> None:
    """One end of a pair: rank 0 sends, rank 1 receives."""
    os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
    os.environ["TORCH_NCCL_ENABLE_MONITORING"] = "0"
    os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] = "0"
    if role.get("channels"):
        os.environ["NCCL_MAX_NCHANNELS"] = os.environ["NCCL_MAX_P2P_NCHANNELS"] = str(role["channels"])
    touch(role["device"])
    free = torch.cuda.mem_get_info()[0]
    at = time.monotonic()
    pair = build_pair(role)
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
