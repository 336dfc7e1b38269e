import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest
from isthmus.engine.heap import settle


@pytest.fixture
def many_objects() -> Iterator[list[list[int]]]:
    objects: list[list[int]] = [[] for _ in range(200_000)]
    yield objects
    gc.unfreeze()


def test_what_lives_is_not_looked_through_again(many_objects: list[list[int]]) -> None:
    settle()
    assert gc.get_freeze_count() >= len(many_objects)
    assert len(gc.get_objects()) < len(many_objects)


def test_garbage_made_later_is_still_collected(many_objects: list[list[int]]) -> None:
    settle()
    for _ in range(100):
        cycle: list[object] = []
        cycle.append(cycle)
    del cycle
    assert gc.collect() >= 100
    assert gc.get_freeze_count() >= len(many_objects)


def test_a_process_that_has_settled_ends_without_a_word() -> None:
    """Triton's library complains of all that is still there at the end."""
    script = "import triton.language; from isthmus.engine.heap import settle; settle()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
