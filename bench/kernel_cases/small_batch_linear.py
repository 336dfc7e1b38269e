"""Linear layers of decode steps: all of a model in one go, beside cuBLAS, then each layer with other tiles.

A chain is what a step has to do between its attentions: four fused layers a block and the head, each reading what the
one before wrote. cuBLAS's chain is the five products alone, without norm, activation and sum. Floor: weight bytes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ...kernels.fragment_linear import FragmentConfig, fragment_config, launch_fragment
from ...kernels.gemv_linear import MAX_ROWS as MAX_GEMV_ROWS
from ...kernels.gemv_linear import GemvConfig, gemv_config, launch_gemv
from ...kernels.linear_parts import LinearCall, ref_linear
from ..kernel_case import KernelCase, Run

OP = "small_batch_linear"
DTYPE = torch.bfloat16
EPS = 1e-5

Config = GemvConfig | FragmentConfig
Configure = Callable[..., Config]
"""(m, n, k, gated=) -> tiles."""


@dataclass(frozen=True)
class Shape:
    name: str
    num_layers: int
    hidden: int
    intermediate: int
    qkv: int
    attention: int
    vocab: int


LLAMA = Shape("Llama-3.1-8B", 32, hidden=4096, intermediate=14336, qkv=6144, attention=4096, vocab=128256)
SMOLLM2 = Shape("SmolLM2-135M", 30, hidden=576, intermediate=1536, qkv=960, attention=576, vocab=49152)


def cases(device: torch.device) -> Iterator[KernelCase]:
    llama = Weights(LLAMA, device)
    for m in (8, 16, 4, 1):
        yield _chain_case(llama, m)
    yield from _layer_cases(llama, LLAMA_CANDIDATES)
    del llama
    smollm2 = Weights(SMOLLM2, device)
    for m in (8, 16, 1):
        yield _chain_case(smollm2, m)
    yield from _layer_cases(smollm2, SMOLLM2_CANDIDATES)


class Weights:
    """Random ones of all layers, so that no cache holds what is read next."""

    def __init__(self, shape: Shape, device: torch.device):
        def random(n: int, k: int) -> Tensor:
            return torch.randn(n, k, dtype=DTYPE, device=device).mul_(k**-0.5)

        self.shape, self.device = shape, device
        self.norm = torch.rand(shape.hidden, dtype=DTYPE, device=device)
        layers = range(shape.num_layers)
        self.qkv = [random(shape.qkv, shape.hidden) for _ in layers]
        self.o = [random(shape.hidden, shape.attention) for _ in layers]
        self.gate_up = [random(2 * shape.intermediate, shape.hidden) for _ in layers]
        self.down = [random(shape.hidden, shape.intermediate) for _ in layers]
        self.head = [random(shape.vocab, shape.hidden)]

    @property
    def num_elements(self) -> int:
        return sum(w.numel() for layers in (self.qkv, self.o, self.gate_up, self.down, self.head) for w in layers)


class Activations:
    """What the layers of M rows read and write; `attention` stands for what attention would have made of `qkv`."""

    def __init__(self, shape: Shape, m: int, device: torch.device):
        def random(n: int) -> Tensor:
            return torch.randn(m, n, dtype=DTYPE, device=device)

        self.hidden, self.qkv, self.attention = random(shape.hidden), random(shape.qkv), random(shape.attention)
        self.intermediate, self.gate_up = random(shape.intermediate), random(2 * shape.intermediate)
        self.projected = random(shape.hidden)
        self.logits = torch.randn(m, shape.vocab, device=device)
        self.rounded_logits = random(shape.vocab)


def _call(name: str, weights: Weights, layer: int, a: Activations) -> LinearCall:
    w = getattr(weights, name)[layer]
    match name:
        case "qkv":
            return LinearCall(a.hidden, w, a.qkv, weights.norm, EPS)
        case "o":
            return LinearCall(a.attention, w, a.hidden, residual=a.hidden)
        case "gate_up":
            return LinearCall(a.hidden, w, a.intermediate, weights.norm, EPS, gated=True)
        case "down":
            return LinearCall(a.intermediate, w, a.hidden, residual=a.hidden)
        case _:
            return LinearCall(a.hidden, w, a.logits, weights.norm, EPS)


def _cublas(name: str, weights: Weights, layer: int, a: Activations) -> None:
    w = getattr(weights, name)[layer]
    x = {"o": a.attention, "down": a.intermediate}.get(name, a.hidden)
    out = {"qkv": a.qkv, "gate_up": a.gate_up, "head": a.rounded_logits}.get(name, a.projected)
    torch.mm(x, w.t(), out=out)


def _launch(call: LinearCall, config: Config, pdl: bool = True) -> None:
    match config:
        case GemvConfig():
            launch_gemv(call, config, pdl=pdl)
        case FragmentConfig():
            launch_fragment(call, config, pdl=pdl)


def _configure(m: int, n: int, k: int, *, gated: bool) -> Config:
    return (gemv_config if m <= MAX_GEMV_ROWS else fragment_config)(m, n, k, gated=gated)


def _configure_early(m: int, n: int, k: int, *, gated: bool) -> Config:
    return replace(fragment_config(m, n, k, gated=gated), early=True)


def _steps(shape: Shape) -> list[tuple[str, int]]:
    """(name, layer) of every product of a step, in order."""
    names = ("qkv", "o", "gate_up", "down")
    return [*((name, layer) for layer in range(shape.num_layers) for name in names), ("head", 0)]


def _chain(weights: Weights, a: Activations, configure: Configure = _configure, *, pdl: bool = True) -> Run:
    calls = [_call(name, weights, layer, a) for name, layer in _steps(weights.shape)]
    configs = [configure(*call.shape, gated=call.gated) for call in calls]

    def run() -> None:
        for call, config in zip(calls, configs, strict=True):
            _launch(call, config, pdl)

    return run


def _cublas_chain(weights: Weights, a: Activations) -> Run:
    def run() -> None:
        for name, layer in _steps(weights.shape):
            _cublas(name, weights, layer, a)

    return run


def _chain_case(weights: Weights, m: int) -> KernelCase:
    a = Activations(weights.shape, m, weights.device)
    peers: dict[str, Sequence[Run]] = {"cuBLAS, products alone": [_cublas_chain(weights, a)]}
    if m == 8:
        peers["without programmatic dependent launch"] = [_chain(weights, a, pdl=False)]
        peers["dependents started early"] = [_chain(weights, a, _configure_early)]
    if 1 < m <= MAX_GEMV_ROWS:
        peers["fragment"] = [_chain(weights, a, fragment_config)]
    return KernelCase(
        OP,
        f"all of {weights.shape.name}, batch {m}, bf16",
        runs=[_chain(weights, a)],
        num_bytes=2 * weights.num_elements,
        num_flops=2 * m * weights.num_elements,
        peers=peers,
        check=partial(_check_chain, weights, a),
        tolerance=5e-2,
    )


def _check_chain(weights: Weights, a: Activations) -> tuple[Tensor, Tensor]:
    """Logits, and those of the same chain in fp32 throughout."""
    hidden = torch.randn_like(a.hidden)
    a.hidden.copy_(hidden)
    wide = Activations(weights.shape, len(hidden), weights.device)
    for name in ("hidden", "qkv", "attention", "intermediate"):
        setattr(wide, name, getattr(a, name).float())
    _chain(weights, a)()
    for name, layer in _steps(weights.shape):
        ref_linear(_call(name, weights, layer, wide))
    return a.logits, wide.logits


LLAMA_CANDIDATES: dict[int, dict[str, list[Config]]] = {
    8: {
        "qkv": [
            FragmentConfig(16, 4, 8, early=True),
            FragmentConfig(32, 4, 8, row_warps=2),
            FragmentConfig(16, 2, 8),
        ],
        "o": [FragmentConfig(16, 8, 8, early=True), FragmentConfig(16, 4, 8)],
        "gate_up": [
            FragmentConfig(16, 4, 4, early=True),
            FragmentConfig(32, 4, 4, row_warps=2),
            FragmentConfig(32, 8, 4, row_warps=2),
        ],
        "down": [FragmentConfig(16, 8, 8, early=True), FragmentConfig(16, 4, 16), FragmentConfig(16, 4, 8)],
        "head": [FragmentConfig(16, 4, 4, early=True), FragmentConfig(32, 4, 4, row_warps=2)],
    },
    16: {
        "o": [FragmentConfig(16, 8, 8)],
        "gate_up": [FragmentConfig(16, 4, 4)],
        "down": [FragmentConfig(16, 8, 8)],
    },
    4: {
        "gate_up": [FragmentConfig(16, 4, 4)],
        "down": [FragmentConfig(16, 8, 8), GemvConfig(4, 1024, 4)],
    },
}
SMOLLM2_CANDIDATES: dict[int, dict[str, list[Config]]] = {
    8: {
        "gate_up": [FragmentConfig(16, 4, 8, early=True), FragmentConfig(16, 8, 4)],
        "down": [FragmentConfig(16, 8, 8, early=True), FragmentConfig(16, 4, 8)],
        "head": [FragmentConfig(16, 4, 4)],
    },
}


def _layer_cases(weights: Weights, candidates: dict[int, dict[str, list[Config]]]) -> Iterator[KernelCase]:
    for m, of_layer in candidates.items():
        for name, configs in of_layer.items():
            yield _layer_case(weights, m, name, configs)


def _layer_case(weights: Weights, m: int, name: str, configs: list[Config]) -> KernelCase:
    a = Activations(weights.shape, m, weights.device)
    layers = range(len(getattr(weights, name)))
    calls = [_call(name, weights, layer, a) for layer in layers]
    call = calls[0]
    own = _configure(*call.shape, gated=call.gated)
    peers: dict[str, Sequence[Run]] = {
        str(config): [partial(_launch, call, config) for call in calls] for config in configs if config != own
    }
    peers["cuBLAS, product alone"] = [partial(_cublas, name, weights, layer, a) for layer in layers]
    return KernelCase(
        OP,
        f"{weights.shape.name} {name}, batch {m}, bf16, {own}",
        runs=[partial(_launch, call, own) for call in calls],
        num_bytes=2 * (call.w.numel() + call.x.numel()) + call.out.nbytes * (1 + (call.residual is not None)),
        num_flops=2 * m * call.w.numel(),
        peers=peers,
        check=partial(_check_call, call, own),
    )


def _check_call(call: LinearCall, config: Config) -> tuple[Tensor, Tensor]:
    call.out.normal_()  # What thousands of runs have added up would hide an error.
    expected = ref_linear(replace(call, out=call.out.to(torch.float32, copy=True)))
    _launch(call, config)
    return call.out, expected
