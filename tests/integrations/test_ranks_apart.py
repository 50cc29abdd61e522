"""One rank fails, is interrupted, or makes fewer calls: the job ends at once, and says which rank and why."""

from __future__ import annotations

import re

import pytest
from cases import run_job
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
APART = r"MismatchError: rank . waits for the .*, and rank . for the .*: one of them has made other calls, or fewer"


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("fail(); step()", RAISED + "ValueError: no batch"),
        ("step(); step(fail)", RAISED + "ValueError: no batch"),
        ("step(); step(interrupt)", RAISED + "KeyboardInterrupt"),
        ("[step() for _ in range(2 + rank)]; ours.close(model)", APART),
        ("[step() for _ in range(2 + rank)]", APART),
    ],
    ids=["before", "between", "interrupted", "fewer", "fewer, not closed"],
)
def test_a_job_ends_at_once(tmp_path, body, wanted):
    small("mixtral", tmp_path / "model")
    job = run_job(tmp_path, 2, PROGRAM + f"\n    {body}\n", timeout=240)
    assert job.code not in (None, 0), job.out
    assert re.search(wanted, "".join(job.out)), job.out
