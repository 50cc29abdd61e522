"""The links of a network and the route of each ordered pair of nodes, as arrays for compiled code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError

LARGEST = 1e9  # the most GB/s and us


@dataclass(frozen=True)
class Routes:
    """Links and routes. A class of flows is an ordered pair of nodes, number source * nodes + target.

    names: of the links. capacity: [links] float64, bytes/ns. routes: [classes, most] links, -1: no more. latency:
    [classes] ns.
    """

    nodes: int
    names: list[str]
    capacity: np.ndarray
    routes: np.ndarray
    latency: np.ndarray

    @classmethod
    def from_hops(
        cls, nodes: int, hops: np.ndarray, names: Sequence[str], capacity: Sequence[float], latency: np.ndarray
    ) -> Routes:
        """Routes with only the links that they use, which are numbered again.

        hops: [classes, any] the links of each route in order, and -1 at any place where the route has none. names,
        capacity: of all links; bytes/ns. latency: [classes] us. Raises InputError for rates and latencies out of range.
        """
        order = np.argsort(hops < 0, axis=1, kind="stable")
        hops = np.take_along_axis(hops, order, axis=1)
        most = max(1, int((hops >= 0).sum(axis=1).max(initial=0)))
        hops = hops[:, :most] if hops.shape[1] else np.full((len(hops), 1), -1, np.int64)
        used = np.unique(hops[hops >= 0])
        routes = np.where(hops >= 0, np.searchsorted(used, hops), -1).astype(np.int64)
        numbers = used.tolist()
        rates = np.array([capacity[link] for link in numbers], np.float64)
        if not ((rates >= 1 / LARGEST) & (rates <= LARGEST)).all():
            got = f"{rates.min():g} to {rates.max():g}"
            raise InputError(f"rates of links must be from {1 / LARGEST:g} to {LARGEST:g} GB/s, got {got}")
        if not (latency <= LARGEST).all():
            raise InputError(f"latencies must be at most {LARGEST:g} us, got {latency.max():g}")
        return cls(
            nodes,
            [names[link] for link in numbers],
            rates,
            np.ascontiguousarray(routes),
            np.rint(1e3 * latency).astype(np.int64),
        )

    @property
    def least_latency(self) -> float:
        """ns between the two nodes that are closest, and at most a second."""
        between = self.latency.reshape(self.nodes, self.nodes)[~np.eye(self.nodes, dtype=bool)]
        return float(between.min(initial=10**9))

    def by_link(self) -> tuple[np.ndarray, np.ndarray]:
        """The classes of each link: (where a link's classes start in the second array, the classes of all links)."""
        which, place = np.nonzero(self.routes >= 0)
        links = self.routes[which, place]
        order = np.argsort(links, kind="stable")
        counts = np.bincount(links, minlength=len(self.names))
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return starts, np.ascontiguousarray(which[order]) if len(order) else np.array([0], np.int64)


def through(source: np.ndarray, target: np.ndarray, *between: np.ndarray) -> np.ndarray:
    """[classes, any] routes over the source's link out (number 2 * source), the target's link in, and links between.

    A route from a node to itself has neither of the node's links.
    """
    different = source != target
    return np.stack([np.where(different, 2 * source, -1), *between, np.where(different, 2 * target + 1, -1)], axis=1)


def pairs(nodes: int, most: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """(source, target) of each class. Raises InputError if there are more nodes than the network has.

    most: how many nodes the network has. what: its name.
    """
    if nodes > most:
        raise InputError(f"{what} has {most} nodes, and {nodes} are asked for: lower --nodes, or describe a larger one")
    every = np.arange(nodes)
    return np.repeat(every, nodes), np.tile(every, nodes)
