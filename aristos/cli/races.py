"""`aristos races`: records what compiled code does in a real job, and looks for accesses that nothing orders.

    mpirun -n 2 aristos races                       # all cases that two ranks can make
    mpirun -n 3 aristos races --case mixed          # one of them
    mpirun -n 3 aristos races --planted all         # deliberate bugs in the compiled steps: each must be found

Exit codes: 0 nothing found, 1 a race was found (with --planted: a bug was not found), 2 usage, 3 the environment, or
the log was too short, 141 the reader of the report ended early.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from ..bench.arguments import not_negative, positive
from ..errors import EnvironmentProblem
from ..host import launch_environment
from ._listing import listed

FINE, FOUND, USAGE, ENVIRONMENT = 0, 1, 2, 3
SUMMARY = "look for races in compiled code, in a real job: mpirun -n 2 aristos races"


def main(argv: list[str]) -> int:
    parser = launch_environment.OneRankParser(
        prog="aristos races",
        description="Make calls on the ranks of this job, with steps that record each access of shared memory. Report"
        " every two conflicting accesses that nothing orders, found by vector clocks. Run it under mpirun,"
        " on one machine.",
    )
    parser.add_argument(
        "--case", action="append", metavar="NAME", help="run only this case; may be repeated; ? lists the cases"
    )
    parser.add_argument("--calls", type=positive, default=6, metavar="N", help="calls of each case (%(default)s)")
    parser.add_argument("--seed", type=not_negative, default=0, help="seed of tokens and routing (%(default)s)")
    parser.add_argument(
        "--planted", metavar="NAME|all", help="switch a deliberate bug on and find it; ? lists the bugs"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else")
    asked = parser.parse_args(argv)
    if asked.case and asked.planted:
        parser.error("--planted has a case of its own for each bug: leave out --case")

    from ..bench.world import connect
    from ..explore.compiled import planted, run

    try:
        world = connect()
    except EnvironmentProblem as why:
        return launch_environment.complain(f"aristos races: {why}", ENVIRONMENT)

    def refuse(why: str, code: int) -> int:
        return launch_environment.complain(f"aristos races: {why}", code, world.lead)

    cases = {case.name: case for case in run.CASES}
    bugs = {bug.name: bug for bug in planted.ALL}
    asked_for: list[tuple[str | None, dict[str, Any]]] = [(name, cases) for name in asked.case or []]
    for name, known in [*asked_for, (asked.planted, {**bugs, "all": None})]:
        if name is not None and name not in known:
            lines = listed({each: what.what if what else "each of them" for each, what in known.items()})
            if name == "?":
                if world.lead:
                    print(lines)
                return FINE
            return refuse(f"{name!r} is unknown; known are\n{lines}", USAGE)
    if world.comm is None or len(set(world.hosts)) > 1:
        return refuse("start this command under mpirun, on one machine: mpirun -n 2 aristos races", ENVIRONMENT)
    tries = [(case, 0) for case in run.CASES if (case.name in asked.case if asked.case else case.ranks <= world.size)]
    if asked.planted is not None:
        possible = [name for name, bug in bugs.items() if cases[bug.wants].ranks <= world.size]
        names = possible if asked.planted == "all" else [asked.planted]
        if asked.planted == "all" and len(possible) < len(bugs) and world.lead:
            left = ", ".join(name for name in bugs if name not in possible)
            print(f"aristos races: left out {left}: these bugs need more than {world.size} ranks", file=sys.stderr)
        tries = [(cases[bugs[name].wants], planted.NUMBERS[name]) for name in names]
    if more := [case for case, _ in tries if case.ranks > world.size]:
        needed = more[0].ranks
        what = f"case {more[0].name} needs {needed} ranks, got {world.size}"
        return refuse(f"{what}: mpirun -n {needed} aristos races", USAGE)
    bug_of = {0: "", **{number: name for name, number in planted.NUMBERS.items()}}
    results, unread = [], 0
    for result in run.make_all(world.comm, tries, asked.calls, asked.seed):
        results.append(result)
        if not asked.json and not unread:
            try:
                show(result, bug_of[result.planted])
            except BrokenPipeError:  # | head; the other ranks go on
                unread = launch_environment.unread()
    if asked.json and world.lead:
        try:
            print(json.dumps({"cases": [as_json(each, bug_of[each.planted]) for each in results]}), flush=True)
        except BrokenPipeError:
            unread = launch_environment.unread()
    if unread:
        return unread
    if any(each.lost for each in results):
        return ENVIRONMENT
    return FOUND if any(bool(each.races) != bool(each.planted) for each in results) else FINE


def as_json(result: Any, bug: str) -> dict[str, Any]:
    """A result as an object of the JSON output."""
    return {
        "case": result.case,
        "planted": bug or None,
        "accesses": result.entries,
        "lost": result.lost,
        "seconds": round(result.seconds, 3),
        "races": [str(race) for race in result.races],
    }


def show(result: Any, bug: str) -> None:
    """Print a result."""
    races = result.races
    outcome = f"{len(races)} race{'s'[: len(races) != 1]}" if races else "nothing found"
    lost = f", {result.lost} more accesses were not recorded: lower --calls" if result.lost else ""
    seconds = f"{result.seconds:6.1f} s"
    print(f"{result.case:14s}{bug:20s}{result.entries:9d} accesses{lost},{seconds}: {outcome}", flush=True)
    for race in races[:1] if bug else races:
        print(f"    {race}", flush=True)
