"""Writes rank 0's report: each finding at once on a line, with the remedy below, or one JSON object at the end."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable
from functools import partial

from .._version import __version__
from ..host import launch_environment
from .finding import WORSE, Finding

COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}
INDENT = 24  # columns of a finding's state and name
UNWRAPPED = 10_000  # columns of an output that is no terminal, so that lines stay whole


class ReportWriter:
    """Writes the report. silent: another rank prints. as_json: print only the object at the end.

    broken: why the report cannot be written, or ''.
    """

    def __init__(self, as_json: bool = False, silent: bool = False) -> None:
        from rich.console import Console

        self.findings: list[Finding] = []
        self.ranks = 1
        self._json, self._silent = as_json, silent
        self.broken = "stdout is closed" if sys.stdout is None and not silent else ""
        self._terminal = launch_environment.on_terminal(sys.stdout)
        self._console = Console(highlight=False, force_terminal=self._terminal)

    def add(self, *findings: Finding) -> None:
        self.findings += findings
        if not self._json:
            for each in findings:
                self._write(partial(self._show, each))

    def _write(self, write: Callable[[], object]) -> None:
        """Write, unless writing has failed before. The checks continue, because other ranks take part in them."""
        if self._silent or self.broken:
            return
        try:
            write()
            sys.stdout.flush()
        except OSError as why:
            self.broken = str(why)
        except SystemExit:  # raised by rich on a broken pipe
            self.broken = "the reader of stdout is gone"

    def _show(self, each: Finding) -> None:
        from rich.text import Text

        width = self._console.width - INDENT if self._terminal else UNWRAPPED
        first, *more = textwrap.wrap(each.text, max(width, 40)) or [""]
        self._console.print(
            Text.assemble((f"{each.state:6}", COLOURS[each.state]), f"{each.name:{INDENT - 6}}", first), soft_wrap=True
        )
        below = [(line, "") for line in more] + [(f"  {line}", "italic") for line in each.remedy.splitlines()]
        for line, style in below:
            self._console.print(Text(" " * INDENT + line, style), soft_wrap=True)

    @property
    def worst(self) -> str:
        return max((each.state for each in self.findings), key=WORSE.index, default="ok")

    def note(self, text: str) -> None:
        """Print a line that the JSON form does not have."""
        if not self._json:
            self._write(lambda: self._console.print(text, markup=False, soft_wrap=True))

    def end(self) -> None:
        """Print the summary or the object. If the report could not be written, say why on stderr."""
        if self._json:
            whole = {
                "aristos": __version__,
                "ranks": self.ranks,
                "state": self.worst,
                "findings": [vars(each) for each in self.findings],
            }
            self._write(lambda: print(json.dumps(whole, indent=1, default=str)))
        else:
            count = {state: sum(each.state == state for each in self.findings) for state in WORSE}
            self.note(f"\n{count['ok']} ok, {count['warn']} to look at, {count['fail']} failed")
        if self.broken:
            print(f"aristos doctor: cannot write the report: {self.broken}", file=sys.stderr)
