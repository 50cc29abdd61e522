"""Checks of Slurm: the job's nodes and tasks, and whether srun has the --mpi= that the library needs."""

from __future__ import annotations

from collections.abc import Mapping

from ..host import slurm_variables
from ..host.mpi_launchers import pmi_types, srun
from ..host.mpi_library import Library
from .finding import Finding, ok, warn


def slurm(env: Mapping[str, str], version: str | None, types: list[str], library: Library | None) -> Finding:
    """The job, and whether `srun --mpi=` fits. version: srun's version. types: the list of `srun --mpi=list`."""
    name = "Slurm"
    job = slurm_variables.job_id(env)
    if not job and not types:
        return ok(name, "no job, and no srun that answers" if version is None else f"no job ({version.strip()})")
    nodes, tasks = slurm_variables.counted(env)
    counts = f"{tasks} task{'s' * (tasks != '1')} on {nodes} node{'s' * (nodes != '1')}"
    where = f"job {job}: {counts}" if job else "outside a job"
    used = (slurm_variables.mpi_type(env) or "none") if slurm_variables.in_step(env) else None
    values = {"version": (version or "").strip(), "nodes": nodes, "tasks": tasks, "mpi": types, "used": used}
    text = ", ".join(filter(None, [(version or "").strip(), where, used and f"started with --mpi={used}"]))
    fits = library.pmi if library is not None else None
    if fits is None or not types:
        return ok(name, text, **values)
    if not any(kind == fits or kind.startswith(f"{fits}_") for kind in types):
        remedy = "inside an allocation (salloc or sbatch) use the library's own mpirun"
        return warn(
            name, f"{text}; srun has no --mpi={fits}, which {library} needs ({', '.join(types)})", remedy, **values
        )
    return ok(name, f"{text}; --mpi={fits} fits {library.kind if library else ''}", **values)


def slurm_here(env: Mapping[str, str], library: Library | None) -> Finding:
    """`slurm` for this process."""
    version = srun("--version")
    return slurm(env, version, pmi_types(srun("--mpi=list")) if version is not None else [], library)
