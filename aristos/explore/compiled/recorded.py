"""The primitives that record: `get` and `put` for words of a state, and functions for memory, wire and arithmetic.

Each primitive takes the original's arguments and a site, which is the module and the line of the call (`copies.py`).
Only the functions of this module are replaced. Where a step calls a kernel, the ranges that the kernel reads and writes
are recorded. For an array of weights, only the first word is recorded, and stands for the whole array.
"""

from __future__ import annotations

from kernel_cache.compile import jit

from ...kernels.cpu.expert import FC
from ...kernels.cpu.gemm import PITCH
from ...primitives import arithmetic, taped, wire
from ...primitives import memory as mem
from ...primitives.buffers import FLOAT
from .log import (
    ACQUIRE,
    ADD,
    ELEMENT,
    EXCHANGE,
    FLUSH,
    KIND_BITS,
    PLANTED,
    PUT,
    READ,
    RELEASE,
    SYNC,
    WORD,
    WRITE,
    record,
    table,
)

PEER_BITS = 16  # bits of a put's entry that hold the peer; the bits above hold the place in its window


@jit
def code(kind, site):
    """The code of an entry."""
    return kind | site << KIND_BITS


@jit
def element():
    """Bytes of an element of the rows."""
    names = table()
    return mem.load(names + WORD * ELEMENT)


@jit
def planted(number):
    """Whether bug `number` of `planted.py` is switched on."""
    names = table()
    return mem.load(names + WORD * PLANTED) == number


# ---- the state


@jit
def get(st, i, site):
    """st[i]"""
    record(code(READ, site), st.ctypes.data + WORD * i, WORD, 0)
    return st[i]


@jit
def put(st, i, value, site):
    """st[i] = value"""
    record(code(WRITE, site), st.ctypes.data + WORD * i, WORD, 0)
    st[i] = value


# ---- memory


@jit
def load(addr, site):
    value = mem.load(addr)
    record(code(READ, site), addr, WORD, value)
    return value


@jit
def store(addr, value, site):
    record(code(WRITE, site), addr, WORD, value)
    mem.store(addr, value)


@jit
def load_acquire(addr, site):
    return record(code(ACQUIRE, site), addr, 0, 0)


@jit
def store_release(addr, value, site):
    record(code(RELEASE, site), addr, value, 0)


@jit
def notify(word, value, nbytes, site):
    record(code(RELEASE, site), word, value, 0)


@jit
def fetch_add(addr, value, site):
    return record(code(ADD, site), addr, value, 0)


@jit
def compare_exchange(addr, expected, value, site):
    return record(code(EXCHANGE, site), addr, expected, value) != 0


@jit
def copy_row(dst, src, nbytes, site):
    record(code(READ, site), src, nbytes, 0)
    record(code(WRITE, site), dst, nbytes, 0)
    mem.copy_row(dst, src, nbytes)


MEMORY = {
    each.__name__: each
    for each in (load, store, load_acquire, store_release, notify, fetch_add, compare_exchange, copy_row)
}
MEMORY["arrived"] = load_acquire

# ---- the wire


@jit
def try_lock(address, site):
    return record(code(EXCHANGE, site), address + WORD * wire.LOCK, 0, 1) != 0


@jit
def unlock(address, site):
    record(code(RELEASE, site), address + WORD * wire.LOCK, 0, 0)


@jit
def wire_put(address, peer, at, source, nbytes, site):
    record(code(PUT, site), source, nbytes, peer | at << PEER_BITS)
    wire.put(address, peer, at, source, nbytes)


@jit
def flush(address, peer, site):
    wire.flush(address, peer)
    record(code(FLUSH, site), address, peer, 0)


@jit
def sync(address, site):
    wire.sync(address)
    record(code(SYNC, site), address, 0, 0)


@jit
def progress(address, site):
    wire.progress(address)
    record(code(SYNC, site), address, 0, 0)


WIRE = {"try_lock": try_lock, "unlock": unlock, "put": wire_put, "flush": flush, "sync": sync, "progress": progress}

# ---- arithmetic


@jit
def rows_at(kind, rows, count, nbytes, site):
    """Record accesses to `count` rows of `nbytes` bytes, whose addresses lie at `rows`. Address 0 means no row."""
    record(code(READ, site), rows, WORD * count, 0)
    for i in range(count):
        row = mem.load(rows + WORD * i)
        if row != 0:
            record(code(kind, site), row, nbytes, 0)


@jit
def arrays_at(weights, site):
    """Record that an expert's arrays are read."""
    for address in weights:
        if address != 0:
            record(code(READ, site), address, WORD, 0)


