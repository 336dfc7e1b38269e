import logging
from dataclasses import replace
from typing import Any

import pytest
from isthmus.launch.child import Lifeline
from isthmus.launch.config import CurveOptions, DataOptions, SpeculationOptions
from isthmus.launch.resolve import ConfigError
from isthmus.launch.worker_process import covered, run_decode, run_prefill
from isthmus.tests.launch.test_arguments import DECODE, PREFILL


@pytest.mark.parametrize(("run", "config"), [(run_prefill, PREFILL), (run_decode, DECODE)], ids=["prefill", "decode"])
def test_contradictions_are_told_before_anything_is_set_up(run: Any, config: Any) -> None:
    contradiction = replace(config, speculation=SpeculationOptions("draft"))
    with pytest.raises(ConfigError, match="--speculative-method draft needs a --speculative-model"):
        run(contradiction, Lifeline.from_environment())


ALL = ("cuda_ipc", "nccl", "shm", "zmq")
WITHOUT_NCCL = ("cuda_ipc", "shm", "zmq")


@pytest.mark.parametrize(
    ("keys", "host", "asked", "names", "left"),
    [
        (None, "10.0.0.7", "auto", ALL, ALL),
        ("keys", "127.0.0.1", "auto", ALL, ALL),
        ("keys", "10.0.0.7", "auto", ALL, WITHOUT_NCCL),
        ("keys", "0.0.0.0", "auto", ALL, WITHOUT_NCCL),
        ("keys", "10.0.0.7", "auto", ("shm", "zmq"), ("shm", "zmq")),
        ("keys", "10.0.0.7", "nccl", ("nccl",), ("nccl",)),
    ],
)
def test_kv_that_keys_do_not_cover_comes_over_nccl_only_if_asked_for(
    keys: str | None,
    host: str,
    asked: Any,
    names: tuple[str, ...],
    left: tuple[str, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where other machines reach a worker that has keys."""
    config = replace(DECODE, curve=CurveOptions(keys), data=DataOptions(host, asked))
    with caplog.at_level(logging.INFO):
        assert covered(names, config) == left
    told = {record.levelname for record in caplog.records}
    assert told == ({"WARNING"} if asked == "nccl" else set() if left == names else {"INFO"})
