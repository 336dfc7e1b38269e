"""all-MiniLM-L6-v2 as `isthmus serve` would have it, through tokenizer, router and workers: its vectors are
sentence-transformers'."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from isthmus.engine.speculation_config import SpeculationConfig
from isthmus.engine.worker import Loaded
from isthmus.launch.config import (
    ConnectionOptions,
    CurveOptions,
    DeviceOptions,
    EngineOptions,
    FakeEngineOptions,
    ModelOptions,
    PlaceOptions,
    PrefillConfig,
    ProcessOptions,
    SpeculationOptions,
)
from isthmus.launch.limits import StepLimits
from isthmus.launch.model import find_model
from isthmus.launch.worker_load import Loader
from isthmus.launch.worker_place import WorkerPlace
from isthmus.router.embeddings import shape_vector
from isthmus.router.served import Served
from isthmus.router.server import load_served
from isthmus.tests.local_cluster import LocalCluster
from isthmus.tests.minilm import TEXTS, minilm_path
from safetensors.numpy import load_file

VECTORS = Path(__file__).parents[1] / "engine" / "minilm_vectors.safetensors"
LIMITS = StepLimits(32, 300)
"""Fewer tokens than two long prompts have."""


@pytest.fixture(scope="module")
def served() -> Served:
    model = find_model(ModelOptions(str(minilm_path())))
    return load_served(model.resolved.folder, ("MiniLM",), model.config.max_position_embeddings, None)


@pytest.fixture(scope="module")
def load() -> Callable[[str], Loaded]:
    config = PrefillConfig(
        ModelOptions(),
        ConnectionOptions(),
        CurveOptions(),
        EngineOptions(),
        DeviceOptions(),
        SpeculationOptions(),
        PlaceOptions(),
        FakeEngineOptions(),
        ProcessOptions(),
    )
    loader = Loader(config, WorkerPlace("cpu", None, 0), LIMITS, draws=False, speculation=SpeculationConfig())
    return lambda model: loader(str(minilm_path()))


@pytest.fixture(scope="module")
def cluster(load: Callable[[str], Loaded]) -> Iterator[LocalCluster]:
    limits = {"max_num_seqs": LIMITS.max_num_seqs, "max_num_batched_tokens": LIMITS.max_num_batched_tokens}
    with LocalCluster(load, num_prefill=2, num_decode=0, **limits) as cluster:
        yield cluster


def test_its_folder_says_how_it_pools(served: Served) -> None:
    assert (served.pooling.kind, served.pooling.normalize) == ("mean", True)
    assert (served.max_model_len, served.hidden_size) == (256, 384)


def test_vectors_are_sentence_transformers(served: Served, cluster: LocalCluster) -> None:
    expected = load_file(VECTORS)["vectors"]
    prompts = [served.tokenizer.encode_within(text, served.max_model_len) for text in TEXTS]
    assert max(map(len, prompts)) == 256
    for _ in range(2):  # the second time nothing may come from a cache
        vectors = [shape_vector(vector, None, normalize=True) for vector in cluster.pool(prompts, "mean")]
        np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)
    assert set(cluster.used_blocks().values()) == {0}
