"""The weighted sum of a token's expert outputs on a GPU. A warp adds them in order of the choices, and rounds once."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ...primitives import memory as mem
from . import ptx
from .compiler import cuda
from .memory_lowering import WARP
from .tile import BYTES

FLOATS = 4  # elements of a row that a lane sums at a time
ZERO = np.float32(0)


def parts(kind: str) -> tuple[Any, Any]:
    """Two functions for rows of a kind: `four` reads four elements, and `put` writes four.

    They are four(address), which returns four float32, and put(address, a, b, c, d).
    """
    if BYTES[kind] == 4:

        @cuda.jit(device=True)
        def four(address):
            a, b, c, d = ptx.load16_once(address)
            return (
                ptx.float_of_register(a),
                ptx.float_of_register(b),
                ptx.float_of_register(c),
                ptx.float_of_register(d),
            )

        @cuda.jit(device=True)
        def put(address, a, b, c, d):
            ptx.store16_once(
                address, ptx.bits_of_float(a), ptx.bits_of_float(b), ptx.bits_of_float(c), ptx.bits_of_float(d)
            )
    else:
        widen = ptx.widen_bf16 if kind == "bf16" else ptx.widen_f16
        pair = ptx.pair_bf16 if kind == "bf16" else ptx.pair_f16

        @cuda.jit(device=True)
        def four(address):
            low, high = ptx.load8_once(address)
            a, b = widen(low)
            c, d = widen(high)
            return a, b, c, d

        @cuda.jit(device=True)
        def put(address, a, b, c, d):
            ptx.store8_once(address, pair(a, b), pair(c, d))

    return four, put


@cache
def combine_tokens(kind: str) -> Any:
    """A function combine(y, count, k, weights, rows, row_bytes): y[t] = sum over j of weights[t, j] * row (t, j).

    All threads of a block call it. y: the address of `count` rows of this kind, of row_bytes bytes each (a multiple of
    16). weights: the address of [count, k] float32. rows: the address of [count, k] addresses of rows, with 0 for a
    choice without a row.
    """
    four, put = parts(kind)
    width = FLOATS * BYTES[kind]

    @cuda.jit(device=True)
    def combine(y, count, k, weights, rows, row_bytes):
        for t in range(mem.warp(), count, mem.warps()):
            for at in range(width * mem.lane(), row_bytes, width * WARP):
                a = b = c = d = ZERO
                for j in range(t * k, t * k + k):
                    row = mem.load(rows + 8 * j)
                    if row != 0:
                        w, v = ptx.load_float(weights + 4 * j), four(row + at)
                        a, b = ptx.fma(w, v[0], a), ptx.fma(w, v[1], b)
                        c, d = ptx.fma(w, v[2], c), ptx.fma(w, v[3], d)
                put(y + row_bytes * t + at, a, b, c, d)

    return combine
