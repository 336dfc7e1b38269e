"""How fast recent steps were: what placement estimates from."""

SMOOTHING = 0.1
"""Weight of the newest step in the moving averages."""


class StepMeter:
    """Moving averages over steps. It has no clock: times are given."""

    def __init__(self) -> None:
        self.prefill_tokens_per_s = 0.0
        self.decode_step_s = 0.0
        self._last_end_s = float("-inf")

    def record(self, start_s: float, end_s: float, num_prompt_tokens: int) -> None:
        """A step launched at `start_s` was done at `end_s`. One that waited for the step before it counts from
        that one's end."""
        elapsed_s = end_s - max(start_s, self._last_end_s)
        self._last_end_s = end_s
        if elapsed_s <= 0:
            return
        if num_prompt_tokens:
            self.prefill_tokens_per_s = _smooth(self.prefill_tokens_per_s, num_prompt_tokens / elapsed_s)
        else:
            self.decode_step_s = _smooth(self.decode_step_s, elapsed_s)


def _smooth(average: float, value: float) -> float:
    return value if average == 0 else average + SMOOTHING * (value - average)
