"""Engines to compare: the same model, each with what guesses for it, on a CPU or a GPU."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..decode.guidance import Guides
from ..decode.ngram_proposer import NgramProposer
from ..decode.sampler import Sampler
from ..decode.speculation import Speculation
from ..decode.speculator import EngineProposer, Proposer
from ..engine.load import Checkpoint, load_engine
from ..engine.sampler import GuessingSampler
from ..engine.speculation_config import SpeculationConfig
from ..launch.model import Model
from ..launch.speculative_model import settle_speculation, with_draft
from ..text.phrases import Phrases
from ..text.tokenizer import Tokenizer
from .batch_decoder import MAX_BATCHED_TOKENS, BatchDecoder, StepEngine
from .fixed_speculation import FixedSpeculation

BLOCK_SIZE = 16
GPU_DTYPE, CPU_DTYPE = "bfloat16", "float32"


@dataclass(frozen=True, slots=True)
class EngineMaker:
    model: Model
    tokenizer: Tokenizer
    device: str
    """"cpu" or "cuda"."""
    max_num_seqs: int
    max_model_len: int
    """Tokens of the longest sequence, for so many of which the pool has room."""
    guides: Guides | None = None

    @property
    def dtype(self) -> str:
        return CPU_DTYPE if self.device == "cpu" else GPU_DTYPE

    def decoder(self, config: SpeculationConfig, *, fixed: bool = False) -> BatchDecoder:
        """See `decoders`."""
        return self.decoders(config, 1, fixed=fixed)[0]

    def decoders(
        self, config: SpeculationConfig, count: int, *, fixed: bool = False, caches: bool = True
    ) -> list[BatchDecoder]:
        """Workers with this speculation, which is of all of them; `fixed`: its guesses are as many always. Raises
        ValueError where the model cannot be guessed for so."""
        speculation = self._speculation(config, fixed)
        return [self.around(self.engine(config), speculation, caches=caches) for _ in range(count)]

    def around(self, engine: StepEngine, speculation: Speculation | None, *, caches: bool = True) -> BatchDecoder:
        """Several may be around one engine, for runs in turn, if none caches prompts."""
        eos_ids = sorted(self.tokenizer.eos_ids)
        return BatchDecoder(
            engine, self.max_num_seqs, self.max_model_len, speculation, self.guides, eos_ids, caches=caches
        )

    def sampler(self) -> Sampler:
        device = "cpu" if self.device == "cpu" else "cuda:0"
        return Sampler(self.model.config.vocab_size, device, Phrases(self.tokenizer))

    def engine(self, config: SpeculationConfig, sampler: GuessingSampler | None = None) -> StepEngine:
        """`sampler` draws instead of a new one; on GPUs only where kernels do not."""
        config = settle_speculation(config, self.model)
        guesser = with_draft(self.model, config).draft
        draft = None if guesser is None else Checkpoint(guesser.resolved.config(), guesser.path)
        common: dict[str, Any] = {
            "dtype": self.dtype,
            "load_format": self.model.load_format,
            "block_size": BLOCK_SIZE,
            "speculation": config,
            "draft": draft,
        }
        if self.device == "cpu":
            sampler = sampler or self.sampler()
            return load_engine(
                self.model.resolved.config(), self.model.path, sampler=sampler, num_blocks=self._num_blocks, **common
            )
        return self._on_gpu(common)

    def _on_gpu(self, common: dict[str, Any]) -> StepEngine:
        from ..engine.cuda.load import Memory, load_cuda_engine

        engine, _ = load_cuda_engine(
            self.model.resolved.config(),
            self.model.path,
            device_index=0,
            kv_cache_dtype="auto",
            memory=Memory(num_blocks=self._num_blocks),
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=MAX_BATCHED_TOKENS,
            max_model_len=self.max_model_len,
            phrases=Phrases(self.tokenizer),
            sampler=self.sampler(),
            **common,
        )
        return engine

    @property
    def _num_blocks(self) -> int:
        """With a block to spare for each sequence's guesses, and some that stay free."""
        blocks_each = -(-self.max_model_len // BLOCK_SIZE) + 1
        return 2 * blocks_each + self.max_num_seqs * blocks_each * 51 // 50

    @staticmethod
    def _speculation(config: SpeculationConfig, fixed: bool) -> Speculation | None:
        if config.method == "off":
            return None
        proposer: Callable[[], Proposer] = NgramProposer if config.method == "ngram" else EngineProposer
        return (FixedSpeculation if fixed else Speculation)(proposer, config.num_tokens)
