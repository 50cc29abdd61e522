"""The output of rank 0: tables for readers, one JSON document for programs, and a progress bar on terminals.

Tables go to stdout and progress to stderr, so that either can be redirected. There are no colours and no bar if the
output is no terminal, under a launcher, or with NO_COLOR.
"""

from __future__ import annotations

import json
import math
import sys
import textwrap
from typing import Any

from ..host import launch_environment
from .context import Column, Result, Sheet, counted
from .watch import Watch

DISTURBED = Column("disturbed", "disturbed")
LETTERS = "H: width of a token, F: width inside an expert, E: experts over all ranks, k: experts of a token"
WIDE = 120  # characters of a table's line; a wider table has only one space between its columns
NOTE = 116  # the most characters of a line of notes
WIDTH = 200  # the most characters of a line; narrower terminals wrap lines, so no digits are lost


class Reporter:
    """A printer of results. quiet: whether to print only the JSON document. watch: bars instead of a progress bar."""

    def __init__(self, quiet: bool, watch: Watch | None = None) -> None:
        from rich.console import Console

        class Stdout(Console):
            def on_broken_pipe(self) -> None:
                raise  # as print() does; rich would end the process with exit code 1

        self._quiet = quiet
        styled = launch_environment.on_terminal(sys.stdout)
        self._console = Stdout(highlight=False, width=WIDTH, force_terminal=styled)
        self._watch = watch
        self._bar: Any = None
        self._task: Any = None

    def head(self, facts: dict[str, Any], shape: str) -> None:
        """Print versions, machine and shape as comment lines."""
        if self._quiet:
            return
        hosts = len(set(facts["hosts"]))
        where = f"{counted(facts['ranks'], 'rank')} on {counted(len(set(facts['node_of_rank'])), 'node')}"
        machine = f"{facts['transports']}, {facts['cpu']}, {facts['isa']}"
        print(f"# aristos {facts['versions']['aristos']}, {where} by {machine}")
        print(f"# {facts['mpi_library']}; cores of rank 0: {facts['cores_of_rank'][0]}; seed {facts['seed']}")
        print(f"# {shape}")
        print(f"# {LETTERS}", flush=True)
        if facts["crowded"]:
            print(f"# {facts['crowded']}", flush=True)
        cores = len({core for mask in facts["cores_of_rank"] for core in mask.split(",")})
        if hosts == 1 and facts["load_average"] > 0.5 * cores + facts["ranks"]:
            busy = f"# load average {facts['load_average']:.1f} on {cores} cores"
            print(f"{busy}: other processes use these cores, or a run of the last minute used them", flush=True)

    def begin(self, suite: str) -> None:
        """Show a progress bar for a suite if stderr is a terminal."""
        if self._watch is not None:
            self._watch.begin(suite)
            return
        if not launch_environment.on_terminal(sys.stderr):
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, transient=True)
        self._bar.start()
        self._task = self._bar.add_task(suite, total=1.0)

    def progress(self, text: str, share: float) -> None:
        """Update the progress bar, if there is one."""
        if self._watch is not None:
            self._watch.headline(text)
        if self._bar is not None:
            self._bar.update(self._task, description=text, completed=share)

    def end(self) -> None:
        """Remove the progress bar."""
        if self._watch is not None:
            self._watch.end()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def show(self, *sheets: Sheet) -> None:
        """Print sheets with their notes, unless quiet."""
        for sheet in () if self._quiet else sheets:
            self._console.print(f"\n{sheet.title}", style="bold", markup=False, soft_wrap=True)
            whole = table(sheet)
            if self._console.measure(whole).maximum > WIDE:
                whole.padding = (0, 0)
            self._console.print(whole)
            for note in sheet.notes:
                for line in textwrap.wrap(note, NOTE, break_long_words=False, break_on_hyphens=False):
                    self._console.print(f"  {line}", markup=False, soft_wrap=True)
            sys.stdout.flush()

    def line(self, text: str) -> None:
        """Print a line, unless quiet."""
        if not self._quiet:
            print(text, flush=True)

    def document(self, facts: dict[str, Any], results: dict[str, Result], ok: bool, out: str | None) -> None:
        """Print the JSON document."""
        suites = {
            name: {
                "ok": result.ok,
                "tables": [
                    {"title": s.title, "rows": [plain(r) for r in s.records], "notes": s.notes} for s in result.sheets
                ],
            }
            for name, result in results.items()
        }
        whole = {"schema": facts["schema"], "ok": ok, "environment": plain(facts), "results": out, "suites": suites}
        print(json.dumps(whole, indent=1, allow_nan=False), flush=True)


def table(sheet: Sheet) -> Any:
    """The rich table of a sheet: numbers right-aligned, FAILED in red."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    columns = [*sheet.columns, DISTURBED] if any("disturbed" in r for r in sheet.records) else sheet.columns
    for column in columns:
        words = any(column.words(record) for record in sheet.records)
        shown.add_column(column.title, justify="left" if words else "right", no_wrap=True)
    for record in sheet.records:
        cells = [column.text(record) for column in columns]
        shown.add_row(*(Text(cell, style="bold red" if cell == "FAILED" else "") for cell in cells))
    return shown


def plain(value: Any) -> Any:
    """`value` as JSON types; infinities and NaN become null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
