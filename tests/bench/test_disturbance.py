"""Disturbed calls are found. Few are repeated; otherwise tables and pictures mark them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
import types

import numpy as np
import pytest

from aristos import results
from aristos.bench import disturbance, main, measure, tables
from aristos.bench.context import CHECK, Column, Result, Sheet
from aristos.bench.measure import in_turns
from aristos.bench.pairs import Pairs
from aristos.bench.world import World


def spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@pytest.fixture
def shared_core():
    """Bind this thread and the busy loop of another process to one core."""
    before = os.sched_getaffinity(0)
    core = min(before)
    code = f"import os; os.sched_setaffinity(0, {{{core}}}); print('ready', flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as busy:
        assert busy.stdout is not None
        busy.stdout.readline()
        os.sched_setaffinity(0, {core})
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)
            busy.kill()


@pytest.mark.parametrize("kernel_counts", [True, False], ids=["schedstat", "getrusage"])
def test_a_busy_loop_on_the_core_is_seen_and_a_call_that_sleeps_is_not_disturbed(
    shared_core, monkeypatch, kernel_counts
):
    if not kernel_counts:
        monkeypatch.setattr(disturbance, "_opened", lambda task: None)
    times = in_turns(World(), {"busy": lambda: spin(0.03)}, 5)
    assert np.median(times.core["busy"]) < 0.8
    assert disturbance.mark(times.core["busy"])["disturbed"].startswith("rank 0: ")
    if kernel_counts:
        slept = in_turns(World(), {"asleep": lambda: time.sleep(0.05)}, 5)
        assert np.median(slept.core["asleep"]) > np.median(times.core["busy"])


class Scripted:
    """A guard whose calls have the shares of a core that a test lists in `script`, in the order of the calls."""

    script: list[float]

    def __init__(self) -> None:
        self.calls = 0

    def arm(self) -> None:
        pass

    def begin(self) -> None:
        pass

    def end(self, seconds: float) -> None:
        self.calls += 1

    def shares(self) -> np.ndarray:
        return np.array([self.script.pop(0) for _ in range(self.calls)])


def test_few_disturbed_calls_are_repeated_and_many_are_not(monkeypatch):
    monkeypatch.setattr(measure, "Guard", Scripted)
    made: list[tuple[str, int]] = []
    calls = {name: (lambda: None) for name in "ab"}

    def note(name: str, i: int, seconds: float) -> None:
        made.append((name, i))

    Scripted.script = [1, 0.5, 1, 1, 1, 1, 1, 1, 0.6, 1]  # disturbed: the second call, also when repeated once
    times = in_turns(World(), calls, 4, note)
    assert made[1:2] * 2 == made[8:]
    assert all((core == 1).all() for core in times.core.values())
    Scripted.script = [0.5] * 3 + [1] * 5
    made.clear()
    times = in_turns(World(), calls, 4, note)
    assert len(made) == 8
    assert sum(int((core < 1).sum()) for core in times.core.values()) == 3
    Scripted.script = [0.5] + [1] * 7 + [0.5] * measure.REPEATS
    in_turns(World(), calls, 4)
    assert Scripted.script == []


def test_a_repeated_call_replaces_what_it_appended():
    values = [10, 11, 12]
    measure.placed(values, 2)
    measure.placed([*values], 2)
    assert values == [10, 11, 12]
    values.append(21)
    measure.placed(values, 1)
    assert values == [10, 21, 12]


def test_a_row_is_marked_if_its_p95_is_disturbed():
    core = np.ones((2, 40))
    assert disturbance.mark(None) == disturbance.mark(core) == {}
    core[1, :2] = 0.5
    assert disturbance.mark(core) == {}
    core[1, :20] = 0.1
    assert disturbance.mark(core) == {"disturbed": "rank 1: 55%"}
    pair = np.ones((2, 2, 2))
    pair[0, 1] = 1.0, 0.25
    pair[1, 1] = np.nan
    assert disturbance.mark_pairs(pair, np.array([[False, True], [True, False]])) == {"disturbed": "rank 1: 25%"}
    assert disturbance.mark_pairs(pair, np.array([[False, False], [True, False]])) == {}


def test_rows_whose_rounds_lie_apart_are_marked():
    """Medians of early, middle and late calls are compared: single long calls do not count.

    A row that also lacked its core is marked with the core's share.
    """
    calm = np.full((2, 12), 1.0)
    calm[0] = 0.5
    calm[1, [0, 5, 9]] = 9.0
    assert disturbance.spread(calm) == 0
    drift = calm.copy()
    drift[1, 8:] *= 1.3
    assert disturbance.mark(np.ones((2, 12)), calm, drift) == {"disturbed": "rounds: 30%"}
    assert disturbance.mark(np.ones((2, 12)), calm, drift[:1]) == {}  # the other rank's calls did not drift
    assert disturbance.mark(np.full((2, 12), 0.5), drift) == {"disturbed": "rank 0: 50%"}
    assert disturbance.spread(drift[:, -2:]) == 0  # fewer calls than rounds
    padded = np.concatenate([drift, np.full((2, 5), np.nan)], axis=1)
    assert disturbance.spread(padded) == disturbance.spread(drift)
    assert list(disturbance.doubtful(np.stack([calm, drift]), np.ones((2, 2, 12)))) == [False, True]


def test_a_marked_row_shows_in_table_file_and_picture(monkeypatch):
    from rich.console import Console

    sheet = Sheet("s", (Column("n", "n", "d"), CHECK), [{"n": 1, "check": "ok"}, {"n": 2, "check": "ok"}])
    sheet.records[1]["disturbed"] = "rank 0: 55%"
    table = results.Table("layer")
    main._mark(Result(True, [sheet], [table]))
    assert table.attributes["disturbed"] == "1 of 2 rows, among them rank 0: 55%"
    assert sheet.notes == [disturbance.SENTENCE]
    out = io.StringIO()
    Console(file=out, width=tables.WIDTH).print(tables.table(sheet))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert lines[0].endswith("disturbed")
    assert lines[-2].endswith("-")
    assert lines[-1].endswith("rank 0: 55%")
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    from aristos.bench.plots.style import footer

    figure = pyplot.figure()
    footer(figure, results.Run(), table)
    assert "disturbed, 1 of 2 rows, among them rank 0: 55%" in figure.texts[-1].get_text()
    pyplot.close(figure)


def test_more_ranks_than_cores_are_reported():
    one = frozenset([0, 1])
    assert disturbance.crowded(["a", "a", "b"], [one] * 3) == ""
    said = disturbance.crowded(["a", "b", "b", "b"], [one] * 4)
    assert said.startswith("more ranks than cores: 3 ranks share 2 cores of b, so they often wait")


def test_samples_of_a_pair_are_taken_again_if_few_were_disturbed():
    pairs = types.SimpleNamespace(taken=0, disturbed=0)
    assert [Pairs.repeats(pairs, bad) for bad in (True, True, False, False, False, False, False, True)] == [
        True,
        False,
        False,
        False,
        False,
        False,
        False,
        False,
    ]
    pairs.taken, pairs.disturbed = 40, 3
    assert Pairs.repeats(pairs, True)
