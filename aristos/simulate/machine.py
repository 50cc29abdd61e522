"""A machine as a simulation sees it: costs of steps, rates of kernels and copies, and the network between nodes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Costs:
    """What a worker's operations cost, in ns unless stated otherwise.

    decide, peer: a decision, and what each rank adds to it. copy_row, copy_kib: the copy of a row, and what each KiB
    adds to it. combine_number: combining one number of a row. local, local_kib: the time until a local peer sees a
    word, and what each KiB that the word announces adds to it.
    """

    load: float = 1
    acquire: float = 2
    atomic: float = 8
    pause: float = 15
    clock: float = 20
    decide: float = 60
    peer: float = 8
    publish: float = 60
    pack_pair: float = 12
    route_token: float = 40
    copy_row: float = 20
    copy_kib: float = 100
    combine_number: float = 0.15
    put: float = 300
    flush: float = 300
    progress: float = 150
    local: float = 100
    local_kib: float = 0


@dataclass(frozen=True)
class Kernel:
    """The expert kernel. call: ns that a run takes beside its rows. rates: a run's number of rows -> its GFLOP/s."""

    call: float = 500.0
    rates: dict[int, float] = field(default_factory=lambda: {1: 8.0, 8: 50.0, 48: 250.0, 384: 400.0})

    def table(self, most: int) -> np.ndarray:
        """[most + 1] float64: ns for each million operations of a run, by its number of rows.

        The time of a run is linear between known numbers of rows. Longer runs have the rate of the longest known one,
        and shorter ones take as long as the shortest.
        """
        known, rows = np.array(sorted(self.rates)), np.arange(most + 1)
        took = np.interp(rows, known, [n / self.rates[n] for n in known.tolist()])
        took = np.maximum(took, rows / self.rates[int(known[-1])] * (rows > known[-1]))
        return 1e6 * took / np.maximum(1, rows)


@dataclass(frozen=True)
class Links:
    """The network between nodes. latency: us from node to node. rate: GB/s of a node's link, in each direction."""

    latency: float = 2.0
    rate: float = 10.0


@dataclass(frozen=True)
class Machine:
    """A machine, as a simulation sees it."""

    costs: Costs = field(default_factory=Costs)
    kernel: Kernel = field(default_factory=Kernel)
    links: Links = field(default_factory=Links)
