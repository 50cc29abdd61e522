"""Drawn faults in real jobs, some with two levels and sums: each must end as `draw.KINDS` says, in time, with clear
errors and nothing left.

Each run draws others, see support/sweeps.py. `run.py` makes thousands of them, for the table in docs/reliability.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sweeps
from mpi import find_mpiexec

RUN = Path(__file__).with_name("run.py")
INJECTIONS, SEED = 10, 7000 + 100 * sweeps.number()
LEVELS = ("kill", "stop", "pause", "error", "interrupt", "worker", "progress", "put", "word")  # what the wire can see
LIMIT = 900.0  # seconds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH"),
    pytest.mark.skipif(os.geteuid() != 0, reason="jobs need mounts and a network of their own, which needs root"),
]


def test_drawn_faults():
    run_faults("--injections", str(INJECTIONS))


@pytest.mark.parametrize(("combine", "dtype"), [("rows", "bfloat16"), ("sums", "float32")])
def test_drawn_faults_with_two_levels(combine, dtype):
    wire = "--levels", "2", "--combine", combine, "--dtype", dtype
    run_faults("--injections", str(INJECTIONS // 3), *wire, "--kinds", *LEVELS)


def test_a_damaged_link_is_found():
    """In about half of the jobs nothing reads the links while they are damaged, so more jobs run until one finds it."""
    damaged = "--kinds", "word", "--damaged", "link", "--dtype", "bfloat16"
    out = ""
    for seed in range(80, 160, 5):
        if "as the number of the pair before a pair, in its links, got" in out:
            return
        out += run_faults("--injections", "5", "--levels", "2", "--combine", "sums", *damaged, seed=seed)
    raise AssertionError(f"no job found it:\n{out}")


def run_faults(*options: str, seed: int = SEED) -> str:
    """Make drawn faults from `seed` on; all jobs must end right. Returns the output."""
    words = [sys.executable, str(RUN), "--seed", str(seed), *options]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        try:
            out, err = run.communicate(timeout=LIMIT)
        except BaseException:
            run.terminate()  # then it ends the running job and removes its folder
            try:
                run.communicate(timeout=15)
            except subprocess.TimeoutExpired:
                run.kill()
            raise
    if run.returncode == 3 and "of their own" in err:
        pytest.skip(err)
    assert run.returncode == 0, out + err
    print(out)
    return out
