"""The sides of a comparison: each is one run, or a set of runs."""

from __future__ import annotations

from dataclasses import dataclass

from ..bench.plots import choose
from ..errors import InputError
from ..results import Run, load


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


def whole(file: str) -> Side:
    """All runs of a file. Raises InputError if it holds none."""
    runs = load(file).runs
    if not runs:
        raise InputError(f"{file} holds no run: run `python -m aristos.bench --out {file}` first")
    return Side(file, tuple(runs))


def each(files: list[str], every: bool) -> list[Side]:
    """The last run of each file, or the last two runs of a single file. every: whether to take all runs of each file.

    Raises InputError if a file holds no run.
    """
    sides = [whole(file) for file in files]
    if every:
        return sides
    count = 2 if len(files) == 1 else 1
    return [Side(side.file, (run,)) for side in sides for run in side.runs[-count:]]


def two(files: list[str], names: list[str], every: bool = False) -> tuple[Side, Side]:
    """The last run of each of two files, or the last two of one file, or the runs with these names.

    every: whether to take all runs of each of two files. Raises InputError if there are no such runs.
    """
    if every:
        first, second = each(files, every)
        return first, second
    if names or len(files) == 2:
        chosen = zip((files[0], files[-1]), names or (None, None))
        first, second = (Side(file, (choose(file, name),)) for file, name in chosen)
        return first, second
    runs = load(files[0]).runs
    if len(runs) < 2:
        raise InputError(
            f"{files[0]} holds {len(runs)} run{'s' * (len(runs) != 1)}: give a second file to compare with"
        )
    return Side(files[0], (runs[-2],)), Side(files[0], (runs[-1],))
