"""The pytest plugin, and what docs/ptxsim-check.md shows: a file of CUDA C++, a workflow, numba-cuda's own tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
import yaml

from ptxsim import nvrtc
from ptxsim.command import main, options
from ptxsim.errors import EnvironmentProblem

DOCS = (Path(__file__).parents[2] / "docs" / "ptxsim-check.md").read_text(encoding="utf-8")
TESTS = """
import numpy as np
from numba import cuda, int64, typeof
from numba.cuda.cudadrv import nvvm

@cuda.jit("void(float64[:])")
def good(a):
    a[cuda.threadIdx.x] = 1

@cuda.jit
def bad(a):
    a[cuda.threadIdx.x + 1] = 1

def test_good():
    a = np.zeros(32)
    good[1, 32](a)
    assert a.sum() == 32

def test_bad():
    bad[1, 32](np.zeros(32))

def test_fixture(simt_machine):
    bad[1, 32](np.zeros(32))
    assert [r.kind for r in simt_machine.reports] == ["out_of_bounds"]
    simt_machine.reports.clear()
"""


def block(language, part=""):
    """The first block of code of a language in the docs that has a part of text."""
    return next(text for text in re.findall(rf"```{language}\n(.*?)```", DOCS, re.S) if part in text)


def run_pytest(folder, *words, **environment):
    """Run pytest as a user's project would, on files that do not use Aristos. Returns stdout."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "ptxsim.plugin", *map(str, words)]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    ).stdout


@pytest.mark.parametrize(("words", "environment"), [(["--simt", "--simt-seed", "3"], {}), ([], {"PTXSIM": "1"})])
def test_every_test_has_its_own_machine(tmp_path, words, environment):
    (tmp_path / "test_it.py").write_text(TESTS)
    out = run_pytest(tmp_path, *words, tmp_path, **environment)
    assert "out_of_bounds" in out
    assert "3 passed" in out  # the test bodies pass, and a report makes the tear-down fail
    assert "1 error" in out
    assert "test_bad" in out


def test_without_its_option_the_plugin_does_nothing(tmp_path):
    """Without --simt the loaded plugin does not even import Numba."""
    (tmp_path / "test_it.py").write_text("import sys\ndef test_it():\n    assert 'numba' not in sys.modules\n")
    assert "1 passed" in run_pytest(tmp_path, tmp_path)


def test_pytest_loads_the_plugin_only_when_asked():
    names = {each.value.partition(":")[0].partition(".")[0] for each in entry_points(group="pytest11")}
    assert not names & {"aristos", "kernel_cache", "ptxsim"}


def test_the_file_of_the_docs_is_clean_until_it_is_broken(tmp_path, capsys):
    try:
        nvrtc.loaded()
    except EnvironmentProblem as missing:
        pytest.skip(str(missing))
    path, text = tmp_path / "add.cu", block("cuda", "(i < n) out")
    path.write_text(text)
    assert main(["check", str(path)]) == 0
    path.write_text(text.replace("(i < n) out", "(i <= n) out"))
    assert main(["check", str(path)]) == 1
    assert "a[1000]" in capsys.readouterr().out


def test_the_commands_of_the_docs_exist():
    lines = [line.strip() for line in (block("sh") + block("yaml")).splitlines()]
    found = [line.partition("ptxsim ")[2].partition(" # ")[0] for line in lines if "ptxsim check" in line]
    assert len(found) == 4  # three in the first block, one in the workflow
    for words in found:
        assert options(words.split()).command == "check"
    steps = yaml.safe_load(block("yaml"))["jobs"]["simt"]["steps"]
    assert [step["run"].split()[0] for step in steps if "run" in step] == ["pip", "ptxsim", "pytest"]


def test_numba_cuda_tests_run_unchanged(tmp_path):
    """The docs' commands run two of numba-cuda's examples from its installed package."""
    commands = re.search(r"```sh\n(TESTS=.*?)```", DOCS, re.S)[1]
    folder = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": folder, "PYTHONWARNINGS": "ignore", "PYTEST_ADDOPTS": f"-c {os.devnull}"}
    done = subprocess.run(
        ["bash", "-e", "-c", commands], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert "Ran 19 tests" in done.stderr
    assert done.stderr.rstrip().endswith("OK")
    assert done.stdout.endswith("0 reports\n")
