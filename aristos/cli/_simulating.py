"""Runs the simulations of a command, then prints and saves what they found, also after Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..bench import environment
from ..bench.context import counted
from ..bench.tables import Reporter, plain
from ..errors import EnvironmentProblem
from ..host.versions import versions
from ..results import SCHEMA, Run, Table, append
from ..results import check as check_file
from . import _studies
from ._simulated import MachineOf, Point, Progress

if TYPE_CHECKING:
    from ..config import MoEConfig
    from ..simulate.machine import Machine

FAILED = 1
CAVEAT = "Only times of two ranks on one node were compared with real ones, no times between nodes: docs/simulate.md."


def simulate_points(asked: argparse.Namespace, argv: list[str], machine_of: MachineOf) -> int:
    """Simulate what the options ask for, print it and save it. Returns the exit code."""
    from ..simulate.simulation import SimulationEnded

    if sys.stdout is None:
        raise EnvironmentProblem("stdout is closed: if no tables are wanted, redirect it to /dev/null")
    if asked.out:
        check_file(asked.out)
    if asked.timeline:
        from ..bench import timeline

        timeline.check(asked.timeline)
    points = _studies.points(asked, asked.changed)
    begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with contextlib.ExitStack() as stack:
        stack.callback(_finish, asked, argv, points, begun)
        try:
            _simulate(points, once(machine_of), asked.timeline)
        except SimulationEnded as why:
            print(f"aristos simulate: {why}", file=sys.stderr)
            return FAILED
    return 0


def once(machine_of: MachineOf) -> MachineOf:
    """A `machine_of` that measures a kernel only once for all points with equal experts."""
    known: dict[tuple[Any, ...], tuple[Machine, str]] = {}

    def found(asked: argparse.Namespace, cfg: MoEConfig) -> tuple[Machine, str]:
        key = (asked.machine, cfg.hidden, cfg.ffn, cfg.gated, cfg.activation, cfg.dtype)
        if key not in known:
            known[key] = machine_of(asked, cfg)
        return known[key]

    return found


def _simulate(points: list[Point], machine_of: MachineOf, timeline: str | None) -> None:
    """Run the points one after another. timeline: the file for the events of the first point, or None."""
    from ..simulate import timeline as events

    with Progress(len(points)) as progress:
        for point in points:
            progress.next()
            sim = point.simulation(machine_of)
            if timeline and point is points[0]:
                sim.keep_events(events.interesting(sim.layer))
            point.run_simulation(sim, progress.report)
            if sim.kept and timeline:
                facts = {"layer": f"simulated: {point.shape}", "tokens_per_rank": point.asked.tokens}
                facts |= {"schedule": point.asked.schedule, "moves": point.moves}
                events.write(timeline, sim, facts)


def _finish(asked: argparse.Namespace, argv: list[str], points: list[Point], begun: str) -> None:
    """Print and save what has been simulated; nothing if no call has ended."""
    done = [point for point in points if point.found is not None]
    if not any(point.call_ms for point in points):
        return
    try:
        if asked.out:
            append(asked.out, Run(attributes=_attributes(argv, points, begun), tables=_tables(asked, points, done)))
    finally:  # first the file, because stdout may have no reader
        if asked.json:
            print(json.dumps(plain(document(asked, points, done)), allow_nan=False), flush=True)
        else:
            _show(asked, points, done)


def document(asked: argparse.Namespace, points: list[Point], done: list[Point]) -> dict[str, Any]:
    """What `--json` prints: the first point's facts, and with several points a record of each that ended."""
    found = points[0].facts() | {"finished": len(done) == len(points)}
    found["seconds"] = sum(point.seconds for point in points)
    if kind := _studies.name(asked):
        found |= {"study": kind, "points": [{**point.facts(), **row} for point, row in _rows(done)]}
    return found


def _rows(done: list[Point]) -> Any:
    return zip(done, _studies.records(done))


def _tables(asked: argparse.Namespace, points: list[Point], done: list[Point]) -> list[Table]:
    from ..simulate import tables

    first, found = points[0], []
    about = {"shape": first.shape, "threads": first.asked.threads, "dtype": first.asked.dtype}
    if first.found is None:
        return [tables.stopped(first.call_ms, about)]
    if not asked.scaling:
        way = {"pattern": first.pattern, "schedule": first.asked.schedule, "moves": first.moves}
        found += tables.whole(first.found, way, about)
    return [*found, *([_studies.table(asked, done)] if _studies.name(asked) else [])]


