"""Compares simulated calls of two ranks with real ones:

    mpiexec -n 2 python bench/truth.py measure results/truth.npz
    python bench/truth.py compare results/truth.npz --page docs/truth.md

`measure` times calls of shapes A to E and G: fused and bulk, rows that move and rows that may stay, even and skewed
routing, without and with emulated links (see bench/truth_runs.py). It takes about ten minutes on two idle cores.
`compare` simulates every point. The rates of the expert kernel come from a layer of another shape, and the costs of
rows, calls and collectives from three layers that are not judged (truth_fit.py). A point is right if the
simulated call differs from the real one by at most a tenth. `compare` takes several files, which are measurements of
the same points at different times. Of each point it judges the measurement during which the machine was the least
disturbed, as the probes show.
"""

from __future__ import annotations

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from dataclasses import dataclass, replace  # noqa: E402
from itertools import combinations  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import truth_fit  # noqa: E402
from truth_runs import CALIBRATION, QUARTILES, Case, Runs, cases  # noqa: E402

from aristos.host.nodes import Nodes  # noqa: E402
from aristos.placement import Placement  # noqa: E402
from aristos.row_types import ROW_TYPES  # noqa: E402
from aristos.simulate.machine import Costs, Kernel, Machine  # noqa: E402
from aristos.simulate.outcome import Outcome  # noqa: E402
from aristos.simulate.rank import Layer  # noqa: E402
from aristos.simulate.simulation import Simulation  # noqa: E402

BEGIN, END = "<!-- truth:begin (written by bench/truth.py; edit outside the markers) -->", "<!-- truth:end -->"
NEAR, CLEAR = 0.10, 0.05  # most error of a right time; least difference of fused and bulk whose sign must be right
QUIET = 1.5  # a point is quiet if no probe took this many times longer than undisturbed


def measure(asked: argparse.Namespace) -> None:
    """Measure all cases. Rank 0 writes the file."""
    from aristos.bench.workload import compile_all
    from aristos.bench.world import connect

    world = connect()
    compile_all(world)
    started = time.monotonic()
    found, routings = [], {}
    wanted = [c for d in asked.dtypes for c in (replace(each, dtype=d) for each in CALIBRATION)]
    judged = [c for c in cases(tuple(asked.dtypes), asked.traces) if c.name in asked.shapes]
    wanted = [*wanted, *judged, *wanted]  # the calibration twice, because other work may disturb it
    for case in wanted:
        runs = Runs(world, case, asked.traces)
        found.append(runs.measure(asked.seconds))
        routings[case.key] = runs.ids()
        runs.close()
        if world.lead:  # each case is saved as soon as it is measured
            print(f"{time.monotonic() - started:4.0f} s  {case.key}", file=sys.stderr, flush=True)
            asked.file.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(asked.file, found=np.array(json.dumps(found)), **routings)


# ---------------------------------------------------------------- simulations


@dataclass(frozen=True)
class Point:
    """A judged point. link: latency in us and GB/s, or None. real, simulated: milliseconds of a call.

    slowed: how many times longer than undisturbed the slowest probe took while the point was measured.
    """

    case: Case
    link: tuple[float, float] | None
    name: str
    real: float
    simulated: float
    slowed: float

    @property
    def place(self) -> tuple[str, tuple[float, float] | None, str]:
        """What measurements of the same point have in common."""
        return self.case.key, self.link, self.name

    @property
    def ratio(self) -> float:
        return self.simulated / self.real


