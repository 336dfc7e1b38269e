"""Trains a head: AdamW on fp32 weights, products in bf16 on GPUs; a schedule that knows when it will end."""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from .head import DraftHead
from .objective import Objective, Score
from .texts import Batch, Text, batches

BETAS = (0.9, 0.95)
MAX_GRAD_NORM = 1.0
WARM_UP, LAST_RATE = 0.04, 0.02
"""Shares of the training, and of the learning rate at its end."""


@dataclass(frozen=True, slots=True)
class Length:
    """Whichever is reached first ends the training."""

    num_steps: int
    seconds: float

    def progress(self, step: int, elapsed_s: float) -> float:
        """From 0 to 1."""
        return min(1.0, max(step / self.num_steps, elapsed_s / self.seconds))


def rate_at(progress: float) -> float:
    """Of the highest learning rate: a short rise, then half a cosine."""
    if progress < WARM_UP:
        return max(progress, 1e-3) / WARM_UP
    falling = (progress - WARM_UP) / (1 - WARM_UP)
    return LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * falling)) / 2


@dataclass(slots=True)
class Trainer:
    head: DraftHead
    objective: Objective
    texts: Sequence[Text]
    held_out: Sequence[Text]
    length: Length
    learning_rate: float
    batch_tokens: int
    device: torch.device
    report_s: float
    on_report: Callable[[], None] = lambda: None
    """Called after each report: a place to save the head."""
    losses: list[float] = field(default_factory=list)
    """Means between reports."""

    def run(self, rng: random.Random) -> Score:
        """Prints how it goes; the last score on held-out texts."""
        optimizer = torch.optim.AdamW(self.head.parameters(), betas=BETAS, fused=self.device.type == "cuda")
        start_s, reported_s, num_tokens = time.monotonic(), 0.0, 0
        pending: list[Tensor] = []
        for step, batch in enumerate(self._batches(rng)):
            elapsed_s = time.monotonic() - start_s
            progress = self.length.progress(step, elapsed_s)
            if progress == 1:
                break
            if pending and elapsed_s - reported_s >= self.report_s:
                self._report(step, num_tokens, elapsed_s, pending)
                reported_s = elapsed_s
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * rate_at(progress)
            pending.append(self._step(batch.to(self.device), optimizer))
            num_tokens += sum(batch.lengths)
        return self._report(step, num_tokens, elapsed_s, pending)

    def _batches(self, rng: random.Random) -> Iterator[Batch]:
        """Of all texts, again and again."""
        while True:
            yield from batches(self.texts, self.batch_tokens, rng)

    def _step(self, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
        """The loss, still on the device."""
        with self._cast():
            truth = self.objective.truth(batch)
            loss = self.objective.loss(self.head, batch, truth)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip_grad_norm_(self.head.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        return loss.detach()

    def _report(self, step: int, num_tokens: int, elapsed_s: float, pending: list[Tensor]) -> Score:
        if pending:
            self.losses.append(float(torch.stack(pending).mean()))
            pending.clear()
        score = self.score()
        loss = f"loss {self.losses[-1]:.3f}; " if self.losses else ""
        print(f"{elapsed_s:.0f} s, {step} steps, {num_tokens} tokens: {loss}{score}", flush=True)
        self.on_report()
        return score

    def score(self) -> Score:
        """Of the held-out texts."""
        total: Score | None = None
        for batch in batches(self.held_out, self.batch_tokens, random.Random(0)):
            with self._cast():
                one = self.objective.score(self.head, batch.to(self.device))
            total = one if total is None else total + one
        assert total is not None, "no text is held out"
        return total

    def _cast(self) -> AbstractContextManager[object]:
        """bf16 products of fp32 weights, on GPUs."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")
