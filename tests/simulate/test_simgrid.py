"""The network alone against SimGrid 4: patterns end at the same time, on its topologies and with our routes."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path

import numpy as np
import pytest

from aristos.simulate.topologies import Dragonfly, FatTree, Torus

pytestmark = pytest.mark.slow
SHAPES = [
    FatTree((4, 4), (1, 2), (10.0,), (1, 2)),
    FatTree((2, 3, 2), (1, 2, 3), (10.0,)),
    Dragonfly(3, 5, 2, (10.0,)),
    Torus((5, 2), (10.0,)),
    Torus((4, 3, 2), (10.0,)),
]


@pytest.fixture(scope="module")
def bench():
    """The script that makes the table of docs/simulate.md."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "bench")
        yield importlib.import_module("simgrid_network")


@pytest.fixture(scope="module")
def simgrid(bench, tmp_path_factory):
    if missing := bench.SimGrid.missing():
        pytest.skip(missing)
    return bench.SimGrid(tmp_path_factory.mktemp("simgrid"))


@pytest.mark.parametrize("name", ["fat tree", "dragonfly", "torus"])
def test_patterns_end_when_they_do_in_simgrid(bench, simgrid, name):
    rows = list(bench.compare(simgrid, name, bench.shapes(16)[name], ["all-to-all", "incast", "pairwise", "random"]))
    assert len(rows) == 12
    worst = max(rows, key=lambda row: row.worst)
    assert worst.worst < 0.002, worst  # our times are whole ns


@pytest.mark.parametrize("shape", SHAPES)
def test_routes_have_as_many_links_as_in_simgrid(bench, simgrid, shape):
    """Each pair alone on SimGrid's own topology, whose links have a latency of 1 ms."""
    routes = shape.routes(shape.nodes)
    pairs = list(itertools.permutations(range(shape.nodes), 2))
    found = simgrid.ends(bench.topology(shape, hop=1000.0), [[(a, b, 1)] for a, b in pairs])
    links = [int((routes.routes[a * shape.nodes + b] >= 0).sum()) for a, b in pairs]
    assert np.allclose(np.array(found) * 1e3, links, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_two_flows_share_links_where_they_do_in_simgrid(bench, simgrid, shape):
    """Drawn pairs of flows on SimGrid's own topology: a shared link makes both take twice as long."""
    rng = np.random.default_rng(0)
    routes, drawn = shape.routes(shape.nodes), []
    while len(drawn) < 300:
        a, b, x, y = rng.integers(0, shape.nodes, 4).tolist()
        if a != b and x != y:
            drawn.append([(a, b, 10**6), (x, y, 10**6)])
    found = simgrid.ends(bench.topology(shape), drawn)
    shared = []
    for (a, b, _), (x, y, _) in drawn:
        one, other = (set(routes.routes[p * shape.nodes + q].tolist()) - {-1} for p, q in ((a, b), (x, y)))
        shared.append(bool(one & other))
    assert 5 < sum(shared) < 295
    assert np.allclose(np.array(found) * 1e4, np.where(shared, 2, 1), atol=1e-3)
