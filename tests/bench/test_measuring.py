"""How calls are timed and what suites compute from times, without ranks or a layer."""

from __future__ import annotations

import numpy as np
import pytest

import aristos
from aristos.bench import (
    context,
    measure,
    options,
    routing,
    workload,
)
from aristos.bench.measure import Statistics, in_turns, iterations
from aristos.bench.suites import idle as idle_suite
from aristos.bench.suites import layer as layer_suite
from aristos.bench.suites import progress, replay
from aristos.bench.suites.idle import idle_share, over_even
from aristos.bench.world import World

pytestmark = pytest.mark.parallel


def test_a_summary_is_of_the_slowest_rank():
    summary = Statistics.from_times(np.array([[1.0, 5.0, 1.0], [2.0, 3.0, 9.0]]))
    assert (summary.median, summary.fastest, summary.iterations) == (5.0, 2.0, 3)


def test_calls_take_turns(monkeypatch):
    monkeypatch.setattr(measure, "REPEATS", 0)
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = in_turns(World(), calls, 3)
    assert "".join(order) == "abbaab"
    assert all(t.shape == (1, 3) and (t > 0).all() for t in times.values())
    order.clear()
    in_turns(World(), calls, 1, turn=1)
    assert "".join(order) == "ba"


def test_every_call_has_every_place_in_its_turn():
    orders = [measure.rotated(["a", "b", "c"], turn) for turn in range(4)]
    assert orders == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]


def test_schedules_take_turns_in_a_replay(monkeypatch):
    monkeypatch.setattr(measure, "REPEATS", 0)
    order: list[str] = []

    def layer(name):
        def call(x, out, return_stats):
            order.append(name)
            out[:] = x
            return out

        return call

    ctx = context.Context(World(), options.Options(iters=3), 1.0)
    call = workload.Call(np.ones((2, 3), np.float32))
    layers = {name: layer(name) for name in ("b", "f")}
    times, core, same = replay._play(ctx, layers, [call], [dict.fromkeys(layers, call.x)], 1.0)
    assert "".join(order) == "bffbbf"
    assert times.shape == core.shape == (2, 1, 1, 2)
    assert same


def test_iterations_by_time_or_by_option():
    calls = {"a": lambda: None}
    assert iterations(World(), calls, 10.0, warmup=1, asked=3) == 3
    assert iterations(World(), calls, 0.0, warmup=1, asked=None) == 4
    assert iterations(World(), calls, 100.0, warmup=3, asked=None) == 2000


def test_shorter_series_end_in_nan():
    one, two = np.array([[1.0, 2.0]]), np.array([[3.0, 4.0, 5.0]])
    got = measure.padded([[one, two], [None, one]])
    assert got.shape == (2, 2, 1, 3)
    nan = np.nan
    want = [[[[1, 2, nan]], [[3, 4, 5]]], [[[nan] * 3], [[1, 2, nan]]]]
    np.testing.assert_array_equal(got, want)


def test_idle_share_counts_the_wait_of_a_fast_rank_after_its_call():
    times = np.array([[1.0], [2.0]])
    assert idle_share(times, np.array([[0.5], [0.0]]), workers=1) == pytest.approx((0.5 + 1.0) / 4)
    assert idle_share(times, np.array([[1.0], [0.0]]), workers=2) == pytest.approx((1.0 + 2.0) / 8)


def test_the_cost_of_skew_is_per_row_and_is_formed_within_each_turn():
    even, skewed = np.array([[1.0, 4.0, 2.0], [0.5, 2.0, 2.0]]), np.array([[1.0, 4.0, 2.0], [3.0, 8.0, 8.0]])
    assert over_even(skewed, even, 10, 10) == 3.0  # the median of 3, 2 and 4, not the ratio of medians, 8 / 2
    assert over_even(skewed, even, 30, 10) == 1.0


@pytest.mark.parametrize(
    ("call", "alone", "imbalance", "reading", "arithmetic", "limit"),
    [
        (10.0, 9.9, 1.49, 1.0, 9.0, "imbalance"),
        (10.0, 5.0, 1.2, 1.0, 4.0, "communication"),
        (10.0, 12.0, 2.0, 1.0, 4.0, "imbalance"),  # other ranks computed some rows of the busiest one
        (10.0, 9.5, 1.02, 9.0, 3.0, "weights' bytes"),
        (10.0, 9.5, 1.02, 30.0, 3.0, "arithmetic"),  # the weights came from a cache
        (10.0, 9.5, 1.02, 1.0, 9.0, "arithmetic"),
    ],
)
def test_the_limit_of_a_call(call, alone, imbalance, reading, arithmetic, limit):
    assert layer_suite.limit(call, alone, imbalance, reading, arithmetic) == limit


def test_rows_have_the_type_of_the_layer():
    cfg = aristos.MoEConfig(hidden=24, ffn=16, experts=4, top_k=2, max_tokens=20, dtype="bfloat16")
    work = workload.Workload(World(), cfg, seed=0)
    with work.layer("fused", 1) as layer:
        for how in ("router", "zipf"):
            call = work.typed(work.call(20, how, 0))
            assert call.x.dtype == "bfloat16"
            assert 1e-5 < work.error(workload.execute(layer, call), work.oracle(call)) < 0.02


def test_every_routing_of_the_idle_suite_has_the_rows_of_two_ranks():
    work = workload.Workload(World(), aristos.MoEConfig(hidden=8, ffn=8, experts=6, top_k=2, max_tokens=40), seed=0)
    for size, one, source in ((1, 20, 20), (2, 20, 40), (4, 10, 40)):
        for rank in range(size):
            work.world.size, work.world.rank = size, rank
            made = {p: len(idle_suite._call(work, p, 20, 0).x) for p in (*idle_suite.PATTERNS, idle_suite.ONE_SOURCE)}
            assert made == {"uniform": 20, "zipf": 20, "late rank": 20, "one": one, "one source": source * (rank == 0)}


def test_the_idle_suite_orders_recorded_layers_by_their_busiest_expert():
    """A dense layer has no choices and is left out."""
    layers = [[(0, 1), (2, 3), (4, 5)], [(2, 3), (2, 3), (2, 3)], [(-1, -1)] * 3, [(0, 1), (0, 2), (3, 4)]]
    ids = np.moveaxis(np.array(layers), 0, 1)
    trace = routing.Trace("t.npz", ids, np.ones(ids.shape, np.float32), np.array([3]))
    found = idle_suite._recorded(context.Context(World(), options.Options(), 1.0, trace=trace))
    assert found == ["recorded, layer 0", "recorded, layer 3", "recorded, layer 1"]


def test_progress_warns_if_the_target_had_no_core_of_its_own():
    computing = np.full((4, 5, 3), 1e-6)
    puts = np.full((4, 4, 3, 1), 1e-5)

    def notes() -> str:
        return "\n".join(progress._result(1, False, puts, computing, True).sheets[0].notes)

    computing[2:, 1:] *= 1.5  # slower under puts: the effect that the suite measures
    assert "WARNING" not in notes()
    computing[2, 0, :2] *= 1.3  # slower without puts, in most rounds of one mode
    assert "WARNING: without any put the target's work took 30% longer" in notes()


def test_counted_words_have_singular_and_plural():
    assert [context.counted(n, "rank") for n in (0, 1, 2)] == ["0 ranks", "1 rank", "2 ranks"]
