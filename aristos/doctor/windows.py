"""Checks that shared windows work: a rank reads in a peer's memory what the peer stored there."""

from __future__ import annotations

import ctypes

from ..host.nodes import Nodes
from .finding import Finding, fail, named, ok
from .ranks import Ranks

BYTES = 4096
NAME = "shared windows"


def shared(ranks: Ranks) -> Finding:
    """Allocate a window, store, and read from every peer of the node. Collective."""
    here = [rank for rank in range(ranks.size) if ranks.nodes.node_of[rank] == ranks.nodes.node_of[ranks.rank]]
    error, wrong = "", []
    if len(here) > 1:
        try:
            wrong = _unseen(ranks, here)
        except Exception as why:
            error = f"{type(why).__name__}: {why}"
    results = ranks.allgather((error, wrong), "shared windows")
    return judged([error for error, _ in results], [wrong for _, wrong in results], ranks.nodes)


def _unseen(ranks: Ranks, here: list[int]) -> list[int]:
    """Peers whose stored word is not seen. Every rank stores its number plus one."""
    from ..transport.shm import ShmWindow

    with ranks.bounded("the other ranks of its node (MPI_Win_allocate_shared)"):
        window = ShmWindow(ranks.node, BYTES)
        ctypes.c_int64.from_address(window.base[ranks.node.rank]).value = ranks.rank + 1
        ranks.node.Barrier()
        seen = [ctypes.c_int64.from_address(base).value for base in window.base]
        ranks.node.Barrier()
        window.close()
    return [rank for rank, value in zip(here, seen) if value != rank + 1]


def judged(errors: list[str], wrong: list[list[int]], nodes: Nodes) -> Finding:
    """Judge the ranks' results. errors: [ranks] exceptions, or ''; wrong: [ranks] peers whose stores were not seen."""
    remedy = (
        "check that /dev/shm is large enough (see its line) and is shared by all ranks of a node (containers:"
        " --ipc=host)"
    )
    failed = [rank for rank, error in enumerate(errors) if error]
    blind = [rank for rank, peers in enumerate(wrong) if peers]
    if failed:
        return fail(NAME, f"{named(failed)}: {errors[failed[0]]}", remedy)
    if blind:
        return fail(NAME, f"{named(blind)} cannot see what {named(wrong[blind[0]])} stored", remedy)
    pairs = sum(len(nodes.local(rank)) for rank in range(len(nodes.node_of)))
    if not pairs:
        return ok(NAME, "not tried: no two ranks share a node", pairs=0)
    return ok(NAME, f"every rank sees the stores of the other ranks of its node ({pairs} ordered pairs)", pairs=pairs)
