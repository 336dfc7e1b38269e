import pytest
from hypothesis import given
from hypothesis import strategies as st
from isthmus.launch.gpu_memory import FIXED_BYTES, GIB, Footprint, gib, shares
from isthmus.launch.limits import StepLimits
from isthmus.launch.resolve import ConfigError


def test_a_worker_takes_weights_its_largest_step_and_what_every_process_takes() -> None:
    footprint = Footprint(weight_bytes=15 * GIB, bytes_per_batched_token=1000, bytes_per_seq=10)
    assert footprint.of_worker(StepLimits(3, 7)) == 15 * GIB + 7000 + 30 + FIXED_BYTES


def test_alone_a_worker_gets_all() -> None:
    assert shares(["decode"], [17 * GIB], 72 * GIB) == [1.0]


def test_what_is_left_for_kv_goes_by_role() -> None:
    assert shares(["prefill", "decode"], [20 * GIB, 20 * GIB], 100 * GIB) == [0.4, 0.6]
    assert shares(["decode", "decode"], [10 * GIB, 20 * GIB], 100 * GIB) == [0.45, 0.55]


@given(
    roles=st.lists(st.sampled_from(["prefill", "decode"]), min_size=1, max_size=5),
    fixed=st.integers(0, 10 * GIB),
    budget=st.integers(51 * GIB, 200 * GIB),
)
def test_shares_are_never_more_than_there_is(roles: list, fixed: int, budget: int) -> None:
    found = shares(roles, [fixed] * len(roles), budget)
    assert sum(found) <= 1.0 + 1e-9
    assert all(share * budget >= fixed for share in found)


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        (["prefill", "decode"], "2 workers do not fit one GPU, each with its own copy of the weights: prefill and dec"),
        (["prefill", "decode"], "take about 34.0 GiB before any KV, and --gpu-memory-utilization allows 10.0 GiB; on"),
        (["decode"], "the model does not fit the GPU: a decode worker takes about 17.0 GiB before any KV"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_sums(roles: list, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        shares(roles, [17 * GIB] * len(roles), 10 * GIB)
    assert said in str(refused.value)


def test_sizes_for_people() -> None:
    assert gib(80 * GIB + GIB // 4) == "80.2 GiB"
