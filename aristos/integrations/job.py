"""The ranks of a program start MPI together and meet when the program ends.

Without this module, a rank that calls a model alone would wait in MPI_Init for ranks that never start MPI, or in a call
for ranks that already wait in MPI_Finalize. The rank could not report that the other ranks' programs have ended.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import time
from typing import Any

from ..errors import EnvironmentProblem, MismatchError
from ..transport.meeting import ENDS, Meeting
from .options import limits, world

POLL_SECONDS = 0.005
WHAT = "the other ranks to end, because its own program has ended"


def start() -> None:
    """Start MPI if a launcher has started several tasks, and let the tasks meet at their end.

    Does nothing in a task's children. If MPI cannot start, the first layer that is made raises the error.
    """
    if multiprocessing.parent_process() is not None:
        return
    try:
        comm = world()
    except EnvironmentProblem:
        return
    if comm is not None:
        atexit.register(_end, comm, os.getpid())


def _end(comm: Any, pid: int) -> None:
    """Wait until all ranks end. A rank that calls a collective instead learns that this rank has ended.

    The wait lasts at most absent_timeout, because a rank may not use this module.
    """
    from mpi4py import MPI

    if os.getpid() != pid or MPI.Is_finalized():
        return
    meeting, last = Meeting(comm, ENDS, WHAT), time.monotonic() + limits().absent
    while not meeting.request.Test():
        if time.monotonic() > last:
            return
        time.sleep(POLL_SECONDS)
    with contextlib.suppress(MismatchError):  # the other rank raises the error too
        meeting.check(comm.Get_rank())
