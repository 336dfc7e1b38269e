"""How often a guess drawn from q equals the token drawn from p, in closed form but for a second guess.

Distributions are fp64 [N, V], one position a row; results are fp64 [N], probabilities.
"""

import torch
from torch import Tensor


def shared_noise(p: Tensor, q: Tensor) -> Tensor:
    """Both draws by Gumbel-max with the same noise: Σᵢ 1 ÷ Σⱼ max(pⱼ ÷ pᵢ, qⱼ ÷ qᵢ).

    Token i wins both where gᵢ ≥ gⱼ + cⱼ for all others, cⱼ the larger of log(pⱼ ÷ pᵢ) and log(qⱼ ÷ qᵢ); the largest
    gⱼ + cⱼ is a Gumbel variable moved by log Σ exp(cⱼ). The larger ratio is q's for every j whose q ÷ p exceeds i's:
    sorted by q ÷ p, the inner sum is a prefix of p and the rest of q, so a row takes V log V. At least
    (1 − TV) ÷ (1 + TV): Daliri, Musco, Suresh, "Coupling without Communication and Drafter-Invariant Speculative
    Decoding", 2024.
    """
    order = (q.log() - p.log()).nan_to_num(0.0).argsort(dim=-1)  # NaN: a token that neither draws, anywhere will do
    p, q = p.gather(-1, order), q.gather(-1, order)
    p_before = p.cumsum(-1)
    q_after = q.flip(-1).cumsum(-1).flip(-1) - q
    both = p * q
    return (both / (p_before * q + q_after * p)).where(both > 0, 0.0).sum(-1)


def own_noise(p: Tensor, q: Tensor) -> Tensor:
    """Two independent draws: Σ pᵢ qᵢ."""
    return (p * q).sum(-1)


def optimum(p: Tensor, q: Tensor) -> Tensor:
    """The most that any joint law of the two reaches, 1 − TV = Σ min(pᵢ, qᵢ): what rejection sampling accepts
    (Leviathan et al., 2023), which draws again from the rest of p and so ties the output to the guess."""
    return torch.minimum(p, q).sum(-1)


def second_guess(p: Tensor, q: Tensor, num_draws: int, seed: int) -> Tensor:
    """How often the token is what q would have drawn next, had its first guess been left out, with the same noise: what
    a tree with two branches adds to `shared_noise`. An average over draws."""
    generator, hits = torch.Generator().manual_seed(seed), torch.zeros(len(p), dtype=torch.float64)
    for _ in range(num_draws):
        noise = -torch.empty(p.shape).exponential_(generator=generator).log()
        token = (p.log() + noise).argmax(-1)
        _, guesses = (q.log() + noise).topk(2, dim=-1)
        hits += guesses[:, 1] == token
    return hits / num_draws
