"""Heads loaded from every published layout compute what a plain implementation does, page by page and step by step."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from isthmus.engine.attention import PagedAttention
from isthmus.engine.cuda.parts import CudaParts
from isthmus.engine.eagle.head import EagleHead
from isthmus.engine.eagle.load import load_eagle
from isthmus.engine.kv_pool import KvPool
from isthmus.engine.models.llama import Llama
from isthmus.engine.parts import CpuParts
from isthmus.engine.plan import Row
from isthmus.engine.weights import SafetensorsFolder
from isthmus.tests.engine import tiny
from isthmus.tests.engine.eagle_reference import Checkpoint, Reference, checkpoints
from torch import Tensor

NAMES = list(checkpoints())
TABLE = [9, 2, 3, 14, 7, 1]
NUM_TOKENS, NUM_STEPS = 11, 4


@dataclass
class Target:
    reference: Any
    """transformers' model."""
    model: Llama
    source: SafetensorsFolder

    @property
    def tensors(self) -> dict[str, Tensor]:
        names = {"embed": "model.embed_tokens", "norm": "model.norm", "lm_head": "lm_head"}
        return {ours: self.reference.state_dict()[f"{theirs}.weight"] for ours, theirs in names.items()}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    config, folder = tiny.llama(num_hidden_layers=8), tmp_path_factory.mktemp("target")
    reference = tiny.reference_model(config)
    return Target(reference, tiny.tiny_model(config, tiny.save(reference, folder)), SafetensorsFolder(folder))


class Sequence:
    """A head's KV of one sequence, in a pool that holds NaN wherever nothing was stored."""

    def __init__(self, head: EagleHead) -> None:
        self.head, config = head, head.layer_config
        self.pool = KvPool(
            num_layers=1,
            num_blocks=16,
            block_size=4,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=head.dtype,
        )
        self.pool.kv.fill_(float("nan"))

    def forward(self, token_ids: Tensor, hidden: Tensor, start: int) -> Tensor:
        config, row = self.head.layer_config, Row(1, token_ids.tolist(), start, TABLE)
        attention = PagedAttention(
            self.pool, [row], num_heads=config.num_heads, windows=config.windows, rope=self.head.rope
        )
        return self.head.forward(self.head.embed(token_ids), hidden, attention)


def load(checkpoint: Checkpoint, target: Target, folder: Path, *, pickled: bool = False) -> EagleHead:
    saved = checkpoint.save(folder, pickled=pickled)
    return load_eagle(saved, target.model, CpuParts(), torch.float32, target_weights=target.source)


