"""Routes of fat trees, dragonflies and tori: each is walked link by link, and is as long as it must be."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from aristos.errors import InputError
from aristos.simulate.machine import Links
from aristos.simulate.topologies import Dragonfly, FatTree, Torus

FAT_TREES = [
    FatTree((4, 4), (1, 4), (25.0,)),
    FatTree((3, 2, 4), (1, 2, 3), (10.0, 20.0)),
    FatTree((4, 4), (1, 2), (10.0,), (1, 2)),
    FatTree((2, 3), (2, 3), (10.0,)),
]
DRAGONFLIES = [Dragonfly(4, 4, 2, (10.0,)), Dragonfly(3, 2, 3, (10.0, 5.0, 2.0), between=4), Dragonfly(1, 5, 1, (9.0,))]
TORI = [Torus((4, 4), (10.0,)), Torus((5, 2, 3), (10.0,)), Torus((8,), (10.0,)), Torus((1, 3), (10.0, 5.0))]


def named(routes, source, target):
    """The names of the links from a source to a target."""
    return [routes.names[link] for link in routes.routes[source * routes.nodes + target] if link >= 0]


def every_pair(network):
    routes = network.routes(network.nodes)
    for source, target in itertools.product(range(network.nodes), repeat=2):
        yield source, target, named(routes, source, target)


def digits(number, radices):
    found = []
    for radix in radices:
        found.append(number % radix)
        number //= radix
    return found


def walked(tree, names):
    """The labels of the nodes or switches at which each link of a route begins and ends, by the tree's definition.

    The label of a switch of level l: l numbers that say which of the equal switches it is, then the digits that all
    nodes below it share.
    """
    for name in names:
        kind, place, way, *port = name.split()
        level, child = (0, int(place)) if kind == "node" else map(int, place.split("."))
        port = int(port[0]) if port else 0
        low = digits(child, [*tree.up[:level], *tree.down[level:]])
        high = [*low[:level], port % tree.up[level], *low[level + 1 :]]
        ends = (level, low), (level + 1, high)
        yield ends if way == "out" else ends[::-1]


@pytest.mark.parametrize("tree", FAT_TREES)
def test_a_route_of_a_fat_tree_leads_to_its_target(tree):
    for source, target, names in every_pair(tree):
        at = (0, digits(source, tree.down))
        for begin, end in walked(tree, names):
            assert begin == at
            at = end
        assert at == (0, digits(target, tree.down))
        differing = [a != b for a, b in zip(digits(source, tree.down), digits(target, tree.down))]
        assert len(names) == 2 * (len(tree.down) - differing[::-1].index(True) if any(differing) else 0)


@pytest.mark.parametrize("tree", [FatTree((4, 4), (1, 4), (1.0,)), FatTree((2, 3, 4), (1, 2, 3), (1.0,))])
def test_shifts_never_share_a_link_of_a_full_fat_tree(tree):
    """What Zahavi (2010) proves of D-mod-k routing. The routes to a node have one way down."""
    routes = tree.routes(tree.nodes)
    for shift in range(1, tree.nodes):
        used = Counter(name for n in range(tree.nodes) for name in named(routes, n, (n + shift) % tree.nodes))
        assert max(used.values()) == 1
    for target in range(tree.nodes):
        into = {name for n in range(tree.nodes) for name in named(routes, n, target) if " in" in name}
        assert len(into) == len(tree.down)


@pytest.mark.parametrize("fly", DRAGONFLIES)
def test_a_route_of_a_dragonfly_leads_to_its_target(fly):
    for source, target, names in every_pair(fly):
        if source == target:
            assert names == []
            continue
        where = divmod(source // fly.nodes_each, fly.switches)
        to = divmod(target // fly.nodes_each, fly.switches)
        assert (names[0], names[-1]) == (f"node {source} out", f"node {target} in")
        crossed = 0
        for name in names[1:-1]:
            words = name.split()
            if words[2] == "switch":
                group, begin, end = int(words[1]), int(words[3]), int(words[5])
                assert where == (group, begin)
                where = group, end
            else:
                group, other, cable = int(words[1]), int(words[3]), int(words[5])
                assert where == (group, (other * fly.between + cable) % fly.switches)
                where = other, (group * fly.between + cable) % fly.switches
                crossed += 1
        assert where == to
        assert crossed == (source // (fly.nodes_each * fly.switches) != target // (fly.nodes_each * fly.switches))
        assert len(names) <= 5


@pytest.mark.parametrize("torus", TORI)
def test_a_route_of_a_torus_is_a_shortest_one_in_order_of_axes(torus):
    for source, target, names in every_pair(torus):
        place, to, axes = digits(source, torus.size), digits(target, torus.size), []
        for name in names:
            _, node, _, axis, way = name.split()
            assert digits(int(node), torus.size) == place
            axes.append(int(axis))
            place[int(axis)] = (place[int(axis)] + (1 if way == "up" else -1)) % torus.size[int(axis)]
        assert place == to
        assert axes == sorted(axes)
        start = digits(source, torus.size)
        assert len(names) == sum(min((a - b) % n, (b - a) % n) for a, b, n in zip(start, to, torus.size))


@pytest.mark.parametrize("network", [*FAT_TREES, *DRAGONFLIES, *TORI, Links()])
def test_a_job_of_some_nodes_has_the_routes_of_all(network):
    some, whole = 3, getattr(network, "nodes", 5)
    few, all_nodes = network.routes(some), network.routes(whole)
    assert len(few.names) == len(set(few.names))
    assert set(np.unique(few.routes[few.routes >= 0])) == set(range(len(few.names)))
    capacity = dict(zip(all_nodes.names, all_nodes.capacity))
    assert {name: capacity[name] for name in few.names} == dict(zip(few.names, few.capacity))
    for a, b in itertools.product(range(some), repeat=2):
        assert named(few, a, b) == named(all_nodes, a, b)
        assert few.latency[a * some + b] == all_nodes.latency[a * whole + b] or a == b


def test_levels_have_their_own_rates():
    tree = FatTree((2, 2, 2), (1, 1, 1), (10.0, 30.0), latency=1.0, hop=0.25).routes(8)
    rates = {name.split()[0] + name.split()[1].partition(".")[0]: rate for name, rate in zip(tree.names, tree.capacity)}
    assert {rates["node0"], rates["switch1"], rates["switch2"]} == {10.0, 30.0}
    assert tree.capacity[tree.names.index("switch 1.0 out")] == 30.0
    assert tree.latency[0 * 8 + 1] == 1500
    assert tree.latency[0 * 8 + 7] == 2500


def test_classes_of_links_are_those_whose_routes_use_them():
    routes = Torus((3, 4), (1.0,)).routes(12)
    starts, members = routes.by_link()
    for link in range(len(routes.names)):
        wanted = [which for which, route in enumerate(routes.routes) if link in route]
        assert members[starts[link] : starts[link + 1]].tolist() == wanted


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FatTree((4, 0), (1, 1), (1.0,)), "each of down must be a whole number from 1 to 524288, got 0"),
        (lambda: FatTree((4, 4), (1,), (1.0,)), "up must be 2 whole numbers"),
        (lambda: FatTree((4, 4), (1, 2), (0.0,)), "rate must be a positive number, got 0.0"),
        (lambda: FatTree((4, 4), (1, 2), (1.0,) * 3), "rate must be a number, or a list of at most 2"),
        (lambda: FatTree((1000, 1000), (1, 2), (1.0,)), "at most 524288 links, got 2004000"),
        (lambda: Torus((4,), (1.0,), latency=-1), "latency must be a not negative number, got -1"),
        (lambda: Torus((4,), (1.0,), hop=float("nan")), "hop must be a not negative number, got nan"),
        (lambda: Torus((), (1.0,)), "torus must be a list of whole numbers"),
        (lambda: Dragonfly(2, 2, True, (1.0,)), "nodes_each must be a whole number from 1 to 524288, got True"),
        (lambda: Dragonfly(1000, 1000, 1, (1.0,)), "at most 524288 links"),
        (lambda: FatTree((1,) * 17, (1,) * 17, (1.0,)), "down must have at most 16 numbers, got 17"),
        (lambda: Torus((2000,), (1.0,)).routes(1000), "routes of up to 999 links between 1000 nodes are too long"),
        (lambda: Torus((4,), (1e-10,)).routes(2), "rates of links must be from 1e-09 to 1e\\+09 GB/s"),
        (lambda: Torus((4,), (1.0,), 1e10).routes(2), "latencies must be at most 1e\\+09 us, got 1e\\+10"),
        (lambda: Torus((4,), (1.0,)).routes(5), "the torus has 4 nodes, and 5 are asked for"),
        (lambda: FatTree((2, 2), (1, 1), (1.0,)).routes(5), "the fat tree has 4 nodes, and 5 are asked for"),
        (lambda: Dragonfly(2, 2, 2, (1.0,)).routes(9), "the dragonfly has 8 nodes, and 9 are asked for"),
    ],
)
def test_an_impossible_network_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
