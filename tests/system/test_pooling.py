"""Vectors of prompts through router and workers are those of transformers' last hidden states."""

import random

import numpy as np
import pytest
import torch
from isthmus.tests.local_cluster import LocalCluster
from isthmus.tests.oracle import Reference, make_tiny
from isthmus.wire.messages import Pooling

KINDS: list[Pooling] = ["last", "mean", "cls"]
RANDOM = random.Random(5)
SHARED = [RANDOM.randrange(384) for _ in range(40)]
PROMPTS = [[*SHARED, *[RANDOM.randrange(384) for _ in range(count)]] for count in (0, 1, 9, 90)] + [[7], SHARED[:16]]


@pytest.fixture(scope="module", params=["llama, llama3 rope", "qwen3"])
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return make_tiny(request.param, tmp_path_factory.mktemp("tiny"))


def check(reference: Reference, cluster: LocalCluster) -> None:
    """Twice, the second time with all prompts in the prefix caches."""
    with torch.inference_mode():
        states = [reference.model.model(torch.tensor([prompt])).last_hidden_state[0] for prompt in PROMPTS]
    for pooling in [*KINDS, *KINDS]:
        expected = [{"last": s[-1], "mean": s.mean(0), "cls": s[0]}[pooling].numpy() for s in states]
        for vector, right in zip(cluster.pool(PROMPTS, pooling), expected, strict=True):
            np.testing.assert_allclose(vector, right, rtol=1e-4, atol=1e-4)
    assert set(cluster.used_blocks().values()) == {0}


@pytest.mark.parametrize("num_prefill", [0, 2])
def test_vectors_equal_transformers(reference: Reference, num_prefill: int) -> None:
    with LocalCluster(reference.load, num_prefill=num_prefill, max_num_batched_tokens=48) as cluster:
        check(reference, cluster)


def test_the_engine_for_gpus_agrees(reference: Reference) -> None:
    with LocalCluster(reference.load_gpu_engine, num_prefill=1, max_num_batched_tokens=48) as cluster:
        check(reference, cluster)
