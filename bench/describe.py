"""The conditions of a comparison: attributes for the file, lines for the page.

Names of people and hosts never go on the page.
"""

from __future__ import annotations

import argparse
import ctypes
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from rounds import ShapeResults

from aristos.bench import environment
from aristos.bench.world import World


def facts(comm: Any, argv: list[str], asked: argparse.Namespace) -> dict[str, Any]:
    """Facts needed to repeat the run. Collective."""
    found = environment.facts(World(comm), argv, asked.seed)
    found["command"] = " ".join([f"mpirun -n {comm.size} python bench/compare.py", *argv])
    found["rounds"] = asked.rounds
    found["blas"] = blas()
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = "not installed"
    found["versions"] = environment.versions() | {"torch": torch}
    return found


def blas() -> str:
    """NumPy's BLAS and its kernel for this CPU: a wrong choice would favour Aristos."""
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
    cores = len({core for mask in facts["cores_of_rank"] for core in mask.split(",")})
    commit = facts["commit"][:10] + ("+" if facts["commit"].endswith("+") else "")
    versions = facts["versions"]
    mpi = " ".join(facts["mpi_library"].split())
    return [
        f"{facts['ranks']} ranks, 1 thread each, on {cores} cores of one machine: {facts['cpu']}, {facts['machine']}",
        f"{mpi}, mpi4py {versions['mpi4py']}, NumPy {versions['numpy']} ({facts['blas']}), "
        f"Numba {versions['numba']}, torch {versions['torch']}",
        f"{facts['rounds']} rounds; calls in a turn: {iters}; seed {facts['seed']}; load average {min(loads):.1f} to "
        f"{max(loads):.1f}",
        f"Aristos {versions['aristos']}{', commit ' + commit if commit else ''}; {facts['started_utc']}; "
        f"`{facts['command']}`",
    ]
