"""Who makes masks, and when: one batch for all sequences of a step.

Tasks are collected until the step is planned, then begun in a thread, beside whatever comes next. Who asks for a mask
before the thread has begun makes all of them himself: an engine that draws at once does not wait until threads have
taken turns. Sequences whose grammars take long have batches of their own, so that no others wait for them.
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
        self._task.batch.run()
        return self._task.batch.ending(self._task.first_row + self._index)


class MaskMaker:
    """Of a worker. Called from one thread, but for masks themselves."""

    def __init__(self, num_words: Callable[[], int], num_threads: int = NUM_THREADS) -> None:
        """`num_words`: of a mask. `num_threads` for batches; the grammar engine has others within a batch."""
        self._filler = MaskFiller(num_words)
        self._pool = ThreadPoolExecutor(num_threads, "guide")
        self._open = MaskBatch(self._filler)
        self._alone: list[MaskBatch] = []

    def next_task(self, automaton: Automaton, last: Task | None) -> Task:
        """A task that more may be added to: the sequence's `last` one, if nobody has begun it and it looks at no
        guesses, else a new one after it."""
        if last is not None and not last.guesses and self._is_open(last.batch):
            return last
        return self._batch_for(automaton).add(automaton, None if last is None else last.batch)

    def _is_open(self, batch: MaskBatch) -> bool:
        return not batch.is_done and (batch is self._open or batch in self._alone)

    def _batch_for(self, automaton: Automaton) -> MaskBatch:
        if automaton.is_slow or automaton.is_suspect:
            self._alone.append(MaskBatch(self._filler))
            return self._alone[-1]
        if self._open.is_done:
            self._open = MaskBatch(self._filler)
        return self._open

    def begin(self) -> None:
        """The step is planned: what was collected is begun, if nobody has asked for it already."""
        batches, self._alone = [*self._alone, self._open], []
        for batch in batches:
            if batch.tasks and not batch.is_done:
                self._pool.submit(batch.run)
        self._open = MaskBatch(self._filler)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
