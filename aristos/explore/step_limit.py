"""A limit on the processor time of one step.

The scheduler stops a step only before operations that other actors could see. It cannot stop a step that loops without
such operations.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .scheduler import Scheduler
from .violation import Livelock

SECONDS = 20.0  # processor time that one step may take


@contextmanager
def every_step_ends(sched: Scheduler, count: Callable[[], int] | None = None) -> Iterator[None]:
    """While inside, a step that does not end raises Livelock. Only for the main thread.

    count: a function that counts progress; by default the scheduler's steps count."""
    before = -1

    def look(*_: Any) -> None:
        nonlocal before
        steps = count() if count else sched.steps
        if steps == before and sched.current is not None:
            raise Livelock(
                f"{sched.current.name} does not return from a step (progress so far: {steps})\n{sched.describe()}"
            )
        before = steps

    old = signal.signal(signal.SIGVTALRM, look)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, old)