class Simulated:
    """Simulations of measured cases. which: the quartile that stands for measured times, 0 to 2."""

    def __init__(self, file: Path, which: int) -> None:
        with np.load(file, allow_pickle=False) as arrays:
            self.found = json.loads(str(arrays["found"]))
            self.routings = {name: arrays[name] for name in arrays.files if name != "found"}
        self.which = which
        self.python = min(each["python"] for each in self.found)
        self.costs: dict[str, Costs] = {}
        for dtype in dict.fromkeys(each["case"]["dtype"] for each in self.found):
            layers: dict[str, list[truth_fit.Observed]] = {}
            for each in self.found:
                if each["case"]["dtype"] == dtype and calibrates(each):
                    layers.setdefault(each["case"]["name"], []).append(self._observed(each))
            self.costs[dtype] = self._closed(
                truth_fit.costs(Costs(), [truth_fit.least(same) for same in layers.values()]), dtype
            )

    def _closed(self, costs: Costs, dtype: str) -> Costs:
        """Costs with which simulated calls of the calibration's layer with the fewest tokens take as long as real ones.

        Only a short call shows the time of code that has left the caches, and of a worker's own steps.
        """
        same = [f for f in self.found if calibrates(f) and f["case"]["dtype"] == dtype]
        fewest = min(f["case"]["tokens"] for f in same)
        few = [(f, f["points"][0]) for f in same if f["case"]["tokens"] == fewest]
        for name, cost, parts in (("fused", "call", 1), ("bulk", "collective", truth_fit.COLLECTIVES)):
            missing = [  # ms, undisturbed
                (point[name][self.which] - self.call(f, point, name, costs)) * self.python_speed(point)
                for f, point in few
            ]
            more = 1e6 * float(np.mean(missing)) / parts
            costs = replace(costs, **{cost: max(0.0, getattr(costs, cost) + more)})
        return costs

    def speeds(self, found: dict[str, Any], point: dict[str, Any], which: int) -> dict[int, float]:
        """The speed of each rank's core at a point: how long the probe takes undisturbed, over how long it took.

        which: the quartile that stands for the probe's times.
        """
        rates = {int(rows): rate for rows, rate in found["kernels"][0].items()}
        table = Kernel(call=0.0, rates=rates).table(found["probe_rows"])
        expected = found["probe_operations"] * 1e-6 * table[found["probe_rows"]] * 1e-6  # ms
        return {rank: expected / ms[which] for rank, ms in enumerate(point["probe"])}

    def slowed(self, found: dict[str, Any], point: dict[str, Any]) -> float:
        """How many times longer than undisturbed the slowest probe of a point took, by upper quartiles."""
        slowest = len(QUARTILES) - 1
        python = max(ms[slowest] / self.python for ms in point["python"])
        return max(python, 1 / min(self.speeds(found, point, slowest).values()))

    def python_speed(self, point: dict[str, Any]) -> float:
        """The speed of Python at a point, as a mean of the ranks. The fastest probe of all is undisturbed."""
        return float(np.mean([self.python / ms[self.which] for ms in point["python"]]))

    def call(self, found: dict[str, Any], point: dict[str, Any], name: str, costs: Costs) -> float:
        """Milliseconds of a simulated call."""
        case = Case(**found["case"])
        first, second = found["kernels"]
        kernel = Kernel(call=0.0, rates={int(rows): 2 / (1 / first[rows] + 1 / second[rows]) for rows in first})
        if point["link"] is not None:
            latency, rate = point["link"]
            costs = replace(costs, local=1e3 * latency, local_kib=truth_fit.KIB / rate)
        ids = list(self.routings[case.key])
        moves: Any = "auto" if name == "stay" else "tokens"
        layer = Layer(case.cfg, Placement(None, case.experts, len(ids)), ids, moves)
        speeds = self.speeds(found, point, self.which)
        # a simulation divides all costs by the rank's speed
        slower = float(np.mean(list(speeds.values()))) / self.python_speed(point)
        costs = replace(costs, call=costs.call * slower, collective=costs.collective * slower)
        machine = Machine(costs=costs, kernel=kernel, speeds=speeds)
        sim = Simulation(layer, Nodes.split(len(ids)), machine, calls=3, schedule="bulk" if name == "bulk" else "fused")
        sim.run()
        return float(np.median(Outcome.from_simulation(sim).calls[1:]))

    def _observed(self, found: dict[str, Any]) -> truth_fit.Observed:
        """What a layer of the calibration showed, as means over the ranks."""
        case, point = Case(**found["case"]), found["points"][0]
        fused, bulk = (point["stats"][name] for name in ("fused", "bulk"))
        own = [each["rows"][rank] for rank, each in enumerate(fused)]
        moved = [sum(each["rows"]) - n for each, n in zip(fused, own)]
        width = ROW_TYPES[case.dtype].nbytes * case.hidden
        speed = self.python_speed(point)
        busy = [e["compute_seconds"] + e["dispatch_seconds"] + e["combine_seconds"] for e in bulk]
        busiest, elapsed = int(np.argmax(busy)), point["elapsed"]
        outside = [whole - each["call_seconds"] for whole, each in zip(elapsed["fused"], fused)]
        return truth_fit.Observed(
            tokens=case.tokens,
            row_bytes=width,
            choices=case.top_k,
            moved=round(float(np.mean(moved))),
            collective_kib=float(np.mean([2 * (n + m) for n, m in zip(own, moved)])) * width / truth_fit.KIB,
            dispatch=1e9 * float(np.mean([each["dispatch_seconds"] for each in fused])),
            combine=1e9 * float(np.mean([each["combine_seconds"] for each in fused])),
            outside=1e9 * speed * float(np.mean(outside)),
            between=1e9 * speed * (elapsed["bulk"][busiest] - busy[busiest]),
        )

    def points(self) -> list[Point]:
        """Every judged point."""
        made = []
        for found in self.found:
            case = Case(**found["case"])
            if calibrates(found):
                continue
            for point in found["points"]:
                link = None if point["link"] is None else tuple(point["link"])
                for name in ("fused", "bulk", "stay"):
                    if name in point:
                        ms = self.call(found, point, name, self.costs[case.dtype])
                        slowed = self.slowed(found, point)
                        made.append(Point(case, link, name, point[name][self.which], ms, slowed))
            print(f"{case.key}: simulated", file=sys.stderr, flush=True)
        return made


