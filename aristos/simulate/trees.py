"""Networks that are trees of switches, as Slurm and the planner describe them.

A route goes up from its source to the first switch that is also above its target, and down from there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import lcm

import numpy as np

from ..errors import InputError
from ..planner.tree import Switch, Tree
from ..topology.links import MIB
from ..topology.network import Network
from .routes import Routes, pairs
from .values import by_level, check_number

MOST_LEVELS = 64
MOST_WAYS = 64  # the most ways up from a node that are tried until the ways of both nodes meet


@dataclass(frozen=True)
class Step:
    """A link up to a switch, and the link down from it. name: the links' name. rate: GB/s in each direction. latency:
    us from the node to the switch."""

    switch: str | int
    name: str
    rate: float
    latency: float


Way = Callable[[int, int], Sequence[Step]]  # way(node, number): the steps up from the node on its way with this number


@dataclass(frozen=True)
class SlurmTree:
    """The switches or blocks of Slurm's topology.conf.

    All links between a switch and one switch above it count as one link in each direction. If a switch is below several
    switches, the number of the target node chooses one of them.

    network: as `aristos.topology` reads it. names: the nodes of the job, in order. rate: GB/s of a node's link, then
    of the links above. latency: us that each route has in addition to its hops. hop: us of each link.
    """

    network: Network
    names: tuple[str, ...]
    rate: tuple[float, ...]
    latency: float = 0.0
    hop: float = 0.0

    def __post_init__(self) -> None:
        if self.network.kind not in ("tree", "block"):
            raise InputError(f"the file must have switches or blocks, got a network of kind {self.network.kind!r}")
        by_level("rate", self.rate, MOST_LEVELS)
        check_number("latency", self.latency)
        check_number("hop", self.hop)
        parents, nodes = self.network.parents, self.network.nodes
        if missing := [name for name in self.names if name not in nodes]:
            raise InputError(f"node {missing[0]!r} is below no switch of the file")
        above = {switch for switches in parents.values() for switch in switches}
        for name, switches in parents.items():
            if name not in nodes and name not in above:
                raise InputError(f"switch {name!r} is below {switches[0]!r}, but no line says what is below {name!r}")

    def routes(self, nodes: int) -> Routes:
        """The routes between the first `nodes` nodes."""
        rates = by_level("rate", self.rate, MOST_LEVELS)
        parents = self.network.parents
        ways = min(MOST_WAYS, lcm(*{len(above) for above in parents.values()} or {1}))

        @cache
        def way(node: int, number: int) -> list[Step]:
            steps: list[Step] = []
            name = self.names[node]
            while above := parents.get(name):
                switch, level = above[number % len(above)], len(steps)
                if level == MOST_LEVELS:
                    raise InputError(f"node {self.names[node]!r} is below more than {MOST_LEVELS} levels of switches")
                latency = self.latency / 2 + self.hop * (level + 1)
                steps.append(Step(switch, f"{name} to {switch}", rates[level], latency))
                name = switch
            return steps

        return meet(nodes, self.names, lambda node, number: way(node, number % ways), ways)


@dataclass(frozen=True)
class PlannerTree:
    """The planner's cluster. A node is a lowest switch with the devices below it.

    Each device has a link of its own to each switch above it, as in the planner's Equation 1. The links of a node's
    devices are simulated as one link with the sum of their rates.
    """

    tree: Tree

    def routes(self, nodes: int) -> Routes:
        """The routes between the first `nodes` nodes."""
        lowest = [int(column[column >= 0][-1]) for column in self.tree.up.T]
        first = {switch: device for device, switch in reversed(list(enumerate(lowest)))}
        devices = Counter(lowest)
        order = sorted(first, key=first.__getitem__)
        ways = [self._up(node, first[own], devices[own]) for node, own in enumerate(order)]
        return meet(nodes, [f"node {node}" for node in range(len(order))], lambda node, _: ways[node], 1)

    def _up(self, node: int, device: int, devices: int) -> list[Step]:
        """The steps up from a node. device: the node's first device. devices: how many devices the node has."""
        above = [int(switch) for switch in self.tree.up[::-1, device] if switch >= 0]
        if not any(isinstance(child, Switch) for _, child in self.tree.switches[above[0]].children):
            del above[0]  # the node itself
        found = []
        for level, number in enumerate(above):
            switch = self.tree.switches[number]
            name = f"node {node} level {level}" if level else f"node {node}"
            found.append(Step(number, name, devices * rate_of(switch.beta_us_per_mib), switch.alpha_us / 2))
        return found


def rate_of(beta_us_per_mib: float) -> float:
    """GB/s of a link that takes beta_us_per_mib for each MiB. Raises InputError for 0."""
    if beta_us_per_mib <= 0:
        raise InputError(f"beta_us_per_mib must be positive for a simulation, got {beta_us_per_mib!r}")
    return MIB / (1e3 * beta_us_per_mib)


def meet(nodes: int, names: Sequence[str], way: Way, ways: int) -> Routes:
    """The routes between the first `nodes` of the nodes with these names.

    ways: how many different ways up a node has. The target's number chooses one. If the ways of both nodes do not meet,
    the next way is tried. Raises InputError if no ways meet.
    """
    sources, targets = pairs(nodes, len(names), "the network")
    numbers: dict[tuple[str, str], int] = {}
    capacity: list[float] = []
    routes: list[list[int]] = []
    latency = np.zeros(len(sources))

    def link(step: Step, direction: str) -> int:
        number = numbers.setdefault((step.name, direction), len(numbers))
        if number == len(capacity):
            capacity.append(step.rate)
        return number

    for which, (source, target) in enumerate(zip(sources.tolist(), targets.tolist())):
        if source == target:
            routes.append([])
            continue
        found = next(
            (each for n in range(ways) if (each := _met(way(source, target + n), way(target, target + n)))), None
        )
        if found is None:
            raise InputError(f"no switch is above both {names[source]!r} and {names[target]!r}")
        up, down = found
        routes.append([link(step, "out") for step in up] + [link(step, "in") for step in reversed(down)])
        latency[which] = up[-1].latency + down[-1].latency
    hops = np.full((len(routes), max(map(len, routes))), -1, np.int64)
    for route, row in zip(routes, hops):
        row[: len(route)] = route
    return Routes.from_hops(nodes, hops, [" ".join(each) for each in numbers], capacity, latency)


def _met(up: Sequence[Step], down: Sequence[Step]) -> tuple[Sequence[Step], Sequence[Step]] | None:
    """The parts of two ways up that end at the first switch common to both; None if they have none in common."""
    places = {step.switch: place for place, step in enumerate(down)}
    for place, step in enumerate(up):
        if step.switch in places:
            return up[: place + 1], down[: places[step.switch] + 1]
    return None
