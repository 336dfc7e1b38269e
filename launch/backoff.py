"""When a process that died may start again, and when to give up. Pure: the caller brings the time."""

WINDOW_S = 60.0
MAX_DEATHS = 3
FIRST_DELAY_S = 0.5


class Backoff:
    """Counts the deaths of one process: three within a minute are one too many; until then each pause doubles. Time
    that it takes to start does not count, nor does it if it ends in death: loading a model can take longer."""

    def __init__(self) -> None:
        self._deaths: list[float] = []

    def delay_after_death(self, now: float, starting_s: float = 0.0) -> float | None:
        """Seconds to wait before it is started again; None to give up. It lived `starting_s` before it was ready."""
        self._deaths = [death + starting_s for death in self._deaths]
        self._deaths = [*(death for death in self._deaths if now - death < WINDOW_S), now]
        if len(self._deaths) >= MAX_DEATHS:
            return None
        return FIRST_DELAY_S * 2.0 ** (len(self._deaths) - 1)
