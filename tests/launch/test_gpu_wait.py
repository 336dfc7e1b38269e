from isthmus.launch.gpu_wait import POLL_S, WAIT_S, wait_for_memory


class Machine:
    """Memory that becomes free over time, and a clock that only sleeping moves."""

    def __init__(self, *free: int):
        self.free = list(free)
        self.now = 100.0
        self.told: list[int] = []

    def free_bytes(self) -> int:
        return self.free.pop(0) if len(self.free) > 1 else self.free[0]

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def wait(self, needed: int) -> bool:
        return wait_for_memory(
            needed, self.free_bytes, on_wait=self.told.append, clock=lambda: self.now, sleep=self.sleep
        )


def test_enough_memory_is_not_waited_for() -> None:
    machine = Machine(10)
    assert machine.wait(10)
    assert (machine.now, machine.told) == (100.0, [])


def test_a_dead_worker_s_memory_is_waited_for() -> None:
    machine = Machine(3, 3, 5, 12)
    assert machine.wait(10)
    assert (machine.now, machine.told) == (100.0 + 3 * POLL_S, [3])


def test_the_wait_has_an_end() -> None:
    machine = Machine(3)
    assert not machine.wait(10)
    assert (machine.now, machine.told) == (100.0 + WAIT_S, [3])
