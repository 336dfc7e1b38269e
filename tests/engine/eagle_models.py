"""Targets with heads: one that knows nothing, and one that is always right."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from isthmus.decode.sampler import Sampler
from isthmus.engine.cuda.engine import CudaEngine
from isthmus.engine.speculation_config import SpeculationConfig
from isthmus.engine.torch_engine import TorchEngine
from isthmus.tests.engine import eagle_reference
from isthmus.tests.engine.cuda_tiny import cuda_engine
from isthmus.tests.engine.eagle_reference import Reference
from isthmus.tests.engine.tiny import VOCAB_SIZE, engine_of, llama, reference_model, save
from torch import Tensor

NUM_GUESSES = 3
CONFIG = llama(num_hidden_layers=8)


@dataclass(frozen=True)
class Headed:
    """A target with a head, and transformers' target."""

    reference: Any
    weights: Path
    head: Path
    checkpoint: eagle_reference.Checkpoint

    def engine(self, **options: Any) -> TorchEngine:
        config = SpeculationConfig("eagle", NUM_GUESSES, str(self.head))
        return engine_of(CONFIG, self.weights, **{"sampler": Sampler(VOCAB_SIZE), "speculation": config, **options})

    def cuda_engine(self, device: str = "cpu", **options: Any) -> CudaEngine:
        return cuda_engine(CONFIG, self.weights, device, head=self.head, **options)

    def plain(self, **options: Any) -> TorchEngine:
        return engine_of(CONFIG, self.weights, **{"sampler": Sampler(VOCAB_SIZE), **options})

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Of the target, as eagle_reference.Reference takes them."""
        names = {"embed": "model.embed_tokens", "norm": "model.norm", "lm_head": "lm_head"}
        return {ours: self.reference.state_dict()[f"{theirs}.weight"] for ours, theirs in names.items()}


def ignorant(name: str, folder: Path) -> Headed:
    """Random weights on both sides. `name`: of eagle_reference.checkpoints."""
    reference, checkpoint = reference_model(CONFIG), eagle_reference.checkpoints()[name]
    return Headed(reference, _save(reference, folder), checkpoint.save(folder / "head"), checkpoint)


@torch.no_grad()
def knowing(folder: Path, wrong: float = 0.0) -> Headed:
    """A target whose layers add nothing, so that its logits are of the last token's embedding alone, and an EAGLE-1
    head that passes that embedding on: its logits are the same. `wrong`: how much of the feature before is added to
    it, which belongs to the token before: 0 is always right."""
    reference, checkpoint = reference_model(CONFIG), eagle_reference.checkpoints()["eagle"]
    for name, parameter in reference.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.zero_()
    embedding = reference.model.embed_tokens.weight
    embedding.div_(embedding.square().mean(-1, keepdim=True).sqrt())
    reference.model.norm.weight.fill_(1)
    hidden = checkpoint.hidden
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        checkpoint.tensors[f"layers.0.{name}.weight"].zero_()
    checkpoint.tensors["fc.weight"] = torch.cat((torch.eye(hidden), wrong * torch.eye(hidden)), 1)
    return Headed(reference, _save(reference, folder), checkpoint.save(folder / "head"), checkpoint)


def _save(reference: Any, folder: Path) -> Path:
    (folder / "target").mkdir(parents=True)
    return save(reference, folder / "target")


def reference_guesses(headed: Headed, tokens: list[int]) -> list[int]:
    """By the book: the whole sequence, in fp64, with transformers' hidden states."""
    reference = Reference(headed.checkpoint, headed.tensors)
    given, hidden = torch.tensor(tokens[1:]), reference.fuse(features_of(headed, tokens)[:-1])
    guesses: list[int] = []
    while len(guesses) < NUM_GUESSES:
        out = reference.forward(given, hidden)[-1:]
        guesses.append(int(reference.logits(out).argmax()))
        given, hidden = torch.cat((given, torch.tensor(guesses[-1:]))), torch.cat((hidden, out))
    return guesses


def features_of(headed: Headed, tokens: list[int]) -> Tensor:
    streams: list[Tensor] = []
    norm = headed.reference.model.norm
    hook = norm.register_forward_pre_hook(lambda _, args: streams.append(args[0][0]))
    with torch.no_grad():
        states = headed.reference(torch.tensor([tokens]), output_hidden_states=True).hidden_states
    hook.remove()
    if headed.checkpoint.version == 1:
        return streams[0]
    return torch.cat([states[index][0] for index in (2, 4, 5)], -1)
