"""Running a command and reading what it says, for no longer than a limit."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence

LIMIT = 20.0  # seconds; nvidia-smi takes several where the driver must load first
Ask = Callable[[Sequence[str]], "Answer | None"]


class Answer(str):
    """What a command wrote to stdout or, where it failed, to both; `ok`: whether it ended well."""

    ok: bool = True


def ask(words: Sequence[str]) -> Answer | None:
    """The command's answer; None where there is no such command or it takes longer than LIMIT."""
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
    answer = Answer(done.stdout if done.returncode == 0 else done.stdout + done.stderr)
    answer.ok = done.returncode == 0
    return answer
