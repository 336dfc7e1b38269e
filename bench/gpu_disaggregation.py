"""One prefill and one decode worker on two GPUs beside `--prefill 0` on one, over HTTP, with dummy weights.

    python -m isthmus.bench.gpu_disaggregation [--shape llama-8b] [--tokenizer FOLDER]

All servers run at once and are asked in turns, one request at a time, with prompts that no cache knows. TTFT is what
the client sees; prefill and transfer are the router's stages: transfer is from the end of the prompt's computation to
the first token, so what was hidden behind the computation is not in it. Needs two GPUs.
"""

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from ..launch.demo_model import cache_dir, ensure_demo_model
from ..text.resolve import resolve
from .completions import Prompts, ask_once, completion, stage_s
from .load import connect
from .shapes import SHAPES
from .topology import Running, Topology, running

LENGTHS = ((2048, 15), (8192, 9), (32768, 3))
"""Tokens of a prompt, and how many are asked."""
NUM_TOKENS = 4
PAUSE_S = 0.1
UTILIZATION = "0.31"
"""Of each worker: three share the second GPU."""
COMMON = (
    "--load-format",
    "dummy",
    "--max-model-len",
    "40960",
    "--max-num-batched-tokens",
    "8192",
    "--max-num-seqs",
    "16",
)
TOPOLOGIES = (
    Topology("aggregated", ("--prefill", "0", "--decode", "1", "--gpus", "1"), 4),
    Topology("1P1D, cuda_ipc", ("--prefill", "1", "--decode", "1", "--kv-transport", "cuda_ipc"), 4),
    Topology("1P1D, nccl", ("--prefill", "1", "--decode", "1", "--kv-transport", "nccl"), 4),
)


@dataclass(frozen=True, slots=True)
class Sample:
    ttft_ms: float
    prefill_ms: float
    transfer_ms: float


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m isthmus.bench.gpu_disaggregation", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="llama-8b")
    parser.add_argument("--tokenizer", type=Path, help="a folder with tokenizer.json; default: the demo model's")
    options = parser.parse_args(arguments)
    if torch.cuda.device_count() < 2:
        print("this benchmark needs two GPUs", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="isthmus-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        model = shape_folder(options.shape, options.tokenizer, folder)
        common = [str(model), *COMMON, "--gpu-memory-utilization", UTILIZATION, "--log-level", "warning"]
        common += ["--local-prefill-max-tokens", "0"]
        servers = []
        for index, topology in enumerate(TOPOLOGIES):
            place = folder / str(index)
            place.mkdir()
            servers.append(stack.enter_context(running(topology, common, place)))
        rows = asyncio.run(measure(servers, Prompts(model, max(length for length, _ in LENGTHS))))
    print(f"{options.shape}, 2 × {torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    print("| prompt | topology | TTFT p50, ms | added, ms | prefill, ms | transfer, ms | transfer / TTFT |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(row)
    return 0


async def measure(servers: Sequence[Running], prompts: Prompts) -> list[str]:
    connections = [await connect(each.server.port) for each in servers]
    lines = []
    for length, num_requests in LENGTHS:
        samples: list[list[Sample]] = [[] for _ in servers]
        for number in range(-2, num_requests):
            request = completion(prompts.take(length), NUM_TOKENS)
            for connection, taken in zip(connections, samples, strict=True):
                answer = await ask_once(connection, request)
                if number >= 0:
                    stages = (1e3 * stage_s(answer, stage) for stage in ("prefill", "transfer"))
                    taken.append(Sample(1e3 * answer.ttft_s, *stages))
                await asyncio.sleep(PAUSE_S)
        lines += [
            line(length, each.topology.name, taken, samples[0]) for each, taken in zip(servers, samples, strict=True)
        ]
    for connection in connections:
        connection.leave()
    return lines


def line(length: int, name: str, taken: Sequence[Sample], baseline: Sequence[Sample]) -> str:
    ttft, prefill, transfer = (
        statistics.median(getattr(sample, field) for sample in taken)
        for field in ("ttft_ms", "prefill_ms", "transfer_ms")
    )
    added = ttft - statistics.median(sample.ttft_ms for sample in baseline)
    return f"| {length} | {name} | {ttft:.1f} | {added:+.1f} | {prefill:.1f} | {transfer:.2f} | {transfer / ttft:.1%} |"


def shape_folder(shape: str, tokenizer: Path | None, folder: Path) -> Path:
    """A model's folder of this shape: its sizes, and a tokenizer whose ids it has."""
    source = tokenizer or resolve(str(ensure_demo_model()), cache_dir(), load_format="dummy").folder
    shutil.copytree(source, folder / "model")
    (folder / "model" / "config.json").write_text(json.dumps(SHAPES[shape]))
    return folder / "model"


if __name__ == "__main__":
    sys.exit(main())
