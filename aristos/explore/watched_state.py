"""A rank's state, which its workers share under the rank's lock, with checks of all accesses.

Two steps race, as in a window (memory_model.py), if both access a word of the state, one of them writes it, and the two
accesses have no order. Accesses by address are atomics: they order other accesses and do not race with each other.
Accesses by the explorer itself are not checked.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from ..engine import words
from ..engine.layout import StateLayout
from .memory_model import Memory
from .state import State
from .violation import Race

PACKAGE = Path(__file__).parent.parent
STEPS = tuple(f"{PACKAGE / room}{os.sep}" for room in ("engine", "substrate"))  # code whose accesses are checked
UNORDERED = (words.FAILED,)  # a flag set once without the lock; a late reader just fails later


class Watched(State):
    """The state of a rank with several workers."""

    shared = True

    def __init__(self, tables: StateLayout, at: int, memory: Memory, rank: int) -> None:
        super().__init__(tables.words, at)
        self.memory, self.rank = memory, rank
        self.starts = sorted((start, name) for name, start in tables.starts.items())
        self.writes: dict[int, tuple[int, int, str]] = {}  # actor, its clock, function
        self.reads: dict[int, dict[int, tuple[int, str]]] = {}
        self.atomics: dict[int, dict[int, tuple[int, bool]]] = {}  # actor -> its clock, and whether it wrote

    def __getitem__(self, i: Any) -> Any:
        if step := self._step(i):
            self._check_read(i, step)
        return super().__getitem__(i)

    def __setitem__(self, i: Any, value: Any) -> None:
        if step := self._step(i):
            self._check_write(i, step)
        super().__setitem__(i, value)
        if self.atomics and not isinstance(i, slice) and self.atomics.pop(i, None) is not None:
            self.memory.forget_order(self.ctypes.data + 8 * i)

    def touch(self, i: int, writes: bool) -> None:
        me = self.memory.me
        mine, wrote = self.memory.clocks[me], self.writes.get(i)
        if wrote is not None and wrote[0] != me and mine[wrote[0]] < wrote[1]:
            self._race("touches", i, "an atomic", "writing", wrote[0], wrote[2])
        for reader, (clock, other) in self.reads.get(i, {}).items() if writes else ():
            if reader != me and mine[reader] < clock:
                self._race("writes", i, "an atomic", "reading", reader, other)
        before = self.atomics.setdefault(i, {})
        before[me] = mine[me], writes or (me in before and before[me][1])

    def _check_atomics(self, i: int, does: str, step: str) -> None:
        me = self.memory.me
        mine = self.memory.clocks[me]
        for actor, (clock, wrote) in self.atomics.get(i, {}).items():
            if (wrote or does == "writes") and actor != me and mine[actor] < clock:
                self._race(does, i, step, "touching", actor, "an atomic")

    def load(self, i: int) -> int:
        self._check_read(i, "a kernel")
        return super().load(i)

    def store(self, i: int, value: int) -> None:
        self._check_write(i, "a kernel")
        super().store(i, value)

    def _check_read(self, i: int, step: str) -> None:
        me = self.memory.me
        mine, wrote = self.memory.clocks[me], self.writes.get(i)
        if wrote is not None and wrote[0] != me and mine[wrote[0]] < wrote[1]:
            self._race("reads", i, step, "writing", wrote[0], wrote[2])
        self._check_atomics(i, "reads", step)
        self.reads.setdefault(i, {})[me] = mine[me], step

    def _check_write(self, i: int, step: str) -> None:
        me = self.memory.me
        mine, wrote = self.memory.clocks[me], self.writes.get(i)
        if wrote is not None and wrote[0] != me and mine[wrote[0]] < wrote[1]:
            self._race("writes", i, step, "writing", wrote[0], wrote[2])
        for reader, (clock, other) in self.reads.pop(i, {}).items():
            if reader != me and mine[reader] < clock:
                self._race("writes", i, step, "reading", reader, other)
        self._check_atomics(i, "writes", step)
        self.writes[i] = me, mine[me], step

    def _step(self, i: Any) -> str:
        """The step function that makes this access; empty if the access is not checked."""
        actor = self.memory.sched.current
        if actor is None or actor.rank != self.rank or isinstance(i, slice) or i in UNORDERED:
            return ""
        code = sys._getframe(2).f_code
        if not code.co_filename.startswith(STEPS):
            return ""
        return f"{code.co_filename.rsplit('/', 1)[-1].removesuffix('.py')}.{code.co_name}"

    def _race(self, does: str, i: int, step: str, done: str, other: int, where: str) -> None:
        actor = self.memory.actor
        raise Race(
            f"{actor(self.memory.me)} {does} {self.name(i)} in {step} while {actor(other)} may be {done} it in {where}:"
            " nothing orders the two accesses"
        )

    def name(self, i: int) -> str:
        """The name of a word of the state, for messages."""
        names = {value: name for name, value in vars(words).items() if name.startswith("T_")}
        table = max(((start, name) for start, name in self.starts if start <= i), default=None)
        return f"word {i} of the state" if table is None else f"{names[table[1]]}[{i - table[0]}]"
