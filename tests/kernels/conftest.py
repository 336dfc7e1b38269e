"""Kernels are tested twice: under Triton's interpreter on the CPU, in a process with TRITON_INTERPRET=1 (`make test`
starts one), and compiled, on a GPU."""

import pytest
from isthmus.kernels.dispatch import INTERPRETED

if INTERPRETED:
    from isthmus.tests.kernels import quick_interpreter

    quick_interpreter.remember()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("interpreter") and not INTERPRETED:
            item.add_marker(pytest.mark.skip(reason="needs TRITON_INTERPRET=1"))
        if item.get_closest_marker("gpu") and INTERPRETED:
            item.add_marker(pytest.mark.skip(reason="compiled kernels, not interpreted ones"))
