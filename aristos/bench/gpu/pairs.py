"""Pairs of GPUs of a node for `put` and `signal`: rank 0 with each other rank, one pair after another.

Both ranks of a pair have memory that the GPU of the other one stores into, by CUDA IPC. All other ranks wait.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...transport.ipc import IpcWindow
from ..links import survey
from .clock import BenchGpu


def link_names(world: Any) -> list[str]:
    """The class of the link from rank 0 to each rank, as `aristos topo` names it. Collective."""
    from ...topology.table import link_class

    topology, places = survey(world)
    return [
        str(link_class(topology, places[0].end, place.end)) if rank else "self" for rank, place in enumerate(places)
    ]


@dataclass
class Pair:
    """This rank's place in a pair.

    peer: the rank of the pair that is not 0. side: 0 on rank 0, 1 on the peer, None on a rank that waits. link: the
    class of the pair's link.

    own, theirs: addresses of this rank's memory and of the other rank's memory, on this GPU.
    """

    peer: int
    side: int | None
    link: str
    own: int = 0
    theirs: int = 0


def pairs(gpu: BenchGpu, nbytes: int) -> Iterator[Pair]:
    """Every pair in turn, with `nbytes` of zeroed memory on each rank. Collective; for ranks of one node."""
    world = gpu.world
    window = IpcWindow(world.comm, gpu.device, nbytes)
    try:
        for peer, link in enumerate(link_names(world)):
            if peer:
                ranks = (0, peer)
                side = ranks.index(world.rank) if world.rank in ranks else None
                found = Pair(peer, side, link)
                if side is not None:
                    found.own, found.theirs = window.base[world.rank], window.base[ranks[1 - side]]
                    gpu.device.clear(found.own, nbytes, gpu.stream)
                    gpu.device.synchronize(gpu.stream)
                world.barrier()
                yield found
                world.barrier()
    finally:
        gpu.device.synchronize(gpu.stream)
        window.close()
