"""Rows in the store (`engine/store.py`): addresses and copies that backward kernels of every element type need.

A row's place holds dy and x as received, then the data that the kernel keeps for the weights' gradients, then the
combine weight. A `Place` has their offsets.
"""

from kernel_cache.compile import jit

from ...primitives import memory as mem
from ...primitives import taped
from ...primitives.buffers import FLOAT, LINE
from ..common.backward_records import Expert, Rows, Tables
from .call_blocks import expert_weights_at, transposed_weights_at
from .expert import line_bytes
from .outer import SOON, fetch_row

TABLES = 6  # tables with a word for each row: x, dy, dx, kept, saved, order
ENTRY = TABLES * 8 + 2 * FLOAT  # bytes that a row takes in all tables
LISTED = 2 * 8 + FLOAT  # bytes that a row takes in the lists of `list_stored`


@jit
def tables(scratch, rows):
    """Tables for `rows` rows at the address `scratch`. They are not filled yet."""
    w = scratch + 8 * TABLES * rows
    dw = w + FLOAT * rows
    free = (dw + FLOAT * rows + LINE - 1) // LINE * LINE
    to_x, to_dy, to_dx = scratch, scratch + 8 * rows, scratch + 16 * rows
    return Tables(to_x, to_dy, to_dx, scratch + 24 * rows, scratch + 32 * rows, scratch + 40 * rows, w, dw, free)


@jit
def plain_first(rows, tape, order):
    """Write the numbers of `rows` rows at `order`. Rows with hidden activations on the tape come last.

    Returns how many rows have no hidden activations there. tape: the address of the rows' entries (see
    `primitives.taped`), or 0 if there are none.
    """
    plain, last = 0, rows - 1
    for i in range(rows):
        if tape != 0 and taped.kept_of(mem.load(tape + 8 * i)) & taped.HIDDEN:
            mem.store(order + 8 * last, i)
            last -= 1
        else:
            mem.store(order + 8 * plain, i)
            plain += 1
    return plain


@jit
def store_row(row, place, entry, of, before):
    """Copy a row [dy | x] to its place in the store. x is copied from the tape if it is kept there.

    entry: the row's entry of the tape. of: a Place. before: how many bytes the hidden activations take, which lie
    before x on the tape if they are kept.
    """
    kept, from_x = taped.kept_of(entry), row + of.nbytes
    if kept & taped.X:
        from_x = taped.place_of(entry) + (before if kept & taped.HIDDEN else 0)
    mem.copy_row(place, row, of.nbytes)
    mem.copy_row(place + of.x, from_x, of.nbytes)


@jit
def list_rows(call, of, gated, found):
    """Copy rows to their places, and fill the tables. Returns how many rows have no hidden activations on the tape.

    call: a BackwardRows. of: a Place. found: the Tables that are filled.
    """
    rows, x, places, tape = call.rows, call.x, call.places, call.kept
    plain = plain_first(rows, tape, found.order)
    before = line_bytes(call.ffn) * (2 if gated else 1)
    weight = mem.floats(found.w, rows)
    for to in range(rows):
        if to + SOON < rows:
            soon = mem.load(found.order + 8 * (to + SOON))
            fetch_row(rows, places, soon, 0, of.w + LINE)
            fetch_row(rows, x, soon, 0, 2 * of.nbytes)
        i = mem.load(found.order + 8 * to)
        place, entry = mem.load(places + 8 * i), mem.load(tape + 8 * i) if tape != 0 else 0
        store_row(mem.load(x + 8 * i), place, entry, of, before)
        mem.store(found.x + 8 * to, place + of.x)
        mem.store(found.dy + 8 * to, place)
        mem.store(found.dx + 8 * to, mem.load(call.y + 8 * i))
        mem.store(found.kept + 8 * to, place + of.kept)
        mem.store(found.saved + 8 * to, taped.place_of(entry))
        weight[to] = mem.floats(call.scalars + 8 * i, 1)[0]
        mem.floats(place + of.w, 1)[0] = weight[to]
    return plain


@jit
def expert_of(call):
    """The Expert of a BackwardRows."""
    weights, transposed = expert_weights_at(call.weights), transposed_weights_at(call.weights)
    return Expert(weights, transposed, call.activation, call.hidden, call.ffn)


@jit
def some_rows(begin, count, found, saved):
    """The Rows for `count` rows of the Tables `found`, from row `begin` on.

    saved: the address of the rows' places on the tape, or 0.
    """
    at, value = 8 * begin, FLOAT * begin
    x, dy, dx = found.x + at, found.dy + at, found.dx + at
    return Rows(count, x, dy, found.w + value, dx, found.dw + value, found.kept + at, saved)


@jit
def halves(rows, plain, found):
    """The listed rows as (Rows without hidden activations on the tape, Rows with hidden activations there)."""
    return some_rows(0, plain, found, 0), some_rows(plain, rows - plain, found, found.saved + 8 * plain)


@jit
def give_back(rows, scalars, found):
    """Overwrite the combine weights, in the lower halves of the words at `scalars`, with their gradients."""
    back = mem.floats(found.dw, rows)
    for to in range(rows):
        i = mem.load(found.order + 8 * to)
        mem.store(scalars + 8 * i, 0)
        mem.floats(scalars + 8 * i, 1)[0] = back[to]


@jit
def list_stored(m, places, of, scratch):
    """Write lists of m stored rows of one expert, from which the gradients of its weights are computed.

    places: the address of an array of the rows' addresses. of: a Place. scratch: where the lists begin. Returns Rows,
    and the address of the first cache line after the lists.
    """
    to_x, kept = scratch, scratch + 8 * m
    w = kept + 8 * m
    weight = mem.floats(w, m)
    for i in range(m):
        place = mem.load(places + 8 * i)
        mem.store(to_x + 8 * i, place + of.x)
        mem.store(kept + 8 * i, place + of.kept)
        weight[i] = mem.floats(place + of.w, 1)[0]
    return Rows(m, to_x, places, w, 0, 0, kept, 0), (w + FLOAT * m + LINE - 1) // LINE * LINE
