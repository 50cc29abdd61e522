"""Ends a program of several ranks as a whole if one of them raises an exception that nobody catches.

The other ranks may wait for that rank, and MPI may wait for the other ranks. Without this module the job would last as
long as the longest wait.
"""

from __future__ import annotations

import atexit
import sys
from functools import wraps
from types import TracebackType

from ..errors import PoisonedError
from ..host import launch_environment
from ..transport.group import ABORTED, end_job


def end_together() -> None:
    """Let an uncaught exception end the job from now on, after its traceback. Does nothing for a single task."""
    started = launch_environment.started_as()
    if started is None or started[1] == 1 or hasattr(sys.excepthook, "ends_job"):
        return
    show = sys.excepthook

    @wraps(show)
    def whole(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        show(kind, error, trace)
        if not issubclass(kind, PoisonedError):  # else another rank has failed, and shows its own traceback
            atexit.register(_end, error)  # at exit: torch.distributed's hook prints the traceback after this hook

    vars(whole)["ends_job"] = True
    sys.excepthook = whole


def _end(error: BaseException) -> None:
    if "mpi4py.MPI" not in sys.modules:
        return  # launchers end the job if a task fails before MPI has started
    from mpi4py import MPI

    if MPI.Is_initialized() and not MPI.Is_finalized() and MPI.COMM_WORLD.Get_size() > 1:
        rank, text = MPI.COMM_WORLD.Get_rank(), f": {error}" if str(error) else ""
        end_job(
            MPI.COMM_WORLD,
            ABORTED,
            f"aristos: rank {rank} ends the job, because its program raised {type(error).__name__}{text}",
        )
