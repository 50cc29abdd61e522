"""Run a Python script with its CUDA kernels on a machine, and print the machine's reports and counters."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import runpy
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import kernels
from .errors import InputError
from .findings import lines, total
from .machine import Machine
from .switch import use
from .waiting import compile_machine

NOTHING = "no kernel ran: only launches as k[grid, block](...) count, not those on a Machine that the script makes"


def profile(script: str, args: list[str], as_json: bool, **options: Any) -> int:
    """Run a script. Print the machine's reports and the table of its counters, or one JSON object with both.

    args: the script's arguments. options: those of `Machine`. Returns the exit code. Raises InputError if the script is
    missing or an option is wrong, EnvironmentProblem if numba-cuda is missing.
    """
    path = Path(script)
    if not os.path.isfile(path):  # Path.is_file raises for a name that is too long
        raise InputError(f"there is no file {script}")
    kernels.numba_cuda()
    compile_machine()
    machine = Machine(**options)
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        code, error = run_script(machine, path, args)
    if machine.reports:
        code = 1
    counted = machine.profile()
    if as_json:
        reports = [dataclasses.asdict(report) for report in machine.reports]
        print(
            json.dumps(
                {
                    "schema": "ptxsim-profile/1",
                    "script": script,
                    "exit_code": code,
                    "error": error,
                    "reports": reports,
                    "profile": counted.json(),
                }
            )
        )
        return code
    if not counted.lines:
        print(f"ptxsim profile: {NOTHING}", file=sys.stderr)
        return code
    printed = lines(machine.reports)
    print(*printed, total(len(printed)) if options["check"] else "not checked", "", counted, sep="\n")
    return code


def run_script(machine: Machine, path: Path, args: list[str]) -> tuple[int, str | None]:
    """Run a script as `python SCRIPT ARGS` does. Returns (its exit code, the error that ended it or None)."""
    try:
        with as_main(path, args), quiet(), use(machine):
            runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0, None
        print(end.code, file=sys.stderr)
        return 1, str(end.code)
    except Exception as error:
        traceback.print_exc()
        return 1, f"{type(error).__name__}: {error}"
    return 0, None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A block in which Numba does not warn that a script's sizes would be slow on a GPU, because there is no GPU."""
    category = kernels.part("core.errors").NumbaPerformanceWarning
    with warnings.catch_warnings():
        for message in ("Grid size", "Host array used in CUDA kernel"):
            warnings.filterwarnings("ignore", message, category)
        yield


@contextlib.contextmanager
def as_main(path: Path, args: list[str]) -> Iterator[None]:
    """A block in which sys.argv and sys.path are those of a script."""
    before = sys.argv, sys.path[:]
    sys.argv, sys.path[:0] = [str(path), *args], [str(path.resolve().parent)]
    try:
        yield
    finally:
        sys.argv, sys.path[:] = before
