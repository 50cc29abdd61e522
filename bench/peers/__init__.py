"""The layers that are compared.

Every peer does the same job: tokens x with ids and weights routed from outside, expert-parallel over the ranks of one
communicator, without padding or drops, on one thread per rank. A peer keeps its weights and buffers between calls and
writes into an output that it owns. rounds.py times and checks all peers alike. All compute in float32, but for those
whose title says bfloat16: their inputs and weights are rounded before the clock starts, and their bound on errors is
wider.
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


FLOAT32_BOUND, BFLOAT16_BOUND = 1e-5, 3e-2


@dataclass(frozen=True)
class Entry:
    """A peer: its name on the command line, its title in tables, and the module and name of its factory.

    bound: relative to the float64 reference; an output beyond it is wrong, and its peer is not timed.
    """

    name: str
    title: str
    module: str
    factory: str
    bound: float = FLOAT32_BOUND

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
        Entry("bf16", "Aristos fused, bfloat16", "peers.aristos_layer", "fused_bfloat16", BFLOAT16_BOUND),
        Entry("bf16-bulk", "Aristos bulk, bfloat16", "peers.aristos_layer", "bulk_bfloat16", BFLOAT16_BOUND),
        Entry("torch-loop", "torch gloo, loop", "peers.torch_gloo", "TorchLoop"),
        Entry("torch-grouped", "torch gloo, grouped_mm", "peers.torch_gloo", "TorchGrouped"),
    )
}
