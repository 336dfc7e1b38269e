"""How a step's tokens are divided among the prompts that wait for them."""

from collections.abc import Callable, Sequence

Split = Callable[[Sequence[int], int], list[int]]
"""(tokens that each prompt still lacks, the oldest first; budget) -> tokens for each."""


def split_budget(num_left: Sequence[int], budget: int) -> list[int]:
    """Tokens for each prompt; `num_left` is what each still lacks, the oldest first.

    Half goes to the prompt that has least left (the oldest of equals), so that a short one is not stuck behind a
    long one. The other half goes to the oldest, so that no stream of short ones starves it: it is done after at most
    2 * num_left / budget steps. What those two do not need goes to the rest, least left first. Budgets of less than
    two tokens cannot be halved: they raise ValueError.
    """
    if budget < 2:
        raise ValueError(f"a budget of {budget} tokens cannot be shared")
    grants = [0] * len(num_left)
    by_left = sorted(range(len(num_left)), key=num_left.__getitem__)
    shares = [(by_left[0], budget - budget // 2), (0, budget)] if num_left else []
    for index, share in [*shares, *((index, budget) for index in by_left)]:
        grant = min(share, num_left[index] - grants[index], budget)
        grants[index] += grant
        budget -= grant
    return grants


def split_whole(num_left: Sequence[int], budget: int) -> list[int]:
    """As `split_budget`, for prompts that are computed in one step or not at all: the oldest always, and those after it
    that fit in what it leaves, in their order."""
    grants = []
    for number, num_tokens in enumerate(num_left):
        grant = num_tokens if number == 0 or num_tokens <= budget else 0
        grants.append(grant)
        budget -= grant
    return grants
