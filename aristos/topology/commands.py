"""Commands that run with a time limit, and their output."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence

LIMIT = 20.0  # seconds; nvidia-smi takes several seconds if the driver must be loaded first
Ask = Callable[[Sequence[str]], "CommandOutput | None"]


class CommandOutput(str):
    """A command's stdout; if it failed, stdout and stderr. ok: whether its exit code was 0."""

    ok: bool = True


def ask(words: Sequence[str]) -> CommandOutput | None:
    """Run the command. Returns None if there is no such command or it takes longer than LIMIT."""
    if shutil.which(words[0]) is None:
        return None
    try:
        done = subprocess.run(
            list(words),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    answer = CommandOutput(done.stdout if done.returncode == 0 else done.stdout + done.stderr)
    answer.ok = done.returncode == 0
    return answer