def _attributes(argv: list[str], points: list[Point], begun: str) -> dict[str, Any]:
    """The attributes of the run in a results file. `cpu` names the machine, which is simulated."""
    first = points[0]
    assert first.machine is not None
    numbers = asdict(first.machine)
    numbers["kernel"]["rates"] = {str(rows): rate for rows, rate in numbers["kernel"]["rates"].items()}
    return {
        "schema": SCHEMA,
        "started_utc": begun,
        "command": " ".join(["aristos simulate", *argv]),
        "seed": first.asked.seed,
        "ranks": max(point.ranks for point in points),
        "shape": first.shape,
        "shape_note": first.note,
        "cpu": f"simulated: {first.asked.machine}",
        "machine": first.rates,
        "machine_numbers": numbers,
        "simulated_on": environment.cpu(),
        "commit": environment.commit(),
        "versions": versions(),
        "load_average": os.getloadavg()[0],
        "options": {key: value for key, value in vars(first.asked).items() if key != "changed"},
        "finished": all(point.found is not None for point in points),
    }


def _show(asked: argparse.Namespace, points: list[Point], done: list[Point]) -> None:
    reporter, first = Reporter(quiet=False), points[0]
    if first.found is None:
        ended = ", ".join(f"{ms:.3f} ms" for ms in first.call_ms)
        reporter.line(f"calls that had ended: {len(first.call_ms)} of {first.asked.calls}{ended and f' ({ended})'}")
    elif not asked.scaling:
        reporter.line(text(first))
    if done and _studies.name(asked):
        reporter.show(_studies.sheet(asked, done))
        reporter.line(f"\n{len(done)} of {len(points)} simulations, {sum(p.seconds for p in points):.1f} s. {CAVEAT}")
    if asked.out:
        more = f"pictures: aristos plot {asked.out}; a page: aristos report {asked.out}"
        reporter.line(f"# results: {asked.out} ({more})")
    if asked.timeline and first.found is not None:
        more = f"open in ui.perfetto.dev; a picture: aristos plot {asked.timeline}"
        reporter.line(f"# timeline: {asked.timeline} ({more})")


def text(point: Point) -> str:
    """What a point found, as text."""
    facts, found = point.facts(), point.found
    assert found is not None
    shares = ", ".join(f"{name} {share:.1%}" for name, share in facts["shares"].items())
    link, calls = facts["busiest_link"], len(found.calls)
    lines = [
        f"{facts['model']}, {counted(facts['tokens'], 'token')} a rank, "
        + "{dtype}, {routing} routing, {schedule}".format(**facts)
        + (f"; {point.note}" if point.note else ""),
        f"{counted(facts['ranks'], 'rank')} on {counted(facts['nodes'], 'node')} of {facts['machine']}, "
        f"{counted(facts['threads'], 'worker')} a rank; {point.rates}",
        "",
        f"call           {facts['call_ms'][-1]:.3f} ms",
        f"tokens/s       {facts['tokens_per_s']:,.0f}",
        f"a rank's time  {shares}",
        f"idle           {facts['idle_of_busiest']:.1%} of the least idle rank's time,"
        f" {facts['idle_of_idlest']:.1%} of the most idle rank's",
        f"rows           busiest owner over mean: {facts['rows_of_busiest_over_mean']:.2f}",
        f"between nodes  {facts['bytes_between_nodes'] / calls / 2**20:,.1f} MiB a call"
        + (f"; {link} is {facts['busiest_link_share']:.0%} in use" if link else ""),
        f"protocol       {facts['puts_a_call'] / point.ranks:,.0f} puts of a rank to other nodes in a call;"
        f" {found.protocol_bytes / point.ranks / 1024:,.1f} KiB of what it puts are not rows",
        f"decisions      {facts['decisions_a_call'] / point.ranks:,.0f} of a rank in a call, idle polls included",
        f"binds          {facts['binds']}",
        "",
        f"{facts['events']:,} events in {point.seconds:.1f} s. {CAVEAT}",
    ]
    return "\n".join(lines)
