"""Masks that are made together: in one call of the grammar engine, whichever sequences they are for."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..text.grammar_compiler import Words
from ..text.grammar_masks import Filled, MaskFiller, Run, allows
from .automaton import Automaton, Ending

SLOW_S = 0.003
"""A mask is usually there within a hundredth of this, long before a step has logits."""
USUAL_S = 1e-4
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

    @property
    def run(self) -> Run:
        return Run(self.automaton.matcher, self.guesses, self.automaton.grammar)


class MaskBatch:
    """Tasks are added by one thread, until any runs it."""

    def __init__(self, filler: MaskFiller) -> None:
        self._filler = filler
        self._before: list[MaskBatch] = []
        self._lock = threading.Lock()
        self.endings: dict[int, Ending] = {}
        """Of masks that left nothing, by their rows, once it was run."""
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
        filled = self._filler.fill([task.run for task in self.tasks], aside=aside)
        self._judge(moved_s, filled, TURN_S if aside else 0.0)
        words = filled.words
        failed = [task for task in self.tasks if task.automaton.matcher.is_error()]
        for task in failed:
            self._without_guesses(task, words)
        self.words = self._within_bans(words)
        self._follow()
        self.tasks = []  # they refer to this batch: no cycles are left

    def _judge(self, moved_s: float, filled: Filled, turn_s: float) -> None:
        """Who took long is known of those who were by themselves; of the others, each goes alone next time."""
        if moved_s + filled.spent_s + filled.helped_s <= SLOW_S:
            for task in self.tasks:
                task.automaton.is_new = task.automaton.is_slow = task.automaton.is_suspect = False
            return
        alone, others = self.tasks[: len(filled.own_s)], self.tasks[len(filled.own_s) :]
        is_suspect = moved_s > _limit_s(self.tasks) and len(self.tasks) > 1
        for task, took_s in zip(alone, filled.own_s, strict=True):
            task.automaton.is_slow = took_s + moved_s * (len(self.tasks) == 1) > _limit_s([task])
        is_unknown = filled.spent_s > _limit_s(alone) and not any(task.automaton.is_slow for task in alone)
        for task in alone:
            task.automaton.is_suspect = is_suspect or (is_unknown and len(alone) > 1)
        is_suspect |= bool(others) and filled.helped_s > _limit_s(others) + turn_s
        for task in others:
            task.automaton.is_slow, task.automaton.is_suspect = False, is_suspect
        for task in self.tasks:
            task.automaton.is_new = False

    def _without_guesses(self, task: Task, words: Words) -> None:
        """It may be guesses that were too much for the grammar: then none of them may come."""
        if task.guesses:
            task.guesses = ()
            task.automaton.begin_anew()
            words[task.first_row] = self._filler.fill([task.run]).words[0]
        if task.automaton.matcher.is_error():
            words[task.first_row] = 0

    def _within_bans(self, words: Words) -> Words:
        """Of most requests the bans are the same."""
        bans: list[Words] = []
        for task in self.tasks:
            at, position = task.automaton.bans.at, len(task.automaton.output)
            bans += [at(position + i) for i in _masks(task)] if task.guesses else (at(position),)
        words = words[:, : len(bans[0])]
        if len(set(map(id, bans))) == 1:
            return np.bitwise_and(words, bans[0], out=words)
        rows = [task.first_row + i for task in self.tasks for i in _masks(task)]
        words[rows] &= np.stack(bans)
        return words

    def _follow(self) -> None:
        """How far guesses may come, and which masks leave nothing."""
        is_something = np.bitwise_or.reduce(self.words, axis=1).tolist()
        if len(is_something) == len(self.tasks) and all(is_something):
            return
        for task in self.tasks:
            for index in _masks(task):
                row = task.first_row + index
                if not is_something[row]:
                    self.endings[row] = task.automaton.ending(task.guesses[:index])
                    self.words[row] = _ALL
                    break
                if index == len(task.guesses) or not allows(self.words[row], task.guesses[index]):
                    break
                task.num_allowed += 1


def _masks(task: Task) -> range:
    return range(1 + len(task.guesses))


def _limit_s(tasks: Sequence[Task]) -> float:
    """What takes longer is slow."""
    return SLOW_S + USUAL_S * sum(1 + len(task.guesses) for task in tasks)
