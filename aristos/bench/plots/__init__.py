"""Pictures of a results file; each module draws the tables of one suite or more. Matplotlib is imported only to draw.

A picture is a function of a `results.Table` that returns a figure; the `PICTURES` of a module names those of each
table. Pictures show the data of the file alone: nothing is smoothed, and outliers stay.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...errors import AristosError, EnvironmentProblem, InputError, ResultsError
from ...primitives.texts import shown
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

    Raises InputError if no run has that name or it has no pictures, ResultsError if a table lacks data of its picture,
    EnvironmentProblem if Matplotlib is not installed.
    """
    found = _choose(file, run)
    pyplot = _pyplot()
    from .labels import drawable
    from .style import STYLE, footer

    chosen = drawable(found, file)

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    known = pictures()
    with pyplot.rc_context(STYLE):
        for table in chosen.tables:
            for name, picture in known.get(table.name, []):
                path = folder / f"{name}.{form}"
                with _described(pyplot, f"{file}: no picture of the table {table.name!r}"):
                    figure = picture(table)
                    footer(figure, chosen, str(table.attributes.get("disturbed", "")))
                    figure.savefig(path)
                written.append(path)
    if not written:
        raise InputError(f"run {chosen.name} of {file} has no table with a picture")
    return written


def draw_timelines(files: list[str], target: Path) -> Path:
    """Draw files of `bench --timeline` or `MoE.write_timeline` as one picture; returns its path. Raises as `draw`."""
    pyplot = _pyplot()
    from .style import STYLE
    from .timeline import timelines

    target.parent.mkdir(parents=True, exist_ok=True)
    with pyplot.rc_context(STYLE), _described(pyplot, f"{', '.join(files)}: no picture"):
        timelines(files).savefig(target)
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


@contextlib.contextmanager
def _described(pyplot: Any, what: str) -> Iterator[None]:
    """Turn errors about data that cannot be drawn, of a table of another version or program, into a ResultsError.

    Closes all figures.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, MemoryError, RuntimeError) as why:
        if isinstance(why, AristosError):
            raise
        raise ResultsError(f"{what}: {type(why).__name__}: {shown(str(why)[:200])}") from why
    finally:
        pyplot.close("all")


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
