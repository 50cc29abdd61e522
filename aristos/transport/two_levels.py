"""Whether two levels work here: a probe of what MPI does and does not promise.

With two levels a rank puts into the window of one rank of a node, and the other ranks of that node read there, because
all of them map the memory below the window. MPI promises only that the window's own rank sees the data. The probe puts
data, flushes it, puts a word and its complement, and lets every rank of the node check the data once it has read both
halves of the word: exactly what the engine relies on. It runs when the first layer with two levels is made.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from .group import Group
from .memfd import NodeMemory, first_problem

ROUNDS = 16
DATA = 8192  # bytes of data that a rank puts in a round
SLOT = DATA + 64  # bytes for a source: its word and complement, then its data
WINDOW = 1 << 18  # bytes of shared memory that MPI itself may need on a rank for a window
SECONDS = 5.0  # how long a rank waits for the words of a round
SUBJECT = "a probe of two levels"


def lacking(group: Group) -> str:
    """Why the ranks of a group cannot use two levels; empty if they can. Collective.

    Raises MemoryProblem on every rank if shared memory is full: some MPI libraries cannot make a window then.
    """
    if not group.nodes.consecutive:
        return "the ranks of a node are not consecutive"
    group.check_capacity(0, WINDOW, SLOT * group.world)
    memory = NodeMemory(group, SLOT * group.world, SUBJECT, small_pages=True, writable=True)
    if memory.problem:
        return memory.problem
    try:
        return _probe(group, memory)
    finally:
        memory.close()


def _probe(group: Group, memory: NodeMemory) -> str:
    """Put and check ROUNDS times. Returns the problem of the first rank that has one; empty if none has."""
    from mpi4py import MPI

    with group.together(SUBJECT):
        window = MPI.Win.Create(memory.own[: SLOT * group.world], 1, comm=group.comm)
    window.Lock_all()
    problem = ""
    for number in range(1, ROUNDS + 1):
        try:
            _put(group, window, number)
            problem = _check(group, window, memory, number)
        except MPI.Exception as error:
            problem = f"MPI cannot put into memory that ranks share: {error}"
        problem = first_problem(group.allgather(problem, SUBJECT))
        if problem:
            break
    with group.together(SUBJECT):
        window.Unlock_all()
        window.Free()
    return problem


def _value(source: int, number: int) -> int:
    return (7 * source + number) % 251


def _put(group: Group, window: Any, number: int) -> None:
    """Put this rank's data of a round, and then the word, at its rail in each other node."""
    from mpi4py import MPI

    me, nodes = group.rank, group.nodes
    data = np.full(DATA, _value(me, number), np.uint8)
    word = np.array([number, ~number], np.int64)
    for rail in sorted({nodes.with_streams().rail(me, p) for p in nodes.remote(me)}):
        window.Put([data, MPI.BYTE], rail, [SLOT * me + 64, DATA, MPI.BYTE])
        window.Flush(rail)
        window.Put([word.view(np.uint8), MPI.BYTE], rail, [SLOT * me, 16, MPI.BYTE])
        window.Flush(rail)


def _check(group: Group, window: Any, memory: NodeMemory, number: int) -> str:
    """Wait for the words of a round from all remote ranks, and check their data, wherever on this node they lie."""
    me, nodes = group.rank, group.nodes.with_streams()
    end = time.monotonic() + SECONDS
    for source in nodes.remote(me):
        part = memory.part(nodes.rail(source, me))[SLOT * source :][:SLOT]
        word = part[:16].view(np.int64)
        while word[0] != number or word[1] != ~number:
            if time.monotonic() > end:
                return f"data of rank {source} for rank {nodes.rail(source, me)} did not arrive within {SECONDS:g} s"
            group.comm.iprobe()
            window.Sync()
        window.Sync()
        if (part[64:] != _value(source, number)).any():
            return f"rank {me} read data of rank {source} that had not landed, at rank {nodes.rail(source, me)}"
    return ""
