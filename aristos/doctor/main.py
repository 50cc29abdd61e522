"""The order of the checks: what can be seen without MPI first, since starting it may end the process; then all ranks.

Exit codes: 0 nothing failed, 3 something did, 130 Ctrl-C.
"""

from __future__ import annotations

import os

from .. import mpi_library, workarounds
from ..bench import launch
from ..mpi_library import Library
from . import libraries
from .finding import Finding, fail, guarded, merged
from .ranks import Ranks
from .report import Report

OK, FAILED, INTERRUPTED = 0, 3, 130


def run(as_json: bool, limit: float) -> int:
    """Check all there is to check; the exit code, the same on every rank."""
    report = Report(as_json, silent=not launch.prints())
    found = mpi_library.find()
    applied = workarounds.apply(found)
    report.add(*_before(found, applied))
    ranks = Ranks(limit, lambda text: _hung(report, text))
    try:
        ranks.start()
    except (ImportError, RuntimeError) as why:
        report.add(libraries.library(found, str(why) or type(why).__name__))
    else:
        report.add(libraries.library(found))
        report.ranks = ranks.size
    report.add(libraries.launcher(ranks.size, os.environ, found))
    return _finish(ranks, report)


def _before(found: Library | None, applied: list[workarounds.Workaround]) -> list[Finding]:
    """What one process can see alone, the same on all."""
    if not launch.prints():
        return []
    return [
        guarded("workarounds", lambda: libraries.workarounds(applied)),
        guarded("mpirun", lambda: libraries.mpirun_here(found)),
    ]


def _finish(ranks: Ranks, report: Report) -> int:
    failed = ranks.allgather(report.worst == "fail", "exit code")
    report.end()
    ranks.end()
    return FAILED if any(failed) else OK


def _hung(report: Report, text: str) -> None:
    """The last words when MPI does not come back."""
    remedy = "a rank is missing or hangs; try fewer ranks, one node, and another network (MPICH: MPIR_CVAR_CH4_NETMOD)"
    report.add(fail("hang", text, remedy))
    report.end()
