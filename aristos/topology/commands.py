"""Commands that run with a time limit, and their output."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..host.programs import run_program

LIMIT = 20.0  # seconds; nvidia-smi takes several seconds if the driver must be loaded first
Ask = Callable[[Sequence[str]], "CommandOutput | None"]


class CommandOutput(str):
    """A command's stdout; if it failed, stdout and stderr. ok: whether its exit code was 0."""

    ok: bool = True


def ask(words: Sequence[str]) -> CommandOutput | None:
    """Run the command. Returns None if there is no such command or it takes longer than LIMIT."""
    done = run_program(words, LIMIT)
    if done is None:
        return None
    answer = CommandOutput(done.stdout if done.returncode == 0 else done.stdout + done.stderr)
    answer.ok = done.returncode == 0
    return answer
