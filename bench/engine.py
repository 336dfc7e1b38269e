"""The engine beside transformers and its own ceiling: decode and prefill, same model, dtype and threads, one process.

Repetitions alternate between the three, so that a disturbance of the machine hits all; ratios are medians over
repetitions of neighbours in time. The ceiling is the model's linear layers alone, on as many rows.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from ..decode.sampler import Samples
from ..engine.config import ModelConfig
from ..engine.gguf_weights import GgufFile
from ..engine.kv_pool import KvPool
from ..engine.linear import make_linear
from ..engine.load import load_model, resolve_dtype
from ..engine.models.llama import Llama
from ..engine.plan import Draw, Plan, Row, SequenceSeed
from ..engine.torch_engine import TorchEngine
from ..launch.demo_model import ensure_demo_model
from ..text.gguf_config import gguf_config
from ..text.gguf_metadata import read_gguf

BLOCK_SIZE = 16
CONTEXTS = (128, 1024)
BATCHES = (1, 8)
DECODE_STEPS = 16
PREFILL_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table: each runner does the same work once and returns nothing."""

    name: str
    num_tokens: int
    """Tokens that one run makes or reads."""
    ours: Callable[[], None]
    transformers: Callable[[], None]
    ceiling: Callable[[], None]


class Greedy:
    """The sampler that costs what transformers' argmax costs."""

    def admit(self, seed: SequenceSeed) -> None: ...

    def retire(self, seq_id: int) -> None: ...

    def sample(self, logits: Tensor, draws: Sequence[Draw]) -> Samples:
        return Samples(logits.argmax(-1), [None] * len(logits), [b""] * len(logits))


class Ours:
    def __init__(self, model: Llama, max_batch: int) -> None:
        config = model.config
        self.blocks_each = -(-(max(PREFILL_TOKENS, *CONTEXTS) + DECODE_STEPS) // BLOCK_SIZE)
        pool = KvPool(
            num_layers=config.num_layers,
            num_blocks=max_batch * self.blocks_each,
            block_size=BLOCK_SIZE,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=model.dtype,
        )
        self.engine = TorchEngine(model, pool, Greedy())

    def table(self, seq_id: int) -> range:
        return range(seq_id * self.blocks_each, (seq_id + 1) * self.blocks_each)

    def prefill(self, prompts: Sequence[list[int]]) -> list[int]:
        """The first token of each prompt."""
        rows = tuple(Row(i, ids, 0, self.table(i), (Draw(i, 0),)) for i, ids in enumerate(prompts))
        return list(self.engine.launch(Plan(0, rows)).result().token_ids)

    def decode(self, tokens: list[int], context: int) -> list[list[int]]:
        """DECODE_STEPS tokens of each sequence, after `context` ones in the pool."""
        steps = []
        for step in range(DECODE_STEPS):
            position = context + step
            rows = tuple(Row(i, (t,), position, self.table(i), (Draw(i, step),)) for i, t in enumerate(tokens))
            tokens = list(self.engine.launch(Plan(step, rows)).result().token_ids)
            steps.append(tokens)
        return steps


class Theirs:
    def __init__(self, config: dict[str, Any], path: Path, sizes: ModelConfig, dtype: torch.dtype) -> None:
        hf_config = transformers.AutoConfig.for_model(**{k: v for k, v in config.items() if k != "architectures"})
        self.model = transformers.AutoModelForCausalLM.from_config(hf_config, dtype=dtype).eval()
        source = GgufFile(path, sizes)
        self.model.load_state_dict({name: source.load(name) for name in source.shapes}, strict=False)
        self.cache: Any = None

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[list[int]]) -> list[int]:
        output = self.model(torch.tensor(prompts), use_cache=True, logits_to_keep=1)
        self.cache = output.past_key_values
        tokens: list[int] = output.logits[:, -1].argmax(-1).tolist()
        return tokens

    @torch.inference_mode()
    def decode(self, tokens: list[int], context: int) -> list[list[int]]:
        grown = self.cache.get_seq_length() - context
        if grown:
            self.cache.crop(-grown)
        steps = []
        for _ in range(DECODE_STEPS):
            output = self.model(torch.tensor(tokens)[:, None], past_key_values=self.cache, use_cache=True)
            tokens = output.logits[:, -1].argmax(-1).tolist()
            steps.append(tokens)
        return steps


