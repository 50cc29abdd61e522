"""Shortens the schedule that shows a fault, so that it has few turns of warps. Then a person can follow it.

The run is repeated with a part of the turns left out, as in delta debugging (Zeller and Hildebrandt, 2002), and what
still shows the fault is kept. After the turns that a plan names, the warps take long turns, one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import state as s
from .explain import line_of, place, three_of
from .findings import KernelFault, Report
from .machine import Machine

SECONDS = 10.0  # for the repeated runs of one fault
SHOWN = 12  # the most turns that are printed


@dataclass(frozen=True)
class Story:
    """A fault, the number of turns up to it in the first run, and the turns of the shortened run as sentences.

    turns: empty if the first run has as many turns as a machine records, or more; then it is not shortened.
    """

    fault: Report
    before: int
    turns: list[str]

    def said(self) -> str:
        """The story as lines of text."""
        head = f"{self.fault.kind} at line {self.fault.line}: "
        if self.before and not self.turns:
            return f"{head}after {self.before} turns of warps or more, too many for a short schedule"
        head += f"{self.before} turns of warps, shortened to {len(self.turns)}"
        more = len(self.turns) - SHOWN
        return "\n  ".join([head, *self.turns[:SHOWN], *([f"and {more} more"] if more > 0 else [])])


def shorten(make: Callable[[], Machine], run: Callable[[Machine], Any], seconds: float = SECONDS) -> Story | None:
    """Shorten the schedule up to the first fault of a run. Returns None if the run has no fault.

    make: makes the machine, with the same seed each time. run: queues the launches and runs them. seconds: after this
    time no further run begins.
    """

    def attempt(plan: np.ndarray | None) -> tuple[Machine, Report] | None:
        machine = make()
        machine.strict = True
        machine.record(plan)
        try:
            run(machine)
        except KernelFault as fault:
            return machine, fault.report
        return None

    until = time.monotonic() + seconds
    first = attempt(None)
    if first is None:
        return None
    best, wanted = first
    turns = best.turns()
    before = len(turns)
    if before == len(best.tables["turns"]):
        return Story(wanted, before, [])

    def shows(plan: np.ndarray) -> bool:
        nonlocal best, turns
        found = attempt(plan)
        if found is None or not same(found[1], wanted) or len(found[0].turns()) >= len(turns):
            return False
        best, turns = found[0], found[0].turns()
        return True

    shows(turns[:0])
    size = -(-len(turns) // 2)
    while size:
        at = 0
        while at < len(turns) and time.monotonic() < until:
            if not shows(np.concatenate([turns[:at], turns[at + size :]])):
                at += size
        size = size // 2 if time.monotonic() < until else 0
    return Story(wanted, before, [sentence(best, turn) for turn in turns])


def same(one: Report, other: Report) -> bool:
    """Whether two reports name the same fault, whichever of its two lines comes first."""
    lines = {one.line, one.other_line} == {other.line, other.other_line}
    return one.kind == other.kind and lines and one.file == other.file


def sentence(machine: Machine, turn: np.ndarray) -> str:
    """A turn in words."""
    launch, index = place(machine, int(turn[s.U_GID]))
    _, line, _ = line_of(machine, int(turn[s.U_PC]))
    first = int(machine.tables["blocks"][machine.tables["warps"][turn[s.U_SLOT], s.W_BLOCK], s.B_FIRST_WARP])
    warp, count = int(turn[s.U_SLOT]) - first, int(turn[s.U_COUNT])
    run = f"{count} instruction{'s'[: count != 1]}"
    if launch is None:
        return f"warp {warp} runs {run}"
    block = three_of(index, launch.grid)
    where = f"{launch.name} on device {launch.device}, block {block}, warp {warp}"
    return f"{where}: {run}, to line {line}"
