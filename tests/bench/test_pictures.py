"""Pictures show the numbers of the tables: one definition of every figure, also where pairs or calls differ widely."""

from __future__ import annotations

import numpy as np
import pytest

from aristos.bench import plots
from aristos.bench.context import Context
from aristos.bench.options import Options
from aristos.bench.suites import put, signal
from aristos.bench.world import World

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.parallel
TRANSPORTS = [{"shm": ~np.eye(3, dtype=bool)}, {"shm": np.eye(3, k=1) > 0, "rma": np.eye(3, k=-1) > 0}]


def context(size: int) -> Context:
    """Of some ranks, of which this process is every one."""
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


def close(figure) -> None:
    from matplotlib import pyplot

    pyplot.close(figure)


@pytest.mark.parametrize("transports", TRANSPORTS)
def test_the_picture_of_put_has_the_rates_of_its_table(transports):
    sizes, core = [8, 1024, 4 << 20], np.ones((3, 3, 2, 3))
    result = put._result(context(3), sizes, [16] * 3, times(3), times(3, 1), core, np.ones(3, bool), transports)
    figure = plots.pictures()["put"][0][1](result.tables[0])
    for sheet in result.sheets:
        for column in ("latency_us", "bandwidth_gbs", "fitted_us"):
            assert shows(figure, [record[column] for record in sheet.records]), (sheet.title, column)
    close(figure)


@pytest.mark.parametrize("transports", TRANSPORTS)
def test_the_picture_of_signal_has_the_times_and_rates_of_its_tables(transports):
    sizes, messages, core = [0, 8, 1024], [8, 64], [np.ones((3, 3, 2, n)) for n in (3, 2)]
    right = np.ones((2, 3), bool)
    result = signal._result(context(3), sizes, messages, times(3), times(2, 1), core, right, transports)
    figure = plots.pictures()["signal"][0][1](result.tables[0])
    for sheet in result.sheets:
        if "message rate" in sheet.title:
            assert shows(figure, [record["million_per_s"] for record in sheet.records]), sheet.title
        else:
            trips = [record["round_trip_us"] for record in sheet.records]
            assert shows(figure, trips[1:]), sheet.title
            assert shows(figure, trips[:1] * 2), sheet.title  # the line of a signal alone
    close(figure)
