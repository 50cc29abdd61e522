"""Runs the checks. Checks without MPI come first, because starting MPI may end the process; then checks on all ranks.

Exit codes: 0 no check failed, 3 a check failed or rank 0 could not write the report, 130 Ctrl-C.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from ..host import launch_environment, mpi_library, slurm_variables, workarounds
from ..host.mpi_files import SHM, leftovers
from ..host.mpi_library import Library
from ..host.mpi_world import library_version
from ..host.versions import version, versions
from . import cores, equal, gpu_facts, gpus, kernels, libraries, package, progress, shared_memory, slurm, windows
from .finding import Finding, fail, guarded, merged
from .output import ReportWriter
from .ranks import Ranks

OK, FAILED = 0, 3
Check = tuple[str, Callable[[], Finding]]


def run_doctor(as_json: bool, limit: float) -> int:
    """Run all checks. Returns the exit code. limit: seconds for one MPI call."""
    prints = launch_environment.prints()
    report = ReportWriter(as_json, silent=not prints)
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
        return OK  # MPI does not see the job; task 0 reports that as a failure
    _each(ranks, report, limit)
    if met.state == "ok":
        _together(ranks, report, found)
    failed = any(ranks.allgather(report.worst == "fail", "exit code"))
    report.end()
    ranks.end()
    return FAILED if failed or report.broken else OK


def _start(ranks: Ranks, found: Library | None) -> Finding:
    """Start MPI, unless that would end the process. Returns the finding about the library."""
    if launch_environment.stranger(library=found) is None:
        try:
            ranks.start()
        except (ImportError, RuntimeError) as why:
            return libraries.library(found, str(why) or type(why).__name__)
    return libraries.library(found)


def _before(found: Library | None, applied: list[workarounds.Workaround]) -> list[Check]:
    """Checks with the same result on all ranks."""
    return [
        ("package", package.here),
        ("workarounds", lambda: libraries.workarounds(applied)),
        ("Slurm", lambda: slurm.slurm_here(os.environ, found)),
        ("mpirun", lambda: libraries.mpirun_here(found)),
    ]


def _each(ranks: Ranks, report: ReportWriter, limit: float) -> None:
    """Checks that each rank, or the first rank of each node, makes by itself."""
    here = sum(node == ranks.nodes.node_of[ranks.rank] for node in ranks.nodes.node_of)
    checks = _of_rank()
    if ranks.lead:
        checks += _of_node(ranks.size, here, limit)
    mine = [guarded(name, check) for name, check in checks]
    report.add(*merged(enumerate(ranks.allgather(mine, "what each rank sees")), ranks.size))


def _together(ranks: Ranks, report: ReportWriter, found: Library | None) -> None:
    """Checks that need all ranks."""
    seats = ranks.allgather(cores.of_rank(ranks.nodes.node_of[ranks.rank]), "cores")
    report.add(guarded("cores", lambda: cores.binding(seats, found, os.environ)))
    report.add(guarded("scheduler", lambda: cores.scheduler(seats, cores.autogroups())))
    if ranks.comm is None:
        return
    level, multiple = _levels()
    report.add(libraries.threads(level, multiple, not ranks.nodes.single))
    if ranks.size == 1:
        return
    report.add(windows.shared(ranks), progress.progress(ranks, level >= multiple))
    view = guarded(gpus.FACTS, lambda: gpu_facts.of_rank(os.environ, gpu_facts.load_driver()))
    report.add(*gpus.together(ranks.allgather(view, "the GPUs that each rank sees"), ranks.nodes))
    facts = ranks.allgather((_facts(), slurm_variables.node_name(os.environ) or platform.node()), "facts to compare")
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
        ("torch's threads", lambda: cores.torch_threads(os.environ, find_spec("torch") is not None)),
    ]


def _of_node(ranks: int, here: int, limit: float) -> list[Check]:
    """Checks by the first rank of each node. here: ranks of the node."""
    checks: list[Check] = [
        (SHM, lambda: shared_memory.shared_here(ranks, here)),
        ("left in shm", lambda: shared_memory.left(leftovers())),
        ("experts in place", shared_memory.in_place),
    ]
    seen = guarded(gpus.FACTS, lambda: gpu_facts.of_node(cuda=gpu_facts.load_driver()))
    if isinstance(seen, Finding):
        return [*checks, (gpus.FACTS, lambda: seen)]
    return [
        *checks,
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
    """Facts that should be equal on all ranks."""
    sources: dict[str, Callable[[], Any]] = {
        "MPI library": library_version,
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


def _hung(report: ReportWriter, text: str) -> None:
    """Report that MPI does not return, and end the report."""
    remedy = "a rank is missing or hangs; try fewer ranks, one node, or another network (MPICH: MPIR_CVAR_CH4_NETMOD)"
    report.add(fail("hang", text, remedy))
    report.end()
