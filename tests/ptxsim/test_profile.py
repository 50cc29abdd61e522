"""The command `ptxsim profile`, as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")

KERNEL = """import sys
import numpy as np
from numba import cuda

@cuda.jit
def scale(a, out):
    i = cuda.grid(1)
    if i < {bound}:
        out[i] = a[i] * 2

a, out = cuda.to_device(np.ones(96, np.float32)), cuda.device_array(96, np.float32)
scale[4, 32](a, out)
print("sum", out.copy_to_host().sum(), *sys.argv[1:])
"""


def run(*words, **environment):
    result = subprocess.run(
        [sys.executable, "-m", "ptxsim", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    return result.returncode, result.stdout, result.stderr


def test_a_clean_script(tmp_path):
    script = tmp_path / "clean.py"
    script.write_text(KERNEL.format(bound="out.size"))
    code, out, _ = run("profile", script, "--not-mine", "7")
    assert code == 0
    assert out.startswith("sum 192.0 --not-mine 7\n0 reports\n")
    line = next(text.split() for text in out.splitlines() if text.split()[:1] == ["9"])
    assert line[line.index("100%") + 1] == "4", line  # the column of bytes of an access
    assert line[-1].endswith("clean.py")


def test_a_bug_in_json(tmp_path):
    script = tmp_path / "bug.py"
    script.write_text(KERNEL.format(bound="out.size + 1"))
    code, out, err = run("profile", "--json", script)
    found = json.loads(out)
    assert code == found["exit_code"] == 1
    assert "sum 192.0" in err
    assert {(report["kind"], report["line"]) for report in found["reports"]} == {("out_of_bounds", 9)}
    line = next(row for row in found["profile"]["lines"] if row["line"] == 9)
    assert line["global_requests"] == 6
    assert found["error"] is None


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("import sys; sys.exit(5)", 5, "no kernel ran"),
        ("sys.exit(", 1, "SyntaxError"),
        ("raise RuntimeError('mine')", 1, "RuntimeError: mine"),
        ("raise SystemExit('word')", 1, "word\n"),
    ],
)
def test_the_exit_code_of_a_script(tmp_path, text, code, words):
    script = tmp_path / "end.py"
    script.write_text(text)
    got, _, err = run("profile", script)
    assert got == code
    assert words in err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "required: COMMAND"),
        (("profile",), 2, "required: SCRIPT.py"),
        (("profile", "nowhere.py"), 2, "there is no file nowhere.py"),
        (("profile", "--arch", "sm_x", __file__), 2, "arch must look like 'sm_90', got 'sm_x'"),
        (("profile", "--devices", "99", __file__), 2, "devices must be an int in 1..64, got 99"),
    ],
)
def test_usage(words, code, message):
    got, out, err = run(*words)
    assert got == code
    assert message in err
    assert out == ""


def test_numbas_simulator_is_rejected():
    code, _, err = run("profile", __file__, NUMBA_ENABLE_CUDASIM="1")
    assert code == 3
    assert "unset NUMBA_ENABLE_CUDASIM" in err
