"""`aristos soak`: random layers and calls on the ranks of this job for a long time, each checked.

    mpirun -n 4 aristos soak --minutes 30
    mpirun -n 4 aristos soak --levels 2 --ranks-per-node 2    # two levels on two pretended nodes
    aristos soak --seed 7 --first 123 --objects 1             # the same object again, on as many ranks as before

Exit codes: 0 nothing found, 1 a wrong result, an error or a leak, 2 usage, 3 the environment, 130
Ctrl-C.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
import traceback
from typing import TYPE_CHECKING, Any

from ..bench import health
from ..bench.arguments import amount, not_negative, positive
from ..errors import AristosError, EnvironmentProblem
from ..host import launch_environment

if TYPE_CHECKING:
    from ..bench.soak import Counts

FOUND, ENVIRONMENT = 1, 3
SUMMARY = "random layers and calls for minutes or hours, each checked: mpirun -n 4 aristos soak --minutes 30"
EVERY = 10.0  # seconds between lines where there is no terminal


def options(argv: list[str]) -> argparse.Namespace:
    parser = launch_environment.OneRankParser(
        prog="aristos soak",
        description="Make random layers and calls from a seed, compare each result with the float64 reference, and"
        " watch memory, open files, threads and shared memory. Run it under mpirun or srun.",
    )
    parser.add_argument("--minutes", type=amount, default=2.0, help="stop after this time (%(default)g)")
    parser.add_argument("--objects", type=positive, metavar="N", help="stop after N objects")
    parser.add_argument("--seed", type=not_negative, help="seed of all that is drawn (default: the time)")
    parser.add_argument(
        "--first", type=not_negative, default=0, metavar="N", help="number of the first object (%(default)s)"
    )
    parser.add_argument(
        "--largest", type=positive, default=128, metavar="N", help="the largest hidden and ffn (%(default)s)"
    )
    parser.add_argument(
        "--levels", type=int, choices=(1, 2), default=1, help="levels of the wire, for all objects (%(default)s)"
    )
    parser.add_argument(
        "--ranks-per-node", type=positive, metavar="N", help="pretend that a node has N ranks (default: drawn)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    asked = options(argv)

    from ..bench.context import counted
    from ..bench.main import interrupted
    from ..bench.soak import Asked, SoakError, soak
    from ..bench.world import connect

    try:
        world = connect()
    except EnvironmentProblem as why:
        return launch_environment.complain(f"aristos soak: {why}", ENVIRONMENT)
    seed = world.bcast(asked.seed if asked.seed is not None else int(time.time()))
    drawn = Asked(seed, asked.largest, asked.levels, asked.ranks_per_node)
    begun = time.monotonic()
    shown = [begun]  # when the last line was printed

    def go_on(counts: Counts) -> bool:
        if not asked.json and time.monotonic() - shown[0] >= EVERY:
            shown[0] = time.monotonic()
            print(f"{shown[0] - begun:7.0f} s  {_line(counts)}", flush=True)
        done = asked.objects is not None and counts.objects >= asked.objects
        return not done and time.monotonic() - begun < 60 * asked.minutes

    if world.lead and not asked.json:
        print(f"{drawn.command(asked.first)}, {counted(world.size, 'rank')}", flush=True)
    try:
        counts = soak(world, drawn, asked.first, go_on)
    except KeyboardInterrupt:
        return interrupted(world, "aristos soak")
    except (AristosError, SoakError) as why:
        traceback.print_exception(why)
        return world.abort(FOUND)
    leaks = [f"rank {world.rank}: {leak}" for leak in health.leaks(counts.samples)]
    everyone = world.gather((counts, health.growth(counts.samples), leaks))
    if not world.lead:
        return 0
    if asked.json:
        print(json.dumps(_document(seed, everyone), indent=1))
        return FOUND if any(leaks for _, _, leaks in everyone) else 0
    print(f"done: {_line(counts)}")
    rows, waits = (sum(getattr(c, name) for c, _, _ in everyone) for name in ("rows", "long_waits"))
    print(f"all ranks: {rows} rows, {waits} waits over 1 ms")
    for rank, (_, grown, _) in enumerate(everyone):
        words = ", ".join(f"{name} {value:+.1f}" for name, value in grown.items()) or "too few samples"
        print(f"rank {rank}, growth in the second half of the run: {words}")
    found = [leak for _, _, leaks in everyone for leak in leaks]
    print("\n".join(found) or "errors 0, leaks 0")
    return FOUND if found else 0


def _document(seed: int, everyone: list[tuple[Counts, dict[str, float], list[str]]]) -> dict[str, Any]:
    """What `--json` prints: for each rank its counts, how its resources grew, and its leaks."""
    ranks = []
    for counts, grown, leaks in everyone:
        counted = dataclasses.asdict(counts)
        del counted["samples"]
        ranks.append(counted | {"growth": grown, "leaks": leaks})
    return {"seed": seed, "ranks": ranks}


def _line(c: Counts) -> str:
    return (
        f"objects {c.objects}; on rank 0: calls {c.calls}, backward calls {c.backward}, loads of other weights"
        f" {c.loads}, rows {c.rows}; largest error {c.worst:.2f} of the tolerance"
    )
