"""A machine as a simulation sees it: costs of steps, rates of kernels and copies, and the network between nodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from .routes import Routes, pairs, through


@dataclass(frozen=True)
class Costs:
    """What a worker's operations cost, in ns unless stated otherwise."""

    load: float = 1  # a load or store of a word of its own rank
    acquire: float = 2  # a load of a word that others write
    atomic: float = 8
    pause: float = 15  # a spin-wait hint of the core
    clock: float = 20
    decide: float = 60  # a decision, which reads the tables of the state
    peer: float = 8  # what each rank adds to a decision
    publish: float = 60  # the end of a command
    pack_pair: float = 12  # sorting one (token, choice) pair
    route_token: float = 12
    copy_row: float = 20  # the copy of a row, whatever its size
    copy_kib: float = 130  # each KiB of a copied row
    combine_token: float = 30  # combining a token, whatever its rows
    combine_kib: float = 130  # each KiB of a combined token's rows
    put: float = 300  # a put to another node, for the worker that makes it
    flush: float = 300
    progress: float = 150  # a call of the wire that only makes progress
    local: float = 100  # until a local peer sees a word
    local_kib: float = 0  # each KiB that such a word announces
    call: float = 17_000  # a call, outside of the engine's loop
    collective: float = 45_000  # a collective of the bulk schedule, on each rank
    collective_kib: float = 100  # each KiB that such a collective copies within a node


@dataclass(frozen=True)
class Kernel:
    """The expert kernel. call: ns that a run takes beside its rows. rates: a run's number of rows -> its GFLOP/s."""

    call: float = 500.0
    rates: dict[int, float] = field(default_factory=lambda: {1: 8.0, 8: 50.0, 48: 250.0, 384: 400.0})

    @property
    def reading_rows(self) -> int:
        """The number of rows that the longest known run computes in the time of the shortest known run.

        The shortest run takes the time of reading the weights.
        """
        known = sorted(self.rates)
        return max(1, round(known[0] / self.rates[known[0]] * self.rates[known[-1]]))

    def table(self, most: int) -> np.ndarray:
        """[most + 1] float64: ns for each million operations of a run. The index is the run's number of rows.

        The time of a run is linear between known numbers of rows. Longer runs have the rate of the longest known one,
        and shorter ones take as long as the shortest.
        """
        known, rows = np.array(sorted(self.rates)), np.arange(most + 1)
        took = np.interp(rows, known, [n / self.rates[n] for n in known.tolist()])
        took = np.maximum(took, rows / self.rates[int(known[-1])] * (rows > known[-1]))
        return 1e6 * took / np.maximum(1, rows)


class Network(Protocol):
    """The network between nodes: `Links`, or one of topologies.py, trees.py and measured.py."""

    def routes(self, nodes: int) -> Routes:
        """The links and routes between the first `nodes` nodes. Raises InputError if the network has fewer."""
        ...


@dataclass(frozen=True)
class Links:
    """A flat network: each node has one link out and one link in, and the network between them is never full.

    latency: us from node to node. rate: GB/s of a node's link, in each direction.
    """

    latency: float = 2.0
    rate: float = 10.0

    def routes(self, nodes: int) -> Routes:
        source, target = pairs(nodes, nodes, "the network")
        hops = through(source, target)
        names = [f"node {node} {way}" for node in range(nodes) for way in ("out", "in")]
        return Routes.from_hops(nodes, hops, names, [self.rate] * len(names), np.full(len(source), self.latency))


@dataclass(frozen=True)
class Machine:
    """A machine, as a simulation sees it.

    links: the network between its nodes. speeds: rank -> its speed in kernels, copies and combining, as a share of what
    `kernel` and `costs` say. Other ranks have 1.
    """

    costs: Costs = field(default_factory=Costs)
    kernel: Kernel = field(default_factory=Kernel)
    links: Network = field(default_factory=Links)
    speeds: dict[int, float] = field(default_factory=dict)
