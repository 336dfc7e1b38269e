"""The router's queue: by priority, then first come, first served, those that had begun before all others.

Whatever is of a lower number counts as older: it may pass, and is not overtaken for longer than any other. Workers keep
to the order in which placements reach them; credit lets only the next few go there before their turn.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator

from .sequence import Sequence
from .states import State


class WaitingQueue:
    """Queued sequences in the order in which they are offered to workers."""

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []
        self.num_prompt_only = 0
        """Of jobs that want no token."""

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    def add(self, sequence: Sequence) -> None:
        insort(self._sequences, sequence, key=lambda s: s.queue_key)
        self.num_prompt_only += sequence.entry.job.prompt_only

    def remove(self, sequence: Sequence) -> None:
        at = bisect_left(self._sequences, sequence.queue_key, key=lambda s: s.queue_key)
        assert self._sequences[at] is sequence
        del self._sequences[at]
        self.num_prompt_only -= sequence.entry.job.prompt_only

    def heads(self, now: float) -> Iterator[Sequence]:
        """One sequence for each group that is placed together, oldest first, without those that pause."""
        last: Sequence | None = None
        for sequence in self._sequences:
            grouped = last is not None and last.entry is sequence.entry and not (last.output or sequence.output)
            if not grouped and sequence.retry_at <= now:
                last = sequence
                yield sequence


def group_of(head: Sequence, limit: int) -> list[Sequence]:
    """The queued sequences placed together with `head`, at most `limit`: alone if it has output, else with the other
    choices of its job that have none."""
    if head.output:
        return [head]
    fresh = [s for s in head.entry.sequences if s.state is State.QUEUED and not s.output]
    return fresh[:limit]
