"""Pictures of a results file: each module draws what one suite measured. Matplotlib is imported only to draw.

A picture is a function of a `results.Table` that returns a figure; `PICTURES` says which tables have which. It
refuses to smooth or to leave out runs' outliers, and to show anything that is not in the file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...errors import EnvironmentProblem, InputError, ResultsError
from ...results import Run, Table, load

Picture = Callable[[Table], Any]


def pictures() -> dict[str, list[tuple[str, Picture]]]:
    """Table name -> (file name, function) of its pictures: the `PICTURES` of every module of this folder."""
    found: dict[str, list[tuple[str, Picture]]] = {}
    for module in pkgutil.iter_modules(__path__):
        found |= getattr(importlib.import_module(f"{__name__}.{module.name}"), "PICTURES", {})
    return found


def draw(file: str, folder: Path, *, run: str | None = None, form: str = "png") -> list[Path]:
    """Draw one run's pictures into `folder`; returns their paths.

    Raises InputError where no run of the file has that name, ResultsError where a table lacks what its picture shows,
    EnvironmentProblem without Matplotlib.
    """
    chosen = _choose(file, run)
    try:
        import matplotlib
    except ImportError:
        raise EnvironmentProblem("Matplotlib is not installed: pip install 'aristos[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    from .style import STYLE, footer

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    known = pictures()
    with pyplot.rc_context(STYLE):
        for table in chosen.tables:
            for name, picture in known.get(table.name, []):
                figure = _drawn(picture, table, file)
                footer(figure, chosen)
                path = folder / f"{name}.{form}"
                figure.savefig(path)
                pyplot.close(figure)
                written.append(path)
    if not written:
        raise InputError(f"run {chosen.name} of {file} has no table that there is a picture of")
    return written


def _drawn(picture: Picture, table: Table, file: str) -> Any:
    try:
        return picture(table)
    except (KeyError, IndexError, TypeError, ValueError) as why:  # a table of another version, or of another program
        raise ResultsError(f"{file}: no picture of the table {table.name!r}: {type(why).__name__}: {why}") from why


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
