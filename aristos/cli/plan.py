"""`aristos plan PROBLEM.json`: the expert-parallel groups, the placement of experts, and a bound on any better plan.

Exit codes: 0 a plan, 1 no partition holds all experts, 2 usage or a wrong problem, 3 the environment, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bench.arguments import amount, not_negative, positive, seconds
from ..host import launch_environment
from . import _checked_plan as checked_plan
from ._listing import unknown, wrapped

if TYPE_CHECKING:
    from ..planner import Plan, Problem
    from ..topology.links import Links

SUMMARY = "plan the expert-parallel groups: aristos plan PROBLEM.json"
INFEASIBLE, USAGE, ENVIRONMENT = 1, 2, 3
TOKENS = 4096
DISCOVER_SECONDS = 300
DISCOVER_RANKS = 8  # the most ranks that measure cores


def options(argv: list[str]) -> argparse.Namespace:
    from ..models import MODELS
    from ..planner import ALLREDUCES, OBJECTIVES

    parser = launch_environment.OneRankParser(
        prog="aristos plan",
        description="Choose the groups that make a training step shortest (Equation 1 of the poster), with a proven "
        "bound on how much better any other choice could be.",
    )
    parser.add_argument(
        "problem", metavar="PROBLEM.json", nargs="?", help="devices, links and a layer: see docs/planner.md"
    )
    parser.add_argument("--model", metavar="NAME", help="a published model instead of a file; '?' lists them")
    parser.add_argument("--tokens", type=positive, help=f"tokens that each device brings to a layer ({TOKENS})")
    parser.add_argument("--inference", action="store_true", help="forward only, without gradients")
    parser.add_argument(
        "--bytes", type=amount, metavar="N", help="bytes of a parameter (16 with optimizer state, 2 with --inference)"
    )
    parser.add_argument("--topology", metavar="FILE", help="links written by `aristos topo --measure`")
    parser.add_argument(
        "--cluster", metavar="FILE", help="instead of --topology: switches, devices' TFLOP/s and GB (docs/planner.md)"
    )
    parser.add_argument(
        "--discover",
        action="store_true",
        help="instead of --topology: measure this machine's GPUs, or ranks on its cores",
    )
    parser.add_argument("--plot", metavar="FILE", help="draw the groups: .png, .svg or .pdf (needs matplotlib)")
    parser.add_argument("--objective", choices=OBJECTIVES, help="what to minimise (default: the file's objective)")
    parser.add_argument(
        "--allreduce",
        choices=ALLREDUCES,
        default="any",
        help="link that the all-reduce uses: the slowest of all pairs, or of pairs in different groups (%(default)s)",
    )
    parser.add_argument("--deadline", type=seconds, default=60.0, metavar="SECONDS", help="time limit (%(default)s)")
    parser.add_argument("--seed", type=not_negative, default=0, help="seed of the search (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else")
    parser.add_argument(
        "--check",
        choices=("simulate",),
        help="also simulate a forward stage of each kind of group, and print the error of each term (needs --model)",
    )
    asked = parser.parse_args(argv)
    if asked.model == "?":
        print("\n".join(MODELS), flush=True)
        parser.exit(0)
    machines = [bool(asked.topology), bool(asked.cluster), asked.discover]
    if (asked.problem is None) == (asked.model is None):
        parser.error("give PROBLEM.json or --model NAME")
    if asked.model is not None and asked.model not in MODELS:
        parser.error(f"--model: {unknown(asked.model, MODELS, '`aristos plan --model ?`')}")
    if asked.model is not None and sum(machines) != 1:
        parser.error("--model needs a machine: --topology FILE, --cluster FILE or --discover")
    if asked.problem is not None and (any(machines) or asked.inference or asked.tokens or asked.bytes):
        parser.error("--tokens, --bytes, --topology, --cluster, --discover and --inference need --model")
    if asked.check and asked.model is None:
        parser.error("--check needs --model NAME: PROBLEM.json has no layer that could be simulated")
    asked.tokens = asked.tokens or TOKENS
    if asked.discover and (started := launch_environment.started_as()) is not None and started[1] > 1:
        parser.error(
            "--discover starts ranks of its own; in a job, run `aristos topo --measure --out FILE` on all ranks, then "
            "--topology FILE in one process"
        )
    if asked.plot is not None and (not asked.plot or Path(asked.plot).is_dir()):
        parser.error(f"--plot needs the name of a file, got {asked.plot!r}")
    return asked


def main(argv: list[str]) -> int:
    asked = options(argv)
    return run(asked) if launch_environment.prints() else 0  # only one rank of the job plans


def run(asked: argparse.Namespace) -> int:
    from ..planner import Infeasible, solve
    from ..planner.plan import infeasible_json
    from ..topology.drawing import pyplot

    started = time.monotonic()
    try:
        if asked.plot is not None:
            pyplot()  # now, because the solver may run for minutes
        problem = _problem(asked)
        plan = solve(problem, asked.objective, asked.allreduce, asked.deadline, asked.seed)
    except Infeasible as why:
        if asked.json:
            print(json.dumps(infeasible_json(why.missing)))
        print(f"aristos plan: {why}", file=sys.stderr)
        return INFEASIBLE
    except OSError as why:
        file = asked.problem or asked.topology or asked.cluster or why.filename
        print(
            f"aristos plan: {file} cannot be read: {why.strerror}",
            file=sys.stderr,
        )
        return USAGE
    if not asked.json:
        from ..planner.words import report

        print(wrapped(report(plan, time.monotonic() - started)), flush=True)
        if asked.model is not None:
            print(_moving(asked, max(map(len, plan.groups))))
    checked = checked_plan.check_plan(plan, asked) if asked.check else None
    if asked.json:
        found = plan.to_json() | ({} if checked is None else {"check": [each.to_json() for each in checked]})
        print(json.dumps(found, allow_nan=False), flush=True)
    elif checked is not None:
        checked_plan.show(plan, checked)
    return 0 if asked.plot is None else _plot(plan, asked.plot)


def _plot(plan: Plan, path: str) -> int:
    from ..errors import EnvironmentProblem
    from ..planner.picture import draw

    try:
        draw(plan, path)
    except (EnvironmentProblem, OSError, ValueError) as why:
        print(f"aristos plan: {path} cannot be drawn: {getattr(why, 'strerror', None) or why}", file=sys.stderr)
        return ENVIRONMENT
    return 0


def _problem(asked: argparse.Namespace) -> Problem:
    """The problem of a file, or of a model on a machine."""
    from ..models import MODELS
    from ..planner import load
    from ..planner.machine import load as load_cluster
    from ..planner.published import build
    from ..topology.links import load as load_links

    if asked.problem is not None:
        return load(asked.problem)
    if asked.cluster:
        found: Any = load_cluster(asked.cluster)
    else:
        found = _discovered() if asked.discover else load_links(Path(asked.topology))
    return build(MODELS[asked.model], asked.tokens, found, asked.inference, asked.bytes)


def _discovered() -> Links:
    """The links that `aristos topo --measure` finds between this machine's GPUs, or without GPUs between its ranks."""
    from ..errors import EnvironmentProblem
    from ..launcher import this_node
    from ..topology.links import load as load_links

    start: list[str] = []
    if not this_node.find(os.environ).devices:
        ranks = min(DISCOVER_RANKS, max(2, len(os.sched_getaffinity(0))))
        start = ["run", "-n", str(ranks), "--", sys.executable, "-m", "aristos"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "links.json"
        words = [sys.executable, "-m", "aristos", *start, "topo", "--measure", "--out", str(file)]
        code, stderr = _run(words, DISCOVER_SECONDS)
        if code is None:
            how = "run it yourself and give its file by --topology"
            raise EnvironmentProblem(f"`aristos topo --measure` took more than {DISCOVER_SECONDS} s: {how}")
        if code or not file.exists():
            last = (stderr.strip().splitlines() or ["no message"])[-1]
            raise EnvironmentProblem(f"`aristos topo --measure` failed: {last}")
        return load_links(file)


def _run(words: list[str], seconds: float) -> tuple[int | None, str]:
    """(exit code, stderr) of a command. If it takes too long, its whole session is killed and the code is None."""
    ran = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, stderr = ran.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None, ""
    finally:
        if ran.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(ran.pid, signal.SIGKILL)
            ran.wait()
    return ran.returncode, stderr


def _moving(asked: argparse.Namespace, group: int) -> str:
    from ..models import MODELS
    from ..planner.published import moving

    found = moving(MODELS[asked.model], asked.tokens, group)
    return (
        f"a device in a group of {group} would move {found.token_bytes / 2**20:.1f} MiB of tokens or"
        f" {found.weight_bytes / 2**20:.1f} MiB of experts' weights in a layer: move {found.move}"
    )
