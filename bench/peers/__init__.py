"""The layers that are compared.

Every peer does the same job: tokens x with ids and weights routed from outside, expert-parallel over the ranks of one
communicator, in float32, without padding or drops, on one thread per rank. A peer keeps its weights and buffers between
calls and writes into an output that it owns. rounds.py times and checks all peers alike.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Protocol

from jobs import Floats, Ints, Job


class Absent(Exception):
    """The peer cannot run on this machine; the message gives the reason and is shown on the page."""


class Peer(Protocol):
    """One layer, called by all ranks together."""

    def __call__(self, x: Floats, ids: Ints, weights: Floats) -> Floats:
        """x: [S, H], ids: [S, k], weights: [S, k] -> y: [S, H], valid until the next call."""

    def close(self) -> None:
        """Free the peer's resources. Collective."""


@dataclass(frozen=True)
class Entry:
    """A peer: its name on the command line, its title in tables, and the module and name of its factory."""

    name: str
    title: str
    module: str
    factory: str

    def make(self, comm: Any, job: Job) -> Peer:
        """Make the peer. Raises Absent on every rank if it cannot run. Collective."""
        peer: Peer = getattr(importlib.import_module(self.module), self.factory)(comm, job)
        return peer


ENTRIES = {
    entry.name: entry
    for entry in (
        Entry("fused", "Aristos fused", "peers.aristos_layer", "fused"),
        Entry("bulk", "Aristos bulk", "peers.aristos_layer", "bulk"),
        Entry("numpy", "Alltoallv + NumPy", "peers.alltoallv_numpy", "AlltoallvNumPy"),
        Entry("torch-loop", "torch gloo, loop", "peers.torch_gloo", "TorchLoop"),
        Entry("torch-grouped", "torch gloo, grouped_mm", "peers.torch_gloo", "TorchGrouped"),
    )
}
