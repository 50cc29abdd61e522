"""The order of the checks: what can be seen without MPI first, since starting it may end the process; then all ranks.

Exit codes: 0 nothing failed, 3 something did, or rank 0 could not write the report, 130 Ctrl-C.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from typing import Any

from ..host import launch_environment, mpi_library, workarounds
from ..host.mpi_library import Library
from ..host.versions import version, versions
from . import cores, equal, gpus, kernels, libraries, progress, shared_memory, sight, slurm, windows
from .finding import Finding, fail, guarded, merged
from .output import Report
from .ranks import Ranks

OK, FAILED, INTERRUPTED = 0, 3, 130
Check = tuple[str, Callable[[], Finding]]


def run(as_json: bool, limit: float) -> int:
    """Check all there is to check; the exit code."""
    prints = launch_environment.prints()
    report = Report(as_json, silent=not prints)
    found = mpi_library.find()
    applied = workarounds.apply(found)
    if prints:
        report.add(*(guarded(name, check) for name, check in _before(found, applied)))
    ranks = Ranks(limit, lambda text: _hung(report, text))
    report.add(_start(ranks, found))
    report.ranks = ranks.size
    met = libraries.launcher(None if ranks.comm is None else ranks.size, os.environ, found)
    report.add(met)
    if ranks.rank == 0 and not prints:
        return OK  # a task of a job that MPI does not see as one: task 0 says so, and fails
    _each(ranks, report, limit)
    if met.state == "ok":
        _together(ranks, report, found)
    failed = any(ranks.allgather(report.worst == "fail", "exit code"))
    report.end()
    ranks.end()
    return FAILED if failed or report.broken else OK


def _start(ranks: Ranks, found: Library | None) -> Finding:
    """Start MPI, unless it would end the process; the library's finding."""
    if launch_environment.stranger(library=found) is None:
        try:
            ranks.start()
        except (ImportError, RuntimeError) as why:
            return libraries.library(found, str(why) or type(why).__name__)
    return libraries.library(found)


def _before(found: Library | None, applied: list[workarounds.Workaround]) -> list[Check]:
    """What one process sees alone, the same on all ranks."""
    return [
        ("workarounds", lambda: libraries.workarounds(applied)),
        ("Slurm", lambda: slurm.slurm_here(os.environ, found)),
        ("mpirun", lambda: libraries.mpirun_here(found)),
    ]


def _each(ranks: Ranks, report: Report, limit: float) -> None:
    """What each rank, and the first rank of each node, sees for itself."""
    here = sum(node == ranks.nodes.node_of[ranks.rank] for node in ranks.nodes.node_of)
    checks = _of_rank()
    if ranks.lead:
        checks += _of_node(ranks.size, here, limit)
    mine = [guarded(name, check) for name, check in checks]
    report.add(*merged(enumerate(ranks.allgather(mine, "what each rank sees")), ranks.size))


def _together(ranks: Ranks, report: Report, found: Library | None) -> None:
    """What takes all ranks to see, or to do."""
    seats = ranks.allgather(cores.seat(ranks.nodes.node_of[ranks.rank]), "cores")
    report.add(guarded("cores", lambda: cores.binding(seats, found, os.environ)))
    report.add(guarded("scheduler", lambda: cores.scheduler(seats, cores.autogroups())))
    if ranks.comm is None:
        return
    level, multiple = _levels()
    report.add(libraries.threads(level, multiple, not ranks.nodes.single))
    if ranks.size == 1:
        return
    report.add(windows.shared(ranks), progress.progress(ranks, level >= multiple))
    cards = ranks.allgather(sight.facts(os.environ, sight.library()), "the GPUs that each rank sees")
    report.add(guarded("GPU peers", lambda: gpus.peers(cards, ranks.nodes)))
    report.add(guarded("GPU sharing", lambda: gpus.sharing(cards, ranks.nodes)))
    facts = ranks.allgather((_facts(), os.environ.get("SLURMD_NODENAME") or platform.node()), "facts to compare")
    report.add(equal.hosts([host for _, host in facts], ranks.nodes))
    report.add(*equal.equal([each for each, _ in facts]))


def _of_rank() -> list[Check]:
    mask = len(os.sched_getaffinity(0))
    return [
        ("one MPI", lambda: libraries.one_mpi(mpi_library.mapped(), libraries.wheels(), libraries.modules_here())),
        ("Numba", lambda: kernels.numba(os.environ)),
        ("instructions", kernels.instructions),
        ("kernel cache", kernels.cache),
        ("core limits", lambda: cores.granted(mask, cores.quota(), os.environ)),
    ]


def _of_node(ranks: int, here: int, limit: float) -> list[Check]:
    """For the first rank of each node."""
    seen = sight.look(cuda=sight.library())
    return [
        (shared_memory.SHM, lambda: shared_memory.shared_here(ranks, here)),
        ("left in shm", lambda: shared_memory.left(shared_memory.leftovers())),
        ("GPU driver", lambda: gpus.driver(seen)),
        ("GPUs", lambda: gpus.gpus(seen, os.environ, here)),
        ("GPU puts", lambda: gpus.puts(seen, limit)),
        ("GPU packages", lambda: gpus.packages({each: version(each) for each in gpus.PACKAGES}, seen)),
    ]


def _levels() -> tuple[int, int]:
    """(thread level that MPI gave, MPI_THREAD_MULTIPLE)."""
    from mpi4py import MPI

    return MPI.Query_thread(), MPI.THREAD_MULTIPLE


def _facts() -> dict[str, str]:
    """What should be equal on all ranks."""
    sources: dict[str, Callable[[], Any]] = {
        "MPI library": _library_version,
        "instructions": kernels.isa,
        "kernel cache": lambda: kernels.folder().parent,
        "core count": lambda: len(os.sched_getaffinity(0)),
    }
    facts = versions()
    for name, ask in sources.items():
        try:
            facts[name] = str(ask())
        except Exception as why:
            facts[name] = f"unknown ({type(why).__name__})"
    return facts


def _library_version() -> str:
    from mpi4py import MPI

    return " ".join(MPI.Get_library_version().replace("\0", "").split("\n")[0].split())


def _hung(report: Report, text: str) -> None:
    """The last words when MPI does not come back."""
    remedy = "a rank is missing or hangs; try fewer ranks, one node, and another network (MPICH: MPIR_CVAR_CH4_NETMOD)"
    report.add(fail("hang", text, remedy))
    report.end()
