"""A layer's calls on networks whose routes have several links: no byte is lost, and no link exceeds its capacity."""

from __future__ import annotations

import numpy as np
import pytest

from aristos.config import MoEConfig
from aristos.errors import InputError
from aristos.host.nodes import Nodes
from aristos.placement import Placement
from aristos.simulate import control as c
from aristos.simulate.machine import Links, Machine
from aristos.simulate.outcome import Outcome
from aristos.simulate.rank import Layer
from aristos.simulate.simulation import Simulation
from aristos.simulate.topologies import Dragonfly, FatTree, Torus

pytestmark = pytest.mark.slow
WORLD, EACH = 16, 2  # ranks, and ranks of a node
NETWORKS = [
    Links(latency=1.0, rate=2.0),
    FatTree((2, 2, 2), (1, 2, 1), (2.0, 2.0, 1.0), latency=1.0, hop=0.1),
    Dragonfly(2, 2, 2, (2.0, 1.0, 1.0), between=2, latency=1.0, hop=0.1),
    Torus((4, 2), (1.0,), latency=1.0, hop=0.1),
]


def simulated(network):
    rng = np.random.default_rng(0)
    ids = [np.argsort(rng.random((48, 32)), axis=1)[:, :4].astype(np.int64) for _ in range(WORLD)]
    cfg = MoEConfig(256, 256, 32, 4, max_tokens=48, dtype="bfloat16")
    sim = Simulation(Layer(cfg, Placement(None, 32, WORLD), ids), Nodes.split(WORLD, EACH), Machine(links=network))
    sim.run()
    return sim, Outcome.from_simulation(sim)


@pytest.mark.parametrize("network", NETWORKS)
def test_bytes_cross_every_link_of_their_routes(network):
    sim, found = simulated(network)
    node, routes = np.array(sim.nodes.node_of), sim.routes
    count = sim.nodes.count
    put, puts = np.zeros((count, count)), np.zeros((count, count))
    np.add.at(put, (node[:, None], node[None, :]), found.put_bytes)
    np.add.at(puts, (node[:, None], node[None, :]), sim.pairs[:, c.PUTS].reshape(WORLD, WORLD))
    most, small = np.zeros(len(routes.names)), np.zeros(len(routes.names))
    for which, route in enumerate(routes.routes):
        links = route[route >= 0]
        most[links] += put.ravel()[which]
        small[links] += puts.ravel()[which]
    assert most.min() > 0
    assert (sim.link_bytes >= most - 512 * small).all()  # small puts take no share of a link
    assert (sim.link_bytes <= most + small * routes.capacity).all()  # a flow ends at a whole ns
    assert all(share <= 1 for _, share in found.links.values())


def test_the_same_rows_move_on_every_network():
    outcomes = [simulated(network)[1] for network in NETWORKS]
    for found in outcomes[1:]:
        assert (found.rows == outcomes[0].rows).all()
    flat = outcomes[0].calls[-1]
    assert all(found.calls[-1] > flat for found in outcomes[1:])  # their slowest links have half of its rate


def test_a_larger_job_than_the_network_is_refused():
    layer = Layer(MoEConfig(8, 8, 16, 2, max_tokens=4), Placement(None, 16, 8), [np.zeros((1, 2), int)] * 8)
    with pytest.raises(InputError, match="the torus has 4 nodes, and 8 are asked for"):
        Simulation(layer, Nodes.split(8, 1), Machine(links=Torus((4,), (1.0,))))
