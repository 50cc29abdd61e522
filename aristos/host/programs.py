"""Runs other programs with a time limit."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence


def run_program(words: Sequence[str], seconds: float = 10.0) -> subprocess.CompletedProcess[str] | None:
    """Run a program, and keep its output. Returns None if the program is missing, or takes longer than `seconds`."""
    try:
        return subprocess.run(
            list(words),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
