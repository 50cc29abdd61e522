"""torch's OpenMP threads beside a layer's workers: how many there are, and how they wait between operations."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys

import pytest
from cases import PATIENCE, ROOT, clean_environment
from mpi import find_mpiexec

import aristos
from aristos.host.launch_environment import OPENMP_WAITS

torch = pytest.importorskip("torch")
CFG = aristos.MoEConfig(hidden=24, ffn=40, experts=4, top_k=2, max_tokens=7)
SHOWN = {"OMP_DISPLAY_ENV": "verbose"}  # OpenMP's library prints its settings when torch loads it


@pytest.mark.slow
@pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH")
@pytest.mark.parametrize(
    ("given", "threads", "spins"),
    [({}, "1", "0"), ({"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "2"}, "2", r"\d{6,}")],
    ids=["by itself", "as the user says"],
)
def test_settings_of_openmp_on_ranks(given, threads, spins):
    """`aristos run` sets what the user leaves out, because a thread that spins takes the core of a worker."""
    env = {name: value for name, value in clean_environment().items() if name not in ("OMP_NUM_THREADS", *OPENMP_WAITS)}
    done = subprocess.run(
        [sys.executable, "-m", "aristos", "run", "-n", "2", "--", "python", "-c", "import torch"],
        cwd=ROOT,
        env=env | SHOWN | given,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("torch has another OpenMP than GNU's")
    for name, value in {"OMP_NUM_THREADS": threads, "GOMP_SPINCOUNT": spins}.items():
        assert len(re.findall(rf"{name} = '{value}'", done.stderr)) == 2, done.stderr


def test_a_layer_of_one_process_has_as_many_workers_as_torch_has_threads():
    from aristos.integrations.torch import Experts

    before = torch.get_num_threads()
    try:
        for threads in (1, min(2, len(os.sched_getaffinity(0)))):
            torch.set_num_threads(threads)
            with contextlib.closing(Experts(CFG, timeout=PATIENCE)) as experts:
                assert experts.moe.threads == threads
    finally:
        torch.set_num_threads(before)
