"""One worker process: the model, the engine that runs it, and the role's loop."""

import os
import signal
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

from .child import Lifeline
from .config import DecodeConfig, EngineOptions, FakeEngineOptions, ModelOptions, PrefillConfig
from .hardware import probe
from .model import Model, find_model
from .resolve import ConfigError, kv_cache_memory, max_model_len, num_blocks
from .threads import thread_environment

if TYPE_CHECKING:
    from ..engine.worker import Load, Loaded, Worker

PANGRAM = "The quick brown fox jumps over the lazy dog, and packs my box with five dozen liquor jugs."
"""What the fake engine's tokens are taken from."""


def run_prefill(config: PrefillConfig, lifeline: Lifeline) -> int:
    """Returns the exit code when told to stop. Raises ConfigError if it cannot load, or the router refuses it."""
    set_threads()
    from ..prefill.worker import make_worker

    def on_ready() -> None:
        stop_on_signals(worker)
        lifeline.ready()

    worker = make_worker(
        name=config.connection.name or default_name("prefill"),
        router_address=config.connection.router,
        model=config.model.model,
        load=loader(config.model, config.engine, config.fake),
        max_num_seqs=config.engine.max_num_seqs,
        max_num_batched_tokens=config.engine.max_num_batched_tokens,
        enable_prefix_caching=config.engine.enable_prefix_caching,
        on_ready=on_ready,
    )
    return run(worker)


def run_decode(config: DecodeConfig, lifeline: Lifeline) -> int:
    """As `run_prefill`."""
    set_threads()
    from ..decode.worker import make_worker
    from ..kvtransfer.open import TRANSPORTS

    def on_ready() -> None:
        stop_on_signals(worker)
        lifeline.ready()

    worker = make_worker(
        name=config.connection.name or default_name("decode"),
        router_address=config.connection.router,
        model=config.model.model,
        load=loader(config.model, config.engine, config.fake),
        max_num_seqs=config.engine.max_num_seqs,
        max_num_batched_tokens=config.engine.max_num_batched_tokens,
        enable_prefix_caching=config.engine.enable_prefix_caching,
        data_host=config.data.data_host,
        transports=TRANSPORTS if config.data.kv_transport == "auto" else (config.data.kv_transport,),
        on_ready=on_ready,
    )
    return run(worker)


def set_threads() -> None:
    """All cores, unless the environment says otherwise. Before torch is imported."""
    os.environ.update(thread_environment(probe().num_cores))


def default_name(role: str) -> str:
    return f"{role}-{socket.gethostname()}-{os.getpid()}"


def stop_on_signals(worker: "Worker") -> None:
    """From the moment it has something to say goodbye to; until then a signal just ends the process."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.stop())


def run(worker: "Worker") -> int:
    from ..engine.worker import Refused

    try:
        worker.run()
    except Refused as refusal:
        raise ConfigError(f"the router refuses this worker: {refusal}") from refusal
    return 0


def loader(options: ModelOptions, engine: EngineOptions, fake: FakeEngineOptions) -> "Load":
    """What loads MODEL: that of `options`, or the one Welcome names."""

    def load(model: str) -> "Loaded":
        found = find_model(replace(options, model=model))
        memory = kv_cache_memory(engine, probe(), num_workers=1)
        length = max_model_len(options.max_model_len, found.facts(engine.dtype), engine, memory)
        make = load_fake if engine.engine == "fake" else load_torch
        try:
            return make(found, length, engine, fake, memory)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    return load


def load_torch(model: Model, length: int, options: EngineOptions, _: FakeEngineOptions, memory: int) -> "Loaded":
    from ..decode.sampler import Sampler
    from ..engine.load import load_engine, resolve_dtype
    from ..engine.worker import Loaded

    dtype = resolve_dtype(options.dtype)
    bytes_per_block = model.facts(dtype).kv_bytes_per_token * options.block_size
    engine = load_engine(
        model.resolved.config(),
        model.path,
        dtype=dtype,
        load_format=model.load_format,
        block_size=options.block_size,
        sampler=Sampler(model.config.vocab_size),
        num_blocks=num_blocks(options, length, bytes_per_block, memory),
    )
    return Loaded(engine, model.fingerprint(options.block_size, dtype, "torch"), length)


def load_fake(model: Model, length: int, options: EngineOptions, fake: FakeEngineOptions, memory: int) -> "Loaded":
    from ..engine.fake_engine import FakeEngine
    from ..engine.worker import Loaded
    from ..text.tokenizer import Tokenizer

    bytes_per_block = model.facts("auto").kv_bytes_per_token * options.block_size
    engine = FakeEngine(
        num_blocks(options, length, bytes_per_block, memory),
        options.block_size,
        model.config.vocab_size,
        token_ids=Tokenizer.from_folder(model.resolved.folder).encode(PANGRAM, add_special_tokens=False),
        step_s=fake.fake_step_s,
        token_s=fake.fake_token_s,
    )
    return Loaded(engine, model.fingerprint(options.block_size, "auto", "fake"), length)
