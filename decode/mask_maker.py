"""Who makes masks, and when: one batch for all sequences of a step.

Tasks are collected until the step is planned. Who asks for a mask makes all of them himself: an engine does so while
its device computes, and a thread would take longer to get its turns than masks take. Sequences whose grammars take
long have batches of their own, and those that are new another one: threads begin these once the step is planned, and
who is known to be quick does not wait for them.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ..text.grammar_compiler import Words
from ..text.grammar_masks import MaskFiller
from .automaton import Automaton, Ending
from .mask_batch import MaskBatch, Task

NUM_THREADS = 4


class GuideMask:
    """What may come next, or after so many guesses: as plan.Mask."""

    __slots__ = ("_index", "_task")

    def __init__(self, task: Task, index: int = 0) -> None:
        self._task, self._index = task, index

    @property
    def is_done(self) -> bool:
        return self._task.batch.is_done

    def result(self) -> Words:
        """uint32 [ceil(V / 32)]; everything where nothing may come."""
        self._task.batch.run()
        return self._task.batch.words[self._task.first_row + self._index]

    @property
    def ending(self) -> Ending | None:
        """Whether nothing may come. Waits for the mask."""
        task = self._task
        task.batch.run()
        return task.batch.endings.get(task.first_row + self._index)


class MaskMaker:
    """Of a worker. Called from one thread, but for masks themselves."""

    def __init__(self, num_words: Callable[[], int], num_threads: int = NUM_THREADS) -> None:
        """`num_words`: of a mask. `num_threads` for batches; the grammar engine has others within a batch."""
        self._filler = MaskFiller(num_words)
        self._pool = ThreadPoolExecutor(num_threads, "guide")
        self._open, self._new = MaskBatch(self._filler), MaskBatch(self._filler)
        self._alone: list[MaskBatch] = []

    def next_task(self, automaton: Automaton, last: Task | None) -> Task:
        """A task that more may be added to: the sequence's `last` one, if nobody has begun it and it looks at no
        guesses, else a new one after it."""
        if last is not None and not last.guesses and self._is_open(last.batch):
            return last
        return self._batch_for(automaton).add(automaton, None if last is None else last.batch)

    def _is_open(self, batch: MaskBatch) -> bool:
        return not batch.is_done and (batch is self._open or batch is self._new or batch in self._alone)

    def _batch_for(self, automaton: Automaton) -> MaskBatch:
        if automaton.is_slow or automaton.is_suspect:
            self._alone.append(MaskBatch(self._filler))
            return self._alone[-1]
        if automaton.is_new:
            if self._new.is_done:
                self._new = MaskBatch(self._filler)
            return self._new
        if self._open.is_done:
            self._open = MaskBatch(self._filler)
        return self._open

    def begin(self) -> None:
        """The step is planned: nothing is added any more to what was collected."""
        for batch in self._alone:
            if not batch.is_done:
                self._pool.submit(batch.run, aside=True)
        self._alone.clear()
        if self._new.tasks and not self._new.is_done:
            self._pool.submit(self._new.run, aside=True)
        if self._new.tasks or self._new.is_done:
            self._new = MaskBatch(self._filler)
        if self._open.tasks or self._open.is_done:
            self._open = MaskBatch(self._filler)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
