"""Small cases for exhaustive search, with two ranks of one worker, two experts, top-1, tiny rings and few routings.

Each routing is another way for the two ranks to meet. Rows go both ways at once, all to one rank, all to one rank and
in the next call all to the other, or none and in the next call all; or ranks have no tokens in a call. With two levels
a third rank and a third expert are on the node of the second ones, and a token chooses two experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..primitives import taped
from . import experts
from .cases import Call, Case, of_tapes

# name -> function that gives the expert of token t of a rank in call n; -1: no such token
ROUTINGS: dict[str, Callable[[int, int, int], int]] = {
    "all to one": lambda rank, n, t: 1,
    "in turns": lambda rank, n, t: 1 - n % 2,
    "none, then all": lambda rank, n, t: (rank + n) % 2,
    "one sends": lambda rank, n, t: 1 - rank if (rank + n) % 2 == 0 else -1,
    "both ways": lambda rank, n, t: (1 - rank + (t + n) % 3 % 2) % 2,
}

# the same for two levels: the choices of the only token of a rank in call n; (): the rank has no token
ROUTINGS_OF_NODES: dict[str, Callable[[int, int], tuple[int, ...]]] = {
    "to two owners": lambda rank, n: (1, 2) if rank == 0 else (),
    "to one owner": lambda rank, n: (2 - n % 2, -1) if rank == 0 else (),
    "to the other node": lambda rank, n: (0, 1) if rank == 2 else (),
}


def routings(transport: str) -> list[str]:
    """The names of the routings for a transport."""
    return list(ROUTINGS_OF_NODES if transport == "levels" else ROUTINGS)


def small_nodes(routing: str, rows: int = 2, calls: int = 2, sums: bool = False) -> Case:
    """A case with two levels by name: rank 0 is a node of its own, ranks 1 and 2 share a node."""
    choose = ROUTINGS_OF_NODES[routing]
    made = tuple(tuple(Call((ids,) if (ids := choose(rank, n)) else ()) for n in range(calls)) for rank in range(3))
    return Case(
        ranks=3,
        rows=rows,
        max_tokens=1,
        top_k=2,
        tile=1,
        run=2,
        node_of=(0, 1, 1),
        placement=(0, 1, 2),
        bundle=2,
        levels=2,
        sums=sums,
        calls=made,
    )


def small(
    routing: str,
    rows: int = 2,
    tokens: int = 3,
    calls: int = 2,
    transport: str = "shm",
    stay: int = 0,
    scalars: bool = False,
    backward: bool = False,
    once: bool = False,
) -> Case:
    """A case by name, with `tokens` tokens on each rank that has any.

    If rows may stay, ranks load weights before calls. If there are at least four calls, the last but one is an
    exchange, during which ranks load weights for the last call.

    once: each rank has two experts, and a token chooses both of them, so that it crosses once. In every second call of
    a rank a token chooses one expert; the two ranks do so in different calls. backward: every second call is a backward
    call; tapes have space for the hidden activations of one row.
    """
    expert = ROUTINGS[routing]

    def call(rank: int, n: int) -> Call:
        chosen = [e for e in (expert(rank, n, t) for t in range(tokens)) if e >= 0]
        second = (lambda e: -1) if (rank + n) % 2 else (lambda e: 2 * e + 1)
        ids = tuple((2 * e, second(e)) if once else (e,) for e in chosen)
        return Call(ids, layer=n, exchange=stay > 0 and calls - 2 == n > 1)

    made = tuple(tuple(call(rank, n) for n in range(calls)) for rank in range(2))
    node_of = (0, 0) if transport == "shm" else (0, 1)
    sizes = Case(
        rows=rows,
        max_tokens=max(1, tokens),
        tile=1,
        run=2,
        node_of=node_of,
        bundle=1,
        calls=made,
        stay=stay,
        scalars=scalars,
        backward=backward,
    )
    if once:
        sizes = replace(sizes, placement=(0, 0, 1, 1), top_k=2, once=2, once_share=150)
    if backward:
        sizes = replace(sizes, save=taped.X | taped.HIDDEN, reserve=experts.SHARES)
        sizes = replace(sizes, calls=tuple(zip(*of_tapes(sizes, list(zip(*made))))))
    return replace(sizes, proxy=transport == "proxy")
