import random
from collections import deque

import pytest
from isthmus.kvtransfer.ring import ALIGNMENT, Ring


def test_areas_follow_each_other_and_wrap() -> None:
    ring = Ring(4 * ALIGNMENT)
    assert [ring.allocate(ALIGNMENT) for _ in range(5)] == [0, 64, 128, 192, None]
    ring.release_until(1)
    assert ring.allocate(ALIGNMENT + 1) is None
    ring.release_until(2)
    assert ring.allocate(ALIGNMENT + 1) == 0
    assert ring.allocate(1) is None
    assert len(ring) == 3


def test_an_area_never_spans_the_end() -> None:
    ring = Ring(4 * ALIGNMENT)
    ring.allocate(ALIGNMENT)
    ring.allocate(2 * ALIGNMENT)
    ring.release_until(1)
    assert ring.allocate(2 * ALIGNMENT) is None
    assert ring.allocate(0) == 192
    assert ring.allocate(1) == 0


def test_all_of_it_can_be_one_area() -> None:
    ring = Ring(4 * ALIGNMENT)
    assert ring.allocate(4 * ALIGNMENT) == 0
    assert ring.allocate(1) is None
    ring.release_until(1)
    assert ring.allocate(4 * ALIGNMENT) == 0
    with pytest.raises(ValueError, match="an area of 257 bytes does not fit a segment of 256"):
        ring.allocate(4 * ALIGNMENT + 1)


@pytest.mark.parametrize("num_released", [0, 4])
def test_what_was_never_taken_cannot_be_released(num_released: int) -> None:
    ring = Ring(4 * ALIGNMENT)
    for _ in range(3):
        ring.allocate(1)
    ring.release_until(1)
    with pytest.raises(ValueError, match="of 3 ever taken"):
        ring.release_until(num_released)


def test_areas_in_use_never_overlap() -> None:
    rng = random.Random(2)
    ring, used, num_released, num_refused = Ring(10_000), deque[range](), 0, 0
    for _ in range(5000):
        size = rng.choice([1, 63, 64, 65, 700, 3000])
        start = ring.allocate(size)
        if start is None:
            num_refused += 1
            num_released += rng.randint(1, len(used))
            while len(used) > 0 and ring._num_released < num_released:
                ring.release_until(ring._num_released + 1)
                used.popleft()
            continue
        area = range(start, start + size)
        assert area.stop <= 10_000
        assert all(area.stop <= other.start or other.stop <= area.start for other in used)
        used.append(area)
    assert num_refused > 100
