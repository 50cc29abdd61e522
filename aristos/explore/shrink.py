"""Shorten a failing schedule: fewer decisions that differ from 0, the choice that changes least.

The decisions of a run are a list of small numbers (scheduler.py). Setting some to 0 gives another schedule of the same
case; one that still fails in the same way is kept. Delta debugging: Zeller, Hildebrandt, IEEE TSE 28 (2002).
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

SECONDS = 20.0  # limit for shrinking


@dataclass(frozen=True)
class Short:
    """A failing schedule, its case, what it violates and its story."""

    case: Case
    decisions: list[int]
    violation: Violation
    story: str


def attempt(case: Case, decisions: list[int], with_story: bool = False) -> tuple[Violation | None, str]:
    """Run a schedule: its violation, and its story if asked for."""
    cluster = Cluster(case, Replay(decisions))
    if with_story:
        cluster.memory.story = []
    try:
        with every_step_ends(cluster.sched):
            cluster.run()
    except Violation as violation:
        return violation, story.text(cluster.memory) if with_story else ""
    return None, ""


def shrink(case: Case, decisions: list[int], violation: Violation, seconds: float = SECONDS) -> Short:
    """The shortest schedule found within `seconds`."""
    until = time.monotonic() + seconds
    kind = type(violation)

    def fails(trial: list[int]) -> bool:
        return time.monotonic() < until and type(attempt(case, trial)[0]) is kind

    best = _trim(decisions)
    places = [i for i, made in enumerate(best) if made]
    size = max(1, len(places) // 2)
    while size and time.monotonic() < until:
        start = 0
        while start < len(places):
            trial = list(best)
            for i in places[start : start + size]:
                trial[i] = 0
            if fails(trial):
                best = trial
                del places[start : start + size]
            else:
                start += size
        size //= 2
    best = _trim(best)
    found, lines = attempt(case, best, with_story=True)
    return Short(case, best, found or violation, lines)


def _trim(decisions: list[int]) -> list[int]:
    """Drop the zeros at the end: a replay chooses 0 there anyway."""
    end = len(decisions)
    while end and decisions[end - 1] == 0:
        end -= 1
    return decisions[:end]
