"""Sums over ranks with bits that do not depend on the number of ranks.

A batch is cut into *pieces*, which are the same on any number of ranks. Each rank has whole pieces, and the ranks'
pieces follow one another in rank order. One binary tree adds all pieces: first piece 2i and piece 2i + 1, then these
pairs two by two, and so on. Sums without a partner are added last, from the right. Each rank first adds all pairs whose
parts it has itself. If it has 2^n pieces, and the number of its first piece is a multiple of 2^n, only one array is
left to send.

If each rank simply summed its own pieces, the rounding would depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ._first_refusal import raise_first
from .errors import AristosError, InputError, MismatchError

DTYPES = "float32", "float64"


class Node(NamedTuple):
    """The sum of pieces first * size .. (first + 1) * size - 1."""

    first: int
    size: int
    value: np.ndarray


def _push(stack: list[Node], node: Node) -> None:
    """Append a node, and replace pairs that it completes by their sums."""
    while stack and stack[-1].size == node.size and node.first % 2:
        left = stack.pop()
        node = Node(left.first // 2, 2 * node.size, left.value + node.value)
    stack.append(node)


def partial_sums(first: int, pieces: Iterable[np.ndarray]) -> list[Node]:
    """The largest sums of the tree that lie within these pieces. first: the number of the first piece.

    Each piece is freed when it is summed, so only the sums need memory.
    """
    stack: list[Node] = []
    for number, piece in enumerate(pieces):
        _push(stack, Node(first + number, 1, piece))
    return stack


def _total(nodes: Sequence[Node]) -> np.ndarray:
    """The sum of all pieces. nodes: in order, without gaps."""
    stack: list[Node] = []
    for node in nodes:
        _push(stack, node)
    value = stack[-1].value
    for node in reversed(stack[:-1]):
        value = node.value + value
    return value


def reproducible_sum(comm: Any, pieces: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """The sum over the pieces of all ranks, whose bits are the same however many ranks share the pieces. Collective.

    Each rank sends and receives about twice the bytes of the sum.

    Parameters
    ----------
    comm : communicator or None
        An mpi4py communicator. None: this process alone.
    pieces : sequence of arrays, float32 or float64
        This rank's arrays, of one shape and type on all ranks. A rank may have none if another has some.

    Returns
    -------
    array
        The sum, a new array of the pieces' shape and type.

    Raises
    ------
    InputError
        This rank's pieces have a wrong type or several shapes, or no rank has a piece.
    PeerInputError
        Another rank raised InputError.
    MismatchError
        Ranks have pieces of different types or shapes.

    Examples
    --------
    >>> import numpy as np
    >>> import aristos
    >>> aristos.reproducible_sum(None, np.ones((4, 2), np.float32))
    array([4., 4.], dtype=float32)
    """
    problem: AristosError | None = None
    mine: list[np.ndarray] = []
    try:
        mine = _checked(pieces)
    except InputError as error:
        problem = error
    kind = (mine[0].dtype.name, mine[0].shape) if mine else None
    reports = [(len(mine), kind, None if problem is None else str(problem))]
    if comm is not None:
        reports = comm.allgather(reports[0])
    raise_first(problem, [text for _, _, text in reports], "refused its pieces")
    kinds = list(dict.fromkeys(each for _, each, _ in reports if each is not None))
    if not kinds:
        raise InputError("pieces must hold an array on at least one rank, got none on any")
    if len(kinds) > 1:
        raise MismatchError(f"pieces must have one dtype and shape on all ranks, got {kinds[0]} and {kinds[1]}")
    dtype, shape = kinds[0]
    before = reports[: 0 if comm is None else comm.Get_rank()]
    nodes = partial_sums(sum(count for count, _, _ in before), [piece.reshape(-1) for piece in mine])
    return total(comm, nodes, np.dtype(dtype), int(np.prod(shape, dtype=np.int64))).reshape(shape)


def _checked(pieces: Any) -> list[np.ndarray]:
    found = [np.ascontiguousarray(piece) for piece in pieces]
    for piece in found:
        if piece.dtype.name not in DTYPES or piece.dtype != found[0].dtype or piece.shape != found[0].shape:
            first = f"{found[0].dtype} {list(found[0].shape)}"
            raise InputError(
                f"pieces must be arrays of float32 or float64 of one shape, got {piece.dtype} {list(piece.shape)} and"
                f" {first}"
            )
    return found


def total(comm: Any, nodes: list[Node], dtype: np.dtype, size: int) -> np.ndarray:
    """The sum over all ranks' nodes, of `size` entries each. Collective. nodes: `partial_sums` of this rank's pieces.

    Every rank adds one part of the columns of all nodes; then all ranks exchange the sums.
    """
    world = 1 if comm is None else comm.Get_size()
    if world == 1:
        return np.array(_total(nodes))
    ends = [size * (part + 1) // world for part in range(world)]
    widths = np.diff([0, *ends])
    heads = comm.allgather([node[:2] for node in nodes])
    here = int(widths[comm.Get_rank()])
    out = np.concatenate(
        [node.value[end - width : end] for end, width in zip(ends, widths) for node in nodes] or [np.empty(0, dtype)]
    )
    sent = widths * len(nodes)
    came = np.array([len(each) for each in heads]) * here
    received = np.empty(int(came.sum()), dtype)
    comm.Alltoallv([out, (sent, np.cumsum(sent) - sent)], [received, (came, np.cumsum(came) - came)])
    rows = received.reshape(-1, here) if here else np.empty((sum(map(len, heads)), 0), dtype)
    order = [head for each in heads for head in each]
    part = np.array(_total([Node(first, count, row) for (first, count), row in zip(order, rows)]))
    whole = np.empty(size, dtype)
    comm.Allgatherv(part, [whole, (widths, np.cumsum(widths) - widths)])
    return whole