def inputs(head: EagleHead, length: int = NUM_TOKENS, seed: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(length, head.config.feature_size, generator=generator) * 2
    return torch.tensor(tiny.prompt(length, seed)), features


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("name", NAMES)
def test_chunk_then_steps(name: str, pickled: bool, target: Target, tmp_path: Path) -> None:
    checkpoint = checkpoints()[name]
    head = load(checkpoint, target, tmp_path, pickled=pickled)
    reference, sequence = Reference(checkpoint, target.tensors), Sequence(head)
    token_ids, features = inputs(head)
    hidden, theirs = head.fuse(features), reference.fuse(features)
    assert_same(hidden, theirs)
    out, expected = sequence.forward(token_ids, hidden, 0), reference.forward(token_ids, theirs)
    for step in range(NUM_STEPS):
        assert_same(out, expected[-len(out) :])
        assert_same(head.logits(out), reference.logits(expected[-len(out) :]))
        guess = head.logits(out[-1:]).argmax(-1)
        token_ids, theirs = torch.cat((token_ids, guess)), torch.cat((theirs, expected[-1:]))
        out = sequence.forward(guess, out[-1:], NUM_TOKENS + step)
        expected = reference.forward(token_ids, theirs)


@pytest.mark.parametrize("name", ["eagle", "eagle3"])
def test_kv_of_guesses_is_replaced_by_that_of_features(name: str, target: Target, tmp_path: Path) -> None:
    checkpoint = checkpoints()[name]
    head = load(checkpoint, target, tmp_path)
    reference, sequence = Reference(checkpoint, target.tensors), Sequence(head)
    token_ids, features = inputs(head, 9)
    hidden = head.fuse(features)
    out = sequence.forward(token_ids[:5], hidden[:5], 0)
    for position in range(5, 8):
        out = sequence.forward(torch.tensor([17]), out[-1:], position)
    out = sequence.forward(token_ids[5:], hidden[5:], 5)
    assert_same(out, reference.forward(token_ids, reference.fuse(features))[5:])


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_not_overwritten(name: str, target: Target, tmp_path: Path) -> None:
    head = load(checkpoints()[name], target, tmp_path)
    token_ids, features = inputs(head)
    hidden = head.fuse(features)
    before = features.clone(), hidden.clone()
    out = Sequence(head).forward(token_ids, hidden, 0)
    kept = out.clone()
    head.logits(out)
    assert torch.equal(features, before[0])
    assert torch.equal(hidden, before[1])
    assert torch.equal(out, kept)


def test_eagle_1_continues_what_the_target_made_logits_of(target: Target, tmp_path: Path) -> None:
    """Its features are transformers' last hidden states, and its logits of those are the target's own."""
    head = load(checkpoints()["eagle"], target, tmp_path)
    token_ids, norm = tiny.prompt(9), target.reference.model.norm
    streams: list[Tensor] = []
    hook = norm.register_forward_pre_hook(lambda _, args: streams.append(args[0][0]))
    with torch.no_grad():
        result = target.reference(torch.tensor([token_ids]), output_hidden_states=True)
    hook.remove()
    fused = head.fuse(streams[0])
    assert head.aux_layers == ()
    torch.testing.assert_close(fused, result.hidden_states[-1][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head.logits(fused), result.logits[0], rtol=1e-5, atol=1e-5)


def test_draft_vocabulary(target: Target, tmp_path: Path) -> None:
    checkpoint = checkpoints()["eagle3"]
    head = load(checkpoint, target, tmp_path)
    logits = head.logits(torch.randn(3, 64, generator=torch.Generator().manual_seed(1)))
    assert logits.shape == (3, 320)
    assert logits.dtype == torch.float32
    assert torch.equal(logits > float("-inf"), checkpoint.tensors["t2d"].expand(3, -1))


@pytest.mark.parametrize("name", ["eagle", "eagle3", "eagle3 of qwen3"])
def test_bfloat16_is_near(name: str, target: Target, tmp_path: Path) -> None:
    exact = load(checkpoints()[name], target, tmp_path)
    head = load_eagle(tmp_path, target.model, CpuParts(), torch.bfloat16, target_weights=target.source)
    token_ids, features = inputs(head)
    expected = Sequence(exact).forward(token_ids, exact.fuse(features), 0)
    out = Sequence(head).forward(token_ids, head.fuse(features.bfloat16()), 0)
    assert out.dtype == torch.bfloat16
    assert head.logits(out).dtype == torch.float32
    assert (out.float() - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("name", [name for name in NAMES if "qwen3" not in name])
def test_parts_of_a_gpu(name: str, target: Target, tmp_path: Path) -> None:
    """Their kernels' references, of shapes and dtypes that the kernels take; Qwen3's norms of heads are attention's."""
    exact = load(checkpoints()[name], target, tmp_path)
    parts = CudaParts(pdl=False)
    head = load_eagle(tmp_path, target.model, parts, torch.bfloat16, target_weights=target.source)
    token_ids, features = inputs(head)
    expected = Sequence(exact).forward(token_ids, exact.fuse(features), 0)
    out = Sequence(head).forward(token_ids, head.fuse(features.bfloat16()), 0)
    assert (out.float() - expected).norm() < 0.02 * expected.norm()
    is_possible = exact.logits(expected) > float("-inf")
    near, far = head.logits(out)[is_possible], exact.logits(expected)[is_possible]
    assert (near - far).norm() < 0.02 * far.norm()


def test_a_copy_of_the_embedding_is_held_once(target: Target, tmp_path: Path) -> None:
    checkpoint = checkpoints()["eagle, biases, own embedding"]
    assert load(checkpoint, target, tmp_path / "trained").embedding is not target.model.embedding
    checkpoint.tensors["embed_tokens.weight"] = target.tensors["embed"].clone()
    assert load(checkpoint, target, tmp_path / "copied").embedding is target.model.embedding
