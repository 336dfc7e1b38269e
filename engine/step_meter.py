"""How fast recent steps were: what placement estimates from."""

SMOOTHING = 0.1
"""Weight of the newest step in the moving averages."""
MIN_SHARE = 0.1
"""Of a step that computed prompt tokens: what they took at least."""


class StepMeter:
    """Moving averages over steps. It has no clock: times are given."""

    def __init__(self) -> None:
        self.decode_step_s = 0.0
        self._num_prompt_tokens = 0.0
        self._prompt_s = 0.0
        self._last_end_s = float("-inf")

    @property
    def prefill_tokens_per_s(self) -> float:
        """What a prompt token adds to a step, inverted: a step without any takes `decode_step_s` as well. A long
        chunk weighs more than a short one."""
        return self._num_prompt_tokens / self._prompt_s if self._prompt_s else 0.0

    def record(self, start_s: float, end_s: float, num_prompt_tokens: int) -> float:
        """A step launched at `start_s` was done at `end_s`: what it took. One that waited for the step before it counts
        from that one's end."""
        elapsed_s = end_s - max(start_s, self._last_end_s)
        self._last_end_s = end_s
        if elapsed_s <= 0:
            return elapsed_s
        if num_prompt_tokens:
            prompt_s = max(elapsed_s - self.decode_step_s, MIN_SHARE * elapsed_s)
            self._num_prompt_tokens = (1 - SMOOTHING) * self._num_prompt_tokens + num_prompt_tokens
            self._prompt_s = (1 - SMOOTHING) * self._prompt_s + prompt_s
        else:
            self.decode_step_s = _smooth(self.decode_step_s, elapsed_s)
        return elapsed_s


def _smooth(average: float, value: float) -> float:
    return value if average == 0 else average + SMOOTHING * (value - average)
