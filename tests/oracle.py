"""transformers as the judge of tokens, and the tiny random models it judges.

Tokens are checked by teacher forcing: at every position the token must be the argmax of transformers' logits, plus the
noise of the request's seed where it is sampled. Where it is not, the two perturbed values must lie within NEAR_TIE of
each other; such ties are counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import gguf
import torch
import transformers
from isthmus.decode.sampler import Sampler
from isthmus.engine.config import ModelConfig
from isthmus.engine.cuda.model_proposer import Draft
from isthmus.engine.cuda.parts import CudaParts
from isthmus.engine.cuda.runtime import HostRuntime
from isthmus.engine.load import Checkpoint, load_engine, load_model
from isthmus.engine.models.llama import Llama
from isthmus.engine.speculation_config import SpeculationConfig
from isthmus.engine.worker import Loaded
from isthmus.kernels.philox import gumbel_noise
from isthmus.tests.engine.cuda_tiny import LADDER, engine_around
from isthmus.tests.helpers import demo_model_path
from isthmus.text.gguf_config import gguf_config
from isthmus.text.gguf_metadata import read_gguf
from isthmus.text.phrases import Phrases
from isthmus.wire.messages import Fingerprint
from isthmus.wire.noise import DRAW, philox_key
from isthmus.wire.sampling import SamplingParams
from torch import Tensor
from transformers.initialization import no_init_weights

NEAR_TIE = 1e-3
BLOCK_SIZE = 16

SMALL: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, llama3 rope": ("Llama", {"rope_parameters": LLAMA3}),
    "llama, yarn rope, tied": ("Llama", {"rope_parameters": YARN, "tie_word_embeddings": True}),
    "llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
}


def make_tiny(name: str, folder: Path) -> "Reference":
    """A random model of this kind, saved to `folder` as a checkpoint."""
    family, changes = TINY[name]
    torch.manual_seed(3)
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **changes})
    model = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
    for parameter in model.parameters():  # biases and norms start at 0 and 1, which would hide them
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=parameter.detach().mean().item(), std=0.2)
    model.save_pretrained(folder)
    return Reference(model, folder, config.to_dict())


@dataclass
class Reference:
    model: Any
    weights: Path
    config: Mapping[str, Any]
    num_checked: int = 0
    num_ties: int = 0
    _logits: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    _loading: Lock = field(default_factory=Lock)

    @property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.config, self.weights)

    @cached_property
    def _ours(self) -> Llama:
        return load_model(ModelConfig.from_hf(self.config), self.weights, torch.float32)

    def load(
        self,
        _: str,
        phrases: Phrases | None = None,
        *,
        speculation: SpeculationConfig | None = None,
        draft: Checkpoint | None = None,
        num_blocks: int = 256,
    ) -> Loaded:
        """What a worker is given to load the same model with Isthmus; the weights are read once, whoever asks.
        `speculation`, `draft`: as in `load_engine`."""
        sizes = ModelConfig.from_hf(self.config)
        with self._loading:
            model = self._ours
        engine = load_engine(
            self.config,
            self.weights,
            dtype="float32",
            load_format="auto",
            block_size=BLOCK_SIZE,
            num_blocks=num_blocks,
            sampler=Sampler(sizes.vocab_size, phrases=phrases),
            speculation=speculation,
            draft=draft,
            model=model,
        )
        name = Fingerprint(str(self.weights), "", repr(sizes.rope), sizes.num_layers, sizes.vocab_size, BLOCK_SIZE)
        return Loaded(engine, name, min(sizes.max_position_embeddings, engine.num_blocks * BLOCK_SIZE))

    def load_gpu_engine(self, _: str, *, guesses: bool = False) -> Loaded:
        """As `load`, with the engine for GPUs, over its kernels' references: every step is launched ahead. `guesses`:
        it makes some, with the model itself."""
        model = load_model(ModelConfig.from_hf(self.config), self.weights, torch.float32, parts=CudaParts(pdl=False))
        runtime = HostRuntime()
        sampler = Sampler(self.config["vocab_size"])
        draft = Draft(model, None) if guesses else None
        engine = engine_around(
            model, runtime, torch.float32, num_blocks=256, block_size=BLOCK_SIZE, sampler=sampler, draft=draft
        )
        engine.capture(LADDER)
        loaded = self.load("")
        return replace(loaded, engine=engine)

    def check(self, prompt_ids: Sequence[int], output: Sequence[int], params: SamplingParams, choice: int = 0) -> None:
        """Raises AssertionError at the first token that transformers' logits and the seed do not explain."""
        assert len(output) == params.max_tokens
        scores = self._logits_of(list(prompt_ids), list(output))
        if params.temperature > 0:
            scores = truncate(scores / params.temperature, params) + noise(params.seed, choice, *scores.shape)
        best = scores.max(dim=-1).values
        given = scores.gather(1, torch.tensor(output)[:, None])[:, 0]
        gaps = best - given
        assert torch.all(gaps < NEAR_TIE), f"token {int((gaps >= NEAR_TIE).nonzero()[0])} of {len(output)}: {gaps}"
        self.num_checked += len(output)
        self.num_ties += int((gaps > 0).sum())

    def _logits_of(self, prompt_ids: list[int], output: list[int]) -> Tensor:
        """fp32 [len(output), vocab]: what predicts each output token."""
        key = (*prompt_ids, *output)
        if key not in self._logits:
            with torch.inference_mode():
                logits = self.model(torch.tensor([prompt_ids + output[:-1]])).logits[0]
            self._logits[key] = logits[len(prompt_ids) - 1 :].float()
        return self._logits[key]


