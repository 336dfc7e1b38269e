"""The demo model served from GPUs, over HTTP: in float32 the texts are those of the CPU's engine, however prompts and
answers are divided between workers and GPUs and however KV moves; also past the death of a worker."""

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from isthmus.bench.dummy_head import save_dummy_head
from isthmus.decode.sampler import Sampler
from isthmus.engine.config import ModelConfig
from isthmus.engine.cuda.parts import CudaParts
from isthmus.engine.cuda.runtime import CudaRuntime
from isthmus.engine.load import load_engine, load_model
from isthmus.engine.plan import Draw, Plan, Row, SequenceSeed
from isthmus.tests.engine.cuda_tiny import engine_around
from isthmus.tests.helpers import demo_model_path
from isthmus.tests.oracle import demo_reference
from isthmus.tests.serving import Serve, serving
from isthmus.text.gguf_config import gguf_config
from isthmus.text.gguf_metadata import read_gguf
from isthmus.text.resolve import resolve
from isthmus.text.tokenizer import Tokenizer
from isthmus.wire.sampling import SamplingParams

LONG = "An isthmus is a narrow strip of land that joins two larger ones. " * 30
PROMPTS = ["The capital of France is", LONG + "In short,", LONG + "The best known one is", "def add(a, b):\n"]
NUM_TOKENS = 64
COMMON: tuple[str, ...] = ("--local-prefill-max-tokens", "0", "--dtype", "float32", "--gpu-memory-utilization", "0.12")
COMMON += ("--max-num-seqs", "8", "--max-num-batched-tokens", "1024")
ONE_GPU = {
    "aggregated": ("--prefill", "0", "--gpus", "0"),
    "1P1D on one GPU": ("--prefill", "1", "--decode", "1", "--gpus", "0"),
    "1P1D on one GPU, shm": ("--prefill", "1", "--decode", "1", "--gpus", "0", "--kv-transport", "shm"),
    "1P1D on one GPU, eager": ("--prefill", "1", "--decode", "1", "--gpus", "0", "--enforce-eager"),
}
HEAD = "an EAGLE head"
"""In flags, stands for the path of one."""
GUESSING = {
    "ngram": ("--speculative-method", "ngram", "--num-speculative-tokens", "6"),
    "first layers": ("--speculative-method", "first-layers", "--speculative-layers", "25"),
    "itself": ("--speculative-model", str(demo_model_path())),
    "eagle": ("--speculative-method", "eagle", "--speculative-model", HEAD),
}
ONE_GPU |= {f"aggregated, {name}": (*ONE_GPU["aggregated"], *flags) for name, flags in GUESSING.items()}
ONE_GPU |= {f"1P1D on one GPU, {name}": (*ONE_GPU["1P1D on one GPU"], *flags) for name, flags in GUESSING.items()}
TWO_GPUS: dict[str, tuple[str, ...]] = {
    f"1P1D, {transport}": ("--prefill", "1", "--decode", "1", "--kv-transport", transport)
    for transport in ("cuda_ipc", "nccl", "zmq")
}
TWO_GPUS |= {
    f"1P1D, {transport}, {name}": (*TWO_GPUS[f"1P1D, {transport}"], *GUESSING[name])
    for transport, name in (("cuda_ipc", "itself"), ("cuda_ipc", "eagle"), ("nccl", "eagle"))
}
TOPOLOGIES = [pytest.param(flags, id=name, marks=pytest.mark.gpu) for name, flags in ONE_GPU.items()]
TOPOLOGIES += [pytest.param(flags, id=name, marks=pytest.mark.multi_gpu) for name, flags in TWO_GPUS.items()]
KILLED = [pytest.param(ONE_GPU["1P1D on one GPU"], id="1P1D on one GPU", marks=pytest.mark.gpu)]
KILLED += [
    pytest.param(TWO_GPUS[name], id=name, marks=pytest.mark.multi_gpu) for name in ("1P1D, cuda_ipc", "1P1D, nccl")
]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the CPU's engine writes."""
    path = demo_model_path()
    config = gguf_config(read_gguf(path))
    tokenizer = Tokenizer.from_folder(resolve(str(path), tmp_path_factory.mktemp("text")).folder)
    engine = load_engine(
        config,
        path,
        dtype="float32",
        load_format="auto",
        block_size=16,
        sampler=Sampler(config["vocab_size"]),
        num_blocks=256,
    )
    texts = []
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        seed = SequenceSeed(0, SamplingParams(temperature=0), (1, 2), ids, (), frozenset())
        engine.admit(seed)
        table, tokens, start = list(range(256)), ids, 0
        output: list[int] = []
        for position in range(NUM_TOKENS):
            row = Row(0, tokens, start, table, (Draw(0, position),))
            start += len(tokens)
            tokens = list(engine.launch(Plan(position, (row,))).result().token_ids)
            output += tokens
        engine.retire(0)
        texts.append(tokenizer.decode(output))
    return texts


