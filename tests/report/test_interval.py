"""The intervals of `aristos compare`: how often they call equal sides different, in a simulation.

The clock of each simulation is a random generator with a fixed seed, so the counts are the same everywhere.
"""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from aristos.report import interval

pytestmark = pytest.mark.parallel


def wrong(times, sides=200) -> float:
    """The share of intervals without 1, of pairs of equal sides. times: generator -> a side."""
    found = 0
    for seed in range(sides):
        rng = np.random.default_rng(seed)
        low, high = interval.of_ratio(times(rng), times(rng))
        found += not low <= 1 <= high
    return found / sides


@pytest.mark.parametrize("calls", [6, 12, *(pytest.param(calls, marks=pytest.mark.slow) for calls in (8, 30, 100))])
def test_equal_runs_are_noise_nearly_always(calls):
    assert wrong(lambda rng: [rng.lognormal(0, 0.3, (1, calls))]) <= 0.08  # 0.05, and what 200 pairs may add


def waves(rng, calls: int) -> np.ndarray:
    """Calls of which each is like the one before: their correlation is 0.5."""
    steps = rng.standard_normal(calls + 20)
    for i in range(1, len(steps)):
        steps[i] += 0.5 * steps[i - 1]
    return np.exp(0.1 * steps[None, 20:])


@pytest.mark.parametrize("calls", [8, *(pytest.param(calls, marks=pytest.mark.slow) for calls in (30, 100))])
def test_runs_whose_calls_resemble_their_neighbours_are_noise_mostly(calls):
    assert wrong(lambda rng: [waves(rng, calls)]) <= 0.15


@pytest.mark.parametrize(
    "runs", [(2, 2), (1, 3), *(pytest.param(runs, marks=pytest.mark.slow) for runs in ((3, 3), (5, 5)))]
)
def test_equal_sets_of_runs_are_noise_nearly_always(runs):
    """Each run has a speed of its own: 5 % more or less."""
    counts = iter(runs * 200)

    def side(rng):
        return [rng.lognormal(0, 0.1, (1, 20)) * np.exp(0.05 * rng.standard_normal()) for _ in range(next(counts))]

    assert wrong(side) <= 0.08


def test_a_change_larger_than_what_changes_between_runs_is_seen():
    rng = np.random.default_rng(4)

    def side(level: float) -> list[np.ndarray]:
        return [level * rng.lognormal(0, 0.1, (1, 20)) * np.exp(0.02 * rng.standard_normal()) for _ in range(3)]

    low, high = interval.of_ratio(side(1.0), side(1.2))
    assert 1.05 < low < 1.2 < high < 1.4


def test_students_quantiles():
    stats = pytest.importorskip("scipy.stats")
    freedoms = [*range(1, 40), 200, 10_000]
    np.testing.assert_allclose([*map(interval.student, freedoms)], stats.t.ppf(0.975, freedoms), rtol=2e-3)


def test_calls_that_resemble_their_neighbours_make_a_wider_interval():
    rng = np.random.default_rng(2)
    free = 1 + 0.1 * rng.random(900)
    calls = {"slow waves": np.sort(free.reshape(9, 100), axis=1).ravel(), "free": free}
    width = {}
    for name, each in calls.items():
        low, high = interval.of_ratio([each[None]], [free[None]])
        width[name] = high - low
    assert width["slow waves"] > 1.2 * width["free"]
    assert interval.of_ratio([free[None]], [free[None]]) == interval.of_ratio([free[None]], [free[None]])


def test_an_interval_of_a_million_calls_takes_bounded_memory():
    times = np.random.default_rng(0).lognormal(0, 0.3, (1, 1_000_000))
    tracemalloc.start()
    try:
        low, high = interval.of_ratio([times], [1.1 * times])
        assert tracemalloc.get_traced_memory()[1] < 400e6
    finally:
        tracemalloc.stop()
    assert 1.08 < low < 1.1 < high < 1.12
