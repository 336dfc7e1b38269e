"""What became of the latest jobs: the stages they went through, and where."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from .job import JobTimings
from .sequence import WorkerId

NUM_KEPT = 200


@dataclass(frozen=True, slots=True)
class Record:
    """One job. Times are those of the router's clock."""

    request_id: str
    prompt_index: int
    submitted_at: float
    stages: JobTimings
    num_choices: int
    num_prompt_tokens: int
    num_output_tokens: int
    """Of all choices."""
    seed: int
    prefill: WorkerId | None
    """The workers that computed its prompt and its tokens. None: none did, or none has yet."""
    decode: WorkerId | None
    ended_at: float | None = None
    """None while it runs."""
    outcome: str | None = None
    """Of the choice that ended last: stop, length, abort or error."""
    at_stop_string: bool = False
    """Whether the router ended that choice, where its worker would have gone on."""


class History:
    """The last `NUM_KEPT` jobs that have ended."""

    def __init__(self) -> None:
        self._ended: deque[Record] = deque(maxlen=NUM_KEPT)
        self.num_ended = 0
        """Since the start."""

    def add(self, ended: Record) -> None:
        self._ended.append(ended)
        self.num_ended += 1

    def __iter__(self) -> Iterator[Record]:
        """The newest first."""
        return reversed(self._ended)

    def __len__(self) -> int:
        return len(self._ended)
