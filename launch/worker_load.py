"""MODEL, loaded into the engine of a worker's place."""

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..engine.encoder.config import EncoderConfig
from .config import DecodeConfig, PrefillConfig
from .eagle_head import Head, facts_with_head, find_head, fingerprint_with_head, needs_with_head
from .gpu_memory import gib
from .gpu_wait import wait_for_memory
from .gpus import Gpu, free_bytes
from .hardware import probe
from .limits import StepLimits
from .model import Model, find_model
from .resolve import ConfigError, ModelFacts, check_model_len, kv_cache_memory, max_model_len, num_blocks
from .speculative_model import settle_speculation, with_draft
from .worker_place import WorkerPlace

if TYPE_CHECKING:
    from ..decode.sampler import Sampler
    from ..engine.load import Checkpoint
    from ..engine.plan import Engine
    from ..engine.speculation_config import SpeculationConfig
    from ..engine.worker import Loaded
    from ..text.phrases import Phrases
    from ..text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

PANGRAM = "The quick brown fox jumps over the lazy dog, and packs my box with five dozen liquor jugs."
"""What the fake engine's tokens are taken from."""


@dataclass(frozen=True, slots=True)
class Loader:
    """Called with MODEL, that of `config` or the one Welcome names."""

    config: PrefillConfig | DecodeConfig
    place: WorkerPlace
    limits: StepLimits
    draws: bool
    """The worker samples."""
    speculation: "SpeculationConfig"
    """As the flags say it; layers and paths are decided once the model is known."""

    def __call__(self, model: str) -> "Loaded":
        """Raises ConfigError if it cannot be loaded here."""
        found = find_model(replace(self.config.model, model=model))
        speculation = settle_speculation(self.speculation, found)
        if self.draws:
            found = with_draft(found, speculation)
        try:
            if isinstance(found.config, EncoderConfig) and self.config.engine.engine == "torch":
                return self._encoder(found, found.config)
            gpu = self.place.gpu
            return self._on_gpu(found, gpu, speculation) if gpu else self._on_cpu(found, speculation)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def _on_gpu(self, model: Model, gpu: Gpu, speculation: "SpeculationConfig") -> "Loaded":
        from ..engine.cuda.load import Memory, load_cuda_engine
        from ..engine.worker import Loaded

        options, device, wanted = self.config.engine, self.config.device, self.config.model.max_model_len
        dtype = model.gpu_dtype(options.dtype)
        check_model_len(wanted, model.facts(dtype))
        head = find_head(speculation, model)
        self._wait_for_memory(self._needed_bytes(model, head, dtype), gpu)
        tokenizer = self._tokenizer(model)
        phrases = self._phrases(tokenizer)
        engine, length = load_cuda_engine(
            model.resolved.config(),
            model.path,
            device_index=gpu.index,
            dtype=dtype,
            load_format=model.load_format,
            block_size=options.block_size,
            kv_cache_dtype=device.kv_cache_dtype,
            memory=Memory(
                device.gpu_memory_utilization,
                self.config.place.gpu_memory_share,
                options.num_blocks,
                options.kv_cache_memory_bytes,
            ),
            max_num_seqs=self.limits.max_num_seqs,
            max_num_batched_tokens=self.limits.max_num_batched_tokens,
            max_model_len=wanted,
            enforce_eager=device.enforce_eager,
            draws=self.draws,
            phrases=phrases,
            sampler=self._sampler(model, phrases, f"cuda:{gpu.index}") if self.draws else None,
            speculation=self._of_engine(speculation),
            draft=self._draft(model),
        )
        kv_dtype = dtype if device.kv_cache_dtype == "auto" else device.kv_cache_dtype
        fingerprint = fingerprint_with_head(model.fingerprint(options.block_size, kv_dtype, "torch"), head, kv_dtype)
        return Loaded(engine, fingerprint, length, tokenizer)

    def _encoder(self, model: Model, config: EncoderConfig) -> "Loaded":
        """Raises ConfigError on a decode worker: there is nothing to draw."""
        from ..engine.encoder.load import load_encoder
        from ..engine.worker import Loaded
        from ..text.tokenizer import Tokenizer

        if self.draws:
            raise ConfigError(f"{model.resolved.source} is an encoder: only prefill workers can serve it")
        options, facts = self.config.engine, model.facts("auto")
        memory = kv_cache_memory(options, probe(), num_workers=1)
        length = max_model_len(self.config.model.max_model_len, facts, options, memory)
        engine = load_encoder(
            config,
            model.path,
            dtype=options.dtype,
            load_format=model.load_format,
            device="cpu" if self.place.gpu is None else f"cuda:{self.place.gpu.index}",
            num_blocks=self._num_blocks(facts, length, memory),
            block_size=options.block_size,
            separator_id=Tokenizer.from_folder(model.resolved.folder).separator_id,
        )
        fingerprint = model.fingerprint(options.block_size, options.dtype, "torch")
        return Loaded(engine, fingerprint, length, whole_prompts=True)

    def _wait_for_memory(self, needed: int, gpu: Gpu) -> None:
        """Not for ever: the engine may do with less, and if not it says so."""

        def on_wait(free: int) -> None:
            log.info("waiting for memory of GPU %d: %s is free, %s needed", gpu.index, gib(free), gib(needed))

        if not wait_for_memory(needed, lambda: free_bytes(gpu.uuid), on_wait=on_wait):
            log.warning("GPU %d still has less than %s free: other processes use it", gpu.index, gib(needed))

    def _needed_bytes(self, model: Model, head: Head | None, dtype: str) -> int:
        """All that the worker may use, unless it was told how large its KV cache is."""
        options = self.config.engine
        facts, footprint = needs_with_head(
            model,
            head,
            dtype=dtype,
            kv_cache_dtype=self.config.device.kv_cache_dtype,
            device="cuda",
            block_size=options.block_size,
        )
        kv_bytes = options.kv_cache_memory_bytes
        if options.num_blocks is not None:
            kv_bytes = options.num_blocks * options.block_size * facts.kv_bytes_per_token
        if kv_bytes is None:
            return self.place.memory_bytes
        return footprint.of_worker(self.limits) + kv_bytes

    def _on_cpu(self, model: Model, speculation: "SpeculationConfig") -> "Loaded":
        from ..engine.worker import Loaded

        options = self.config.engine
        memory = kv_cache_memory(options, probe(), num_workers=1)
        head = find_head(speculation, model)
        facts = self._facts(model, options.dtype, head)
        length = max_model_len(self.config.model.max_model_len, facts, options, memory)
        if options.engine == "fake":
            engine: Engine = self._fake_engine(model, self._num_blocks(model.facts("auto"), length, memory))
            fingerprint = model.fingerprint(options.block_size, "auto", "fake")
            return Loaded(engine, fingerprint, length, whole_prompts=not model.generates)
        from ..engine.load import resolve_dtype

        dtype = resolve_dtype(options.dtype)
        tokenizer = self._tokenizer(model)
        num_blocks = self._num_blocks(self._facts(model, dtype, head), length, memory)
        engine = self._torch_engine(model, dtype, num_blocks, self._phrases(tokenizer), speculation)
        fingerprint = fingerprint_with_head(model.fingerprint(options.block_size, dtype, "torch"), head, dtype)
        return Loaded(engine, fingerprint, length, tokenizer)

    def _tokenizer(self, model: Model) -> "Tokenizer | None":
        from ..text.tokenizer import Tokenizer

        return Tokenizer.from_folder(model.resolved.folder) if self.draws else None

    def _facts(self, model: Model, dtype: str, head: Head | None) -> ModelFacts:
        return facts_with_head(model.facts(dtype), head, dtype, self.config.engine.block_size)

    def _num_blocks(self, facts: ModelFacts, length: int, memory: int) -> int:
        options = self.config.engine
        bytes_per_block = facts.kv_bytes_per_token * options.block_size
        return num_blocks(options, self.limits.max_num_seqs, length, bytes_per_block, memory)

    def _phrases(self, tokenizer: "Tokenizer | None") -> "Phrases | None":
        from ..text.phrases import Phrases

        return None if tokenizer is None else Phrases(tokenizer)

    def _sampler(self, model: Model, phrases: "Phrases | None", device: str = "cpu") -> "Sampler":
        from ..decode.sampler import Sampler

        return Sampler(model.config.vocab_size, device, phrases)

    def _torch_engine(
        self, model: Model, dtype: str, num_blocks: int, phrases: "Phrases | None", speculation: "SpeculationConfig"
    ) -> "Engine":
        from ..engine.load import load_engine

        return load_engine(
            model.resolved.config(),
            model.path,
            dtype=dtype,
            load_format=model.load_format,
            block_size=self.config.engine.block_size,
            sampler=self._sampler(model, phrases),
            num_blocks=num_blocks,
            speculation=self._of_engine(speculation),
            draft=self._draft(model),
        )

    def _of_engine(self, speculation: "SpeculationConfig") -> "SpeculationConfig | None":
        """A head follows the model on every worker; everything else guesses where tokens are drawn."""
        return speculation if self.draws or speculation.method == "eagle" else None

    def _draft(self, model: Model) -> "Checkpoint | None":
        """The smaller model, where one guesses."""
        from ..engine.load import Checkpoint

        return None if model.draft is None else Checkpoint(model.draft.resolved.config(), model.draft.path)

    def _fake_engine(self, model: Model, num_blocks: int) -> "Engine":
        from ..engine.fake_engine import FakeEngine
        from ..text.tokenizer import Tokenizer

        return FakeEngine(
            num_blocks,
            self.config.engine.block_size,
            model.config.vocab_size,
            token_ids=Tokenizer.from_folder(model.resolved.folder).encode(PANGRAM, add_special_tokens=False),
            step_s=self.config.fake.fake_step_s,
            token_s=self.config.fake.fake_token_s,
        )
