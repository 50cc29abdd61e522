"""How the launcher started this process, according to environment variables, and whether MPI agrees.

If the `mpirun` of one MPI library starts programs linked to another, or `srun` lacks the right `--mpi=`, N processes
run that each see a world of one rank. A benchmark would then print N wrong tables; Aristos exits with code 3 instead.
This module repairs nothing and starts no ranks.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from kernel_cache.texts import whole

from . import mpi_library
from .mpi_facts import WORLD, under_srun
from .mpi_library import Library
from .slurm_variables import in_step

# variables that say how OpenMP's threads wait for work; OpenMP's library reads them when it is loaded
OPENMP_WAITS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def started_as(env: Mapping[str, str] | None = None) -> tuple[str, int, int] | None:
    """(launcher, tasks, this task) from the environment; None if no launcher is recognised.

    Slurm's variables count only inside a step: a batch script has SLURM_NTASKS too, but runs once.
    """
    env = os.environ if env is None else env
    for launcher, size, rank in WORLD:
        if launcher == "srun" and not in_step(env):
            continue
        if launcher == "mpirun" and "PMI_JOBID" in env and under_srun(env):  # srun --mpi=pmi2 sets PMI's variables
            continue
        tasks, task = whole(env.get(size, "")), whole(env.get(rank, ""))
        if tasks is not None and task is not None:
            return launcher, tasks, task
    return None


def prints() -> bool:
    """Whether this process should print: it is the launcher's task 0, or no launcher started it. Needs no MPI."""
    started = started_as()
    return started is None or started[2] == 0


def complain(message: str, code: int, here: bool | None = None) -> int:
    """Print, on one rank, an error that all ranks have. Returns `code`, the exit code of all ranks.

    here: whether this rank prints the error; None: `prints` decides, because ranks do not know their numbers yet.
    """
    if prints() if here is None else here:
        print(message, file=sys.stderr, flush=True)
    return code


def on_terminal(stream: TextIO | None) -> bool:
    """Whether the stream is a terminal that a person reads and that may get escape codes (changing lines, bold text).

    False under a launcher, because Open MPI's launcher gives its ranks a terminal even if its own output is a file.
    False if NO_COLOR is set.
    """
    return stream is not None and stream.isatty() and started_as() is None and not os.environ.get("NO_COLOR")


def passed_to_terminal() -> bool:
    """Whether what this process writes to stderr reaches a terminal that may get escape codes.

    A launcher gives its ranks pipes, and copies what arrives there to its own stderr. So it is enough that the stderr
    of an ancestor of this process on this machine is a terminal.
    """
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb":
        return False
    pid = os.getpid()
    while pid > 1:
        try:
            target = os.readlink(f"/proc/{pid}/fd/2")
            if target.startswith(("/dev/pts/", "/dev/tty")):
                return True
            if target.startswith("/") and target != "/dev/null":  # a file
                return False
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


def unread() -> int:
    """Redirect stdout to /dev/null, because its reader, such as `| head`, has ended. Returns SIGPIPE's exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # otherwise Python reports an error when it flushes stdout at exit
    return 128 + signal.SIGPIPE


class OneRankParser(argparse.ArgumentParser):
    """A parser that prints help and errors on one rank; every rank exits."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if prints():
            super()._print_message(message, file)


def stranger(env: Mapping[str, str] | None = None, library: Library | None = None) -> str | None:
    """Explain a launcher/MPI mismatch that would abort MPI_Init, with the fix; None if there is none.

    The mpich wheel aborts if the launcher offers PMIx, which it does not support.
    """
    env = os.environ if env is None else env
    started = started_as(env)
    library = library or mpi_library.find(env)
    if started is None or "PMIX_RANK" not in env or library is None or library.kind != "MPICH" or not library.wheel:
        return None
    launcher, tasks = started[0], f"{started[1]} task{'s' * (started[1] != 1)}"
    return f"{launcher} started {tasks} by PMIx, which pip's mpich does not support: {_cure(launcher, library)}"


def mismatch(world: int, env: Mapping[str, str] | None = None, library: Library | None = None) -> str | None:
    """Explain why COMM_WORLD has `world` ranks instead of the launcher's tasks, with the fix; None if they agree.

    library: the MPI library in use; None: this function searches for it.
    """
    started = started_as(env)
    if started is None or started[1] == world:
        return None
    library = library or mpi_library.find(env)
    launcher, tasks, _ = started
    return f"{launcher} started {tasks} tasks, but the size of MPI_COMM_WORLD is {world}: {_cure(launcher, library)}"


def _cure(launcher: str, library: Library | None) -> str:
    if launcher != "srun":
        where = f", {library}" if library is not None else ""
        return f"use the mpirun that belongs to the MPI library that mpi4py loads{where}"
    if library is None or library.pmi is None:
        return "try --mpi=pmi2 or --mpi=pmix (`srun --mpi=list` shows the types; MPICH and Intel MPI need pmi2)"
    return f"try --mpi={library.pmi} (mpi4py loads {library})"
