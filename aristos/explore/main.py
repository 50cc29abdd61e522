"""`aristos explore`: run schedules until one shows a bug, or until as many have run as the options ask for.

Schedule number n of a run with seed s is drawn from s + n alone, so that `--seed` (s + n) `--schedules 1` replays it.
Exit codes: 0 no bug found, 1 a bug found (with --mutation: a deliberate bug not found), 3 an exhaustive search that ran
out of time, 130 Ctrl-C. Progress goes to stderr.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import warnings
from dataclasses import dataclass, replace
from typing import Any

from . import cases, catalogue, exhaustive, news, shrink, strategies
from .cluster import Cluster
from .small import routings, small, small_nodes
from .step_limit import every_step_ends
from .violation import Crash, Violation

FINE, FOUND, INCOMPLETE, INTERRUPTED = 0, 1, 3, 130
SECONDS = 1800.0  # how long an exhaustive search may take


@dataclass
class FailedSchedule:
    """A schedule that showed a bug."""

    seed: int
    case: cases.Case
    violation: Violation
    decisions: list[int]
    steps: int


@dataclass
class Sweep:
    """The outcome of many schedules."""

    schedules: int = 0
    steps: int = 0
    seconds: float = 0.0
    failure: FailedSchedule | None = None
    interrupted: bool = False  # whether Ctrl-C ended the sweep


class Clock:
    """Measures seconds, and prints progress to stderr at intervals."""

    EVERY = 10.0  # seconds

    def __init__(self, what: str = "") -> None:
        self.what = what
        self.started = self.reported = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def tick(self, done: str) -> None:
        now = time.monotonic()
        if now - self.reported > self.EVERY:
            self.reported = now
            say(f"{self.what}{done}, {now - self.started:.0f} s")


def say(line: str) -> None:
    """Print a line of progress to stderr, because stdout has only the results."""
    print(f"aristos explore: {line}", file=sys.stderr, flush=True)


def explore(asked: cases.Asked, options: Any, passed_over: tuple[type[Violation], ...] = ()) -> Sweep:
    """Run schedules from the seed of the options on, until one fails or their time is over.

    passed_over: violations to ignore.
    """
    clock, sweep = Clock(), Sweep()
    warnings.filterwarnings("ignore", message="rank .* has waited")
    try:
        for number in range(options.seed, options.seed + options.schedules):
            if options.seconds and clock.seconds > options.seconds:
                break
            case = cases.draw(number, asked)
            plan = strategies.Recorded(strategies.make(options.strategy, number, strategies.length(case)))
            cluster = Cluster(case, plan)
            try:
                with every_step_ends(cluster.sched):
                    cluster.run_schedule()
            except passed_over:
                pass
            except Violation as violation:
                sweep.failure = FailedSchedule(number, case, violation, plan.decisions, cluster.sched.steps)
            sweep.schedules += 1
            sweep.steps += cluster.sched.steps
            if sweep.failure is not None:
                break
            clock.tick(f"{sweep.schedules} of {options.schedules} schedules")
    except KeyboardInterrupt:
        sweep.interrupted = True
    sweep.seconds = clock.seconds
    return sweep


def report(sweep: Sweep, options: Any) -> int:
    """Print the outcome. Returns the exit code."""
    found = None if sweep.failure is None else shorten(sweep.failure)
    if options.json:
        numbers = {"schedules": sweep.schedules, "steps": sweep.steps, "seconds": round(sweep.seconds, 3)}
        print(json.dumps({**numbers, "seed": options.seed, "found": found}))
    elif found is None:
        print(
            f"{sweep.schedules} schedule{'s'[: sweep.schedules != 1]} from seed {options.seed}, {sweep.steps} steps,"
            f" {sweep.seconds:.1f} s: nothing found{' until Ctrl-C' if sweep.interrupted else ''}"
        )
    else:
        show(found)
    if sweep.interrupted:
        return INTERRUPTED
    return FINE if found is None else FOUND


def within(own: cases.Asked, options: Any) -> cases.Asked:
    """The cases in which a bug can show. The command line's options override those of the bug."""
    given = {name: getattr(options, name) for name in options.given}
    return replace(own, fixed=tuple(item for item in own.fixed if item[0] not in given), **given)


