"""Saves a part of the comparison as a run of the results file: a table of raw times for each job, and one of figures.

Medians and ratios are not stored; they are computed from the raw times when they are shown.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from figures import Figure
from rounds import ShapeResults

from aristos import results

PLAIN = str.maketrans({"/": "-", "@": "-", " ": ""})  # what a table's name becomes in HDF5


def save(
    path: Path,
    shapes: list[ShapeResults],
    found: list[Figure],
    facts: dict[str, Any],
    signal_us: dict[int, list[float]],
) -> None:
    """Append the run. Raises ResultsError if the file cannot be written."""
    tables = [shape_table(m) for m in shapes if m.times]
    tables += [outside_table(m) for m in shapes if m.outside is not None]
    tables += [figures_table(found)] if found else []
    for size, values in signal_us.items():
        table = results.Table("compare", f"signal-{size}").dim("sample", np.arange(len(values)))
        tables.append(table.add("round_trip", "sample", 1e-6 * np.array(values), "s", f"{size} bytes + signal"))
    results.append(path, results.Run(attributes=facts, tables=tables))


def shape_table(m: ShapeResults) -> results.Table:
    """The times of a job, [peer, round, call, rank]. An attribute says why other peers were not timed."""
    peers = list(m.times)
    rounds, iters, world = m.times[peers[0]].shape
    kind = type(m.shape).__name__.lower()
    table = results.Table("compare", f"{kind}-{m.shape.name}".translate(PLAIN))
    table.attributes = {
        **asdict(m.shape),
        "world": m.world,
        **{of: {name: m.ran[name].get(of) for name in peers} for of in ("dtype", "precision", "isa")},
        "weights_read": {name: m.ran[name].get("weights") for name in peers},
        "absent": m.absent,
        "wrong": m.wrong(),
        "fused_and_bulk_equal_bits": m.same_bits,
    }
    table.dim("peer", peers).dim("round", np.arange(rounds)).dim("call", np.arange(iters)).dim("rank", np.arange(world))
    table.add("seconds", ("peer", "round", "call", "rank"), np.stack(list(m.times.values())), "s", "time of a call")
    table.add("error", "peer", [m.errors.get(p, np.nan) for p in peers], "1", "largest error relative to float64")
    table.add("busiest", "call", m.busiest, "1", "operations of the rank with most rows")
    table.add("mean", "call", m.mean, "1", "operations of a rank, averaged over ranks")
    table.add("load_average", "round", m.load, "1", "load average of one minute after the round")
    if m.peak is not None:
        table.add("peak", ("round", "rank"), 1e9 * m.peak, "s-1", "operations a second of multiply-adds in registers")
    return table


def outside_table(m: ShapeResults) -> results.Table:
    """The seconds of calls outside kernels and waits."""
    values = np.zeros((2, 0)) if m.outside is None else m.outside
    table = results.Table("compare", f"outside-{m.shape.name}".translate(PLAIN))
    table.dim("call", np.arange(values.shape[1]))
    table.add("outside_experts", "call", values[0], "s", "neither expert kernels nor waits, slowest rank")
    return table.add("outside_kernels", "call", values[1], "s", "the engine's own work, slowest rank")


def figures_table(found: list[Figure]) -> results.Table:
    """The goals, and the medians that were reached: NaN for a figure that was not measured."""
    table = results.Table("compare", "figures").dim("figure", [f.what for f in found])
    table.add("asked", "figure", np.array([f.goal for f in found]))
    table.add("reached", "figure", np.array([np.nan if f.reached is None else f.reached.median for f in found]))
    table.add("unit", "figure", [f.unit or "1" for f in found])
    return table.add("met", "figure", np.array([f.met for f in found]))
