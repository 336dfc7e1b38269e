import pytest
from isthmus.router.throughput import DEFAULT_RETRY_AFTER_S, MAX_RETRY_AFTER_S, WINDOW_S, Throughput


def test_nothing_finished_yet():
    assert Throughput().seconds_for(10, 0.0) == DEFAULT_RETRY_AFTER_S


@pytest.mark.parametrize(("num_waiting", "expected"), [(0, 1.0), (20, 10.0), (10_000, MAX_RETRY_AFTER_S)])
def test_time_until_as_many_have_finished(num_waiting, expected):
    throughput = Throughput()
    for i in range(60):
        throughput.count(1, i * WINDOW_S / 60)
    assert throughput.seconds_for(num_waiting, WINDOW_S - 0.1) == pytest.approx(expected)


def test_the_window_moves_on():
    throughput = Throughput()
    throughput.count(5, 0.0)
    assert throughput.seconds_for(10, WINDOW_S + 0.1) == DEFAULT_RETRY_AFTER_S
