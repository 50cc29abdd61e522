"""What the launcher said about this job, read from its environment variables, and whether MPI agrees.

`mpirun` of one MPI library starting programs linked to another, or `srun` without the right `--mpi=`, starts N
copies that each believe to be alone. A benchmark would then print N wrong tables; here it is exit code 3. It
refuses to repair anything or to start ranks.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Mapping
from typing import Any

from . import mpi_library
from .mpi_facts import WORLD, under_srun
from .mpi_library import Library
from .slurm_variables import in_step


def started_as(env: Mapping[str, str] | None = None) -> tuple[str, int, int] | None:
    """(launcher, tasks, this task) from the environment; None where no launcher is recognised.

    Slurm counts only inside a step: a batch script has SLURM_NTASKS too, but runs once.
    """
    env = os.environ if env is None else env
    for launcher, size, rank in WORLD:
        if launcher == "srun" and not in_step(env):
            continue
        if launcher == "mpirun" and "PMI_JOBID" in env and under_srun(env):  # srun --mpi=pmi2 speaks PMI itself
            continue
        if env.get(size, "").isdecimal() and env.get(rank, "").isdigit():
            return launcher, int(env[size]), int(env[rank])
    return None


def prints() -> bool:
    """Whether this process is the one that prints, as far as can be known before MPI is initialised."""
    started = started_as()
    return started is None or started[2] == 0


def unread() -> int:
    """The exit code where nobody reads stdout any more, as in `| head`: that of SIGPIPE. Closes it for good."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python complains when it flushes at its end
    return 128 + signal.SIGPIPE


class Parser(argparse.ArgumentParser):
    """Help and complaints come from one rank; every rank exits."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if prints():
            super()._print_message(message, file)


def stranger(env: Mapping[str, str] | None = None, library: Library | None = None) -> str | None:
    """What is wrong when this library would end the process at its start, in a sentence with the cure; None if nothing.

    The mpich wheel does so where it meets PMIx, of which it knows only the name.
    """
    env = os.environ if env is None else env
    started = started_as(env)
    library = library or mpi_library.find(env)
    if started is None or "PMIX_RANK" not in env or library is None or library.kind != "MPICH" or not library.wheel:
        return None
    launcher, tasks, _ = started
    return f"{launcher} started {tasks} tasks by PMIx, which pip's mpich does not speak: {_cure(launcher, library)}"


def mismatch(world: int, env: Mapping[str, str] | None = None, library: Library | None = None) -> str | None:
    """What is wrong when COMM_WORLD has `world` ranks, in a sentence with the cure; None if nothing is.

    library: the MPI library in use; found where it is not given.
    """
    started = started_as(env)
    if started is None or started[1] == world:
        return None
    library = library or mpi_library.find(env)
    launcher, tasks, _ = started
    return f"{launcher} started {tasks} tasks but MPI sees {world}: {_cure(launcher, library)}"


def _cure(launcher: str, library: Library | None) -> str:
    if launcher != "srun":
        where = f", {library}" if library is not None else ""
        return f"use the mpirun that belongs to the MPI library mpi4py loads{where}"
    if library is None or library.pmi is None:
        return "try --mpi=pmi2 or --mpi=pmix (`srun --mpi=list` shows what there is; MPICH and Intel MPI want pmi2)"
    return f"try --mpi={library.pmi} (mpi4py loads {library})"
