"""Tests that need a GPU are skipped where there is none."""

import pytest
import torch

collect_ignore = ["clients"]
"""They run in a venv of their own: `make test-clients`."""
NUM_GPUS_NEEDED = {"gpu": 1, "multi_gpu": 2}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    num_gpus = torch.cuda.device_count()
    for item in items:
        for marker, needed in NUM_GPUS_NEEDED.items():
            if item.get_closest_marker(marker) and num_gpus < needed:
                item.add_marker(pytest.mark.skip(reason=f"needs {needed} GPU"))
