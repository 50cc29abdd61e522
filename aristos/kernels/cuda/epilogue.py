"""What becomes of a tile's sums: activation, gate, rounding, and the rows they are stored to.

The sums lie in shared memory as `Tile` says, rows n + PAD float32 apart, whatever made them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from ..common import activations
from ..common.branches import unrolled
from . import ptx
from .compiler import cuda
from .pack import INTERLEAVE
from .tile import BYTES, PAD, Tile

NONE = -1  # beside the words of activations.word


activated = cuda.jit(device=True)(unrolled("activated", "x", "return case(x)", activations.FUNCTIONS, globals()))


@cuda.jit(device=True)
def gated_product(word, g, u):
    """act(g) * u, bounded as the activation's word says."""
    limit, code = activations.limit_of(word), activations.code_of(word)
    by = u if activations.plain(word) else activations.factor(u, limit, activations.shift_of(code))
    return activated(code, activations.at_most(g, limit)) * by


@cuda.jit(device=True)
def activate(word, sums, pitch, count, shift, gated, thread, threads):
    """Apply an activation in place to `count` staged sums, 2^shift a row; where gated, to those of the gate.

    word: its code and limit (`activations.word`). What a bounded gate is multiplied by is bounded too.

    One element at a time, so that the code is there once: the main loop's instructions stay in their cache.
    """
    code, limit, plain = activations.code_of(word), activations.limit_of(word), activations.plain(word)
    for i in range(thread, count, threads):
        column = i & (1 << shift) - 1
        if gated != 0:
            column = (column & -INTERLEAVE) * 2 + INTERLEAVE + (column & INTERLEAVE - 1)
        at = sums + (i >> shift) * pitch + 4 * column
        ptx.store_shared4(at, activated(code, activations.at_most(ptx.load_shared4(at), limit)))
        if not plain:
            other = at - 4 * INTERLEAVE
            by = activations.factor(ptx.load_shared4(other), limit, activations.shift_of(code))
            ptx.store_shared4(other, by)


@cuda.jit(device=True)
def outputs(place, gated):
    """Four float32 of a row of outputs, from staged sums at `place`: those of the gate lie 8 columns behind."""
    u = ptx.load_shared16(place)
    if gated != 0:
        g = ptx.load_shared16(place + 4 * INTERLEAVE)
        return g[0] * u[0], g[1] * u[1], g[2] * u[2], g[3] * u[3]
    return u


def _out(tile: Tile) -> Any:
    """f(address, place, gated): 16 bytes of outputs from staged sums at `place` to a row in global memory."""
    if BYTES[tile.kind] == 4:

        @cuda.jit(device=True)
        def put(address, place, gated):
            v = outputs(place, gated)
            ptx.store16_once(
                address, ptx.bits_of_float(v[0]), ptx.bits_of_float(v[1]), ptx.bits_of_float(v[2]),
                ptx.bits_of_float(v[3]),
            )  # fmt: skip
    else:
        pair = ptx.pair_bf16 if tile.kind == "bf16" else ptx.pair_f16

        @cuda.jit(device=True)
        def put(address, place, gated):
            v = outputs(place, gated)
            w = outputs(place + 16, gated)
            ptx.store16_once(address, pair(v[0], v[1]), pair(v[2], v[3]), pair(w[0], w[1]), pair(w[2], w[3]))

    return put


@cache
def finish(tile: Tile) -> Any:
    """The device function that stores a tile; all threads of the block call it together, once its sums are staged.

    finish(shared, c_rows, m, width, n0, word, gated): rows 0..m of the row address table, columns n0..
    of the product, `width` outputs of a row (in 16-byte groups, for which the row has room); word: of the activation
    (`activations.word`), or NONE. The staged sums are free afterwards.
    """
    put, threads = _out(tile), tile.threads
    pitch, group = 4 * (tile.n + PAD), 16 // BYTES[tile.kind]
    columns_shift, groups_shift = tile.n.bit_length() - 1, (tile.n // group).bit_length() - 1

    @cuda.jit(device=True)
    def store(shared, c_rows, m, width, n0, word, gated):
        thread = ptx.thread()
        half = 1 if gated != 0 else 0
        if word != NONE:
            shift = columns_shift - half
            activate(word, shared, pitch, m << shift, shift, gated, thread, threads)
            cuda.syncthreads()
        first, shift = n0 >> half, groups_shift - half
        for i in range(thread, m << shift, threads):
            out_row, out = i >> shift, (i & (1 << shift) - 1) * group
            if first + out < width:
                place = (out & -INTERLEAVE) * 2 + (out & INTERLEAVE - 1) if gated != 0 else out
                address = ptx.load8(c_rows + 8 * out_row) + (first + out) * (16 // group)
                put(address, shared + out_row * pitch + 4 * place, gated)
        cuda.syncthreads()

    return store
