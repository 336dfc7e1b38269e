"""Every kernel beside its floor on this card and beside its peers, in one run.

    python -m isthmus.bench.kernels [OP …] [--json FILE]

A case's runs are captured in one CUDA graph, on memory that the last-level cache does not hold, and replayed; the
figure is the median replay over its number of runs. The floor is the larger of bytes over the read rate and
operations over the matrix rate, both measured at the start. A kernel whose result is wrong has no figure.
"""

import argparse
import importlib
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton

from .kernel_case import KernelCase, Run

CASES = Path(__file__).parent / "kernel_cases"
REPLAYS = 15
MIN_RUNS = 20
"""In a graph: one replay's own cost is spread over as many."""


@dataclass(frozen=True, slots=True)
class Ceilings:
    read_bytes_per_s: float
    flops_per_s: float

    def floor_us(self, case: KernelCase) -> float:
        return 1e6 * max(case.num_bytes / self.read_bytes_per_s, case.num_flops / self.flops_per_s)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m isthmus.bench.kernels", description=__doc__)
    parser.add_argument("ops", nargs="*", help="modules of bench/kernel_cases; default: all")
    parser.add_argument("--json", type=Path, help="also written there, a line a case")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("kernels are measured on a GPU; there is none", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    ceilings = measure_ceilings(device)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}; ", end="")
    print(f"read {ceilings.read_bytes_per_s / 1e12:.2f} TB/s, matmul {ceilings.flops_per_s / 1e12:.0f} TFLOP/s\n")
    print("| kernel | shape | µs | floor µs | × floor | peers, µs | error |\n|---|---|---|---|---|---|---|", flush=True)
    num_wrong = 0
    for op in options.ops or sorted(path.stem for path in CASES.glob("*.py")):
        for row in measure_op(op, device, ceilings):
            num_wrong += row.get("us") is None
            print(line(row), flush=True)
            if options.json:
                with options.json.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    return 1 if num_wrong else 0


def measure_op(op: str, device: torch.device, ceilings: Ceilings) -> Iterator[dict[str, Any]]:
    module = importlib.import_module(f".kernel_cases.{op}", __package__)
    for case in module.cases(device):
        yield measure_case(case, ceilings)
        torch.cuda.empty_cache()


def measure_case(case: KernelCase, ceilings: Ceilings) -> dict[str, Any]:
    row: dict[str, Any] = {"op": case.op, "shape": case.shape, "floor_us": ceilings.floor_us(case)}
    try:
        if case.check is not None:
            row["error"] = error = relative_error(*case.check())
            if not error <= case.tolerance:
                return {**row, "us": None, "why": f"error {error:.2e} over {case.tolerance:.0e}"}
        row["us"] = time_us(case.runs)
    except Exception as error:  # a kernel that fails has no figure, and the others still do
        return {**row, "us": None, "why": f"{type(error).__name__}: {str(error)[:300]}"}
    row["peers"] = {name: peer_us(runs) for name, runs in case.peers.items()}
    return row


def peer_us(runs: Sequence[Run]) -> float | str:
    try:
        return time_us(runs)
    except Exception as error:  # as above
        return f"{type(error).__name__}: {str(error)[:80]}"


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """‖out − ref‖ / ‖ref‖, NaN if there is one."""
    out, reference = out.double(), reference.double().to(out.device)
    return float((out - reference).norm() / reference.norm().clamp(min=1e-30))


def time_us(runs: Sequence[Run]) -> float:
    """Microseconds of one run."""
    for run in runs[:3]:
        run()
    torch.cuda.synchronize()
    times = max(1, -(-MIN_RUNS // len(runs)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            for run in runs:
                run()
    graph.replay()
    elapsed = []
    for _ in range(REPLAYS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        elapsed.append(start.elapsed_time(end))
    return 1e3 * statistics.median(elapsed) / (times * len(runs))


def measure_ceilings(device: torch.device) -> Ceilings:
    """A plain read of 8 GiB, and a sustained bf16 product of 8192³."""
    numbers = torch.ones(2**31, device=device)
    read_us = time_us([numbers.sum])
    num_bytes = numbers.nbytes
    del numbers
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    for _ in range(800):
        torch.mm(a, b, out=out)
    product_us = time_us([lambda: torch.mm(a, b, out=out)])
    return Ceilings(num_bytes / read_us * 1e6, 2 * 8192**3 / product_us * 1e6)


def line(row: dict[str, Any]) -> str:
    us, floor, error = row["us"], row["floor_us"], row.get("error")
    peers = (f"{name}: {one if isinstance(us, str) else f'{one:.1f}'}" for name, one in row.get("peers", {}).items())
    timing = f"{row['why']} | |" if us is None else f"{us:.2f} | {floor:.2f} | {us / floor if floor else 0:.2f}"
    shown = "" if error is None else f"{error:.1e}"
    return f"| {row['op']} | {row['shape']} | {timing} | {'; '.join(peers)} | {shown} |"


if __name__ == "__main__":
    sys.exit(main())
