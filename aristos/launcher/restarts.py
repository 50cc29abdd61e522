"""`aristos run --restarts N`: a job that is lost starts again, from whatever its program has saved.

The variable ARISTOS_RESTART holds the number of the start: 0, then 1 for the first restart. Every exit code but 0
counts as a loss, also the program's own, since ranks that lose a peer end by an error. A job that a signal to
`aristos run` ended is not started again.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Sequence

from . import job
from .take_seat import RESTART


def ranks_of(asked: Namespace, ranks: int) -> list[int]:
    """Ranks of the first start and of each restart; the last of --restart-ranks holds for all that follow."""
    later = asked.restart_ranks or [ranks]
    return [ranks, *(later[min(i, len(later) - 1)] for i in range(asked.restarts))]


def run_starts(starts: Sequence[tuple[int, list[str], dict[str, str]]], clean: bool) -> int:
    """Make the starts in turn until a job ends with 0, or by a signal to this process; returns the last exit code.

    starts: (ranks, launcher's command, environment) of the first start and of each restart. clean: see `job.run_job`.
    """
    code = 0
    for number, (_, words, env) in enumerate(starts):
        begun = time.monotonic()
        code, stopped = job.run_job(words, {**env, RESTART: str(number)}, clean)
        if code == 0 or stopped:
            return code
        if number + 1 < len(starts):
            ranks = starts[number + 1][0]
            print(
                f"aristos run: the job ended with code {code} after {time.monotonic() - begun:.1f} s: restart "
                f"{number + 1} of {len(starts) - 1} with {ranks} rank{'s'[: ranks > 1]}",
                file=sys.stderr,
                flush=True,
            )
    return code
