"""Slurm: is this a job, of how many nodes and tasks, and which `srun --mpi=` is there for the library?"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping

from ..host.mpi_library import Library
from .finding import Finding, ok, warn


def srun(*words: str) -> str | None:
    """What `srun WORDS` says, on either stream; None where there is no srun or it does not answer."""
    if shutil.which("srun") is None:
        return None
    try:
        done = subprocess.run(["srun", *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout + done.stderr if done.returncode == 0 else None


def plugins(listing: str | None) -> list[str]:
    """The types that `srun --mpi=list` names; [] if it did not answer."""
    if listing is None:
        return []
    return list(re.findall(r"^\s+(\w+)\s*$", listing, re.MULTILINE))


def slurm(env: Mapping[str, str], version: str | None, types: list[str], library: Library | None) -> Finding:
    """version: what `srun --version` says; types: the plugins of `srun --mpi=`."""
    name = "Slurm"
    inside = "SLURM_JOB_ID" in env
    if not inside and not types:
        return ok(name, "no job, and no srun that answers" if version is None else f"no job ({version.strip()})")
    step = env.get("SLURM_STEP_ID", "").isdigit()
    nodes = env.get("SLURM_STEP_NUM_NODES" if step else "SLURM_JOB_NUM_NODES", "?")
    tasks = env.get("SLURM_STEP_NUM_TASKS" if step else "SLURM_NTASKS", "?")
    where = f"job {env['SLURM_JOB_ID']}: {tasks} tasks on {nodes} nodes" if inside else "outside a job"
    used = env.get("SLURM_MPI_TYPE", "none") if step else None
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
    version = srun("--version")
    return slurm(env, version, plugins(srun("--mpi=list")) if version is not None else [], library)