SAMPLED: list[dict[str, Any]] = [
    {"temperature": 0.8, "top_p": 0.9, "logprobs": 2},
    {"temperature": 1.0, "min_p": 0.05, "repetition_penalty": 1.1, "dry_multiplier": 0.8, "n": 2},
    {"temperature": 1.2, "top_k": 40, "xtc_probability": 0.5, "xtc_threshold": 0.1},
    {"mirostat_mode": 2, "mirostat_tau": 4.0},
    {"temperature": 0.7, "presence_penalty": 0.5, "guided_regex": "[a-z ,]{100,200}"},
]


def ask(serve: Serve, prompt: str, **params: Any) -> str:
    """All choices, one after the other."""
    wanted = {"max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": "guided_regex" not in params, **params}
    return "".join(choice["text"] for choice in serve.complete(prompt=prompt, **wanted)["choices"])


def ask_sampled(serve: Serve) -> list[str]:
    asks = [(prompt, params) for prompt in PROMPTS[:2] for params in SAMPLED]
    with ThreadPoolExecutor(len(asks)) as pool:
        return list(pool.map(lambda one: ask(serve, one[0], **one[1]), asks))


@pytest.fixture(scope="module")
def sampled() -> list[str]:
    """What a server writes that does not guess."""
    with serving_on_gpus(ONE_GPU["aggregated"]) as serve:
        return ask_sampled(serve)


@lru_cache
def head() -> str:
    """A folder with a random head, which guesses hardly ever right."""
    folder = Path(tempfile.mkdtemp(prefix="isthmus-head-"))
    atexit.register(shutil.rmtree, folder)
    return str(save_dummy_head(folder, gguf_config(read_gguf(demo_model_path()))))


@contextmanager
def serving_on_gpus(flags: tuple[str, ...]) -> Iterator[Serve]:
    with serving(*(head() if flag == HEAD else flag for flag in flags), *COMMON) as serve:
        serve.wait_for(r"Ready: \S+ at (http://\S+)", timeout_s=180)
        yield serve


@pytest.mark.parametrize("flags", TOPOLOGIES)
def test_texts_are_those_of_the_cpu(flags: tuple[str, ...], expected: list[str], sampled: list[str]) -> None:
    """And sampled ones those of a server with one worker that does not guess."""
    with serving_on_gpus(flags) as serve, ThreadPoolExecutor(len(PROMPTS)) as pool:
        assert [ask(serve, prompt) for prompt in PROMPTS] == expected  # one after the other
        assert list(pool.map(partial(ask, serve), PROMPTS)) == expected  # all at once, prefixes cached
        assert ask_sampled(serve) == sampled


@pytest.mark.parametrize("flags", KILLED)
def test_texts_survive_their_workers(flags: tuple[str, ...], expected: list[str]) -> None:
    with serving_on_gpus(flags) as serve, ThreadPoolExecutor(len(PROMPTS)) as pool:
        for name in ("decode-0", "prefill-0"):
            answers = pool.map(partial(ask, serve), PROMPTS)
            child = serve.child(name)
            assert child is not None
            os.kill(child.pid, signal.SIGKILL)
            assert list(answers) == expected
            again = f"{name} is ready after"
            serve.wait(lambda again=again: serve.text.count(again) > 1, timeout_s=120)  # type: ignore[misc]
        assert [ask(serve, prompt) for prompt in PROMPTS] == expected


@pytest.mark.gpu
def test_bfloat16_errs_no_more_than_transformers() -> None:
    """Logits of a long prompt's last position, against float32's."""
    reference = demo_reference()
    runtime, sizes = CudaRuntime(0), ModelConfig.from_hf(reference.config)
    ids = torch.randint(sizes.vocab_size, (600,), generator=torch.Generator().manual_seed(1)).tolist()
    model = deepcopy(reference.model).cuda()
    with torch.inference_mode():
        exact = model(torch.tensor([ids]).cuda()).logits[0, -1].cpu()
        theirs = model.to(torch.bfloat16)(torch.tensor([ids]).cuda()).logits[0, -1].float().cpu()
    parts = CudaParts(pdl=True)
    ours = load_model(sizes, reference.weights, torch.bfloat16, parts=parts, device=runtime.device)
    engine = engine_around(
        ours, runtime, torch.bfloat16, num_blocks=64, block_size=16, max_num_batched_tokens=600, draws=False
    )
    for chunk in (600, 64):
        for first in range(0, 600, chunk):
            row = Row(1, ids[first : first + chunk], first, list(range(38)), keep_logits=True)
            logits = engine.launch(Plan(first, (row,))).result().logits[1]
        assert (logits - exact).norm() <= 1.1 * (theirs - exact).norm()
