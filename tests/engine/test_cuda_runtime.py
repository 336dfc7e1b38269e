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


@pytest.mark.gpu
def test_a_run_that_is_captured_in_two_goes_on_with_what_its_first_part_has_made() -> None:
    """Whatever else was captured meanwhile, in the same memory."""
    runtime = CudaRuntime(0)
    x, out, other = (torch.zeros(1 << 20, device=runtime.device) for _ in range(3))

    def first() -> torch.Tensor:
        torch.cuda._sleep(SLEEP_CYCLES)
        return x + 1

    def then(made: torch.Tensor) -> None:
        out.copy_(made * 2)

    then(first())
    halves = [runtime.capture_in_two(first, then) for _ in range(2)]
    others = runtime.capture(lambda: other.copy_((x - 7) * 5))
    for number, (compute, draw) in enumerate(halves):
        x.fill_(number)
        others()
        compute()
        x.fill_(99)
        draw()
        torch.cuda.synchronize()
        assert (int(out.min()), int(out.max())) == (2 * number + 2, 2 * number + 2)