def truncate(logits: Tensor, params: SamplingParams) -> Tensor:
    """transformers' own warpers, in our order."""
    unused = torch.zeros(1, 1, dtype=torch.long)
    if params.top_k > 0:
        logits = transformers.TopKLogitsWarper(params.top_k)(unused, logits)
    if params.top_p < 1:
        logits = transformers.TopPLogitsWarper(params.top_p)(unused, logits)
    if params.min_p > 0:
        logits = transformers.MinPLogitsWarper(params.min_p)(unused, logits)
    return logits


def noise(seed: int, choice: int, num_positions: int, vocab_size: int) -> Tensor:
    """The Gumbel noise of output positions 0, 1, …: fp32 [num_positions, vocab_size]."""
    keys = torch.tensor([philox_key(seed, 0, choice)]).expand(num_positions, 2)
    ids = torch.arange(vocab_size).expand(num_positions, vocab_size)
    positions = torch.arange(num_positions)
    return gumbel_noise(keys, positions, torch.zeros_like(positions), ids, stream=DRAW)


@cache
def demo_reference() -> Reference:
    """The demo model in transformers: weights dequantized by the gguf package, llama.cpp's order of Q and K undone."""
    path = demo_model_path()
    config = gguf_config(read_gguf(path))
    with no_init_weights():
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).float().eval()
    state = {}
    for tensor in gguf.GGUFReader(path).tensors:
        weight = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy()).float()
        name = hf_name(tensor.name)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = interleaved_to_halves(weight, model.config.head_dim)
        state[name] = weight
    state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    model.load_state_dict(state)  # strictly: nothing is left as it was not initialised
    return Reference(model, path, config)


GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def hf_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{GGUF_NAMES[parts[2]]}.{parts[3]}"
    return f"{GGUF_NAMES[parts[0]]}.{parts[1]}"


def interleaved_to_halves(weight: Tensor, head_dim: int) -> Tensor:
    """llama.cpp rotates neighbours, transformers halves: rows (2i, 2i+1) of a head become (i, i + head_dim/2)."""
    heads = weight.view(-1, head_dim // 2, 2, weight.shape[1])
    return heads.transpose(1, 2).reshape(weight.shape)
