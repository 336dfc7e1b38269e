import pytest
import torch
from isthmus.engine.cuda.runtime import CudaRuntime

SLEEP_CYCLES = 20_000_000


@pytest.mark.gpu
@pytest.mark.parametrize("captured", [True, False], ids=["captured", "launched"])
def test_work_beside_a_step_comes_after_what_was_told_and_before_what_is_told_once_it_is_joined(captured: bool) -> None:
    runtime = CudaRuntime(0)
    x, seen, beside = (torch.zeros(1 << 20, device=runtime.device) for _ in range(3))

    def run() -> None:
        torch.cuda._sleep(SLEEP_CYCLES)
        x.add_(1)
        with runtime.beside():
            torch.cuda._sleep(SLEEP_CYCLES)
            seen.copy_(x)
        beside.add_(1)
        runtime.join_beside()
        x.add_(1)

    run()
    again = runtime.capture(run) if captured else run
    again()
    again()
    torch.cuda.synchronize()
    assert (int(x.min()), int(x.max())) == (6, 6)
    assert (int(seen.min()), int(seen.max())) == (5, 5)
    assert int(beside.min()) == 3
