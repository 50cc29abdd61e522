"""docs/transformers.md: its programs run, and so do its commands."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cases import clean_environment
from hf_models import needs_real_weights, opened, small

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "transformers.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)
COMMANDS = [line.removeprefix("$ ") for line in TEXT.splitlines() if line.startswith("$ ")]


def test_programs(ours, tmp_path, monkeypatch):
    """Each in turn, on a small model; the trained one is written, and opens again with what training made of it."""
    monkeypatch.chdir(tmp_path)
    folder = small("qwen3_moe", tmp_path / "model")
    batches = [torch.randint(0, 128, (2, 11), generator=torch.Generator().manual_seed(n)) for n in range(2)]
    names = {"path": folder, "batches": batches, "prompts": batches, "model": None}
    for program in PROGRAMS:
        ours.options(max_tokens=16, threads=1)
        before = names["model"]
        exec(program, names)
        with torch.no_grad():
            logits = names["model"](batches[0]).logits
        if before not in (None, names["model"]):
            ours.close(before)
    ours.close(names["model"])
    assert len(PROGRAMS) == 4
    trained = opened(tmp_path / "trained", "eager")
    with torch.no_grad():
        assert torch.allclose(trained(batches[0]).logits, logits, atol=1e-5)
        assert not torch.allclose(opened(folder, "eager")(batches[0]).logits, logits, atol=1e-3)


def test_commands(tmp_path):
    """Those that install are left out, and srun where there is no Slurm; the answers are equal."""
    needs_real_weights()
    answers = []
    for command in COMMANDS:
        words = shlex.split(command)
        if words[0] == "pip" or (words[0] == "srun" and not shutil.which("slurmctld")):
            continue
        if words[0] == "srun":
            words = [str(ROOT / "launch" / "virtual_slurm"), "run", "--nodes", "1", "--", *words]
        words = [sys.executable if word == "python" else word for word in words]
        words = [sys.executable, "-m", "aristos", *words[1:]] if words[0] == "aristos" else words
        (tmp_path / "examples").exists() or (tmp_path / "examples").symlink_to(ROOT / "examples")
        env = clean_environment() | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (command, done.stderr[-2000:])
        if "chat.py" in command:
            answers.append(re.sub(r", .* tokens/s", "", done.stdout))
    assert len(answers) >= 2
    assert len(set(answers)) == 1, answers
