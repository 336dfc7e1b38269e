import pytest
import torch
from isthmus.engine.cuda.runtime import CudaRuntime

SLEEP_CYCLES = 20_000_000


@pytest.mark.gpu
@pytest.mark.parametrize("has_branch", [False, True])
def test_a_run_that_is_captured_in_two_goes_on_with_what_its_first_part_has_made(has_branch: bool) -> None:
    """Whatever else was captured meanwhile, in the same memory."""
    runtime = CudaRuntime(0)
    x, out, other = (torch.zeros(1 << 20, device=runtime.device) for _ in range(3))

    def first() -> torch.Tensor:
        torch.cuda._sleep(SLEEP_CYCLES)
        return x + 1

    def then(made: torch.Tensor) -> None:
        out.copy_(made * 2)

    then(first())
    halves = [runtime.capture_in_two(first, then, has_branch=has_branch) for _ in range(2)]
    others = runtime.capture(lambda: other.copy_((x - 7) * 5), has_branch=has_branch)
    for number, (compute, draw) in enumerate(halves):
        x.fill_(number)
        others()
        compute()
        x.fill_(99)
        draw()
        torch.cuda.synchronize()
        assert (int(out.min()), int(out.max())) == (2 * number + 2, 2 * number + 2)
        assert (int(other.min()), int(other.max())) == (5 * (number - 7), 5 * (number - 7))
