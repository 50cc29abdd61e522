"""Simulated times beside measured ones: which measurement of a point counts, and what the page says of all points."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from aristos.simulate.machine import Costs

pytestmark = pytest.mark.parallel
BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(autouse=True)
def truth(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """bench/truth.py as a module. The variables that it sets for BLAS are undone."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.syspath_prepend(str(BENCH))
    import truth

    return truth


def point(truth: Any, name: str, real: float, simulated: float, slowed: float = 1.0, layer: str = "A") -> Any:
    return truth.Point(truth.Case(layer, 8, 64, 64, 4, 2), None, name, real, simulated, slowed)


def test_of_each_point_the_least_disturbed_measurement_counts(truth: Any) -> None:
    first = [point(truth, "fused", 1.0, 1.5, slowed=2.0), point(truth, "bulk", 2.0, 2.1, slowed=1.1)]
    second = [point(truth, "fused", 1.4, 1.5, slowed=1.2), point(truth, "bulk", 4.0, 2.1, slowed=3.0)]
    alone = point(truth, "fused", 9.0, 9.0, slowed=5.0, layer="B")  # measured once
    for measured in ([first, [*second, alone]], [[alone, *second], first]):
        chosen = {(p.case.name, p.name): p.real for p in truth.quietest(measured)}
        assert chosen == {("A", "fused"): 1.4, ("A", "bulk"): 2.0, ("B", "fused"): 9.0}


def test_measurements_of_a_point_are_compared_in_pairs(truth: Any) -> None:
    times = ([1.0, 1.0], [1.09, 1.3], [1.0, 1.31])
    measured = [[point(truth, name, t, 1.0) for name, t in zip(("fused", "bulk"), each)] for each in times]
    assert truth.repeated(measured) == (4, 6)  # three pairs of fused agree, and one of bulk
    assert truth.repeated(measured[:1]) == (0, 0)


def test_only_schedules_that_differ_are_ranked(truth: Any) -> None:
    def pair(layer: str, real: float, simulated: float) -> list[Any]:
        """Points of a layer whose bulk call takes `real` times as long as its fused call."""
        return [point(truth, "fused", 1, 1, layer=layer), point(truth, "bulk", real, simulated, layer=layer)]

    assert truth.ranked(
        [*pair("A", 1.2, 1.01), *pair("B", 0.8, 1.01), *pair("C", 1.04, 0.5), *pair("D", 0.9, 0.99)]
    ) == (2, 3)


def test_the_page_counts_points_and_quiet_points(truth: Any) -> None:
    points = [
        point(truth, "fused", 1.0, 1.09),
        point(truth, "bulk", 1.0, 1.2, slowed=1.4),
        point(truth, "stay", 1.0, 0.8, slowed=1.6),
    ]
    lines = truth.summary(points, [])
    assert lines[:2] == [
        "1 of 3 points are within 10% (33%).",
        "Of the 2 points at which no probe took 1.5 times longer than undisturbed, 1 are.",
    ]
    row = "| A float32 uniform | none | 1, 1.09 (1.09) | 1, 1.2 (1.20) * | 1, 0.8 (0.80) * |"
    assert truth.table(points)[2:] == [row]


def test_the_calibration_is_right_for_the_mean_of_its_measurements(truth: Any) -> None:
    """Neither a lucky nor a disturbed measurement decides alone."""
    few = asdict(truth.Case("few", 24, 640, 768, 8, 2))
    probe = {"link": None, "python": [[1.0], [1.0]]}
    simulated = truth.Simulated.__new__(truth.Simulated)
    simulated.which, simulated.python = 0, 1.0
    simulated.found = [
        {"case": few, "points": [{"fused": [0.3], "bulk": [1.0], **probe}]},
        {"case": few, "points": [{"fused": [0.5], "bulk": [1.4], **probe}]},
        {"case": {**few, "name": "wide", "tokens": 256}, "points": [{"fused": [9.0], "bulk": [9.0], **probe}]},
    ]
    simulated.call = lambda found, point, name, costs: 1e-6 * (costs.call + 3 * costs.collective * (name == "bulk"))
    closed = simulated._closed(Costs(), "float32")
    assert closed.call == pytest.approx(0.4e6)
    assert closed.collective == pytest.approx(0.8e6 / 3)
