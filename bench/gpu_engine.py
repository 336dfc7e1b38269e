"""The engine on a GPU, with dummy weights: decode steps, prompts, offline throughput; beside the floor of this card.

    python -m isthmus.bench.gpu_engine [--shape llama-8b|smollm-135m] [--only WHAT]

Decode: the wall time of a step while the next is always launched ahead, as a worker does it. Prefill: from launch to
the last position's logits on the host. Guesses: a step that verifies so many for each sequence, which waits for the
one before, and so do its peers without guesses; what speculation costs where nothing is right, and so what has to be
right for it to pay. Eagle: the same with guesses that a head makes (EAGLE-3, dummy weights, too). Offline: the decode
worker's scheduler and engine without sockets, 512 prompts of 1024 random tokens, 256 answers of 256 tokens at a time.
vLLM's column is vLLM 0.24.0 on an H100 80GB HBM3
(CUDA graphs, async scheduling, FlashAttention 3, chunks of 8192), measured apart: compare it by its ratio to the floor.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ..decode.scheduler import DecodeScheduler
from ..engine.block_pool import BlockPool
from ..engine.config import ModelConfig
from ..engine.cuda.engine import CudaEngine
from ..engine.cuda.load import Memory, load_cuda_engine
from ..engine.plan import DRAFT, IN_FLIGHT, NOT_TRIED, Draw, Plan, Row, SequenceSeed
from ..engine.speculation_config import SpeculationConfig
from ..wire.codec import pack_ids
from ..wire.messages import Choice, Reserve, Tokens
from ..wire.sampling import SamplingParams
from .dummy_head import save_dummy_head
from .gpu_floor import Floor
from .kernels import measure_ceilings
from .shapes import SHAPES

BLOCK_SIZE = 16
STEPS, WARM_UP = 40, 8
REPEATS = 3
GREEDY = SamplingParams(temperature=0, ignore_eos=True)
PLAIN = SamplingParams(ignore_eos=True)
TRUNCATED = SamplingParams(
    top_k=50, top_p=0.95, min_p=0.02, repetition_penalty=1.1, presence_penalty=0.1, frequency_penalty=0.1
)
EVERYTHING = SamplingParams(
    dry_multiplier=0.8,
    dry_sequence_breakers=(),
    repetition_penalty=1.1,
    repetition_penalty_range=320,
    presence_penalty=0.1,
    frequency_penalty=0.1,
    no_repeat_ngram_size=8,
    dynatemp_min=0.8,
    dynatemp_max=1.2,
    nsigma=5.0,
    top_k=200,
    top_p=0.98,
    top_a=0.001,
    min_p=0.001,
    tfs=0.99,
    eta_cutoff=0.0001,
    epsilon_cutoff=0.0001,
    typical_p=0.98,
    smoothing_factor=0.1,
    xtc_probability=0.5,
    xtc_threshold=0.2,
    skew=0.1,
)
SAMPLING_CASES = (
    ("greedy", GREEDY),
    ("defaults", PLAIN),
    ("top-k, top-p, min-p, penalties", TRUNCATED),
    ("every sampler but Mirostat and adaptive-p", EVERYTHING),
)
VLLM_MS: dict[tuple[str, str, int, int], float] = {
    **{("llama-8b", "decode", batch, 1024): ms for batch, ms in
       ((1, 6.47), (8, 6.93), (32, 8.18), (64, 10.11), (128, 13.72), (256, 21.66))},
    ("llama-8b", "decode", 1, 32768): 8.03,
    ("llama-8b", "decode", 8, 32768): 17.90,
    **{("llama-8b", "prefill", 1, length): ms for length, ms in ((2048, 54.1), (8192, 222), (32768, 1212))},
    ("smollm-135m", "decode", 1, 1024): 2.4,
    ("smollm-135m", "decode", 64, 1024): 3.6,
    ("smollm-135m", "decode", 256, 1024): 8.9,
}  # fmt: skip
VLLM_OFFLINE_TOKENS_PER_S = {"llama-8b": 27_900}
DECODE_CASES = {
    "llama-8b": ((1, 1024), (8, 1024), (32, 1024), (64, 1024), (128, 1024), (256, 1024), (1, 32768), (8, 32768)),
    "smollm-135m": ((1, 1024), (8, 1024), (64, 1024), (256, 1024)),
}
GUESS_CASES = {
    "llama-8b": ((1, 1024), (8, 1024), (32, 1024), (1, 32768), (8, 32768)),
    "smollm-135m": ((1, 1024), (8, 1024), (32, 1024)),
}
MAX_DRAFTS = 4
WHAT = ("decode", "sampling", "prefill", "offline")
PREFILL_LENGTHS = {"llama-8b": (2048, 8192, 32768), "smollm-135m": (2048, 8192)}


@dataclass(slots=True)
class Bench:
    shape: str
    engine: CudaEngine
    floor: Floor

    def row(self, what: str, name: str, ms: float, floor_s: float, vllm_ms: float | None = None) -> dict[str, Any]:
        return {"what": what, "case": name, "ms": ms, "floor_ms": 1e3 * floor_s, "vllm_ms": vllm_ms}

    def decode(self) -> Iterator[dict[str, Any]]:
        for batch, context in DECODE_CASES[self.shape]:
            ms = self.decode_ms(batch, context, GREEDY)
            floor_s = self.floor.decode_s(batch, context + WARM_UP + REPEATS * STEPS / 2)
            vllm = VLLM_MS.get((self.shape, "decode", batch, context))
            yield self.row("decode", f"batch {batch}, context {context}", ms, floor_s, vllm)

    def sampling(self, batch: int = 256, context: int = 1024) -> Iterator[dict[str, Any]]:
        """What drawing costs: steps of greedy rows, beside those of rows with defaults and with everything on."""
        floor_s = self.floor.decode_s(batch, context + WARM_UP + REPEATS * STEPS / 2)
        for name, params in SAMPLING_CASES:
            ms = self.decode_ms(batch, context, params)
            yield self.row("sampling", f"batch {batch}, {name}", ms, floor_s)

    def prefill(self) -> Iterator[dict[str, Any]]:
        for length in PREFILL_LENGTHS[self.shape]:
            times = [self.prefill_s(length) for _ in range(REPEATS + 1)][1:]
            vllm = VLLM_MS.get((self.shape, "prefill", 1, length))
            yield self.row(
                "prefill", f"{length} tokens", 1e3 * statistics.median(times), self.floor.prefill_s(length), vllm
            )

    def decode_ms(self, batch: int, context: int, params: SamplingParams) -> float:
        length = context + WARM_UP + STEPS * REPEATS + 1
        blocks_each = -(-length // BLOCK_SIZE)
        assert batch * blocks_each <= self.engine.num_blocks, "the pool is too small for this case"
        for seq_id in range(batch):
            self.engine.admit(SequenceSeed(seq_id, params, (1, seq_id), tuple(range(context)), (5,), frozenset()))
        tables = [list(range(i * blocks_each, i * blocks_each + context // BLOCK_SIZE)) for i in range(batch)]
        handle, times = None, []
        for step in range(WARM_UP + STEPS * REPEATS + 1):
            if step >= WARM_UP and (step - WARM_UP) % STEPS == 0:
                times.append(time.perf_counter())
            position = context + step
            for i, table in enumerate(tables):
                if position == len(table) * BLOCK_SIZE:
                    table.append(i * blocks_each + len(table))
            token = 5 if handle is None else IN_FLIGHT
            rows = tuple(Row(i, (token,), position, table, (Draw(i, step + 1),)) for i, table in enumerate(tables))
            ahead = self.engine.launch(Plan(step, rows))
            if handle is not None:
                handle.result()
            handle = ahead
        assert handle is not None
        handle.result()
        for seq_id in range(batch):
            self.engine.retire(seq_id)
        return 1e3 * statistics.median(b - a for a, b in pairwise(times)) / STEPS

    def guesses(self) -> Iterator[dict[str, Any]]:
        for batch, context in GUESS_CASES[self.shape]:
            floor_s = self.floor.decode_s(batch, context + STEPS / 2)
            for num_drafts in (0, MAX_DRAFTS // 2, MAX_DRAFTS):
                ms = self.guess_ms(batch, context, num_drafts)
                yield self.row("guesses", f"batch {batch}, context {context}, {num_drafts} guesses", ms, floor_s)

    def eagle(self) -> Iterator[dict[str, Any]]:
        for batch, context in GUESS_CASES[self.shape]:
            floor_s = self.floor.decode_s(batch, context + STEPS / 2)
            for num_drafts in (0, MAX_DRAFTS):
                ms = self.guess_ms(batch, context, num_drafts, by_head=True)
                yield self.row("eagle", f"batch {batch}, context {context}, {num_drafts} guesses", ms, floor_s)

    def guess_ms(self, batch: int, context: int, num_drafts: int, *, by_head: bool = False) -> float:
        """Given ones are all wrong, a dummy head's as good as all."""
        blocks_each = -(-(context + WARM_UP + STEPS + num_drafts + 2) // BLOCK_SIZE)
        assert batch * blocks_each <= self.engine.num_blocks, "the pool is too small for this case"
        for seq_id in range(batch):
            self.engine.admit(SequenceSeed(seq_id, PLAIN, (1, seq_id), tuple(range(context)), (5,), frozenset()))
        tables = [list(range(i * blocks_each, (i + 1) * blocks_each)) for i in range(batch)]
        tokens, times = [5] * batch, []
        for step in range(WARM_UP + STEPS):
            times.append(time.perf_counter())
            draws = [[Draw(i, step + 1 + turn) for turn in range(1 + num_drafts)] for i in range(batch)]
            rows = tuple(
                Row(
                    i,
                    (tokens[i], *[DRAFT if by_head else (tokens[i] + turn) % 1000 for turn in range(num_drafts)]),
                    context + step,
                    tables[i],
                    tuple(draws[i]),
                    num_drafts=num_drafts,
                )
                for i in range(batch)
            )
            drawn = list(self.engine.launch(Plan(step, rows)).result().token_ids)
            assert NOT_TRIED not in drawn
            tokens = drawn[:: 1 + num_drafts]
        for seq_id in range(batch):
            self.engine.retire(seq_id)
        return 1e3 * statistics.median(b - a for a, b in pairwise(times[WARM_UP:]))

    def prefill_s(self, length: int) -> float:
        chunk = min(length, self.engine.max_num_batched_tokens)
        table = list(range(-(-length // BLOCK_SIZE)))
        ids = torch.randint(self.engine.vocab_size, (length,)).tolist()
        start_s = time.perf_counter()
        handle = None
        for first in range(0, length, chunk):
            last = first + chunk >= length
            ahead = self.engine.launch(
                Plan(first, (Row(-1, ids[first : first + chunk], first, table, keep_logits=last),))
            )
            if handle is not None:
                handle.result()
            handle = ahead
        assert handle is not None
        handle.result()
        return time.perf_counter() - start_s

    def offline(self) -> Iterator[dict[str, Any]]:
        num_requests, num_prompt, num_output = 512, 1024, 256
        scheduler = DecodeScheduler(
            BlockPool(self.engine.num_blocks, BLOCK_SIZE),
            epoch="bench",
            max_num_seqs=256,
            max_num_batched_tokens=self.engine.max_num_batched_tokens,
            max_model_len=4096,
        )
        prompts = torch.randint(self.engine.vocab_size, (num_requests, num_prompt)).tolist()
        params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=num_output, seed=1)
        waiting = [
            Reserve(i, f"r{i}", pack_ids(ids), (Choice(0),), params, 0, 0, False) for i, ids in enumerate(prompts)
        ]
        waiting.reverse()
        num_running = num_done = num_tokens = 0
        handle, start_s = None, time.perf_counter()
        while num_done < num_requests:
            while waiting and num_running < 256:
                scheduler.on_reserve(waiting.pop(), time.monotonic())
                num_running += 1
            plan = scheduler.plan(time.monotonic(), handle.plan if handle else None)
            finished, drawn = self._carry_out(scheduler)
            ahead = self.engine.launch(plan) if plan else None
            if handle is not None:
                scheduler.apply(handle.plan, handle.result(), time.monotonic())
            handle = ahead
            more = self._carry_out(scheduler)
            num_done += finished + more[0]
            num_running -= finished + more[0]
            num_tokens += drawn + more[1]
        elapsed_s = time.perf_counter() - start_s
        total = num_requests * num_prompt + num_tokens
        yield {
            "what": "offline",
            "case": f"{num_requests} × ({num_prompt} in, {num_output} out)",
            "ms": 1e3 * elapsed_s,
            "floor_ms": None,
            "tokens_per_s": total / elapsed_s,
            "vllm_tokens_per_s": VLLM_OFFLINE_TOKENS_PER_S.get(self.shape),
        }

    def _carry_out(self, scheduler: DecodeScheduler) -> tuple[int, int]:
        """(answers finished, tokens)."""
        effects = scheduler.take_effects()
        for seq_id in effects.retire:
            self.engine.retire(seq_id)
        for seed in effects.admit:
            self.engine.admit(seed)
        rows = [row for message in effects.messages if isinstance(message, Tokens) for row in message.rows]
        return sum(row.finish_reason is not None for row in rows), sum(len(row.token_ids) for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m isthmus.bench.gpu_engine", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="llama-8b")
    parser.add_argument("--only", choices=(*WHAT, "guesses", "eagle"), action="append")
    parser.add_argument("--kv-cache-dtype", default="auto", choices=("auto", "fp8_e4m3", "fp8_e5m2"))
    parser.add_argument("--json", type=Path, help="also written there, a line a case")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("this benchmark needs a GPU", file=sys.stderr)
        return 2
    floor = Floor(ModelConfig.from_hf(SHAPES[options.shape]), measure_ceilings(torch.device("cuda")))
    torch.cuda.empty_cache()
    wanted = options.only or WHAT
    with tempfile.TemporaryDirectory() as folder:
        speculation = speculation_of(wanted, Path(folder), options.shape)
        engine = load(options.shape, options.kv_cache_dtype, speculation)
    bench = Bench(options.shape, engine, floor)
    print(f"{options.shape}, {torch.cuda.get_device_name()}, torch {torch.__version__}, KV {options.kv_cache_dtype}")
    print("\n| what | case | ms | floor ms | × floor | vLLM ms | vLLM / ours |\n|---|---|---|---|---|---|---|")
    for what in wanted:
        for row in getattr(bench, what)():
            print(line(row), flush=True)
            if options.json:
                with options.json.open("a") as file:
                    file.write(json.dumps({"shape": options.shape, **row}) + "\n")
    return 0


def speculation_of(wanted: Sequence[str], folder: Path, shape: str) -> SpeculationConfig | None:
    """`folder`: for a head."""
    if "eagle" in wanted:
        return SpeculationConfig("eagle", MAX_DRAFTS, str(save_dummy_head(folder, SHAPES[shape])))
    return SpeculationConfig("ngram", MAX_DRAFTS) if "guesses" in wanted else None


def load(shape: str, kv_cache_dtype: str, speculation: SpeculationConfig | None = None) -> CudaEngine:
    start_s = time.perf_counter()
    engine, _ = load_cuda_engine(
        SHAPES[shape],
        None,
        device_index=0,
        dtype="bfloat16",
        load_format="dummy",
        block_size=BLOCK_SIZE,
        kv_cache_dtype=kv_cache_dtype,
        memory=Memory(),
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        max_model_len=None if shape != "llama-8b" else 40960,
        speculation=speculation,
    )
    print(f"loaded in {time.perf_counter() - start_s:.1f} s, {engine.num_blocks} blocks", flush=True)
    assert engine.kv is not None
    fill(engine.kv)
    return engine


def fill(kv: torch.Tensor) -> None:
    """With numbers as keys and values have them: time depends on what is multiplied."""
    for layer in kv:
        for part in layer.split(4096):
            part.copy_(torch.randn(part.shape, device=kv.device, dtype=torch.bfloat16))


def line(row: dict[str, Any]) -> str:
    if row["what"] == "offline":
        peer = row["vllm_tokens_per_s"]
        beside = f"{peer} | {row['tokens_per_s'] / peer:.2f}" if peer else " | "
        return f"| offline | {row['case']} | {row['ms']:.0f} | {row['tokens_per_s']:.0f} tokens/s | | {beside} |"
    ms, floor_ms, vllm = row["ms"], row["floor_ms"], row["vllm_ms"]
    beside = f"{vllm} | {vllm / ms:.2f}" if vllm else " | "
    return f"| {row['what']} | {row['case']} | {ms:.3f} | {floor_ms:.3f} | {ms / floor_ms:.2f} | {beside} |"


if __name__ == "__main__":
    sys.exit(main())