def calibrates(found: dict[str, Any]) -> bool:
    """Whether a measured layer belongs to the calibration."""
    return found["case"]["name"] in {case.name for case in CALIBRATION}


# ---------------------------------------------------------------- the page


def quietest(measured: list[list[Point]]) -> list[Point]:
    """Of each point the measurement during which the machine was the least disturbed."""
    found: dict[Any, Point] = {}
    for point in (p for points in measured for p in points):
        if point.place not in found or point.slowed < found[point.place].slowed:
            found[point.place] = point
    return list(found.values())


def repeated(measured: list[list[Point]]) -> tuple[int, int]:
    """(how many pairs of measurements of a point differ by at most NEAR, how many pairs there are)."""
    ratios = []
    for one, other in combinations([{p.place: p.real for p in points} for points in measured], 2):
        ratios += [other[place] / one[place] for place in one.keys() & other.keys()]
    return sum(abs(ratio - 1) <= NEAR for ratio in ratios), len(ratios)


def ranked(points: list[Point]) -> tuple[int, int]:
    """(at how many points a simulation finds the faster schedule, at how many points the schedules differ by CLEAR)."""
    pairs: dict[Any, dict[str, Point]] = {}
    for p in points:
        pairs.setdefault((p.case.key, p.link), {})[p.name] = p
    right = clear = 0
    for pair in pairs.values():
        real = pair["bulk"].real / pair["fused"].real
        if max(real, 1 / real) >= 1 + CLEAR:
            clear += 1
            right += (real > 1) == (pair["bulk"].simulated > pair["fused"].simulated)
    return right, clear


