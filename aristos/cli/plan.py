"""`aristos plan PROBLEM.json`: which devices form which expert-parallel groups, who holds which experts, and how far
from the best that can be at most.

Exit codes: 0 a plan, 1 no partition has room for all experts, 2 usage or a malformed problem, 3 the environment, 130
Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

from ..arguments import not_negative, seconds

SUMMARY = "plan the expert-parallel groups: aristos plan PROBLEM.json"
INFEASIBLE, USAGE, ENVIRONMENT, INTERRUPTED = 1, 2, 3, 130


def options(argv: list[str]) -> argparse.Namespace:
    from ..planner import ALLREDUCES, OBJECTIVES

    parser = argparse.ArgumentParser(
        prog="aristos plan",
        description="Choose the groups that make a training step shortest (Equation 1 of the poster), with a proven "
        "bound on how much better any other choice could be.",
    )
    parser.add_argument("problem", metavar="PROBLEM.json", help="devices, links and a layer: see docs/planner.md")
    parser.add_argument("--objective", choices=OBJECTIVES, help="(default: what the file says)")
    parser.add_argument("--allreduce", choices=ALLREDUCES, default="any",
                        help="T_rho's link: the slowest of any or of crossing pairs (%(default)s)")  # fmt: skip
    parser.add_argument("--deadline", type=seconds, default=60.0, metavar="SECONDS",
                        help="return the best found by then (%(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=not_negative, default=0, help="(%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    asked = options(argv)
    try:
        return run(asked)
    except KeyboardInterrupt:
        return INTERRUPTED


def run(asked: argparse.Namespace) -> int:
    from ..errors import AristosError, InputError
    from ..planner import Infeasible, load, solve
    from ..planner.plan import infeasible_json

    started = time.monotonic()
    try:
        problem = load(asked.problem)
        plan = solve(problem, asked.objective, asked.allreduce, asked.deadline, asked.seed)
    except Infeasible as why:
        if asked.json:
            print(json.dumps(infeasible_json(why.missing)))
        print(f"aristos plan: {why}", file=sys.stderr)
        return INFEASIBLE
    except InputError as why:
        print(f"aristos plan: {why}", file=sys.stderr)
        return USAGE
    except OSError as why:
        print(f"aristos plan: {asked.problem} cannot be read: {why.strerror}", file=sys.stderr)
        return USAGE
    except AristosError as why:
        print(f"aristos plan: {why}", file=sys.stderr)
        return ENVIRONMENT
    if asked.json:
        print(json.dumps(plan.to_json(), allow_nan=False))
    else:
        from ..planner.words import report

        print(report(plan, time.monotonic() - started))
    return 0
