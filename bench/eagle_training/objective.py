"""What a head is trained for: at each guess of a chain, the target's own distribution (cross-entropy, all guesses in
one sum, later ones for less); and how often its guesses would be right.

Chains are made of the text's own tokens, so that each guess is judged as if those before it had been right.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .head import DraftHead
from .target import FrozenTarget
from .texts import Batch

LATER = 0.8
"""What a guess counts beside the one before it."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What the target says of a batch's answers."""

    features: Tensor
    """[B, T, feature_size]"""
    positions: Tensor
    """[N] of the B * T: those of which the next token is judged."""
    probabilities: Tensor
    """fp32 [N, draft_vocab_size]: of the draft vocabulary; what is missing to 1 cannot be guessed."""
    top: Tensor
    """[N]: the draft token that is the target's likeliest; -1 if none is."""


@dataclass(frozen=True, slots=True)
class Score:
    """Sums over positions, for each guess of a chain: [num_guesses]."""

    num_positions: int
    num_same: Tensor
    """The head's likeliest token is the target's: right at temperature 0."""
    overlap: Tensor
    """1 − TV of the two distributions at temperature 1: the most that can be right there."""
    num_unbroken: Tensor
    """All guesses up to this one are the same: what a chain gives, its tokens being the text's."""

    def __add__(self, other: "Score") -> "Score":
        return Score(
            self.num_positions + other.num_positions,
            self.num_same + other.num_same,
            self.overlap + other.overlap,
            self.num_unbroken + other.num_unbroken,
        )

    def __str__(self) -> str:
        same, overlap, unbroken = (
            " / ".join(f"{share:.3f}" for share in (part / self.num_positions).tolist())
            for part in (self.num_same, self.overlap, self.num_unbroken)
        )
        length = 1 + float(self.num_unbroken.sum()) / self.num_positions
        return f"same top token {same}; 1 - TV {overlap}; unbroken {unbroken}; {length:.2f} tokens a step"


class Objective:
    def __init__(self, target: FrozenTarget, target_ids: Tensor, num_guesses: int) -> None:
        """`target_ids` [draft_vocab_size]: of each draft token."""
        self._target, self._num_guesses = target, num_guesses
        self._target_ids = target_ids.to(target.device)
        self._draft_ids = torch.full((target.config.vocab_size,), -1, device=target.device)
        self._draft_ids[self._target_ids] = torch.arange(len(target_ids), device=target.device)

    @torch.no_grad()
    def truth(self, batch: Batch) -> Truth:
        positions = torch.tensor(self._positions(batch), dtype=torch.int64, device=self._target.device)
        features, logits = self._target.read(batch.token_ids, positions)
        probabilities = logits.softmax(-1).index_select(1, self._target_ids)
        return Truth(features.float(), positions, probabilities, self._draft_ids[logits.argmax(-1)])

    def loss(self, head: DraftHead, batch: Batch, truth: Truth) -> Tensor:
        """A mean over positions and guesses."""
        weights = [LATER**turn for turn in range(self._num_guesses)]
        losses = [
            weight * -(truth.probabilities * F.log_softmax(logits, -1)).sum(-1).mean()
            for weight, logits in zip(weights, self._logits(head, batch, truth), strict=True)
        ]
        return torch.stack(losses).sum() / sum(weights)

    @torch.no_grad()
    def score(self, head: DraftHead, batch: Batch) -> Score:
        truth = self.truth(batch)
        same, overlap = [], []
        for logits in self._logits(head, batch, truth):
            same.append(logits.argmax(-1) == truth.top)
            overlap.append(torch.minimum(logits.softmax(-1), truth.probabilities).sum())
        counts = torch.stack([one.sum() for one in same])
        unbroken = self._unbroken(batch, truth, same)
        return Score(len(truth.positions), counts.cpu(), torch.stack(overlap).cpu(), unbroken.cpu())

    def _logits(self, head: DraftHead, batch: Batch, truth: Truth) -> Sequence[Tensor]:
        """Of each guess in turn, fp32 [N, draft_vocab_size] at `truth.positions`."""
        chains, made = head.chains(truth.features), []
        for turn in range(self._num_guesses):
            tokens = batch.token_ids.roll(-1 - turn, 1)  # what comes around is of no root that is judged
            hidden = chains.step(self._target.embed(tokens).float())
            made.append(head.logits(hidden.flatten(0, 1)[truth.positions - 1 - turn]))
        return made

    def _positions(self, batch: Batch) -> list[int]:
        """Of tokens in answers that have a next one there, and a root for every guess."""
        length = batch.token_ids.shape[1]
        return [
            row * length + position
            for row, (start, end) in enumerate(zip(batch.prompt_lengths, batch.lengths, strict=True))
            for position in range(max(start, self._num_guesses), end - 1)
        ]

    def _unbroken(self, batch: Batch, truth: Truth, same: Sequence[Tensor]) -> Tensor:
        """[num_guesses]. A chain's guesses stand one position after another: here they are brought to their root."""
        by_root = torch.zeros(self._num_guesses, batch.token_ids.numel(), dtype=torch.bool, device=truth.top.device)
        for turn, right in enumerate(same):
            by_root[turn, truth.positions - 1 - turn] = right
        return by_root.cumprod(0).sum(1)
