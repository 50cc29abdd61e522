"""Flows share links by max-min fairness, compared with an oracle, and every byte crosses its links."""

from __future__ import annotations

import numpy as np
import pytest

from aristos.simulate import control as c
from aristos.simulate import events, flows, network
from aristos.simulate.control import CONTROL
from aristos.simulate.routes import Routes

pytestmark = pytest.mark.slow


class Network:
    """Random classes of flows on random routes of 1 to 4 links."""

    def __init__(self, rng: np.random.Generator, classes: int, links: int) -> None:
        CONTROL[:] = 0
        self.routes = np.full((classes, 4), -1, np.int64)
        for route in self.routes:
            chosen = rng.choice(links, size=rng.integers(1, min(4, links) + 1), replace=False)
            route[: len(chosen)] = chosen
        self.capacity = rng.uniform(0.5, 20, links)
        names = [f"link {n}" for n in range(links)]
        routes = Routes(1, names, self.capacity, self.routes, np.zeros(classes, np.int64))
        self.arrays, numbers = flows.words(routes, np.arange(classes), 512)
        self.arrays[c.HEAP] = np.zeros((1024, c.EVENT_WORDS), np.int64)
        self.numbers, self.crossed = self.arrays[c.CLASS_NUMBERS], self.arrays[c.LINK_BYTES]
        for word, array in self.arrays.items():
            CONTROL[word] = array.ctypes.data
        for word, value in {**numbers, c.EVENTS_MOST: 1024}.items():
            CONTROL[word] = value

    def rates(self) -> np.ndarray:
        network.fill()
        return self.numbers[::2].copy()


def fair(routes: np.ndarray, capacity: np.ndarray, flows: np.ndarray) -> np.ndarray:
    """Max-min fair rates of a flow of each class: all rates grow together, and stop at links that are full."""
    rates, growing = np.zeros(len(routes)), flows > 0
    while growing.any():
        load = np.zeros(len(capacity))
        used = np.zeros(len(capacity))
        for which in np.flatnonzero(flows):
            for link in routes[which][routes[which] >= 0]:
                used[link] += flows[which] * rates[which]
                load[link] += flows[which] * growing[which]
        with np.errstate(divide="ignore", invalid="ignore"):
            steps = np.where(load > 0, (capacity - used) / load, np.inf)
        rates[growing] += steps.min()
        full = np.flatnonzero(steps <= steps.min() * (1 + 1e-12))
        for which in np.flatnonzero(growing):
            growing[which] = not np.isin(routes[which], full).any()
    return rates


@pytest.mark.parametrize("seed", range(8))
def test_rates_are_max_min_fair(seed):
    rng = np.random.default_rng(seed)
    classes, links = int(rng.integers(1, 30)), int(rng.integers(1, 12))
    net = Network(rng, classes, links)
    counts = rng.integers(0, 5, classes)
    for which, count in enumerate(counts):
        for _ in range(count):
            network.begin(which, int(rng.integers(1, 10_000)), 0)
    found = net.rates()
    assert np.allclose(found[counts > 0], fair(net.routes, net.capacity, counts)[counts > 0], rtol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_every_byte_crosses_each_link_of_its_route_once(seed):
    rng = np.random.default_rng(seed)
    net = Network(rng, 12, 6)
    sizes = rng.integers(1, 100_000, (12, 3))
    for which, each in enumerate(sizes):
        for nbytes in each:
            network.begin(which, int(nbytes), 0)
    while (due := network.due()) != c.NEVER:
        network.end_flows(due)
    wanted = [sum(int(s.sum()) for route, s in zip(net.routes, sizes) if link in route) for link in range(6)]
    assert np.allclose(net.crossed, wanted, atol=36 * net.capacity.max())  # a flow ends at a whole ns
    assert CONTROL[c.EVENTS] == 36
    assert (net.crossed <= net.capacity * CONTROL[c.NETWORK_TIME] * (1 + 1e-9)).all()


def test_a_flow_begins_after_the_latency_of_its_route():
    net = Network(np.random.default_rng(0), 1, 1)
    net.arrays[c.LATENCY][0] = 700
    CONTROL[c.NOW] = 50
    network.send(0, 1000)
    time, kind, *rest = events.pop()
    assert (time, kind, rest) == (750, c.BEGIN_FLOW, [0, 1000, 0, 0])
    network.begin(0, 1000, time)
    network.end_flows(network.due())
    time, kind, *rest = events.pop()
    assert (time, kind, rest) == (750 + int(np.ceil(1000 / net.capacity[0])), c.LAND_PUT, [0, 0, 0, 0])


def test_events_come_in_order_of_time_then_of_their_addition():
    heap = np.zeros((200, c.EVENT_WORDS), np.int64)
    CONTROL[:] = 0
    CONTROL[c.HEAP], CONTROL[c.EVENTS_MOST] = heap.ctypes.data, 200
    rng = np.random.default_rng(0)
    added = [(int(t), n) for n, t in enumerate(rng.integers(0, 40, 150))]
    for t, n in added:
        events.push(t, c.LAND_PUT, n, 1, 2, 3)
    taken = [events.pop() for _ in added]
    assert [(t, n) for t, _, n, *_ in taken] == sorted(added)
    assert {rest for _, _, _, *rest in map(tuple, taken) for rest in [tuple(rest)]} == {(1, 2, 3)}
