"""What two GPU processes do to each other: deaths while one stores into the other's memory, and what pushing KV costs.

    python -m isthmus.bench.ipc_death [--only death,push,nccl]

The questions, each asked of processes of their own, on two GPUs where there are:

death   P maps D's memory by CUDA IPC and a kernel of P stores into it. D is killed: does P's context live? Is D's
        memory held by P's mapping, until when, and when can a new D allocate as much? Then P is killed: does D live?
        On two GPUs, and on one.
push    bench/push_cost.py
nccl    bench/nccl_pair.py

Prints every answer; all rows go to $OUT/ipc_death.jsonl, too.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from .gpu_driver import Driver
from .gpu_processes import Bench, Row, attempt, hear, say, touch
from .nccl_pair import ask_nccl, play_nccl
from .push_cost import MIB, Pusher, ask_push, play_pusher


def as_tensor(address: int, num_words: int) -> Any:
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


ROLES = {
    "observer": play_observer,
    "owner": play_owner,
    "writer": play_writer,
    "pusher": play_pusher,
    "nccl": play_nccl,
}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="death,push,nccl")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        role = hear()
        assert role is not None
        ROLES[role["role"]](role)
        return
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
