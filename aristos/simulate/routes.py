"""The links between nodes and the route of each ordered pair of nodes, as arrays for compiled code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .machine import Links


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
    def flat(cls, nodes: int, links: Links) -> Routes:
        """Every node has one link into and one link out of a network that is never full."""
        pairs = [(a, b) for a in range(nodes) for b in range(nodes)]
        routes = np.array([[2 * a, 2 * b + 1] if a != b else [-1, -1] for a, b in pairs], np.int64).reshape(-1, 2)
        names = [f"node {a} {way}" for a in range(nodes) for way in ("out", "in")]
        latency = np.full(nodes * nodes, round(1e3 * links.latency), np.int64)
        return cls(nodes, names, np.full(2 * nodes, links.rate), routes, latency)

    def by_link(self) -> tuple[np.ndarray, np.ndarray]:
        """The classes of each link: (where a link's classes start in the second array, the classes of all links)."""
        members: list[list[int]] = [[] for _ in self.names]
        for which, route in enumerate(self.routes.tolist()):
            for link in route:
                if link >= 0:
                    members[link].append(which)
        starts = np.concatenate([[0], np.cumsum([len(m) for m in members])]).astype(np.int64)
        flat = [which for m in members for which in m]
        return starts, np.array(flat or [0], np.int64)
