"""Records of arguments that the kernels of a backward call pass to each other. Numba passes them as single values.

The records are defined here because the modules of `kernels/cpu` exist once for each instruction set, and these classes
must exist only once.
"""

from __future__ import annotations

from typing import NamedTuple

from ...primitives.arithmetic import ExpertWeights, TransposedWeights


class Rows(NamedTuple):
    """Rows of one expert. `x`, `dy`, `dx`, `kept` and `saved` are addresses of arrays of `length` addresses."""

    length: int  # number of rows
    x: int  # inputs
    dy: int  # gradients of the outputs
    w: int  # address of the combine weights, float32
    dx: int  # where gradients of the inputs go
    dw: int  # address where gradients of the combine weights go, float32
    kept: int  # places for the data that the gradients of weights need
    saved: int  # places of hidden activations on the tape; then x is not read. 0 if the tape has none


class Expert(NamedTuple):
    """What a backward call reads of an expert."""

    weights: ExpertWeights
    transposed: TransposedWeights
    activation: int
    hidden: int
    ffn: int


class Sums(NamedTuple):
    """The memory that receives the gradients of an expert's weights."""

    gradients: tuple[int, ...]  # addresses of up, gate, down and their biases; 0 for an absent one
    hidden: int
    ffn: int
    carry: int  # 0: the gradients are overwritten. Else the call adds to them
    once: int  # 1: all rows of the call are added in one pass, so no later pass adds to the gradients


class Place(NamedTuple):
    """How a row of an element type lies in its place in the store: [dy | x | kept | w]. See `stored_rows`."""

    nbytes: int  # bytes of dy; x has as many
    x: int  # offset of x in a place
    kept: int  # offset of the data that is kept for the weights' gradients
    w: int  # offset of the combine weight, float32


class Tables(NamedTuple):
    """Addresses of arrays with an entry for each row of one expert.

    Rows with hidden activations on the tape come last.
    """

    x: int  # addresses of inputs
    dy: int  # addresses of gradients of the outputs
    dx: int  # addresses where gradients of the inputs go
    kept: int  # addresses of the data that is kept for the weights' gradients
    saved: int  # the rows' addresses on the tape
    order: int  # numbers of the rows
    w: int  # address of the combine weights, float32
    dw: int  # address where gradients of the combine weights go, float32
    free: int  # address of the first cache line after these arrays
