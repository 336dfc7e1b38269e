"""What is measured: a router with one decode worker on the fake engine, and the peer."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..launch.demo_model import cache_dir, ensure_demo_model
from ..launch.process import ProcessSpec
from ..text.resolve import resolve
from .load import get, post
from .stack import python

MODEL_NAME = "bench"
BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Server:
    """One of the two under comparison. `process` is its name in the stack."""

    process: str
    port: int
    path: str
    """Of the request for a stream; may hold `{num_tokens}`."""
    helpers: tuple[str, ...] = ()
    """Other processes that take part in an answer."""

    def request(self, prompt: str | Sequence[int], num_tokens: int, *, with_usage: bool = False) -> bytes:
        """For a stream of exactly this many tokens. The same body for both servers."""
        body: dict[str, Any] = {
            "prompt": prompt,
            "max_tokens": num_tokens,
            "stream": True,
            "ignore_eos": True,
            "seed": 1,
        }
        if with_usage:
            body["stream_options"] = {"include_usage": True}
        return post(self.path.format(num_tokens=num_tokens), json.dumps(body).encode())

    @property
    def ping(self) -> bytes:
        return get("/ping")


@dataclass(frozen=True, slots=True)
class FakeWorker:
    """How the decode worker is set up. `kv_tokens`: what its KV cache holds."""

    step_s: float
    max_num_seqs: int
    max_model_len: int
    kv_tokens: int


def router_specs(model: Path, folder: Path, worker: FakeWorker) -> list[ProcessSpec]:
    """What `isthmus serve MODEL --engine fake --prefill 0` starts."""
    address = f"ipc://{folder}/router"
    both = [
        str(model),
        "--load-format",
        "dummy",
        "--max-model-len",
        str(worker.max_model_len),
        "--log-level",
        "warning",
    ]
    router = ["--port", "0", "--served-model-name", MODEL_NAME, "--worker-address", address]
    decode = ["--router", address, "--name", "decode-0", "--engine", "fake", "--fake-step-s", str(worker.step_s)]
    num_blocks = -(-worker.kv_tokens // BLOCK_TOKENS)
    sizes = ["--num-blocks", str(num_blocks), "--max-num-seqs", str(worker.max_num_seqs)]
    return [
        ProcessSpec("router", command("router", *both, *router), environment()),
        ProcessSpec("decode", command("decode", *both, *decode, *sizes), environment()),
    ]


def command(name: str, *arguments: str) -> list[str]:
    return python("isthmus.launch.main", name, *arguments)


def peer_spec() -> ProcessSpec:
    return ProcessSpec("peer", python("isthmus.bench.sse_peer"), environment())


def environment() -> dict[str, str]:
    """For processes that do no arithmetic: nobody's thread pool competes with what is measured."""
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def model_with_context(model: str | None, folder: Path, max_model_len: int) -> Path:
    """A copy of the model's small files that claims a context of `max_model_len` tokens: a fake engine needs no more.

    None: the demo model, fetched if need be. Raises ResolveError.
    """
    source = resolve(model or str(ensure_demo_model()), cache_dir(), load_format="dummy").folder
    copy = folder / "model"
    shutil.copytree(source, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"max_position_embeddings": max_model_len}))
    return copy
