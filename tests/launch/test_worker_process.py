from dataclasses import replace
from typing import Any

import pytest
from isthmus.launch.child import Lifeline
from isthmus.launch.config import SpeculationOptions
from isthmus.launch.resolve import ConfigError
from isthmus.launch.worker_process import run_decode, run_prefill
from isthmus.tests.launch.test_arguments import DECODE, PREFILL


@pytest.mark.parametrize(("run", "config"), [(run_prefill, PREFILL), (run_decode, DECODE)], ids=["prefill", "decode"])
def test_contradictions_are_told_before_anything_is_set_up(run: Any, config: Any) -> None:
    contradiction = replace(config, speculation=SpeculationOptions("draft"))
    with pytest.raises(ConfigError, match="--speculative-method draft needs a --speculative-model"):
        run(contradiction, Lifeline.from_environment())
