"""Pictures show the numbers of the tables, also where pairs or calls differ widely."""

from __future__ import annotations

import numpy as np
import pytest

from aristos.bench import plots
from aristos.bench.context import Context
from aristos.bench.options import Options
from aristos.bench.suites import put, signal
from aristos.bench.world import World
from aristos.results import Table

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.parallel
TRANSPORTS = [{"shm": ~np.eye(3, dtype=bool)}, {"shm": np.eye(3, k=1) > 0, "rma": np.eye(3, k=-1) > 0}]


def context(size: int) -> Context:
    """The context of `size` ranks, all of which are this process."""
    world = World()
    world.size = size
    return Context(world, Options(), 1.0)


def times(sizes: int, seed: int = 0) -> np.ndarray:
    """[origin, target, size, sample] seconds of 3 ranks whose pairs differ by factors."""
    rng = np.random.default_rng(seed)
    return 1e-6 * np.exp(rng.normal(0, 1, (3, 3, 1, 1)) + rng.normal(0, 0.5, (3, 3, sizes, 5)))


def shows(figure, values) -> bool:
    """Whether a picture has a line with these values."""
    lines = [np.asarray(line.get_ydata(), float) for axis in figure.axes for line in axis.lines]
    return any(len(line) == len(values) and np.allclose(line, values, rtol=1e-9) for line in lines)


def quiet(dims: dict, name: str = "call_time", **more) -> tuple[Table, np.ndarray, np.ndarray]:
    """(a table, times of calls that differ by at most 2 %, shares of cores that are all 1)."""
    table = Table("t", attributes=more)
    for dim, values in dims.items():
        table.dim(dim, values)
    seconds = 1e-3 * (1 + 0.02 * np.random.default_rng(0).random([len(values) for values in dims.values()]))
    return table, seconds, np.ones_like(seconds)


def close(figure) -> None:
    from matplotlib import pyplot

    pyplot.close(figure)


@pytest.mark.parametrize("transports", TRANSPORTS)
def test_the_picture_of_put_has_the_rates_of_its_table(transports):
    sizes, core = [8, 1024, 4 << 20], np.ones((3, 3, 2, 3))
    result = put._result(
        context(3), put.PutTimes(sizes, [16] * 3, times(3), times(3, 1), core, np.ones(3, bool), transports)
    )
    figure = plots.pictures()["put"][0][1](result.tables[0])
    for sheet in result.sheets:
        for column in ("latency_us", "bandwidth_gbs", "fitted_us"):
            assert shows(figure, [record[column] for record in sheet.records]), (sheet.title, column)
    close(figure)


@pytest.mark.parametrize("transports", TRANSPORTS)
def test_the_picture_of_signal_has_the_times_and_rates_of_its_tables(transports):
    sizes, messages, core = [0, 8, 1024], [8, 64], [np.ones((3, 3, 2, n)) for n in (3, 2)]
    right = np.ones((2, 3), bool)
    parts = [signal.Sent(*each) for each in zip((sizes, messages), (times(3), times(2, 1)), core, right)]
    result = signal._result(context(3), *parts, transports)
    figure = plots.pictures()["signal"][0][1](result.tables[0])
    for sheet in result.sheets:
        if "message rate" in sheet.title:
            assert shows(figure, [record["million_per_s"] for record in sheet.records]), sheet.title
        else:
            trips = [record["round_trip_us"] for record in sheet.records]
            assert shows(figure, trips[1:]), sheet.title
            assert shows(figure, trips[:1] * 2), sheet.title  # the line of a signal alone
    close(figure)


# ---- disturbed points ---------------------------------------------------------------------------------------------

RANKS = {"rank": range(2), "iteration": range(3)}


def test_the_picture_of_overlap_marks_every_disturbed_point_and_no_other():
    """At one point the rounds differ, because two of three bulk calls are slow. At another a rank lacked its core."""
    dims = {
        "case": ["A", "E"],
        "alpha": [2e-6, 5e-5],
        "rate": [25.0, 10.0, 1.0],
        "schedule": ["bulk", "fused"],
        **RANKS,
    }
    table, seconds, core = quiet(dims, copy_gb_per_s=28.0)
    seconds[1, 1, 0, 0, :, 1:] *= 1.5
    core[0, 0, 2, 1, 0] = 0.5
    table.add("call_time", tuple(dims), seconds, "s").add("core_share", tuple(dims), core, "1")
    table.add("experts_time", "case", [5e-4, 5e-4], "s")
    heat, efficiency = (picture(table) for _, picture in plots.pictures()["overlap"])
    texts = [[text.get_text() for text in axis.texts] for axis in heat.axes[:2]]
    marked = [[i for i, text in enumerate(of) if text.startswith("~")] for of in texts]
    assert marked == [[2], [3]]  # [case][point]. Points are ordered by latency, then rate
    assert [sum(line.get_markerfacecolor() == "white" for line in axis.lines) for axis in efficiency.axes[:2]] == [1, 1]
    close(heat)
    close(efficiency)


def test_disturbed_bars_are_hatched_and_disturbed_points_hollow():
    dims = {"tokens": [16, 64], "schedule": ["bulk", "fused"], **RANKS}
    table, seconds, core = quiet(dims, shape="H 8", flops_per_row=1e3)
    seconds[1, 0, 1, 2:] *= 2
    table.add("call_time", tuple(dims), seconds, "s").add("core_share", tuple(dims), core, "1")
    table.dim("expert", range(2)).add("rows", ("tokens", "expert"), np.ones((2, 2), int))
    table.add("experts_time", ("tokens", "rank", "iteration"), seconds[:, 0] / 2, "s")
    table.add("peak", ("tokens", "rank"), np.ones((2, 2)), "GFLOP/s")
    layer = plots.pictures()["layer"][0][1](table)
    bars = [[bool(bar.get_hatch()) for bar in axis.patches] for axis in layer.axes]
    assert bars == [[False, False], [True, False], *[[False, True, False, False]] * 2]  # bulk's bars come first
    assert not any(each.get_hatch() for each in layer.legends[0].get_patches())
    close(layer)
    dims = {"kernel": ["aristos", "BLAS"], "rows": [1, 2, 4], **RANKS}
    table, seconds, core = quiet(dims, flops_per_row=1e3)
    core[0, 2, 1, :] = 0.3
    table.add("call_time", tuple(dims), seconds, "s").add("core_share", tuple(dims), core, "1")
    table.add("intensity", "rows", [1.0, 2.0, 4.0]).add("peak", "rank", [9.0, 9.0]).add(
        "read_bandwidth", "rank", [1e9] * 2
    )
    gemm = plots.pictures()["gemm"][0][1](table)
    hollow = [
        [list(line.get_xdata()) for line in axis.lines if line.get_markerfacecolor() == "white"] for axis in gemm.axes
    ]
    assert hollow == [[[4.0]], [[4]]]
    close(gemm)
