"""The registry of layers that are compared: a name, a class, and when it cannot run here, why.

Every peer does the same user-visible job: tokens x with ids and weights routed from outside, expert-parallel over the
ranks of one communicator, in float32, without padding and without drops, on one thread a rank. A peer keeps its
weights and buffers between calls and writes into an output it owns. This room refuses to time or to check anything:
rounds.py does, in the same way for all.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Protocol

from jobs import Floats, Ints, Job


class Absent(Exception):
    """The peer cannot run on this machine; the message says why and is shown in the table."""


class Peer(Protocol):
    """One layer, ready to be called by all ranks together."""

    def __call__(self, x: Floats, ids: Ints, weights: Floats) -> Floats:
        """x: [S, H], ids: [S, k], weights: [S, k] -> y: [S, H], valid until the next call."""

    def close(self) -> None:
        """Give back what the peer holds; collective."""


@dataclass(frozen=True)
class Entry:
    """How a peer is called on the command line (name) and in tables (title), and where it is made."""

    name: str
    title: str
    module: str
    factory: str

    def make(self, comm: Any, job: Job) -> Peer:
        """Collective. Raises Absent on every rank alike."""
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
