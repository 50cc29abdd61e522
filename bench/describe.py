"""The conditions of a comparison, as attributes of the results file and as lines of the page.

Names of people and hosts never go on the page.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import numpy as np
from rounds import ShapeResults
from teams import Team


def of_run(worker: Any, command: str, seed: int) -> dict[str, Any]:
    """The facts that are needed to repeat the run, as Aristos's team finds them. Collective."""
    from aristos.bench import environment
    from aristos.bench.world import World

    found = environment.facts(World(worker.comm), [], seed)
    return found | {"command": command, "blas": blas()}


def teams(started: dict[str, Team]) -> dict[str, str]:
    """For each environment, the versions of its Python and of its peers' packages, as text."""
    found = {name: team("versions")[0] for name, team in started.items()}
    return {name: ", ".join(f"{package} {version}" for package, version in of.items()) for name, of in found.items()}


def blas() -> str:
    """NumPy's BLAS, and which of its kernels it chose for this CPU. A wrong choice would favour Aristos."""
    import numpy.linalg  # noqa: F401  its library is then loaded

    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    for path in sorted({line.split()[-1] for line in lines if "openblas" in line}):
        library = ctypes.CDLL(path)
        for prefix, suffix in (("scipy_", "64_"), ("scipy_", ""), ("", "64_"), ("", "")):
            call = getattr(library, f"{prefix}openblas_get_corename{suffix}", None)
            if call is not None:
                call.restype = ctypes.c_char_p
                return f"OpenBLAS, kernel {call().decode()}"
    return str(np.show_config(mode="dicts")["Build Dependencies"]["blas"].get("name", "unknown"))


def lines(facts: dict[str, Any], shapes: list[ShapeResults]) -> list[str]:
    """The conditions of the run as lines for the page."""
    loads = [load for m in shapes for load in m.load] or [facts["load_average"]]
    iters = ", ".join(f"{m.shape.name} {m.iters}" for m in shapes if m.iters)
    cores = len(os.sched_getaffinity(0))
    commit = facts["commit"][:10] + ("+" if facts["commit"].endswith("+") else "")
    versions, ranks = facts["versions"], facts["ranks"]
    mpi = " ".join(facts["mpi_library"].split())
    others = "; ".join(f"{name}: {text}" for name, text in facts["teams"].items() if name not in ("aristos", "numpy"))
    return [
        f"`{facts['command']}`; {facts['started_utc']}; Aristos {versions['aristos']}"
        f"{', commit ' + commit if commit else ''}, {facts['isa']}",
        f"{ranks} rank{'s' * (ranks != 1)}, 1 thread each, on {cores} cores of one machine: {facts['cpu']}, "
        f"{facts['machine']}",
        f"{mpi}, mpi4py {versions['mpi4py']}, NumPy {versions['numpy']} ({facts['blas']}), "
        f"Numba {versions['numba']}{'; ' + others if others else ''}",
        f"{facts['rounds']} rounds; calls in a turn: {iters}; seed {facts['seed']}; load average {min(loads):.1f} to "
        f"{max(loads):.1f}",
    ]