def mutate(options: Any) -> int:
    """Search for each deliberate bug that the options name, each in separate schedules. Returns the exit code."""
    names = list(catalogue.load()) if options.mutation == "all" else [options.mutation]
    results = []
    for name in names:
        bug = catalogue.load()[name]
        with bug.applied():
            # a schedule in which the bug crashes a step shows nothing about the protocol
            sweep = explore(within(bug.asked, options), options, passed_over=(Crash,))
            if sweep.interrupted:
                raise KeyboardInterrupt
            kind = type(sweep.failure.violation).__name__ if sweep.failure is not None else ""
            results.append({"name": name, "found": bool(kind), "schedules": sweep.schedules})
            if options.json:
                continue
            outcome = f"{kind or 'NOT found'} in {sweep.schedules}"
            print(f"{name:32s}{outcome:20s}{sweep.seconds:6.1f} s  {bug.what}", flush=True)
            if sweep.failure is not None and len(names) == 1:
                show(shorten(sweep.failure))
    if options.json:
        print(json.dumps({"mutations": results}))
    return FINE if all(result["found"] for result in results) else FOUND


def small_case(routing: str, options: Any) -> cases.Case:
    """The small case that the options name."""
    if options.transport == "levels":
        return small_nodes(routing, options.rows, options.calls, options.sums)
    names = ("rows", "tokens", "calls", "transport", "scalars", "backward", "once")
    return small(routing, stay=options.stay or 0, **{name: getattr(options, name) for name in names})


def search(options: Any) -> int:
    """Search all schedules of the small cases, with a bug if one is given. Stops at the first case that fails."""
    bug = catalogue.load()[options.mutation].applied() if options.mutation else contextlib.nullcontext()
    done: list[dict[str, Any]] = []
    found: dict[str, Any] | None = None
    left = options.seconds or SECONDS
    with bug:
        for routing in routings(options.transport):
            case = small_case(routing, options)
            result = news.search_of(case).search_states(left, Clock(f"{routing}: ").tick)
            left -= result.seconds
            numbers = {"states": result.states, "moves": result.moves, "ends": result.ends, "complete": result.complete}
            done.append({"routing": routing, **numbers, "seconds": round(result.seconds, 3)})
            if not options.json:
                how = "complete" if result.complete else "not complete"
                print(
                    f"{routing:16s}{result.states:9d} states{result.moves:9d} moves{result.seconds:8.1f} s  {how}",
                    flush=True,
                )
            if result.violation is not None:
                found = {
                    "what": type(result.violation).__name__,
                    "message": str(result.violation),
                    "case": case.describe(),
                    "story": exhaustive.story_of(news.search_of(case), result.path).splitlines(),
                }
                break
    total = sum(each["states"] for each in done)
    complete = found is None and all(each["complete"] for each in done)
    if options.json:
        print(json.dumps({"states": total, "complete": complete, "routings": done, "found": found}))
    elif found is None:
        print(f"{total} states, {'complete' if complete else 'not complete'}: nothing found")
    else:
        tell(found)
    if options.mutation:
        return FINE if found is not None else FOUND
    return FOUND if found is not None else FINE if complete else INCOMPLETE


def shorten(failure: FailedSchedule) -> dict[str, Any]:
    """Shorten a failing schedule. Returns what `--json` shows of it."""
    what = type(failure.violation).__name__
    say(f"schedule {failure.seed} fails: {what}; it is being shortened")
    shorter = shrink.shrink(failure.case, failure.decisions, failure.violation, failure.steps)
    return {
        "seed": failure.seed,
        "what": what,
        "message": str(shorter.violation),
        "seconds_to_shorten": round(shorter.seconds, 3),
        "case": failure.case.describe(),
        "story": shorter.story.splitlines(),
    }


def show(found: dict[str, Any]) -> None:
    """Print a failing schedule as text."""
    again = f"the same options with --seed {found['seed']} --schedules 1 run it again"
    print(f"schedule {found['seed']} ({again}), shortened in {found['seconds_to_shorten']:.1f} s")
    tell(found)


def tell(found: dict[str, Any]) -> None:
    """Print a case, its story, and then the violation. The violation is last because readers begin at the end."""
    print(found["case"], *found["story"], f"{found['what']}: {found['message']}", sep="\n")


def run_explorer(options: Any) -> int:
    """Run `aristos explore` with the options of the command line."""
    if options.strategy == "exhaustive":
        return search(options)
    if options.mutation is not None:
        return mutate(options)
    fixed: tuple[tuple[str, Any], ...] = () if options.stay is None else (("stay", options.stay),)
    fixed += (("scalars", True),) if options.scalars else ()
    fixed += (("backward", True),) if options.backward else ()
    fixed += (("once", 1),) if options.once else ()
    fixed += (("sums", True), ("backward", False), ("scalars", False)) if options.sums else ()
    asked = cases.Asked(options.ranks, options.rows, options.calls, options.transport, fixed=fixed)
    return report(explore(asked, options), options)
