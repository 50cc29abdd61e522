"""Copies from a rank's MPI window to the window's mirror on its GPU. They have a wire of their own.

The copies promise as little as possible. A copy is cut into words, which are read from the window late and land in any
order, even before words of earlier copies. A flush waits for the copies of one peer. (A real CUDA stream copies in
order and waits for all.) Until the flush nothing may be put where a copy reads, and no block may read where a copy
writes. network.py checks both. Copies that fail leave an error in the wire and copy nothing.
"""

from __future__ import annotations

from ..primitives import wire
from .network import SimulatedNetwork
from .places import COPIES, WIRE, private
from .regions import WORD
from .scheduler import FLUSH
from .violation import WrongSide

FAILED = 719  # the error that a failing copy leaves in the wire: CUDA's "launch failed"


class Copies(SimulatedNetwork):
    """All copies under way. The network's tables list their words too."""

    def __init__(self, network: SimulatedNetwork) -> None:
        super().__init__(network.memory)
        self.memory.network = network
        self.flying, self.sources = network.flying, network.sources
        self.broken: set[int] = set()  # ranks whose copies fail

    def target(self, peer: int, at: int) -> int:
        return at

    def put(self, address: int, peer: int, at: int, source: int, nbytes: int) -> None:
        rank, name = self.memory.rank, self.memory.name
        if rank in self.broken:
            self.memory.value[address + WORD * wire.ERROR] = FAILED
            return
        if at != self.memory.regions.mirrored(source):
            raise WrongSide(f"{self.sched.me.name} copies {name(source)} to {name(at)}, which is not its mirror")
        super().put(address, peer, at, source, nbytes)

    def flush(self, address: int, peer: int) -> None:
        """Wait until all copies of `peer`'s data have landed."""
        self.check_caller(address)
        self.sched.switch(FLUSH, address)
        while any(p.put.wire == address and p.put.peer == peer for p in self.moving.values()):
            self.sched.wait_for({self.key(self.memory.rank): 0}, f"waits for its copies of rank {peer}")
        self._settle(address, peer)

    def key(self, rank: int) -> int:
        return super().key(rank) - WORD * COPIES

    def check_caller(self, address: int) -> None:
        """Raise unless this actor is the proxy that owns the wire."""
        memory = self.memory
        assert memory.reach is not None
        if address != private(memory.rank, WIRE, COPIES) or memory.me not in memory.reach.hosts:
            raise WrongSide(f"{self.sched.me.name} uses a wire for copies that only its rank's proxy may use")
