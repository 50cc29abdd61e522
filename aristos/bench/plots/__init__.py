"""Pictures of a results file. Each module draws the tables of one suite or more. Matplotlib is imported only to draw.

A picture is made by a function that takes a `results.Table` and returns a figure. The `PICTURES` of a module names the
pictures of each table. A table that has none, for example one of another program, is drawn by its dimensions
(`any_table.py`). Pictures show only the data of the file: nothing is smoothed, and outliers are not removed.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kernel_cache import regular
from kernel_cache.texts import shown

from ...errors import AristosError, InputError, ResultsError
from ...primitives.aside import write_bytes
from ...results import Run, Table, load
from ...topology import drawing

MOST_NAMED = 20  # runs that an error names
Picture = Callable[[Table], Any]


def pictures() -> dict[str, list[tuple[str, Picture]]]:
    """Table name -> (file name, function) of its pictures, from the `PICTURES` of every module of this folder."""
    found: dict[str, list[tuple[str, Picture]]] = {}
    for module in pkgutil.iter_modules(__path__):
        found |= getattr(importlib.import_module(f"{__name__}.{module.name}"), "PICTURES", {})
    return found


def draw(file: str, folder: Path, *, run: str | None = None, form: str = "png") -> list[Path]:
    """Draw the pictures of one run, by default the last one, into `folder`. Returns their paths.

    Raises InputError if no run has that name or if it has nothing to draw, EnvironmentProblem if Matplotlib is not
    installed.
    """
    found = choose(file, run)
    written = _draw([found], folder, form, file)
    if not written:
        from .labels import label

        raise InputError(
            f"run {label(found.name)} of {file} has no table of numbers over a dimension, so there is nothing to draw"
        )
    return written


def draw_both(runs: tuple[Run, Run], folder: Path) -> list[Path]:
    """Draw the pictures that two runs have in common, side by side on equal scales. Returns their paths.

    Raises EnvironmentProblem if Matplotlib is not installed.
    """
    return sorted(_draw(runs, folder, "png"))


def _draw(runs: Sequence[Run], folder: Path, form: str, file: str = "") -> list[Path]:
    """Draw the pictures of one run, or those that two runs have in common, side by side. file: for messages."""
    pyplot = drawing.pyplot()
    from .labels import drawable
    from .style import STYLE, beside, footer

    chosen = [drawable(run, file or run.name) for run in runs]
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with pyplot.rc_context(STYLE):
        for first in chosen[0].tables:
            tables = [table for run in chosen for table in run.tables if table.name == first.name]
            if len(tables) < len(runs):
                continue
            with _described(pyplot, f"{file}{': ' if file else ''}no picture of the table {first.name!r}"):
                drawn = [_figures(table) for table in tables]
                for name in [name for name in drawn[0] if name in drawn[-1]]:
                    figures = [each[name] for each in drawn]
                    for figure, run, table in zip(figures, chosen, tables):
                        footer(figure, run, table)
                    written.append(folder / f"{name}.{form}")
                    whole = figures[0] if len(figures) == 1 else beside(*figures)
                    _save(whole, written[-1], dpi=None if len(figures) == 1 else whole.dpi)
    return written


def draw_timelines(files: list[str], target: Path) -> Path:
    """Draw files of `bench --timeline` or `MoE.write_timeline` as one picture. Returns its path.

    Raises ResultsError if a file is no timeline, EnvironmentProblem if Matplotlib is not installed.
    """
    pyplot = drawing.pyplot()
    from .style import STYLE
    from .timeline import timelines

    target.parent.mkdir(parents=True, exist_ok=True)
    with pyplot.rc_context(STYLE), _described(pyplot, f"{', '.join(files)}: no picture"):
        _save(timelines(files), target)
    return target


def _save(figure: Any, path: Path, dpi: float | None = None) -> None:
    """Write a picture whole, or leave an older one. Raises OSError with the picture's name."""
    regular.refuse_others(path)
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:], dpi=dpi)
    write_bytes(path, content.getvalue())


@contextlib.contextmanager
def _described(pyplot: Any, what: str) -> Iterator[None]:
    """A `with` block that turns errors about data that cannot be drawn into a ResultsError. Its end closes all figures.

    Another version or program may have written the data.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, MemoryError, RuntimeError) as why:
        if isinstance(why, AristosError):
            raise
        raise ResultsError(f"{what}: {type(why).__name__}: {shown(str(why)[:200])}") from why
    finally:
        pyplot.close("all")


def _figures(table: Table) -> dict[str, Any]:
    """File name -> figure of each picture of a table.

    If the table has no picture of its own, or lacks data that its pictures need, it is drawn by its dimensions."""
    from matplotlib import pyplot

    from . import any_table

    known: dict[str, Any] = {}
    try:
        known = {name: picture(table) for name, picture in pictures().get(table.name, [])}
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError):  # another version wrote the file
        if not any_table.drawable(table):
            raise
    if known or not any_table.drawable(table):
        return known
    pyplot.close("all")
    return {table.name: any_table.any_table(table)}


def runs_of(file: str) -> list[Run]:
    """The runs of a file. Raises InputError if it holds none."""
    runs = load(file).runs
    if not runs:
        raise InputError(f"{file} holds no run: run `python -m aristos.bench --out {file}` first")
    return runs


def choose(file: str, run: str | None) -> Run:
    """The run of a file with the name `run`, else the only run whose name begins with `run`; for None the last run.

    Raises InputError if the file has no such run, or several.
    """
    runs = runs_of(file)
    if run is None:
        return runs[-1]
    found = [r for r in runs if r.name == run] or [r for r in runs if r.name.startswith(run)]
    if len(found) != 1:
        names = ", ".join(r.name for r in runs[-MOST_NAMED:])
        more = f" and {len(runs) - MOST_NAMED} before them" if len(runs) > MOST_NAMED else ""
        raise InputError(f"--run must name one run of {file}, got {run!r}; the file holds {names}{more}")
    return found[0]
