"""COMM_WORLD of the tasks that a launcher has started, or why MPI does not see them; and the version of MPI."""

from __future__ import annotations

import sys
from typing import Any

from ..errors import EnvironmentProblem
from . import launch_environment, workarounds


def prepare() -> None:
    """Set the variables that this launcher's tasks need before MPI starts. Does nothing if MPI has started already."""
    started = launch_environment.started_as()
    if started is not None and started[1] > 1 and not _has_started():
        workarounds.apply()


def connect() -> Any:
    """Start MPI and return COMM_WORLD. None if no launcher has started several tasks and there is no MPI library.

    Raises EnvironmentProblem if a launcher started several tasks, but MPI does not see them as one job.
    """
    started = launch_environment.started_as()
    strange = None if _has_started() else launch_environment.stranger()
    if strange is not None:
        raise EnvironmentProblem(strange)
    prepare()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as why:
        if started is not None and started[1] > 1:
            raise EnvironmentProblem(
                f"{started[0]} started {started[1]} tasks, but no MPI library could be loaded ({why}); "
                "`module load` the cluster's MPI, or install one, e.g. pip install 'aristos[mpich]'"
            ) from why
        return None
    wrong = launch_environment.mismatch(MPI.COMM_WORLD.Get_size())
    if wrong is not None:
        raise EnvironmentProblem(wrong)
    return MPI.COMM_WORLD


def library_version() -> str:
    """The MPI library's version line; "none" if MPI is not loaded."""
    if not _has_started():
        return "none"
    from mpi4py import MPI

    return " ".join(MPI.Get_library_version().replace("\0", "").split("\n")[0].split())


def _has_started() -> bool:
    return "mpi4py.MPI" in sys.modules
