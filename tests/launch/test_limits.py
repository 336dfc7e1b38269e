import pytest
from isthmus.launch.config import EngineOptions
from isthmus.launch.limits import StepLimits, step_limits


@pytest.mark.parametrize(
    ("device", "role", "expected"),
    [
        ("cpu", "prefill", StepLimits(32, 512)),
        ("cpu", "decode", StepLimits(32, 512)),
        ("cuda", "prefill", StepLimits(256, 8192)),
        ("cuda", "decode", StepLimits(256, 2048)),
    ],
)
def test_limits_suit_device_and_role_unless_given(device: str, role: str, expected: StepLimits) -> None:
    assert step_limits(EngineOptions(), device, role) == expected
    assert step_limits(EngineOptions(max_num_seqs=7), device, role) == StepLimits(7, expected.max_num_batched_tokens)
    assert step_limits(EngineOptions(max_num_batched_tokens=9), device, role) == StepLimits(expected.max_num_seqs, 9)
