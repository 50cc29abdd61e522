"""Trainer in several processes. Each process of torch alone has all experts. On ranks of MPI Trainer is refused."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys

import pytest
from cases import ROOT, clean_environment, run_job
from hf_models import opened, relative, small
from mpi import find_mpiexec

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.slow
PROGRAM = """
import sys
from aristos.integrations import transformers as ours
from hf_models import batch, opened
from transformers import Trainer, TrainingArguments

def train(way):
    model = opened("model", way).train()
    rows = [{"input_ids": ids, "labels": ids} for seed in range(4) for ids in batch(seed)[0]]
    asked = TrainingArguments(
        "out", use_cpu=True, max_steps=2, per_device_train_batch_size=2, learning_rate=0.1, optim="sgd",
        lr_scheduler_type="constant", save_strategy="no", report_to="none", disable_tqdm=True,
    )
    Trainer(model, asked, train_dataset=rows).train()
    if asked.process_index == 0:
        model.save_pretrained(way)

ours.options(max_tokens=16, threads=1)
"""


def variables(rank: int, port: int) -> dict[str, str]:
    """The variables that torchrun sets for one of two processes."""
    found = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in found.items()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_processes_of_torch_average_all_experts(tmp_path):
    """Each process has its own batch. Both end with the weights that eager has."""
    small("mixtral", tmp_path / "model")
    (tmp_path / "program.py").write_text(PROGRAM + "train(sys.argv[1])\n")
    env = clean_environment() | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'support'}"}
    for way in ("eager", "aristos"):
        port, command = free_port(), [sys.executable, "program.py", way]
        both = [subprocess.Popen(command, cwd=tmp_path, env=env | variables(rank, port)) for rank in range(2)]
        try:
            assert [each.wait(240) for each in both] == [0, 0]
        finally:
            for each in both:
                each.kill()
    before, wanted, found = (
        dict(opened(tmp_path / each, "eager").named_parameters()) for each in ("model", "eager", "aristos")
    )
    for name, value in wanted.items():
        assert relative(found[name], value) < 1e-5, name
    assert max(relative(wanted[name], before[name]) for name in before if "experts" in name) > 1e-3


@pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH")
def test_ranks_of_mpi_are_refused(tmp_path):
    """The variables of torch are set by hand. The job ends at once."""
    small("mixtral", tmp_path / "model")
    by_hand = "os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))\ntrain('aristos')\n"
    master = {name: value for name, value in variables(0, free_port()).items() if name.startswith("MASTER")}
    job = run_job(tmp_path, 2, PROGRAM + by_hand, timeout=240, **master)
    assert job.code not in (None, 0), job.out
    assert re.search(
        "InputError: DistributedDataParallel, which Trainer uses too if there are several ranks, .*", "".join(job.out)
    )
