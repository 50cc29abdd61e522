"""Suite `overlap` without ranks: what it measures, for how long, and what it says about a point."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from aristos.bench.context import Context
from aristos.bench.options import Options
from aristos.bench.ran import Ran
from aristos.bench.suites import overlap
from aristos.bench.world import World
from aristos.errors import InputError
from aristos.host.nodes import Nodes

pytestmark = pytest.mark.parallel
RAN = Ran("float32", "highest", "avx512", ("float32", "highest"))


def context(**options) -> Context:
    return Context(World(), Options(**options), 25.0)


def point(bulk: float, fused: float, inside: float) -> overlap.PointTimes:
    """Times of calls on 2 ranks with one worker, all in ms.

    bulk, fused: a call's time. inside: how long rank 0 is in a bulk call's collectives; rank 1 is there 1 ms longer.
    """
    times = {"bulk": np.full((2, 3), bulk * 1e-3), "fused": np.full((2, 3), fused * 1e-3)}
    idle = {"bulk": np.array([[inside], [inside + 1]]) * np.full((2, 3), 1e-3), "fused": np.zeros((2, 3))}
    return overlap.PointTimes(times, idle, {name: np.ones((2, 3)) for name in times})


def record(bulk: float, fused: float, inside: float, alpha: float = 0.0, rate: float = math.inf) -> dict:
    """The row of a point, for a layer whose experts take 4 ms. A tile is a quarter of the rows and has 1 MB."""
    case = overlap.CaseTimes("a", RAN, 1, 4e-3, 0.25, 1_000_000, errors={"fused": 1e-7, "bulk": 1e-7})
    return overlap._record(case, (alpha, rate), point(bulk, fused, inside), copy=10.0)


def test_the_bound_of_a_fused_call_is_the_longer_of_arithmetic_and_communication_plus_a_tile():
    """A bulk call of 10 ms has 4 ms of communication and 6 of arithmetic. The bound is 6 / 0.9 + 1 ms, 1 for a tile."""
    assert record(10, 7.6, 4)["bound_ms"] == pytest.approx(6 / 0.9 + 1)
    assert record(10, 7.6, 4)["within"] == "yes"
    assert record(10, 7.8, 4)["within"] == "no"
    assert record(10, 7.8, 7)["bound_ms"] == pytest.approx(7 / 0.9 + 1)
    late = record(10, 9.1, 4, alpha=500.0, rate=1.0)  # the tile comes half a millisecond and 1 MB later
    assert (late["bound_ms"], late["within"]) == (pytest.approx(6 / 0.9 + 1 + 0.5 + 1), "yes")


@pytest.mark.parametrize(("inside", "asked"), [(2.9, False), (3.1, True), (6.9, True), (7.1, False)])
def test_there_is_a_bound_only_where_communication_takes_a_large_part(inside, asked):
    assert (record(10, 5, inside)["within"] == "-") is not asked


def test_shares_of_a_point():
    found = record(10, 5, 4)
    assert (found["speedup"], found["communication"]) == (pytest.approx(2), pytest.approx(0.4))
    assert (found["bulk_efficiency"], found["fused_efficiency"]) == (pytest.approx(0.4), pytest.approx(0.8))
    assert (found["bulk_idle"], found["fused_idle"]) == (pytest.approx(0.45), 0)


def test_rates_above_half_of_the_copy_are_marked():
    assert [overlap.rate_text(rate, copy=10.0) for rate in (1, 5, 5.5, 100)] == ["1", "5", "5.5*", "100*"]


def test_the_sentence_names_the_best_and_the_worst_point():
    good, bad = record(10, 5, 4, 2.0, 1.0), record(10, 20, 4, 50.0, 100.0)
    assert overlap._sentence("a", [good]) == (
        "a: fused is at most 2.00 times as fast as bulk, at 2 us and 1 GB/s; fused is not slower at any point."
    )
    assert overlap._sentence("a", [good, bad]).endswith(
        "; fused is slower than bulk at 1 of 2 points, most at 50 us and 100* GB/s (0.50 times as fast as bulk)."
    )


def test_links_without_delay_are_compared_with_the_noise_of_calls_without_emulation():
    case = overlap.CaseTimes("a", RAN, 1, 4e-3, 0.25, 0)
    case.plain = [point(10, 5, 0), point(10.4, 5, 0)]
    for slower, equal in ((1.03, "yes"), (1.05, "no")):
        case.undelayed = [point(10 * slower, 5, 0), point(10.4 * slower, 5, 0)]
        bulk, fused = overlap._same_records(case)
        assert (bulk["equal"], fused["equal"]) == (equal, "yes")
        assert (bulk["ratio"], bulk["noise"]) == (pytest.approx(slower), pytest.approx(0.4 / 10.2))


def test_slow_links_have_fewer_calls_and_fewer_tries():
    asked = context()
    assert overlap._calls(asked, 1.0, 1e-3) == overlap.MOST_CALLS
    assert overlap._calls(asked, 1.0, 0.1) == 10
    assert overlap._calls(asked, 1.0, 5.0) == overlap.FEWEST_CALLS
    assert overlap._calls(context(iters=7), 1.0, 5.0) == 7
    assert overlap._delay(1000.0, 1.0, 1e6) == pytest.approx(2 * 1e-3 + 2e-3 + 3 * 1e-3 + 2e-3)
    assert [overlap._tries(30, us) for us in (1.0, 1e5, 1e6, 1e8)] == [30, 10, 1, 1]


def test_options_choose_the_layers(monkeypatch):
    monkeypatch.setattr(overlap.isa, "chosen", lambda: "amx")

    def layers(**options):
        return [f"{s.name} {s.cfg.dtype} {s.cfg.precision}" for s in overlap._shapes(context(**options))]

    assert layers() == [f"{name} {dtype} highest" for dtype in ("float32", "bfloat16") for name in "abcde"]
    assert layers(dtype="float16") == [f"{name} float16 highest" for name in "abcde"]
    assert layers(precision="high", scale=4) == [f"{name}/4 float32 high" for name in "abcde"]
    assert layers(preset="c", dtype="bfloat16") == ["c bfloat16 highest"]
    assert len(layers(tokens=(8,))) == 1


def test_too_many_ranks_or_nodes_are_refused():
    from aristos.bench.delay.network import check_ranks

    check_ranks(Nodes.split(129))
    with pytest.raises(InputError, match="at most 129 ranks, got 130"):
        check_ranks(Nodes.split(130))
    with pytest.raises(InputError, match="one node, got 2 nodes"):
        check_ranks(Nodes.split(4, 2))


def test_ranks_of_several_machines_are_refused():
    world = World()
    world.hosts = ["a", "b"]
    with pytest.raises(InputError, match="one machine, got 2 machines: start all ranks on one"):
        overlap.compile_delayed(world)


@pytest.mark.parametrize(("nodes", "levels"), [(Nodes.split(4), 1), (Nodes.split(4, 2), 2)])
def test_layers_have_two_levels_only_between_nodes(nodes, levels):
    asked = context(levels=2)
    asked.world.nodes = nodes
    assert {each.cfg.levels for each in overlap._shapes(asked)} == {levels}
    assert ("2 virtual nodes with one NIC each, 2 levels" in overlap._nodes(asked)) == (levels == 2)


def test_an_interrupted_suite_waits_for_nobody(monkeypatch):
    """Links and layers are not closed: that is collective, and other ranks may not take part."""
    from aristos.bench.delay import network

    closed = []

    class Stub:
        def __getattr__(self, name):
            return Stub()

        def __call__(self, *_):
            closed.append(self)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(network, "Network", lambda *_: Stub())
    monkeypatch.setattr(overlap, "Match", interrupted)
    work = SimpleNamespace(weights=dict, layer=lambda *_, **__: Stub(), call=lambda *_: None, typed=lambda call: call)
    with pytest.raises(KeyboardInterrupt):
        overlap._case(context(), work, "c", 8, 1.0, [])
    assert not closed
