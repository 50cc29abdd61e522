"""Pictures of a results file; each module draws the tables of one suite or more. Matplotlib is imported only to draw.

A picture is a function of a `results.Table` that returns a figure; the `PICTURES` of a module names those of each
table. A table without one, or of another program, is drawn by its dimensions (`any_table.py`). Pictures show the data
of the file alone: nothing is smoothed, and outliers stay.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...errors import EnvironmentProblem, InputError
from ...results import Run, Table, load

Picture = Callable[[Table], Any]


def pictures() -> dict[str, list[tuple[str, Picture]]]:
    """Table name -> (file name, function) of its pictures: the `PICTURES` of every module of this folder."""
    found: dict[str, list[tuple[str, Picture]]] = {}
    for module in pkgutil.iter_modules(__path__):
        found |= getattr(importlib.import_module(f"{__name__}.{module.name}"), "PICTURES", {})
    return found


def draw(file: str, folder: Path, *, run: str | None = None, form: str = "png") -> list[Path]:
    """Draw the pictures of one run, the last one by default, into `folder`; returns their paths.

    Raises InputError if no run has that name or it has nothing to draw, EnvironmentProblem if Matplotlib is not
    installed.
    """
    chosen = _choose(file, run)
    pyplot = _pyplot()
    from .style import STYLE, footer

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with pyplot.rc_context(STYLE):
        for table in chosen.tables:
            for name, figure in _figures(table).items():
                footer(figure, chosen, table)
                path = folder / f"{name}.{form}"
                figure.savefig(path)
                pyplot.close(figure)
                written.append(path)
    if not written:
        raise InputError(f"run {chosen.name} of {file} has no table of numbers over a dimension, so nothing to draw")
    return written


def draw_both(runs: tuple[Run, Run], folder: Path) -> list[Path]:
    """Draw the pictures that two runs have in common side by side, on equal scales; returns their paths.

    Raises EnvironmentProblem if Matplotlib is not installed.
    """
    pyplot = _pyplot()
    from .style import STYLE, beside, footer

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    others = {table.name: table for table in runs[1].tables}
    with pyplot.rc_context(STYLE):
        for table in runs[0].tables:
            if table.name not in others:
                continue
            first, second = _figures(table), _figures(others[table.name])
            for name in first.keys() & second.keys():
                for figure, run, of in zip((first[name], second[name]), runs, (table, others[table.name])):
                    footer(figure, run, of)
                whole = beside(first[name], second[name])
                path = folder / f"{name}.png"
                whole.savefig(path, dpi=whole.dpi)
                pyplot.close(whole)
                written.append(path)
            for figure in (*first.values(), *second.values()):
                pyplot.close(figure)
    return sorted(written)


def draw_timelines(files: list[str], target: Path) -> Path:
    """Draw files of `bench --timeline` or `MoE.write_timeline` as one picture; returns its path. Raises as `draw`."""
    pyplot = _pyplot()
    from .style import STYLE
    from .timeline import timelines

    target.parent.mkdir(parents=True, exist_ok=True)
    with pyplot.rc_context(STYLE):
        figure = timelines(files)
        figure.savefig(target)
        pyplot.close(figure)
    return target


def _pyplot() -> Any:
    """Matplotlib's pyplot, drawing to files alone."""
    try:
        import matplotlib
    except ImportError:
        raise EnvironmentProblem("Matplotlib is not installed: pip install 'aristos[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _figures(table: Table) -> dict[str, Any]:
    """File name -> figure of each picture of a table; of a table that has none, or lacks what they show, the one by its
    dimensions."""
    from matplotlib import pyplot

    from . import any_table

    figures: dict[str, Any] = {}
    open_before = pyplot.get_fignums()
    try:
        for name, picture in pictures().get(table.name, []):
            figures[name] = picture(table)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):  # of another version or program
        for number in set(pyplot.get_fignums()) - set(open_before):
            pyplot.close(number)
        figures = {}
    if not figures and any_table.drawable(table):
        figures[table.name] = any_table.any_table(table)
    return figures


def two(files: list[str], names: list[str]) -> tuple[Run, Run]:
    """Two runs: the last of each of two files, or the last two of one; or those of these names. InputError: there are
    none."""
    if names or len(files) == 2:
        first, second = (_choose(file, name) for file, name in zip((files[0], files[-1]), names or (None, None)))
        return first, second
    runs = load(files[0]).runs
    if len(runs) < 2:
        raise InputError(
            f"{files[0]} holds {len(runs)} run{'s' * (len(runs) != 1)}: give a second file to compare with"
        )
    return runs[-2], runs[-1]


def _choose(file: str, run: str | None) -> Run:
    runs = load(file).runs
    if not runs:
        raise InputError(f"{file} holds no run")
    if run is None:
        return runs[-1]
    found = [r for r in runs if r.name.startswith(run)]
    if len(found) != 1:
        names = ", ".join(r.name for r in runs)
        raise InputError(f"--run must name one run of {file}, got {run!r}; it holds {names}")
    return found[0]
