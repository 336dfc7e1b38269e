"""Masks that are made together: in one call of the grammar engine, whichever sequences they are for."""

import threading
import time
from dataclasses import dataclass, field

import numpy as np

from ..text.grammar_compiler import Words
from ..text.grammar_masks import MaskFiller, allows
from .automaton import Automaton, Ending

SLOW_S = 0.003
"""A mask is usually there within a hundredth of this, long before a step has logits."""
USUAL_S = 30e-6
"""For each of many, at most."""
TURN_S = 0.01
"""A thread beside another one that runs Python may have to wait for so long."""
_ALL = np.uint32(0xFFFF_FFFF)


@dataclass(slots=True, eq=False)
class Task:
    """Of one sequence: tokens taken back, others taken in, a mask from there on and one after each guess."""

    automaton: Automaton
    batch: "MaskBatch"
    num_back: int = 0
    token_ids: list[int] = field(default_factory=list)
    guesses: tuple[int, ...] = ()
    """Those that have a mask."""
    first_row: int = 0
    """Of the batch's masks."""
    num_allowed: int = 0
    """Guesses that may come, once it was run."""


class MaskBatch:
    """Tasks are added by one thread, until any runs it."""

    def __init__(self, filler: MaskFiller) -> None:
        self._filler = filler
        self._before: list[MaskBatch] = []
        self._lock = threading.Lock()
        self._endings: dict[int, Ending] = {}
        self.tasks: list[Task] = []
        self.words: Words = np.empty((0, 0), np.uint32)
        """A row for each mask, once it was run; all ones where nothing may come."""
        self.is_done = False

    def add(self, automaton: Automaton, before: "MaskBatch | None") -> Task:
        """`before`: the last batch that has worked on the same one."""
        if before is not None and not before.is_done:
            self._before.append(before)
        self.tasks.append(Task(automaton, self))
        return self.tasks[-1]

    def run(self, *, aside: bool = False) -> None:
        """Does the work, or waits for who is at it. `aside`: in a thread that nobody waits for yet."""
        if self.is_done:
            return
        with self._lock:
            if not self.is_done:
                self._run(aside=aside)
                self.is_done = True

    def ending(self, row: int) -> Ending | None:
        """Of a mask that left nothing."""
        return self._endings.get(row)

    def _run(self, *, aside: bool) -> None:
        for batch in self._before:
            batch.run(aside=aside)
        self._before.clear()
        start_s, num_rows = time.thread_time(), 0
        for task in self.tasks:
            task.automaton.move(task.num_back, task.token_ids)
            task.first_row = num_rows
            num_rows += 1 + len(task.guesses)
        moved_s = time.thread_time() - start_s
        words, filled_s = self._filler.fill(
            [(task.automaton.matcher, task.guesses) for task in self.tasks], aside=aside
        )
        turn_s = TURN_S if aside and len(self.tasks) > 1 else 0.0
        self._judge(moved_s + filled_s > SLOW_S + turn_s + USUAL_S * num_rows)
        failed = [task for task in self.tasks if task.automaton.matcher.is_error()]
        for task in failed:
            self._without_guesses(task, words)
        self.words = self._within_bans(words)
        self._follow()
        self.tasks = []  # they refer to this batch: no cycles are left

    def _judge(self, was_slow: bool) -> None:
        """Who took long is known of one alone; of several, each goes alone next time."""
        is_alone = len(self.tasks) == 1
        for task in self.tasks:
            task.automaton.is_new = False
            task.automaton.is_slow = was_slow and is_alone
            task.automaton.is_suspect = was_slow and not is_alone

    def _without_guesses(self, task: Task, words: Words) -> None:
        """It may be guesses that were too much for the grammar: then none of them may come."""
        if task.guesses:
            task.guesses = ()
            task.automaton.begin_anew()
            words[task.first_row] = self._filler.fill([(task.automaton.matcher, ())]).words[0]
        if task.automaton.matcher.is_error():
            words[task.first_row] = 0

    def _within_bans(self, words: Words) -> Words:
        """Of most requests the bans are the same."""
        bans = [task.automaton.bans.at(len(task.automaton.output) + i) for task in self.tasks for i in _masks(task)]
        words = words[:, : len(bans[0])]
        if all(one is bans[0] for one in bans):
            return np.bitwise_and(words, bans[0], out=words)
        rows = [task.first_row + i for task in self.tasks for i in _masks(task)]
        words[rows] &= np.stack(bans)
        return words

    def _follow(self) -> None:
        """How far guesses may come, and which masks leave nothing."""
        is_something = np.bitwise_or.reduce(self.words, axis=1).tolist()
        for task in self.tasks:
            for index in _masks(task):
                row = task.first_row + index
                if not is_something[row]:
                    self._endings[row] = task.automaton.ending(task.guesses[:index])
                    self.words[row] = _ALL
                    break
                if index == len(task.guesses) or not allows(self.words[row], task.guesses[index]):
                    break
                task.num_allowed += 1


def _masks(task: Task) -> range:
    return range(1 + len(task.guesses))
