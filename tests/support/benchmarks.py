"""Runs of `python -m aristos.bench` in separate processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mpi import FLAG, LAUNCHER_VARIABLES, ONE_THREAD, find_mpiexec

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--hidden", "32", "--ffn", "48", "--experts", "8", "--tokens", "8,24", "--iters", "4", "--warmup", "1"]
PATCH = "import sys; from aristos.bench.main import main; import aristos.reference as r; "

needs_mpiexec = pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH")


def bench(ranks: int, *words: str, code: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmark, or the program `code`, on `ranks` ranks; 0 means one process without mpiexec."""
    launcher = (*find_mpiexec(), "-n", str(ranks)) if ranks else ()
    program = ["-c", code] if code else ["-m", "aristos.bench"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHER_VARIABLES) and k != FLAG}
    clean |= dict.fromkeys(ONE_THREAD, "1") | {"HYDRA_IFACE": "lo", "PYTHONPATH": str(ROOT)} | env
    command = [*launcher, sys.executable, *program, *words]
    return subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=900)
