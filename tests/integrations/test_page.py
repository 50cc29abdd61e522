"""docs/transformers.md: its programs run, and so do all its commands that do not install packages."""

from __future__ import annotations

import os
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
EVERY = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)
SAVED = {text.split()[1]: text for text in EVERY if text.startswith("# ")}  # file -> a program that commands run
PROGRAMS = [text for text in EVERY if text not in SAVED.values()]
SLURM = ("srun", "salloc")
PATH = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
HERE = {"python": [sys.executable], "aristos": [sys.executable, "-m", "aristos"]}
COMMANDS = [line.removeprefix("$ ") for line in TEXT.splitlines() if line.startswith("$ ")]


def test_programs(ours, tmp_path, monkeypatch):
    """Each program runs on a small model, in the page's order. The trained model is saved, and opens as trained."""
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
    """Slurm's commands run if Slurm is installed. All runs of a program give equal answers, each printed once."""
    needs_real_weights()
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name, text in SAVED.items():
        (tmp_path / name).write_text(text)
    answers: dict[str, list[str]] = {}
    for command in COMMANDS:
        words = shlex.split(command)
        if words[0] == "pip" or (words[0] in SLURM and not shutil.which("slurmctld", path=PATH)):
            continue
        nodes = [words[words.index("-N") + 1]] if "-N" in words else []
        words = [part for word in words for part in HERE.get(word, [word])]
        words = [str(ROOT / "launch" / "virtual_slurm"), "run", "--nodes", *nodes, "--", *words] if nodes else words
        env = clean_environment() | {"PYTHONPATH": str(ROOT), "PATH": PATH}
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (command, done.stderr[-2000:])
        program = next(word for word in shlex.split(command) if word.endswith(".py"))
        answers.setdefault(program, []).append(re.sub(r", .* tokens/s", "", done.stdout))
    assert answers["generate.py"][0].startswith("The capital of France is Paris")
    assert [len(found) for found in answers.values()] in ([1, 3, 2], [1, 5, 2])
    assert [len(set(found)) for found in answers.values()] == [1, 1, 1], answers
