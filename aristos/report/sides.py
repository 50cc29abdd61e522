"""The sides of a comparison: each is one run, or a set of runs."""

from __future__ import annotations

from dataclasses import dataclass

from ..bench.plots import choose, runs_of
from ..errors import InputError
from ..results import Run


@dataclass(frozen=True)
class Side:
    """Runs whose rows count as repetitions of one another. file: where they are from."""

    file: str
    runs: tuple[Run, ...]

    @property
    def last(self) -> Run:
        return self.runs[-1]

    @property
    def names(self) -> str:
        return ", ".join(run.name for run in self.runs)


def each(files: list[str], every: bool) -> list[Side]:
    """The last run of each file, or the last two runs of a single file. every: whether to take all runs of each file.

    Raises InputError if a file holds no run.
    """
    sides = [Side(file, tuple(runs_of(file))) for file in files]
    if every:
        return sides
    count = 2 if len(files) == 1 else 1
    return [Side(side.file, (run,)) for side in sides for run in side.runs[-count:]]


def two(files: list[str], names: list[str], every: bool = False) -> tuple[Side, Side]:
    """The last run of each of two files, or the last two of one file, or the runs with these names.

    every: whether to take all runs of each of two files. Raises InputError if there are no such runs.
    """
    if names:
        found = [Side(file, (choose(file, name),)) for file, name in zip((files[0], files[-1]), names)]
    else:
        found = each(files, every)
    if len(found) < 2:
        raise InputError(f"{files[0]} holds 1 run: give a second file to compare with")
    return found[0], found[1]
