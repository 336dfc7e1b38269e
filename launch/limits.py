"""How much one step of a worker takes on, where the command line does not say. Pure."""

from dataclasses import dataclass
from typing import Literal

from ..wire.messages import Role
from .config import EngineOptions

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class StepLimits:
    max_num_seqs: int
    max_num_batched_tokens: int


DEFAULTS: dict[tuple[Device, Role], StepLimits] = {
    ("cpu", "prefill"): StepLimits(32, 512),
    ("cpu", "decode"): StepLimits(32, 512),
    ("cuda", "prefill"): StepLimits(256, 8192),
    ("cuda", "decode"): StepLimits(256, 2048),
}
"""Chunks of 8192 keep a GPU's matrix units busy; a decode worker's are shorter, because its answers wait for them."""


def step_limits(engine: EngineOptions, device: Device, role: Role) -> StepLimits:
    """What was asked for, else what suits the device and the role."""
    default = DEFAULTS[device, role]
    return StepLimits(
        engine.max_num_seqs or default.max_num_seqs,
        engine.max_num_batched_tokens or default.max_num_batched_tokens,
    )
