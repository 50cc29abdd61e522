"""One rank fails, is interrupted, or makes fewer calls: the job ends at once, and says which rank and why."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from cases import ROOT, clean_environment, run_job
from hf_models import small
from mpi import find_mpiexec

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH"), pytest.mark.slow]
PROGRAM = """
    import os, signal, torch
    from aristos.integrations import transformers as ours
    from hf_models import opened

    def step(inside=lambda: None):
        loss = model(ids, labels=ids).loss
        inside()
        loss.backward()
        ours.average_dense_grads(model)

    def fail():
        if rank == 1:
            raise ValueError("no batch")

    def interrupt():
        if rank == 1:
            os.kill(os.getpid(), signal.SIGINT)

    ours.options(max_tokens=16, threads=1)  # waits last 120 s and more
    ids, model = torch.arange(7)[None], opened("model", "aristos").train()
"""
RAISED = "aristos: rank 1 ends the job, because its program raised "
ALONE = (
    "MismatchError: rank 0 waits for the other ranks to make a layer, and rank 1 waits for .* because its own program"
    " has ended"
)
APART = r"MismatchError: rank . waits for the .*, and rank . waits for the .*: the two have made different calls"


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("fail(); step()", RAISED + "ValueError: no batch"),
        ("step(); step(fail)", RAISED + "ValueError: no batch"),
        ("step(); step(interrupt)", RAISED + "KeyboardInterrupt"),
        ("[step() for _ in range(2 + rank)]; ours.close(model)", APART),
        ("[step() for _ in range(2 + rank)]", APART),
        ("[step() for _ in range(1 - rank)]", ALONE),
        ("model.set_experts_implementation(['aristos', 'eager'][rank]); model(ids)", ALONE),
    ],
    ids=["before", "between", "interrupted", "fewer", "fewer, not closed", "none", "another implementation"],
)
def test_a_job_ends_at_once(tmp_path, body, wanted):
    small("mixtral", tmp_path / "model")
    job = run_job(tmp_path, 2, PROGRAM + f"\n    {body}\n", timeout=240)
    assert job.code not in (None, 0), job.out
    assert re.search(wanted, "".join(job.out)), job.out


def test_a_rank_that_leaves_the_module_out_is_not_waited_for_long(tmp_path):
    """The other rank waits for absent_timeout after its program is over."""
    body = """
    if rank == 0:
        from aristos.integrations import transformers as ours
        ours.options(timeout=1, absent_timeout=1)
    """
    job = run_job(tmp_path, 2, body, timeout=240)
    assert job.code == 0, job.out


WITHOUT_MPI4PY = """
import torch
from aristos.host import launch_environment
from aristos.integrations import transformers as ours
from hf_models import opened

model = opened("model", "aristos")
if launch_environment.started_as()[2] == 0:
    model.generate(torch.arange(7)[None], max_new_tokens=2)
"""


def test_a_rank_that_never_starts_mpi_itself(tmp_path):
    """The program ends at once. Otherwise the other rank would wait for this rank in MPI_Init."""
    small("mixtral", tmp_path / "model")
    (tmp_path / "program.py").write_text(WITHOUT_MPI4PY)
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'support'}"
    done = subprocess.run(
        [*find_mpiexec(), "-n", "2", sys.executable, "program.py"],
        cwd=tmp_path,
        env=clean_environment() | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode != 0
    assert re.search(ALONE, done.stderr), done.stderr
