"""Vectors of prompts through router and workers are those of transformers' last hidden states."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from isthmus.tests.local_cluster import LocalCluster
from isthmus.tests.oracle import Reference, make_tiny
from isthmus.wire.messages import Pooled, Pooling
from isthmus.wire.worker_link import name_in

KINDS: list[Pooling] = ["last", "mean", "cls"]
RANDOM = random.Random(5)
SHARED = [RANDOM.randrange(384) for _ in range(40)]
PROMPTS = [[*SHARED, *[RANDOM.randrange(384) for _ in range(count)]] for count in (0, 1, 9, 90)] + [[7], SHARED[:16]]


@pytest.fixture(scope="module", params=["llama, llama3 rope", "qwen3"])
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return make_tiny(request.param, tmp_path_factory.mktemp("tiny"))


def assert_right(reference: Reference, pooling: Pooling, vectors: list[np.ndarray]) -> None:
    """Of PROMPTS."""
    with torch.inference_mode():
        states = [reference.model.model(torch.tensor([prompt])).last_hidden_state[0] for prompt in PROMPTS]
    expected = [{"last": s[-1], "mean": s.mean(0), "cls": s[0]}[pooling].numpy() for s in states]
    for vector, right in zip(vectors, expected, strict=True):
        np.testing.assert_allclose(vector, right, rtol=1e-4, atol=1e-4)


def check(reference: Reference, cluster: LocalCluster) -> None:
    """Twice, the second time with all prompts in the prefix caches."""
    for pooling in [*KINDS, *KINDS]:
        assert_right(reference, pooling, cluster.pool(PROMPTS, pooling))
    assert set(cluster.used_blocks().values()) == {0}


@pytest.mark.parametrize("num_prefill", [0, 2])
def test_vectors_equal_transformers(reference: Reference, num_prefill: int) -> None:
    with LocalCluster(reference.load, num_prefill=num_prefill, max_num_batched_tokens=48) as cluster:
        check(reference, cluster)


def test_the_engine_for_gpus_agrees(reference: Reference) -> None:
    with LocalCluster(reference.load_gpu_engine, num_prefill=1, max_num_batched_tokens=48) as cluster:
        check(reference, cluster)


def test_a_lost_worker_changes_no_vector(reference: Reference) -> None:
    """One of two goes once it has given its first vector, with prompts of the same request still to come."""
    with LocalCluster(reference.load, num_prefill=2, max_num_batched_tokens=16, max_num_seqs=3) as cluster:
        on_pooled, requeue = cluster.core.ledger.on_pooled, cluster.core.ledger._requeue
        stopped: list[str] = []
        requeued: list[Any] = []

        def stop_first(worker: bytes, message: Pooled) -> None:
            on_pooled(worker, message)
            if not stopped:
                stopped.append(name_in(worker))
                cluster.workers[stopped[0]].stop()

        def note(sequence: Any) -> None:
            requeued.append(sequence)
            requeue(sequence)

        cluster.core.ledger.on_pooled = stop_first  # type: ignore[method-assign]
        cluster.core.ledger._requeue = note  # type: ignore[method-assign]
        vectors = cluster.pool(PROMPTS * 3, "mean")
        assert requeued
    for first in range(0, len(vectors), len(PROMPTS)):
        assert_right(reference, "mean", vectors[first : first + len(PROMPTS)])
