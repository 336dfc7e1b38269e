"""A worker that starts again waits for its GPU's memory: what a dead one held stays taken until every process that
has mapped it lets go."""

import time
from collections.abc import Callable

WAIT_S = 30.0
POLL_S = 0.25


def wait_for_memory(
    needed_bytes: int,
    free_bytes: Callable[[], int],
    *,
    on_wait: Callable[[int], None] = lambda free: None,
    timeout_s: float = WAIT_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """True as soon as that much is free, False once `timeout_s` has passed. `on_wait(free)` is called if it waits."""
    deadline = clock() + timeout_s
    free = free_bytes()
    if free < needed_bytes:
        on_wait(free)
    while free < needed_bytes and clock() < deadline:
        sleep(POLL_S)
        free = free_bytes()
    return free >= needed_bytes
