"""Calls of a layer in torch's graph. Each call's tapes are found by a number in a tensor that torch saves."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from ..errors import InputError
from ..layer.training import Tape


class Graph:
    """A call's tapes, one for each call of the `MoE`, in order. used: whether torch has run its backward pass."""

    def __init__(self) -> None:
        self.tapes: list[Tape] = []
        self.used = False


class Graphs:
    """The calls of a layer for which torch may still run the backward pass.

    Each call has a number, in a tensor that torch saves for the backward pass. When torch frees that tensor, the tapes
    are no longer needed: either torch has dropped the graph, or torch saves nothing of this call (gradient
    checkpointing). In the second case the backward pass makes the call again, and finds the number of that later call.
    torch may free the tensor within any other call, so the tapes wait for `discard`, which is called between calls.
    """

    def __init__(self) -> None:
        self._open: dict[int, Graph] = {}
        self._freed: list[int] = []
        self._made = 0

    def new(self) -> tuple[Graph, torch.Tensor]:
        """(a graph, the tensor with its number)."""
        self._made += 1
        number = np.array([self._made])
        weakref.finalize(number, self._freed.append, self._made).atexit = False
        graph = self._open[self._made] = Graph()
        return graph, torch.from_numpy(number)  # the tensor uses the memory of `number`, and keeps it alive

    def graph_of(self, number: torch.Tensor) -> Graph:
        """The graph with a number. Raises InputError if torch has saved a copy of the tensor."""
        graph = self._open.get(int(number))
        if graph is None:
            raise InputError(
                "the tapes of this graph were discarded, because hooks for saved tensors keep copies: use hooks that"
                " keep"
                " the tensors themselves, or gradient checkpointing"
            )
        return graph

    def discard(self) -> None:
        """Discard the tapes whose numbers torch has freed."""
        while self._freed:
            for tape in self._open.pop(self._freed.pop()).tapes:
                tape.discard()

    def discard_all(self) -> None:
        """Discard all tapes. torch refuses the backward pass of their graphs, or has dropped the graphs."""
        for graph in self._open.values():
            for tape in graph.tapes:
                tape.discard()
        self.discard()


class TapedCall(torch.autograd.Function):
    """y of `Experts.taped`, with the gradients of x, weights and the parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        experts: Any,
        ids: torch.Tensor,
        calls: int,
        x: torch.Tensor,
        weights: torch.Tensor,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        y: torch.Tensor
        y, number = experts.taped(x, ids, weights, calls)
        ctx.experts, ctx.weights_dtype = experts, weights.dtype
        ctx.save_for_backward(number, *parameters)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
        number, *parameters = ctx.saved_tensors  # torch raises here if a parameter has changed since the call
        dx, dw, gradients = ctx.experts.backward(dy, number, parameters)
        wanted = ctx.needs_input_grad
        return (
            None,
            None,
            None,
            dx,
            dw.to(ctx.weights_dtype),
            *(each if asked else None for each, asked in zip(gradients, wanted[5:], strict=True)),
        )
