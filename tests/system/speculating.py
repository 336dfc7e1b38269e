"""Clusters that guess tokens, by each method, beside those that do not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from isthmus.decode import speculation
from isthmus.engine.speculation_config import SpeculationConfig
from isthmus.engine.worker import Loaded
from isthmus.tests.decode.speculating import Always, Everyone
from isthmus.tests.local_cluster import Ask, Heard, LocalCluster
from isthmus.tests.oracle import Reference
from isthmus.wire.messages import WorkerStats

TOPOLOGIES = {"aggregated": 0, "1P1D": 1}
METHODS = ("ngram", "first-layers", "another model", "itself")
"""The last two are draft models: one that knows nothing of the target, and the target."""
NUM_TOKENS = 4


@dataclass(frozen=True)
class Models:
    target: Reference
    other: Reference
    """Of the same vocabulary."""

    def load(self, method: str, **options: Any) -> tuple[Callable[[str], Loaded], SpeculationConfig]:
        """What a cluster that guesses by this method is made with."""
        if method in ("another model", "itself"):
            config = SpeculationConfig("draft", NUM_TOKENS)
            options["draft"] = (self.other if method == "another model" else self.target).checkpoint
        else:
            config = SpeculationConfig(method, NUM_TOKENS, num_layers=1 if method == "first-layers" else None)
        return partial(self.target.load, speculation=config, **options), config


def guess_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """And look for guesses always."""
    monkeypatch.setattr(speculation, "DraftPolicy", Always)
    monkeypatch.setattr(speculation, "Lookout", Everyone)


def counts_of(cluster: LocalCluster) -> WorkerStats:
    """Of its only decode worker; what it counts adds up, and it has given all blocks back."""
    assert set(cluster.used_blocks().values()) == {0}
    stats = cluster.stats()["decode-0"]
    assert sum(stats.num_accepted_per_position) == stats.num_accepted_tokens
    assert 0 <= stats.num_accepted_tokens <= stats.num_draft_tokens
    assert list(stats.num_accepted_per_position) == sorted(stats.num_accepted_per_position, reverse=True)
    return stats


def assert_same(asks: Sequence[Ask], expected: Sequence[Heard], heard: Sequence[Heard]) -> None:
    """Tokens to the last one, logprobs as near as logits of several positions at once are."""
    for ask, one, other in zip(asks, expected, heard, strict=True):
        assert one.outputs == other.outputs, ask.params
        for ours, theirs in zip(one.logprobs, other.logprobs, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert a.chosen == pytest.approx(b.chosen, abs=1e-4)
                assert [value for _, value in a.top] == pytest.approx([value for _, value in b.top], abs=1e-4)
