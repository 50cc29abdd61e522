"""`aristos run --restarts N`: starts a lost job again. The program continues from what it has saved.

The variable ARISTOS_RESTART holds the number of the start: 0 at first, 1 for the first restart. Every exit code but 0
counts as a loss, even the program's own, because ranks that lose a peer end by an error. If a signal to `aristos run`
ended the job, it is not started again.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Sequence

from . import job
from .take_seat import RESTART


def ranks_of(asked: Namespace, ranks: int) -> list[int]:
    """How many ranks the first start and each restart have.

    The last number of --restart-ranks also holds for all later restarts.
    """
    later = asked.restart_ranks or [ranks]
    return [ranks, *(later[min(i, len(later) - 1)] for i in range(asked.restarts))]


def run_starts(starts: Sequence[tuple[int, list[str], dict[str, str]]], clean: bool) -> int:
    """Make one start after another until a job ends with 0, or by a signal to this process. Returns the last exit code.

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
