"""What the launcher said about this job, read from its environment variables, and whether MPI agrees.

`mpirun` of one MPI library starting programs linked to another, or `srun` without the right `--mpi=`, starts N
copies that each believe to be alone. A benchmark would then print N wrong tables; here it is exit code 3. It
refuses to repair anything or to start ranks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

# (launcher, its number of tasks, its rank), the innermost launcher first: mpirun inside a Slurm job inherits
# Slurm's variables, which then describe the daemons.
_VARIABLES = (
    ("Open MPI mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI launcher", "PMI_SIZE", "PMI_RANK"),
    ("Slurm srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    ("Slurm srun", "SLURM_NTASKS", "SLURM_PROCID"),
)


def started_as(env: Mapping[str, str] | None = None) -> tuple[str, int, int] | None:
    """(launcher, tasks, this task) from the environment; None where no launcher is recognised.

    Slurm counts only inside a step: a batch script has SLURM_NTASKS too, but runs once.
    """
    env = os.environ if env is None else env
    for launcher, size, rank in _VARIABLES:
        if launcher.startswith("Slurm") and not env.get("SLURM_STEP_ID", "").isdigit():
            continue
        if env.get(size, "").isdigit() and env.get(rank, "").isdigit():
            return launcher, int(env[size]), int(env[rank])
    return None


def prints() -> bool:
    """Whether this process is the one that prints, as far as can be known before MPI is initialised."""
    started = started_as()
    return started is None or started[2] == 0


def mismatch(world: int, env: Mapping[str, str] | None = None) -> str | None:
    """What is wrong when COMM_WORLD has `world` ranks, in a sentence with the cure; None if nothing is."""
    started = started_as(env)
    if started is None or started[1] == world:
        return None
    launcher, tasks, _ = started
    return (
        f"{launcher} started {tasks} tasks, but MPI's COMM_WORLD has {world}: launcher and MPI library do not match. "
        "Use the mpirun that belongs to the library (`python -m mpi4py --mpi-library` names it), or under Slurm "
        "another `srun --mpi=` (`srun --mpi=list` shows them: pmi2 for MPICH and Intel MPI, pmix for Open MPI)"
    )
