"""Networks in which the rate and the latency of each pair of nodes are known: measured links, or the planner's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..planner.cost import links_to
from ..planner.problem import Problem
from ..topology.links import Links, Span
from .routes import Routes, pairs, through
from .trees import rate_of


@dataclass(frozen=True)
class KnownPairs:
    """Each node has one link out and one in. A pair that is slower than these links has a third link of its own.

    rate: [nodes, nodes] GB/s from a source to a target. latency: [nodes, nodes] us. out, into: [nodes] GB/s of a node.
    """

    rate: np.ndarray
    latency: np.ndarray
    out: np.ndarray
    into: np.ndarray

    @classmethod
    def of_links(cls, links: Links) -> KnownPairs:
        """From a file of `aristos topo --measure`. A node is a host.

        The rate of a pair is that of its fastest ranks' large puts. The links of a node have the rate of its fastest
        pair, or, if it is more, the sum of its ranks' rates when all put at once. The latency is half of the time that
        a small put and its flush take. Raises InputError if a figure is unknown.
        """
        hosts = list(dict.fromkeys(links.hosts))
        node = np.array([hosts.index(host) for host in links.hosts])
        count = len(hosts)
        between = node[:, None] != node[None, :]
        rank_rate = _rates(links.large, between, "large")
        alpha = _known(links.small.alpha_us, between, "alpha_us of small")
        rate, latency = np.zeros((count, count)), np.full((count, count), np.inf)
        at = node[:, None] * count + node[None, :]
        np.maximum.at(rate.ravel(), at[between], rank_rate[between])
        np.minimum.at(latency.ravel(), at[between], alpha[between] / 2)
        np.fill_diagonal(latency, 0.0)
        out, into = rate.max(axis=1), rate.max(axis=0)
        if links.contended is not None and count > 1:
            together = _rates(links.contended, between, "contended")
            peers = np.maximum(1, between.sum(axis=1))
            out = np.maximum(out, np.bincount(node, together.sum(axis=1) / peers, count))
            into = np.maximum(into, np.bincount(node, together.sum(axis=0) / peers, count))
        return cls(rate, latency, out, into)

    @classmethod
    def of_problem(cls, problem: Problem, devices: Sequence[int]) -> KnownPairs:
        """From some devices of a planner's problem. Each device is a node, with the rate of its fastest pair."""
        members, count = np.array(devices), len(devices)
        rate, latency = np.zeros((count, count)), np.zeros((count, count))
        for node, device in enumerate(devices):
            others = np.flatnonzero(np.arange(count) != node)
            latency[node, others], beta = links_to(problem, device, members[others]).T
            rate[node, others] = [rate_of(value) for value in beta.tolist()]
        return cls(rate, latency, rate.max(axis=1), rate.max(axis=0))

    def routes(self, nodes: int) -> Routes:
        """The routes between the first `nodes` nodes."""
        source, target = pairs(nodes, len(self.rate), "the network")
        rate = self.rate[source, target]
        slower = (source != target) & (rate < np.minimum(self.out[source], self.into[target]))
        hops = through(source, target, np.where(slower, 2 * nodes + source * nodes + target, -1))
        names = [f"node {node} {way}" for node in range(nodes) for way in ("out", "in")]
        names += [f"node {a} to {b}" for a in range(nodes) for b in range(nodes)]
        capacity = [*np.stack([self.out[:nodes], self.into[:nodes]], axis=1).ravel(), *rate]
        return Routes.from_hops(nodes, hops, names, capacity, self.latency[source, target])


def _known(rows: list[list[float | None]], wanted: np.ndarray, what: str) -> np.ndarray:
    """[ranks, ranks] float64 of rows that may hold null. Raises InputError if a wanted value is null."""
    found = np.array([[np.nan if value is None else value for value in row] for row in rows], np.float64)
    if np.isnan(found[wanted]).any():
        a, b = np.argwhere(wanted & np.isnan(found))[0].tolist()
        raise InputError(f"{what} puts from rank {a} to rank {b} is unknown: measure again on all ranks")
    return found


def _rates(span: Span, wanted: np.ndarray, what: str) -> np.ndarray:
    """[ranks, ranks] GB/s of a span, 0 where it is not wanted."""
    beta = _known(span.beta_us_per_mib, wanted, f"beta_us_per_mib of {what}")
    found = np.zeros_like(beta)
    found[wanted] = [rate_of(value) for value in beta[wanted].tolist()]
    return found
