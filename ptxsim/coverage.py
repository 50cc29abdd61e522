"""What a check covered: kernels, launches, instructions.

A check says nothing about code, inputs and schedules that did not run.
"""

from __future__ import annotations

from . import isa
from . import state as s
from .machine import Machine


class Coverage:
    """Counts of the runs of a check."""

    def __init__(self) -> None:
        self.launches = 0
        self.kernels: set[str] = set()
        self.ran: set[tuple[str, int]] = set()  # (kernel, index of an instruction)
        self.all: set[tuple[str, int]] = set()

    def add(self, machine: Machine) -> None:
        """Count what a machine ran."""
        launches = [launch for launch in machine.done if not launch.action]
        self.launches += len(launches)
        for launch in launches:
            self.kernels.add(launch.name)
            base = machine.loader.base(launch.program)
            after = [info.start for info in launch.program.functions.values() if info.start > launch.info.start]
            for index in range(launch.info.start, min(after, default=len(launch.program.code))):
                if launch.program.code[index, isa.OP] != isa.NOP:
                    self.all.add((launch.name, index - launch.info.start))
                    if machine.loader.counts[base + index, s.N_WARPS]:
                        self.ran.add((launch.name, index - launch.info.start))

    def said(self, first: int, schedules: int) -> str:
        """The line that a check prints at its end. first: the first seed. schedules: how many seeds there were."""
        seeds = f"seed {first}" if schedules == 1 else f"seeds {first} to {first + schedules - 1}"
        return (
            f"covered: {len(self.kernels)} kernel{'s'[: len(self.kernels) != 1]}, "
            f"{self.launches} launch{'es'[: 2 * (self.launches != 1)]}, {seeds}, "
            f"{len(self.ran)} of {len(self.all)} instructions; other inputs, sizes and schedules are unknown"
        )
