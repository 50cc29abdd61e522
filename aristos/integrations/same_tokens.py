"""Ranks of a tensor parallel group have the same tokens: each computes a part of them, and gets the others' outputs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ..transport.group import Group
from .masters import as_numpy

Move = Callable[[torch.Tensor], torch.Tensor]


class SharedRows:
    """`count` rows that the ranks of a communicator share evenly, in rank order. group: bounds the ranks' waits."""

    def __init__(self, comm: Any, group: Group, count: int) -> None:
        ranks, rank = comm.Get_size(), comm.Get_rank()
        self._comm, self._group = comm, group
        self._cuts = [count * each // ranks for each in range(ranks + 1)]
        self._mine = slice(self._cuts[rank], self._cuts[rank + 1])
        self.most = -(-count // ranks)  # the most tokens of a rank

    def part(self, whole: torch.Tensor) -> torch.Tensor:
        """This rank's part of rows that all ranks have."""
        return whole[self._mine]

    def whole(self, mine: torch.Tensor) -> torch.Tensor:
        """The rows of all ranks, from each rank's part. Collective."""
        from mpi4py import MPI

        mine = mine.contiguous()
        found = torch.empty(self._cuts[-1], mine.shape[-1], dtype=mine.dtype)
        width = found.shape[-1] * found.element_size()
        counts = [(end - start) * width for start, end in pairwise(self._cuts)]
        starts = [start * width for start in self._cuts[:-1]]
        with self._group.bounded("the rows of ranks that have the same tokens"):
            self._comm.Allgatherv(_bytes(mine), [_bytes(found), counts, starts, MPI.BYTE])
        return found


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    return as_numpy(tensor).reshape(-1).view(np.uint8)


class Moved(torch.autograd.Function):
    """`SharedRows.part` or `SharedRows.whole` with a gradient, which the other of the two moves back.

    The gradient of a part has the rows of all ranks. The gradient of the whole is the same on all ranks; each takes its
    own rows.
    """

    @staticmethod
    def forward(ctx: Any, there: Move, back: Move, rows: torch.Tensor) -> torch.Tensor:
        ctx.back = back
        return there(rows)

    @staticmethod
    def backward(ctx: Any, rows: torch.Tensor) -> tuple[None, None, torch.Tensor]:
        return None, None, ctx.back(rows)
