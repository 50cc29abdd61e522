"""`aristos run --restarts`: training that loses ranks ends with the bits of training that lost none."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mpi import FLAG, LAUNCHER_VARIABLES, find_mpiexec

ROOT = Path(__file__).resolve().parents[2]
STEPS = 8
ARGUMENTS = (
    "--hidden 32 --ffn 24 --experts 4 --layers 2 --length 24 --seed 3 --pieces 2 --lr 0.01 --validate 2 --save 2"
)
# The first argument lists a rank to kill for each start: [rank, step, seconds after the step began]. The second is a
# folder for the times of the loss and of the first step after it. The arguments of train_lm.py follow.
PROGRAM = """
import json, os, signal, sys, threading, time
from pathlib import Path
sys.path.insert(0, "examples")
import train_lm
kills, times = json.loads(sys.argv.pop(1)), Path(sys.argv.pop(1))
start, step = int(os.environ["ARISTOS_RESTART"]), train_lm.Trainer.step

def kill():
    (times / f"lost {start}").write_text(str(time.time()))
    os.kill(os.getpid(), signal.SIGKILL)

def killed(self, training, number, steps):
    if not hasattr(self, "begun"):
        self.begun = True
        (times / f"began {start}").write_text(str(time.time()))
    if start < len(kills) and [self.comm.rank, number] == kills[start][:2]:
        threading.Timer(kills[start][2], kill).start()
    return step(self, training, number, steps)

train_lm.Trainer.step = killed
train_lm.main()
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH"),
]


def train(folder: Path, ranks: int, kills: list, *options: str) -> str:
    """Train by `aristos run`. Returns what it printed about the job."""
    folder.mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith((*LAUNCHER_VARIABLES, "SLURM_")) and k != FLAG}
    command = [sys.executable, "-m", "aristos", "run", "-n", str(ranks), *options, "--", "python", "-c", PROGRAM]
    command += [json.dumps(kills), str(folder), "--out", str(folder), "--steps", str(STEPS), *ARGUMENTS.split()]
    env = kept | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


@pytest.mark.parametrize(("seed", "later"), [(1, 2), (2, 1)])
def test_training_that_lost_ranks_ends_with_the_same_bits(tmp_path, seed, later):
    """Ranks are killed at drawn moments; the job goes on from its last checkpoint, on as many ranks or fewer."""
    train(tmp_path / "whole", 1, [])
    draw = random.Random(seed)
    steps = sorted(draw.sample(range(2, STEPS), 2))
    kills = [[draw.randrange(min(2, ranks)), step, 0.02 * draw.random()] for step, ranks in zip(steps, (2, later))]
    said = train(tmp_path / "lost", 2, kills, "--restarts", "3", "--restart-ranks", str(later))
    assert said.count("restart 1 of 3") == said.count("restart 2 of 3") == 1, said
    for name in ("model/model.safetensors", "model/config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "lost" / name).read_bytes(), kills
    curves = [np.load(tmp_path / folder / "curves.npz") for folder in ("whole", "lost")]
    for name in ("loss", "validation", "loads"):
        assert np.array_equal(curves[0][name], curves[1][name], equal_nan=name == "validation"), (name, kills)
    for number in (0, 1):
        times = [float((tmp_path / "lost" / name).read_text()) for name in (f"lost {number}", f"began {number + 1}")]
        print(f"{times[1] - times[0]:.1f} s from the loss to the next step")
