"""Shorten a failing schedule to fewer decisions that differ from 0, the choice that changes least.

The decisions of a run are a list of small numbers (scheduler.py). With some of them set to 0, the list is another
schedule of the same case, which is kept if it still fails in the same way. Delta debugging: Zeller, Hildebrandt, IEEE
TSE 28 (2002).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from . import story
from .cases import Case
from .cluster import Cluster
from .step_limit import every_step_ends
from .strategies import Replay
from .violation import Violation

SECONDS = 20.0  # time limit for shrinking
IN_VAIN = 24  # shrinking ends after this many trials in a row that gave no shorter schedule


@dataclass(frozen=True)
class Short:
    """A failing schedule, its violation, its story, and the seconds that shrinking took."""

    decisions: list[int]
    violation: Violation
    story: str
    seconds: float


def attempt(case: Case, decisions: list[int], most: int, with_story: bool = False) -> tuple[Violation | None, str]:
    """Run at most `most` steps of a schedule. Returns its violation, and its story if `with_story`."""
    cluster = Cluster(case, Replay(decisions))
    cluster.sched.most = most
    if with_story:
        cluster.memory.story = []
    try:
        with every_step_ends(cluster.sched):
            cluster.run_schedule()
    except Violation as violation:
        return violation, story.text(cluster.memory) if with_story else ""
    return None, ""


def shrink(case: Case, decisions: list[int], violation: Violation, steps: int) -> Short:
    """Return the shortest schedule found. steps: how many the schedule takes; a trial with more steps is no shorter."""
    began = time.monotonic()
    kind = type(violation)
    in_vain = 0

    def goes_on() -> bool:
        return in_vain < IN_VAIN and time.monotonic() - began < SECONDS

    best = _trim(decisions)
    places = [i for i, made in enumerate(best) if made]
    size = max(1, len(places) // 2)
    while size and goes_on():
        start = 0
        while start < len(places) and goes_on():
            trial = list(best)
            for i in places[start : start + size]:
                trial[i] = 0
            if type(attempt(case, trial, steps)[0]) is kind:
                best = trial
                in_vain = 0
                del places[start : start + size]
            else:
                in_vain += 1
                start += size
        size //= 2
    best = _trim(best)
    found, lines = attempt(case, best, steps, with_story=True)
    return Short(best, found or violation, lines, time.monotonic() - began)


def _trim(decisions: list[int]) -> list[int]:
    """Drop the zeros at the end, because a replay chooses 0 there anyway."""
    end = len(decisions)
    while end and decisions[end - 1] == 0:
        end -= 1
    return decisions[:end]