class Linears:
    """The linear layers of a model alone, with random weights, on ones."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        hidden, inner, heads = config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim
        qkv = heads + 2 * config.num_kv_heads * config.head_dim
        shapes = ((qkv, hidden), (hidden, heads), (2 * inner, hidden), (hidden, inner))
        self.dtype, self.hidden_size = dtype, hidden
        self.layers = [
            (into, make_linear(torch.randn(out, into).to(dtype))) for out, into in shapes * config.num_layers
        ]
        self.head = make_linear(torch.randn(config.vocab_size, hidden))

    @torch.inference_mode()
    def run(self, num_rows: int, num_logits: int, times: int) -> None:
        inputs = {into: torch.ones(num_rows, into, dtype=self.dtype) for into, _ in self.layers}
        last = torch.ones(num_logits, self.hidden_size)
        for _ in range(times):
            for into, linear in self.layers:
                linear(inputs[into])
            self.head(last)


def decode_case(ours: Ours, theirs: Theirs, linears: Linears, model: Llama, batch: int, context: int) -> Case:
    prompts = [prompt(context, seed, model.config.vocab_size) for seed in range(batch)]
    first, also_first = ours.prefill(prompts), theirs.prefill(prompts)
    assert model.dtype != torch.float32 or first == also_first, "the two models differ"
    return Case(
        f"decode, batch {batch}, context {context}",
        batch * DECODE_STEPS,
        lambda: drop(ours.decode(first, context)),
        lambda: drop(theirs.decode(first, context)),
        lambda: linears.run(batch, batch, DECODE_STEPS),
    )


def prefill_case(ours: Ours, theirs: Theirs, linears: Linears, model: Llama) -> Case:
    prompts = [prompt(PREFILL_TOKENS, 0, model.config.vocab_size)]
    return Case(
        f"prefill, {PREFILL_TOKENS} tokens",
        PREFILL_TOKENS,
        lambda: drop(ours.prefill(prompts)),
        lambda: drop(theirs.prefill(prompts)),
        lambda: linears.run(PREFILL_TOKENS, 1, 1),
    )


def prompt(length: int, seed: int, vocab_size: int) -> list[int]:
    ids: list[int] = torch.randint(vocab_size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return ids


def drop(_: object) -> None:
    """A runner's result is not needed."""


def measure(case: Case, repeats: int) -> str:
    """A line of the table."""
    runners = (case.ours, case.transformers, case.ceiling)
    for run in runners:
        run()
    times = [[seconds(run) for run in runners] for _ in range(repeats)]
    rates = [case.num_tokens / statistics.median(column) for column in zip(*times, strict=True)]
    against = statistics.median(theirs / ours for ours, theirs, _ in times)
    of_ceiling = statistics.median(ceiling / ours for ours, _, ceiling in times)
    columns = [case.name, *(f"{rate:.1f}" for rate in rates), f"{against:.2f} ×", f"{of_ceiling:.0%}"]
    return f"| {' | '.join(columns)} |"


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    path = options.model or ensure_demo_model()
    config = gguf_config(read_gguf(path))
    sizes, dtype = ModelConfig.from_hf(config), resolve_dtype(options.dtype)
    model = load_model(sizes, path, getattr(torch, dtype))
    theirs = Theirs(config, path, sizes, model.dtype)
    ours, linears = Ours(model, max(BATCHES)), Linears(sizes, model.dtype)
    print(f"{path.name}, {dtype}, {options.threads} threads, torch {torch.__version__}, ", end="")
    print(f"transformers {transformers.__version__}, {options.repeats} alternating repetitions, medians")
    print(f"`python -m isthmus.bench.engine {' '.join(sys.argv[1:] if arguments is None else arguments)}`\n")
    print("| case | ours tok/s | transformers tok/s | linears alone tok/s | ours / transformers | of linears |")
    print("|---|---|---|---|---|---|")
    for batch in BATCHES:
        for context in CONTEXTS:
            print(measure(decode_case(ours, theirs, linears, model, batch, context), options.repeats), flush=True)
    print(measure(prefill_case(ours, theirs, linears, model), options.repeats), flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m isthmus.bench.engine", description=__doc__)
    parser.add_argument("--model", type=Path, help="a .gguf file; default: the demo model")
    parser.add_argument("--dtype", default="float32", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
