"""Turns a tile's sums into output rows: activation, gate, rounding and stores.

After every kind of product the sums lie in shared memory, in rows that are n + PAD float32 apart.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from ..common import activations
from ..common.branches import unrolled
from . import memory_lowering as _lowering  # noqa: F401  registers lowerings that activations and the router need
from . import ptx
from .compiler import cuda
from .pack import INTERLEAVE
from .tile import BYTES, PAD, Tile

NONE = -1  # no activation; otherwise a value of activations.word


activated = cuda.jit(device=True)(unrolled("activated", "x", "return case(x)", activations.FUNCTIONS, globals()))


@cuda.jit(device=True)
def bounded(word, x):
    """act(x), with the word's limit applied to the argument or to the value."""
    before, after = activations.limits(word)
    return activations.at_most(activated(activations.code_of(word), activations.at_most(x, before)), after)


@cuda.jit(device=True)
def activate(word, sums, pitch, count, shift, gated, thread, threads):
    """Apply an activation in place to `count` staged sums, 2^shift per row; if gated, to the gate's sums only.

    word: the activation's code and limit (`activations.word`). If the word bounds or shifts the factor of an activated
    value, the factor is changed in place too (`activations.factor`). Elements are computed one at a time, which keeps
    the code small, so that the main loop stays in the instruction cache.
    """
    code, limit, plain = activations.code_of(word), activations.limit_of(word), activations.plain(word)
    for i in range(thread, count, threads):
        column = i & (1 << shift) - 1
        if gated != 0:
            column = (column & -INTERLEAVE) * 2 + INTERLEAVE + (column & INTERLEAVE - 1)
        at = sums + (i >> shift) * pitch + 4 * column
        ptx.store_shared4(at, bounded(word, ptx.load_shared4(at)))
        if not plain:
            other = at - 4 * INTERLEAVE
            by = activations.factor(ptx.load_shared4(other), limit, activations.shift_of(code))
            ptx.store_shared4(other, by)


@cuda.jit(device=True)
def outputs(place, gated):
    """Four float32 outputs of a row from the staged sums at `place`; the gate's sums lie 8 columns after them."""
    u = ptx.load_shared16(place)
    if gated != 0:
        g = ptx.load_shared16(place + 4 * INTERLEAVE)
        return g[0] * u[0], g[1] * u[1], g[2] * u[2], g[3] * u[3]
    return u


def _out(tile: Tile) -> Any:
    """A function f(address, place, gated) that stores 16 bytes of outputs, from the sums staged at `place`."""
    if BYTES[tile.kind] == 4:

        @cuda.jit(device=True)
        def put(address, place, gated):
            v = outputs(place, gated)
            ptx.store16_once(
                address,
                ptx.bits_of_float(v[0]),
                ptx.bits_of_float(v[1]),
                ptx.bits_of_float(v[2]),
                ptx.bits_of_float(v[3]),
            )
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
    """The device function that stores a tile. All threads of the block call it together, after the sums are staged.

    The function is store(shared, c_rows, m, width, n0, word, gated). It stores columns n0.. of m rows of the product.
    c_rows: the address of an array of m row addresses. A row has `width` outputs, and needs space for them rounded up
    to whole 16 bytes. word: the activation's word (`activations.word`), or NONE. On return the shared memory of the
    sums may be reused.
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
