import pytest
from isthmus.router.rates import Rate, TransferRates

P, Q, D, E = b"p", b"q", b"d", b"e"


def test_a_rate_follows_what_it_measures():
    rate = Rate()
    assert rate.value == 0
    rate.record(100, 1.0)
    assert rate.value == 100
    for _ in range(50):
        rate.record(300, 1.0)
    assert rate.value == pytest.approx(300, rel=0.01)


def test_a_large_observation_weighs_more():
    rate = Rate()
    rate.record(10_000, 1.0)
    rate.record(1, 0.1)
    assert rate.value > 8000


def test_nothing_in_no_time_is_no_rate():
    rate = Rate()
    rate.record(100, 0.0)
    assert rate.value == 0


def test_each_pair_has_its_own_bandwidth_and_all_share_the_size_of_a_token():
    rates = TransferRates()
    assert rates.bytes_per_token == 0
    rates.record(P, D, num_tokens=10, num_bytes=1000, transfer_s=0.5)
    rates.record(P, E, num_tokens=10, num_bytes=1000, transfer_s=0.1)
    rates.record(Q, D, num_tokens=5, num_bytes=500, transfer_s=1.0)
    assert rates.from_prefill(P) == {D: 2000.0, E: 10_000.0}
    assert rates.from_prefill(Q) == {D: 500.0}
    assert rates.bytes_per_token == 100.0


def test_a_worker_that_left_is_forgotten():
    rates = TransferRates()
    for p, d in ((P, D), (P, E), (Q, D)):
        rates.record(p, d, num_tokens=1, num_bytes=1, transfer_s=1.0)
    rates.forget(D)
    assert (rates.from_prefill(P), rates.from_prefill(Q)) == ({E: 1.0}, {})
    rates.forget(P)
    assert rates.from_prefill(P) == {}