@jit
def kept_at(kind, kept, rows, first, columns, site):
    """Record accesses to kept hidden activations, which are float32, in the columns from `first` on."""
    if kept != 0:
        record(code(READ, site), kept, WORD * rows, 0)
        for i in range(rows):
            each = mem.load(kept + WORD * i)
            if taped.kept_of(each) & taped.HIDDEN:
                record(code(kind, site), taped.place_of(each) + FLOAT * first, FLOAT * columns, 0)


@jit
def expert_rows(kernels, call, site):
    rows_at(READ, call.x, call.rows, element() * call.hidden, site)
    rows_at(WRITE, call.y, call.rows, element() * call.hidden, site)
    arrays_at(call.weights, site)
    kept_at(WRITE, call.kept, call.rows, 0, call.ffn, site)
    record(code(WRITE, site), call.scratch, WORD, 0)
    arithmetic.expert_rows(kernels, call)


@jit
def backward_rows(kernels, call, site):
    rows_at(READ, call.x, call.rows, FLOAT * call.hidden, site)
    rows_at(WRITE, call.y, call.rows, FLOAT * call.hidden, site)
    rows_at(WRITE, call.places, call.rows, FLOAT * call.hidden, site)
    kept_at(READ, call.kept, call.rows, 0, call.ffn, site)
    record(code(WRITE, site), call.scalars, WORD * call.rows, 0)
    for i in range(arithmetic.BACKWARD_WEIGHTS_BYTES // WORD):
        address = mem.load(call.weights + WORD * i)
        if address != 0:
            record(code(READ, site), address, WORD, 0)
    record(code(WRITE, site), call.scratch, WORD, 0)
    arithmetic.backward_rows(kernels, call)


@jit
def columns_at(kind, rows, activations, first, columns, site):
    """Record accesses to a run's hidden activations, in the columns from `first` on, which lie within one chunk.

    This is right only for layers of float32, such as those of `run.py`, because it counts FLOAT bytes for an element
    and PITCH for a row of a chunk.
    """
    for i in range(rows):
        place = activations + PITCH * (rows * (first // FC) + i) + FLOAT * (first % FC)
        record(code(kind, site), place, FLOAT * columns, 0)


@jit
def up_columns(kernels, call, site):
    rows_at(READ, call.x, call.rows, element() * call.hidden, site)
    columns_at(WRITE, call.rows, call.activations, call.first, call.columns, site)
    arrays_at(call.weights, site)
    kept_at(WRITE, call.kept, call.rows, call.first, call.columns, site)
    record(code(WRITE, site), call.scratch, WORD, 0)
    arithmetic.up_columns(kernels, call)


@jit
def down_columns(kernels, call, site):
    for chunk in range(0, call.ffn, FC):
        columns_at(READ, call.rows, call.activations, chunk, min(FC, call.ffn - chunk), site)
    record(code(READ, site), call.y, WORD * call.rows, 0)
    nbytes = element() * (call.last - call.first)
    for i in range(call.rows):
        record(code(WRITE, site), mem.load(call.y + WORD * i) + element() * call.first, nbytes, 0)
    arrays_at(call.weights, site)
    record(code(WRITE, site), call.scratch, WORD, 0)
    arithmetic.down_columns(kernels, call)


@jit
def combine_token(kernels, call, site):
    rows_at(READ, call.rows, call.k, element() * call.hidden, site)
    record(code(READ, site), call.weights, FLOAT * call.k, 0)
    record(code(WRITE, site), call.y, element() * call.hidden, 0)
    record(code(WRITE, site), call.scratch, WORD, 0)
    arithmetic.combine_token(kernels, call)


@jit
def route_block(kernels, call, site):
    for i in range(call.tokens):
        record(code(READ, site), call.x + call.x_stride * i, element() * call.hidden, 0)
        record(code(WRITE, site), call.ids + WORD * call.pitch * i, WORD * call.k, 0)
        record(code(WRITE, site), call.weights + FLOAT * call.pitch * i, FLOAT * call.k, 0)
    record(code(READ, site), call.router, WORD, 0)
    record(code(WRITE, site), call.scratch, WORD, 0)
    return arithmetic.route_block(kernels, call)


@jit
def weigh_shared(kernels, call, site):
    for i in range(call.tokens):
        record(code(READ, site), call.x + call.x_stride * i, element() * call.hidden, 0)
        record(code(WRITE, site), call.weights + FLOAT * call.pitch * i, FLOAT, 0)
    return arithmetic.weigh_shared(kernels, call)


@jit
def weigh_row(kernels, call, site):
    record(code(READ, site), call.weight, FLOAT, 0)
    record(code(READ, site), call.x, element() * call.hidden, 0)
    record(code(WRITE, site), call.y, element() * call.hidden, 0)
    arithmetic.weigh_row(kernels, call)


ARITHMETIC = {
    each.__name__: each
    for each in (
        expert_rows,
        backward_rows,
        up_columns,
        down_columns,
        combine_token,
        route_block,
        weigh_shared,
        weigh_row,
    )
}
