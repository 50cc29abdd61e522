"""How commands end: Ctrl-C, errors, and an output that is closed, full or read by nobody. No traceback is printed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cases import ROOT

from aristos.cli._ending import exit_code
from aristos.errors import EnvironmentProblem, InputError

LINES = "import sys\nfrom aristos.cli._ending import exit_code\nsys.exit(exit_code('x', lambda: print('a' * 9) or 0))"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (InputError("two\nlines \x1b[31m"), 2, r"two\nlines \x1b[31m"),
        (EnvironmentProblem("no such package"), 3, "no such package"),
        (FileNotFoundError(2, "No such file", "r.h5"), 3, "[Errno 2] No such file: 'r.h5'"),
    ],
)
def test_an_error_is_one_line(error, code, line, capsys):
    def command() -> int:
        raise error

    assert exit_code("aristos x", command) == code
    assert capsys.readouterr().err == f"aristos x: {line}\n"
    with pytest.raises(ZeroDivisionError):  # an error of the program itself
        exit_code("aristos x", lambda: 1 // 0)


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (">/dev/full", 3, "x: stdout cannot be written: [Errno 28] No space left on device\n"),
        ("| true", 141, ""),
        (">/dev/null", 0, ""),
        (">/dev/null 2>&-", 0, ""),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_cannot_be_written(words, code, line, unbuffered):
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; (sleep 0.1; exec {sys.executable} -c "$0") {words}', LINES],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (code, line)


def test_errors_never_go_to_stdout(tmp_path: Path):
    command = f"exec {sys.executable} -m aristos report {tmp_path}/none.h5 2>&-"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, b"")