def summary(points: list[Point], costs: list[dict[str, Costs]]) -> list[str]:
    """Sentences on all points. costs: of each measurement, by type of rows."""
    ratios = np.array([p.ratio for p in points])
    quiet = [p for p in points if p.slowed < QUIET]
    right, clear = ranked(points)
    low, middle, high = np.percentile(ratios, (10, 50, 90))
    lines = [
        f"{(abs(ratios - 1) <= NEAR).sum()} of {len(points)} points are within {NEAR:.0%}"
        f" ({(abs(ratios - 1) <= NEAR).mean():.0%}).",
        f"Of the {len(quiet)} points at which no probe took {QUIET:g} times longer than undisturbed,"
        f" {sum(abs(p.ratio - 1) <= NEAR for p in quiet)} are.",
        f"Simulated over real: median {middle:.3f}, from {low:.2f} (tenth percentile) to {high:.2f} (ninetieth).",
        f"Fused and bulk are ranked right at {right} of {clear} points where they differ by {CLEAR:.0%}.",
    ]
    for dtype in dict.fromkeys(p.case.dtype for p in points):
        of = np.array([p.ratio for p in points if p.case.dtype == dtype])
        near = {
            name: np.mean([abs(p.ratio - 1) <= NEAR for p in points if p.case.dtype == dtype and p.case.name == name])
            for name in dict.fromkeys(p.case.name for p in points)
        }
        lines.append(
            f"In {dtype} {(abs(of - 1) <= NEAR).mean():.0%} are within {NEAR:.0%}: "
            + ", ".join(f"{name} {share:.0%}" for name, share in near.items())
            + "."
        )
        lines.extend(
            f"Costs in {dtype}: copy {c.copy_row:.0f} ns and {c.copy_kib:.0f} ns/KiB,"
            f" combining {c.combine_token:.0f} ns and {c.combine_kib:.0f} ns/KiB, call {c.call / 1e3:.0f} us,"
            f" collective {c.collective / 1e3:.0f} us and {c.collective_kib:.0f} ns/KiB."
            for c in (each[dtype] for each in costs if dtype in each)
        )
    return lines


def table(points: list[Point]) -> list[str]:
    """A line for each case and link: real and simulated milliseconds, and their ratio."""
    lines = ["| layer | link | fused | bulk | rows may stay |", "| --- | --- | ---: | ---: | ---: |"]
    rows: dict[Any, dict[str, str]] = {}
    for p in points:
        link = "none" if p.link is None else f"{p.link[0]:g} us, {p.link[1]:g} GB/s"
        mark = "" if abs(p.ratio - 1) <= NEAR else " *"
        rows.setdefault((p.case.key, link), {})[p.name] = f"{p.real:.3g}, {p.simulated:.3g} ({p.ratio:.2f}){mark}"
    for (key, link), cells in rows.items():
        lines.append(f"| {key} | {link} | {cells['fused']} | {cells['bulk']} | {cells.get('stay', '')} |")
    return lines


def compare(asked: argparse.Namespace) -> None:
    """Simulate all points, print them, and write them to the page."""
    which = QUARTILES.index({"quartile": 25, "median": 50}[asked.statistic])
    simulated = [Simulated(file, which) for file in asked.files]
    measured = [each.points() for each in simulated]
    points = quietest(measured)
    lines = summary(points, [each.costs for each in simulated])
    near, pairs = repeated(measured)
    if pairs:
        lines.append(f"Real measurements of a point are within {NEAR:.0%} of each other in {near} of {pairs} pairs.")
    text = [*(f"- {line}" for line in lines), "", *table(points)]
    print("\n".join(text))
    if asked.page is not None:
        before, found, rest = asked.page.read_text(encoding="utf-8").partition(BEGIN)
        if not found:
            sys.exit(f"{asked.page} must have the line {BEGIN}")
        after = rest.partition(END)[2]
        asked.page.write_text("\n".join([before + BEGIN, "", *text, "", END]) + after, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    for name, run in (("measure", measure), ("compare", compare)):
        part = parts.add_parser(name)
        part.set_defaults(run=run)
        if name == "measure":
            part.add_argument("file", type=Path)
            part.add_argument("--seconds", type=float, default=0.6, help="seconds at each point (%(default)s)")
            part.add_argument("--shapes", default="ABCDEG", help="shapes of bench/compare.py (%(default)s)")
            part.add_argument(
                "--dtypes", nargs="+", default=["float32", "bfloat16"], help="types of rows and weights (%(default)s)"
            )
            part.add_argument("--traces", type=Path, help="folder of recorded routings")
        else:
            part.add_argument("files", type=Path, nargs="+", metavar="file")
            part.add_argument(
                "--statistic",
                choices=("median", "quartile"),
                default="median",
                help="statistic of the calls' times (%(default)s)",
            )
            part.add_argument("--page", type=Path, help="a page with markers for the table")
    asked = parser.parse_args()
    asked.run(asked)


if __name__ == "__main__":
    main()
