"""Networks of a known shape, each with a deterministic routing: fat tree, dragonfly and torus.

Nodes have numbers from 0, and a job of n nodes has the first n. Links are in pairs, one for each direction. rate: GB/s
of a link in each direction, for each level from the nodes up; the last number is that of all further levels. latency:
us of a route beside its links. hop: us of each link.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from ..errors import InputError
from .routes import Routes, pairs, through
from .values import MOST_LINKS, by_level, check_count, check_counts, check_number

MOST_HOPS = 1 << 27  # links of all routes together


@dataclass(frozen=True)
class FatTree:
    """A fat tree whose parallel ways up are chosen by the target: D-mod-k routing (Zahavi 2010).

    down: how many children a switch has, for each level, lowest first. up: how many parents a node has, and then a
    switch of each level below the highest. cables: how many parallel links join a child and a parent, for each level;
    empty: one.
    """

    down: tuple[int, ...]
    up: tuple[int, ...]
    rate: tuple[float, ...]
    cables: tuple[int, ...] = ()
    latency: float = 0.0
    hop: float = 0.0

    def __post_init__(self) -> None:
        check_counts("down", self.down)
        check_counts("up", self.up, len(self.down))
        if self.cables:
            check_counts("cables", self.cables, len(self.down))
        links = sum(2 * self._children(level) * self._ports(level) for level in range(len(self.down)))
        _check(self.rate, len(self.down), self.latency, self.hop, links)

    @property
    def nodes(self) -> int:
        return prod(self.down)

    def _children(self, level: int) -> int:
        """How many nodes (level 0), or switches of a level, the network has."""
        return prod(self.up[:level]) * prod(self.down[level:])

    def _ports(self, level: int) -> int:
        """How many links up each node (level 0), or each switch of a level, has."""
        return self.up[level] * (self.cables[level] if self.cables else 1)

    def routes(self, nodes: int) -> Routes:
        """The routes between the first `nodes` nodes."""
        source, target = pairs(nodes, self.nodes, "the fat tree")
        rates = by_level("rate", self.rate, len(self.down))
        names: list[str] = []
        capacity: list[float] = []
        upward, downward = [], []
        below = wide = 1  # nodes below a switch of this level; switches of this level with the same nodes below them
        chosen, left = np.zeros_like(target), target
        for level, (down, up) in enumerate(zip(self.down, self.up)):
            ports, first = self._ports(level), len(names)
            port, cables = left % ports, ports // up
            climbs = source // below != target // below
            out = (chosen + wide * (source // below)) * ports + port
            into = (chosen + wide * (target // below)) * ports + port % up + up * (source % cables)
            upward.append(np.where(climbs, first + 2 * out, -1))
            downward.append(np.where(climbs, first + 2 * into + 1, -1))
            for child in range(self._children(level)):
                who = f"switch {level}.{child}" if level else f"node {child}"
                for each in range(ports):
                    names += [f"{who} {way}{f' {each}' if ports > 1 else ''}" for way in ("out", "in")]
            capacity += [rates[level]] * (len(names) - first)
            chosen, left = chosen + wide * (port % up), left // ports
            below, wide = below * down, wide * up
        hops = np.stack([*upward, *reversed(downward)], axis=1)
        return Routes.from_hops(nodes, hops, names, capacity, _latency(hops, self.latency, self.hop))


@dataclass(frozen=True)
class Dragonfly:
    """Groups of switches, in which each switch has a link to each other switch of its group; minimal routing.

    groups: how many groups there are. switches: switches of a group. nodes_each: nodes of a switch. between: links from
    a group to each other group; the switches of the group have these links in turn. A route takes link (source +
    target) mod `between`. rate: of links of nodes, between the switches of a group, and between groups.
    """

    groups: int
    switches: int
    nodes_each: int
    rate: tuple[float, ...]
    between: int = 1
    latency: float = 0.0
    hop: float = 0.0

    def __post_init__(self) -> None:
        for field in ("groups", "switches", "nodes_each", "between"):
            check_count(field, getattr(self, field))
        _check(self.rate, 3, self.latency, self.hop, sum(self._counts))

    @property
    def nodes(self) -> int:
        return self.groups * self.switches * self.nodes_each

    @property
    def _counts(self) -> tuple[int, int, int]:
        """The numbers of links: of nodes, inside groups, and between groups.

        Links from a switch or group to itself are counted too.
        """
        return 2 * self.nodes, self.groups * self.switches**2, self.groups**2 * self.between

    def routes(self, nodes: int) -> Routes:
        """The routes between the first `nodes` nodes."""
        source, target = pairs(nodes, self.nodes, "the dragonfly")
        groups, switches, between = self.groups, self.switches, self.between
        at, to = source // self.nodes_each % switches, target // self.nodes_each % switches
        group, other = (each // (self.nodes_each * switches) for each in (source, target))
        far, cable = group != other, (source + target) % between
        leaves = np.where(
            far, (other * between + cable) % switches, to
        )  # the switch by which the route leaves the group
        enters = np.where(far, (group * between + cable) % switches, to)
        inside, beyond = self._counts[0], sum(self._counts[:2])
        first = inside + (group * switches + at) * switches + leaves
        last = inside + (other * switches + enters) * switches + to
        hops = through(
            source,
            target,
            np.where(at != leaves, first, -1),
            np.where(far, beyond + (group * groups + other) * between + cable, -1),
            np.where(enters != to, last, -1),
        )
        every = range(groups), range(switches), range(between)
        names = [f"node {node} {way}" for node in range(self.nodes) for way in ("out", "in")]
        names += [f"group {g} switch {a} to {b}" for g in every[0] for a in every[1] for b in every[1]]
        names += [f"group {g} to {h} link {m}" for g in every[0] for h in every[0] for m in every[2]]
        rates = by_level("rate", self.rate, 3)
        capacity = [rate for rate, count in zip(rates, self._counts) for _ in range(count)]
        return Routes.from_hops(nodes, hops, names, capacity, _latency(hops, self.latency, self.hop))


@dataclass(frozen=True)
class Torus:
    """A torus, in which a node has a link to each of its two neighbours on each axis; dimension-order routing.

    size: nodes on each axis; numbers of nodes count along the first axis first. A route takes the shorter way round
    each axis. If both ways are equal, the route goes upward, except from the middle node of the axis. A node has no
    other links, so it can send on all axes at once.
    """

    size: tuple[int, ...]
    rate: tuple[float, ...]
    latency: float = 0.0
    hop: float = 0.0

    def __post_init__(self) -> None:
        check_counts("torus", self.size)
        _check(self.rate, len(self.size), self.latency, self.hop, 2 * len(self.size) * self.nodes)

    @property
    def nodes(self) -> int:
        return prod(self.size)

    def routes(self, nodes: int) -> Routes:
        """The routes between the first `nodes` nodes."""
        source, target = pairs(nodes, self.nodes, "the torus")
        rates = by_level("rate", self.rate, len(self.size))
        axes, here, stride = len(self.size), source, 1
        columns: list[np.ndarray] = []
        for axis, size in enumerate(self.size):
            start, ahead = source // stride % size, (target // stride - source // stride) % size
            upward = (2 * ahead < size) | ((2 * ahead == size) & (start != size // 2))
            steps = np.where(upward, ahead, size - ahead)
            longest = len(columns) + int(steps.max(initial=0))
            if longest * len(source) > MOST_HOPS:
                raise InputError(
                    f"routes of up to {longest} links between {nodes} nodes are too long to simulate: lower --nodes"
                )
            for step in range(longest - len(columns)):
                goes, place = step < steps, here // stride % size
                columns.append(np.where(goes, 2 * (here * axes + axis) + ~upward, -1))
                following = (place + np.where(upward, 1, -1)) % size
                here = np.where(goes, here + (following - place) * stride, here)
            stride *= size
        hops = np.stack(columns, axis=1) if columns else np.full((len(source), 1), -1)
        names, capacity = [], []
        for node in range(self.nodes):
            for axis in range(axes):
                names += [f"node {node} axis {axis} {way}" for way in ("up", "down")]
                capacity += [rates[axis]] * 2
        return Routes.from_hops(nodes, hops, names, capacity, _latency(hops, self.latency, self.hop))


def _check(rate: tuple[float, ...], levels: int, latency: float, hop: float, links: int) -> None:
    """Raise InputError for wrong rates or latencies, or for too many links."""
    by_level("rate", rate, levels)
    check_number("latency", latency)
    check_number("hop", hop)
    if links > MOST_LINKS:
        raise InputError(f"a network must have at most {MOST_LINKS} links, got {links}")


def _latency(hops: np.ndarray, latency: float, hop: float) -> np.ndarray:
    """[classes] us of each route; 0 from a node to itself."""
    links = (hops >= 0).sum(axis=1)
    return np.asarray(np.where(links > 0, latency + hop * links, 0.0))
