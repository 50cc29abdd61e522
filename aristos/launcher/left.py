"""Names MPI's files in /dev/shm that ended jobs have left, and removes them if the user asks for it.

A file that no process here uses may still be in use: a container may share /dev/shm, and have processes that are not
seen here.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Collection
from pathlib import Path

from ..host.mpi_files import SHM, YOUNG, leftovers

NAMED = 8  # most files that a line names


def handle(remove: bool, before: Collection[str] | None = None, folder: str = SHM) -> None:
    """Remove the files that ended jobs have left, or name them, and report that in one line on stderr.

    before: names of files that existed before the job that has just ended. None: no job has just ended. Then young
    files are left out, because a job that is starting may be about to map them.
    """
    found = leftovers(folder, YOUNG if before is None else 0.0)
    paths = [path for path, _ in found if before is None or Path(path).name not in before]
    if not paths:
        return
    files = f"{len(paths)} file{'s' * (len(paths) > 1)}"
    if remove:
        for path in paths:
            with contextlib.suppress(OSError):
                os.unlink(path)
        text = f"removed {files} in {folder} that MPI left"
    else:
        named = shlex.join(paths[:NAMED])
        more = "" if len(paths) <= NAMED else " and others"
        text = (
            f"MPI left {files} in {folder}; unless a job in another container uses them, `aristos run --clean` removes"
            f" them, or: rm {named}{more}"
        )
    print(f"aristos run: {text}", file=sys.stderr, flush=True)
