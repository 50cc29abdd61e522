"""Facts that someone needs who wants to repeat a run: versions, MPI library, CPU, binding, command line, commit.

The module also limits BLAS to as many threads as a rank has workers, for a fair comparison. User names and whole
environments are never recorded.
"""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from ..host import launch_environment, mpi_world, slurm_variables
from ..host.versions import versions
from ..primitives import isa
from ..results import SCHEMA
from .world import World

_SET_THREADS = ("openblas_set_num_threads", "MKL_Set_Num_Threads", "bli_thread_set_num_threads")


def cpu() -> str:
    """The processor's name from /proc/cpuinfo."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit() -> str:
    """The commit of the source tree, or the commit that an installed package was built from; '' if it is not known.

    A '+' at the end means that there were local changes.
    """
    package = Path(__file__).resolve().parents[1]
    words = ["git", "-C", str(package), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        if not (package.parent / ".git").exists():
            return (package / "commit.txt").read_text().strip()
        return subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def hold_blas(threads: int) -> str:
    """Limit NumPy's BLAS to `threads` threads. Returns a text that says what was set.

    Environment variables would be set too late, because NumPy was imported before the options were read.
    """
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return "the number of BLAS threads was not set: /proc/self/maps cannot be read"
    libraries = {line.split()[-1] for line in maps if any(n in line.lower() for n in ("openblas", "mkl_rt", "blis"))}
    done = []
    for path in sorted(libraries):
        library = ctypes.CDLL(path)
        for name in _SET_THREADS:
            variants = (name, f"{name}64_", f"scipy_{name}", f"scipy_{name}64_")
            found = next((v for v in variants if hasattr(library, v)), None)
            if found is not None:
                getattr(library, found)(threads)
                done.append(f"{Path(path).name.split('-')[0]}: {threads}")
    if forced := os.environ.get("OPENBLAS_CORETYPE"):
        done.append(f"OPENBLAS_CORETYPE={forced} chooses the kernels of OpenBLAS: unset it to measure its usual ones")
    return ", ".join(done) or "the number of BLAS threads was not set: no known BLAS was found"


def facts(world: World, argv: list[str], seed: int) -> dict[str, Any]:
    """Attributes of a run. Those that are lists have one entry per rank. Collective."""
    from ..transport import choice

    started = launch_environment.started_as()
    sets = world.allgather(isa.offer())
    masks = world.allgather(",".join(map(str, sorted(os.sched_getaffinity(0)))))
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "started_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(["python -m aristos.bench", *argv]),
        "seed": seed,
        "ranks": world.size,
        "hosts": world.hosts,
        "node_of_rank": list(world.nodes.node_of),
        "transports": ", ".join(choice.names(world.nodes)),
        "cores_of_rank": masks,
        "cpu": cpu(),
        "cpu_target": isa.target()[0],
        "isa": isa.agreed(sets),
        "isa_of_rank": [each.sets[0] for each in sets],
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
        "mpi_library": mpi_world.library_version(),
        "launcher": started[0] if started else "none",
        "clock": "time.perf_counter and CLOCK_MONOTONIC",
        "load_average": os.getloadavg()[0],
        "commit": commit(),
    }
    found["versions"] = versions()
    found |= {name.lower(): os.environ[name] for name in slurm_variables.RECORDED if name in os.environ}
    return found
