"""The gradients of one expert on a run of rows of float32, from dL/dy to dL/dx and the combine weights' part.

    d = dy down^T, h as in the forward call, dw = <d, h> + <dy, down_bias>
    du, dg = w d times the derivatives of h; dx = du up^T + dg gate^T

`expert_rows` keeps du, h and dg of each row; `weight_gradients` reads them:

    dup += x^T du, dgate += x^T dg, ddown += h^T (w dy), and the sums of du, dg, w dy to the biases

Every output of the first is one chain of fused multiply-adds in order of k, whichever rows are computed together. Each
entry of a weight's gradient is one chain in order of rows that goes on from call to call: it depends on the rows and
their order alone, not on where they are cut into runs.
"""

from ...primitives import memory as mem
from ...primitives import taped
from ...primitives import wire as mpi
from ...primitives.buffers import FLOAT, LINE
from ...primitives.compile import jit
from ..common.activations import ONE, ZERO, at_most, code_of, factor, limit_of, limits, shift_of
from ..common.branches import unrolled
from ..common.slopes import FUNCTIONS
from .expert import FC, fill_rows, line_bytes, row_addresses
from .gemm import KC, PITCH, block, fetch, pack_rows, packed_bytes, panel_rows, vectors_of
from .panels import LANES, NR, ROWS

MOST_ROWS = 256  # of a run; at most KC
UP, GATE, DOWN, ALL = range(4)  # matrices of an expert
TURNED = 512  # columns that are transposed at once: few enough to stay in the L2 cache
SIDE = 16  # of a block of the transposition


def kept_bytes(ffn, gated):
    """Bytes of what `expert_rows` keeps of a row for `weight_gradients`: du, h, and dg if gated, in whole lines."""
    return (3 if gated else 2) * (-(-FLOAT * ffn // LINE) * LINE)


def scratch_bytes(rows, hidden, ffn):
    """Bytes of scratch of either function for up to `rows` rows, at most MOST_ROWS."""
    first = 3 * 8 * rows + LINE + 2 * packed_bytes(rows, hidden) + (4 * rows + 1) * PITCH
    return max(first, outer_bytes(rows, max(hidden, ffn)))


def place_bytes(hidden, ffn, gated):
    """Bytes of a row's place in the store: dy and x as they came, what `expert_rows` keeps, the combine weight."""
    return -(-2 * FLOAT * hidden // LINE) * LINE + kept_bytes(ffn, gated) + LINE


def store_bytes(rows, hidden, ffn):
    """Bytes of scratch of `store_rows` and `stored_gradients` for up to `rows` rows, at most MOST_ROWS."""
    return (7 * 8 + 2 * FLOAT) * rows + LINE + scratch_bytes(rows, hidden, ffn)


def outer_bytes(rows, widest):
    """Bytes of scratch of `add_outer` for up to `rows` rows; widest: the most columns of either side."""
    return 8 * (widest + rows) + LINE + PITCH * TURNED + FLOAT * rows * (widest + LANES)


@jit
def chunk_columns(m, a, depth, panels, bias, total, first, columns, c, wire):
    """C[m, columns] = packed rows at `a` times the columns first.. of panels [depth, total], plus their bias, or 0."""
    for k0 in range(0, depth, KC):
        for j in range(0, columns, NR):
            mpi.tend(wire)
            vectors = vectors_of(total - first - j)
            width = LANES * vectors
            carry = k0
            if bias != 0:
                if k0 == 0:
                    fill_rows(m, c, j, bias + FLOAT * (first + j), width)
                carry = 1
            panel = panels + FLOAT * ((first + j) * depth + k0 * width)
            panel_rows(m, vectors, a, panel, c, j, min(KC, depth - k0), carry, panel + FLOAT * width * depth)
        a += PITCH * m


both = jit(
    unrolled(
        "both",
        "x, values, by_x, n",
        "for i in range(n):\n    values[i], by_x[i] = case(x[i])",
        FUNCTIONS,
        globals(),
    )
)


@jit
def slopes(word, gated, u, g, d, h, weight, n, spare):
    """From the products u and g of a row and d = dy down^T: h, and du and dg in their place; n columns each.

    All are addresses, `spare` of n float32. A bound passes the gradient of a value that is at it or within it.
    """
    us, ds, hs, by_x = mem.floats(u, n), mem.floats(d, n), mem.floats(h, n), mem.floats(spare, n)
    if not gated:
        both(code_of(word), us, hs, by_x, n)
        for i in range(n):
            us[i] = weight * ds[i] * by_x[i]
        return
    gs, limit, shift = mem.floats(g, n), limit_of(word), shift_of(code_of(word))
    before, after = limits(word)
    for i in range(n):
        hs[i] = at_most(gs[i], before)
    both(code_of(word), hs, hs, by_x, n)
    for i in range(n):
        through, value, by = weight * ds[i], at_most(hs[i], after), factor(us[i], limit, shift)
        gs[i] = ZERO if gs[i] > before or hs[i] > after else through * by * by_x[i]
        us[i] = ZERO if us[i] > limit or us[i] < -limit else through * value
        hs[i] = value * by


@jit
def dot(a, b, n):
    """The sum of products of n float32 at two addresses: eight chains, added up in pairs. The ISA changes no bits."""
    x, y = mem.floats(a, n), mem.floats(b, n)
    s0, s1, s2, s3, s4, s5, s6, s7 = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
    whole = n // 8 * 8
    for i in range(0, whole, 8):
        s0 += x[i] * y[i]
        s1 += x[i + 1] * y[i + 1]
        s2 += x[i + 2] * y[i + 2]
        s3 += x[i + 3] * y[i + 3]
        s4 += x[i + 4] * y[i + 4]
        s5 += x[i + 5] * y[i + 5]
        s6 += x[i + 6] * y[i + 6]
        s7 += x[i + 7] * y[i + 7]
    total = ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))
    for i in range(whole, n):
        total += x[i] * y[i]
    return total


@jit
def expert_rows(m, x, dy, w, dx, dw, weights, turned, code, hidden, ffn, kept, saved, scratch, wire):
    """Compute m rows of an expert backwards: dx and dw, and what `weight_gradients` needs, to kept. At most MOST_ROWS.

    x, dy, dx, kept: addresses of arrays of m row addresses; rows of x and dy hold `hidden` float32, rows of dx have
    space for `hidden` rounded up to vectors, of kept for `kept_bytes(ffn, gated)`. w, dw: addresses of m float32, the
    combine weights and where their gradients go. weights: as `expert.expert_rows` takes them; turned: addresses of up,
    gate and down packed transposed. saved: address of an array of addresses of what `expert.keep_hidden` wrote of each
    row, then x is not read; or 0. scratch: `scratch_bytes(m, hidden, ffn)` bytes, 64-byte aligned.
    """
    up, gate, _, up_bias, gate_bias, down_bias = weights
    up_turned, gate_turned, down_turned = turned
    gated = gate != 0
    part = line_bytes(ffn)
    table = scratch
    a = (table + 3 * 8 * m + LINE - 1) // LINE * LINE
    b = a + PITCH * m * ((hidden + KC - 1) // KC)
    ds = b + PITCH * m * ((hidden + KC - 1) // KC)
    du, h = ds + PITCH * m, ds + 2 * PITCH * m
    dg = h + PITCH * m
    spare = dg + PITCH * m
    to_u, to_d, to_g = table, table + 8 * m, table + 16 * m
    weight, share = mem.floats(w, m), mem.floats(dw, m)
    if saved == 0:
        pack_rows(m, x, hidden, a)
    pack_rows(m, dy, hidden, b)
    row_addresses(m, to_u, du)
    row_addresses(m, to_d, ds)
    row_addresses(m, to_g, dg)
    for i in range(m):
        share[i] = dot(mem.load(dy + 8 * i), down_bias, hidden) if down_bias != 0 else ZERO
    for f0 in range(0, ffn, FC):
        count = min(FC, ffn - f0)
        columns = (count + LANES - 1) // LANES * LANES
        if saved != 0:
            take_hidden(m, saved, f0, columns, part if gated else 0, du, dg)
        else:
            chunk_columns(m, a, hidden, up, up_bias, ffn, f0, columns, to_u, wire)
            if gated:
                chunk_columns(m, a, hidden, gate, gate_bias, ffn, f0, columns, to_g, wire)
        chunk_columns(m, b, hidden, down_turned, 0, ffn, f0, columns, to_d, wire)
        for i in range(m):
            at, to = PITCH * i, mem.load(kept + 8 * i) + FLOAT * f0
            slopes(code, gated, du + at, dg + at, ds + at, h + at, weight[i], columns, spare)
            share[i] += dot(ds + at, h + at, count)
            mem.copy_row(to, du + at, FLOAT * count)
            mem.copy_row(to + part, h + at, FLOAT * count)
            if gated:
                mem.copy_row(to + 2 * part, dg + at, FLOAT * count)
        add_columns(m, du, up_turned, ffn, f0, count, hidden, dx, f0, wire)
        if gated:
            add_columns(m, dg, gate_turned, ffn, f0, count, hidden, dx, 1, wire)


@jit
def take_hidden(m, saved, f0, columns, part, u, g):
    """Copy columns f0.. of m rows from what `expert.keep_hidden` wrote. part: bytes from u to g there, 0: no gate."""
    for i in range(m):
        place = mem.load(saved + 8 * i) + FLOAT * f0
        mem.copy_row(u + PITCH * i, place, FLOAT * columns)
        if part != 0:
            mem.copy_row(g + PITCH * i, place + part, FLOAT * columns)


@jit
def add_columns(m, a, panels, depth, first, count, columns, c, carry, wire):
    """C[m, columns] (+)= packed rows of `count` columns at `a` times the rows first.. of panels [depth, columns]."""
    for j in range(0, columns, NR):
        mpi.tend(wire)
        vectors = vectors_of(columns - j)
        width = LANES * vectors
        panel = panels + FLOAT * (j * depth + first * width)
        panel_rows(m, vectors, a, panel, c, j, count, carry, panel + FLOAT * width * depth)


@jit
def turn_rows(m, x, first, columns, a):
    """Write columns first.. of m rows of float32 transposed: row c of packed rows at `a` holds one column of all m."""
    for c0 in range(0, columns, SIDE):
        n = min(SIDE, columns - c0)
        for i in range(m):
            row = mem.floats(mem.load(x + 8 * i) + FLOAT * (first + c0), n)
            for c in range(n):
                mem.floats(a + PITCH * (c0 + c) + FLOAT * i, 1)[0] = row[c]


@jit
def pack_panels(m, first, rows, columns, w, limit, panels):
    """Write columns first.. of m rows as panels of a matrix with m rows.

    first: the column of a whole number of panels where they go; rows: address of an array of addresses of float32,
    `columns` of them, of which `limit` are left of the whole matrix; w: address of a factor for each row, or 0.
    """
    for i in range(m):
        row = mem.floats(mem.load(rows + 8 * i), columns)
        weight = mem.floats(w, m)[i] if w != 0 else ONE
        for j in range(0, columns, NR):
            width = LANES * vectors_of(limit - j)
            n = min(width, columns - j)
            out = mem.floats(panels + FLOAT * (m * (first + j) + i * width), width)
            for k in range(n):
                out[k] = weight * row[j + k]
            for k in range(n, width):
                out[k] = ZERO


@jit
def add_turned(m, rows, a, panels, columns, c):
    """C[rows, columns] += A^T B for m rows in order. a: A transposed; c: address of an array of row addresses.

    As `gemm.panel_rows`, but for the rows of C: the next ones are fetched while these are computed.
    """
    groups = (rows + ROWS - 1) // ROWS
    size = rows // groups
    larger = rows - size * groups
    for j in range(0, columns, NR):
        vectors = vectors_of(columns - j)
        panel = panels + FLOAT * m * j
        i = 0
        for g in range(groups):
            n = size + 1 if g < larger else size
            for r in range(i + n, min(rows, i + 2 * n)):
                for line in range(0, FLOAT * LANES * vectors, LINE):
                    fetch(mem.load(c + 8 * r) + FLOAT * j + line)
            block(n + ROWS * (vectors - 1), a + PITCH * i, panel, c + 8 * i, j, m, 1, panel, 0)
            i += n


@jit
def add_outer(m, x, begin, end, panels, columns, out, table, a):
    """out[begin.. before end, columns] += the sum over m rows, in order, of x[i]^T times row i of panels.

    x: address of an array of row addresses; out: of rows of float32, rounded up to vectors; table: of space for `end`
    addresses; a: of TURNED packed rows.
    """
    pitch = FLOAT * ((columns + LANES - 1) // LANES * LANES)
    for i in range(begin, end):
        mem.store(table + 8 * i, out + pitch * i)
    for first in range(begin, end, TURNED):
        n = min(TURNED, end - first)
        turn_rows(m, x, first, n, a)
        add_turned(m, n, a, panels, columns, table + 8 * first)


@jit
def add_rows(m, rows, w, n, out):
    """out[n] += each of m rows in order, times w[i] if w is not 0. rows: address of an array of row addresses."""
    sums = mem.floats(out, n)
    for i in range(m):
        row = mem.floats(mem.load(rows + 8 * i), n)
        weight = mem.floats(w, m)[i] if w != 0 else ONE
        for k in range(n):
            sums[k] += weight * row[k]


@jit
def weight_gradients(m, x, dy, w, gradients, hidden, ffn, kept, scratch):
    """Add the parts of m rows to the weights' gradients, after `expert_rows` of the same rows with the same `kept`.

    gradients: addresses of those of (up, gate, down, up_bias, gate_bias, down_bias), 0 for absent ones: matrices
    [H, F] and [F, H] with columns rounded up to vectors; arrays of F, F and H.
    """
    for which in range(3):
        end = ffn if which == DOWN else hidden
        add_gradient(m, x, dy, w, gradients, hidden, ffn, kept, scratch, which, 0, end)


@jit
def add_gradient(m, x, dy, w, gradients, hidden, ffn, kept, scratch, which, begin, end):
    """A part of `weight_gradients`: rows begin.. before end of one matrix; its bias comes with row 0.

    which: UP, GATE or DOWN.
    """
    up, gate, down, up_bias, gate_bias, down_bias = gradients
    table, rows = scratch, scratch + 8 * max(hidden, ffn)
    a = (rows + 8 * m + LINE - 1) // LINE * LINE
    panels = a + PITCH * TURNED
    if which == DOWN:
        pack_panels(m, 0, dy, hidden, w, hidden, panels)
        if down_bias != 0 and begin == 0:
            add_rows(m, dy, w, hidden, down_bias)
        kept_addresses(m, rows, kept, 1, ffn)
        add_outer(m, rows, begin, end, panels, hidden, down, table, a)
        return
    target, bias = (up, up_bias) if which == UP else (gate, gate_bias)
    if target == 0:
        return
    kept_addresses(m, rows, kept, 2 * which, ffn)
    pack_panels(m, 0, rows, ffn, 0, ffn, panels)
    if bias != 0 and begin == 0:
        add_rows(m, rows, 0, ffn, bias)
    add_outer(m, x, begin, end, panels, ffn, target, table, a)


@jit
def kept_addresses(m, table, kept, which, ffn):
    """Write the addresses of what was kept of m rows at `table`. which: 0 du, 1 h, 2 dg."""
    for i in range(m):
        mem.store(table + 8 * i, mem.load(kept + 8 * i) + line_bytes(ffn) * which)


# ---- rows in the store: see engine/store.py


@jit
def weight_at(place, hidden, ffn, gated):
    """Address of the combine weight in a row's place."""
    return place + line_bytes(2 * hidden) + line_bytes(ffn) * (3 if gated else 2)


@jit
def plain_first(rows, tape, order):
    """Write the numbers of `rows` rows at `order`: last those whose hidden activations the tape has; returns how many
    others there are. tape: address of entries, see `primitives.taped`, or 0.
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
def store_row(x, place, entry, hidden, ffn, gated):
    """Copy a row [dy | x] to its place; x comes from the tape if it was kept there."""
    to_x, kept = place + FLOAT * hidden, taped.kept_of(entry)
    mem.copy_row(place, x, FLOAT * hidden)
    if kept & taped.X == 0:
        mem.copy_row(to_x, x + FLOAT * hidden, FLOAT * hidden)
        return
    from_x = taped.place_of(entry)
    if kept & taped.HIDDEN:
        from_x += line_bytes(ffn) * (2 if gated else 1)
    mem.copy_row(to_x, from_x, FLOAT * hidden)


@jit
def store_rows(rows, x, dx, places, scalars, weights, code, hidden, ffn, scratch, wire, tape):
    """`expert_rows` of rows [dy | x], each of which is first copied to its place. At most MOST_ROWS.

    x, dx, places: addresses of arrays of row addresses; places have `place_bytes` bytes. scalars: address of words, the
    combine weights as float32 bits, which become their gradients. weights: address of nine addresses, see
    `primitives.arithmetic.backward_rows`; tape: its `kept`. scratch: `store_bytes(rows, hidden, ffn)` bytes, 64-byte
    aligned.
    """
    to_x, to_dy, to_dx, kept = scratch, scratch + 8 * rows, scratch + 16 * rows, scratch + 24 * rows
    saved, order = scratch + 32 * rows, scratch + 40 * rows
    w, dw = scratch + 48 * rows, scratch + (48 + FLOAT) * rows
    free = (dw + FLOAT * rows + LINE - 1) // LINE * LINE
    nine = mem.words(weights, 9)
    packed, turned = (nine[0], nine[1], nine[2], nine[3], nine[4], nine[5]), (nine[6], nine[7], nine[8])
    gated, plain = nine[1] != 0, plain_first(rows, tape, order)
    weight, back = mem.floats(w, rows), mem.floats(dw, rows)
    for to in range(rows):
        i = mem.load(order + 8 * to)
        place, entry = mem.load(places + 8 * i), mem.load(tape + 8 * i) if tape != 0 else 0
        store_row(mem.load(x + 8 * i), place, entry, hidden, ffn, gated)
        mem.store(to_x + 8 * to, place + FLOAT * hidden)
        mem.store(to_dy + 8 * to, place)
        mem.store(to_dx + 8 * to, mem.load(dx + 8 * i))
        mem.store(kept + 8 * to, place + line_bytes(2 * hidden))
        mem.store(saved + 8 * to, taped.place_of(entry))
        weight[to] = mem.floats(scalars + 8 * i, 1)[0]
        mem.floats(weight_at(place, hidden, ffn, gated), 1)[0] = weight[to]
    for begins, count, from_tape in ((0, plain, 0), (plain, rows - plain, saved + 8 * plain)):
        at, value = 8 * begins, FLOAT * begins
        if count > 0:
            expert_rows(
                count, to_x + at, to_dy + at, w + value, to_dx + at, dw + value, packed, turned, code, hidden, ffn,
                kept + at, from_tape, free, wire,
            )  # fmt: skip
    for to in range(rows):
        i = mem.load(order + 8 * to)
        mem.store(scalars + 8 * i, 0)
        mem.floats(scalars + 8 * i, 1)[0] = back[to]


@jit
def stored_gradients(rows, places, gradients, hidden, ffn, scratch, which, begin, end):
    """`add_gradient` of any number of rows after `store_rows`, in the order of `places`.

    places: address of an array of addresses. scratch: `store_bytes(MOST_ROWS, hidden, ffn)` bytes. which: a
    matrix as in `add_gradient`, or ALL: as `weight_gradients`.
    """
    gated = gradients[1] != 0
    for first in range(0, rows, MOST_ROWS):
        m = min(MOST_ROWS, rows - first)
        to_x, kept = scratch, scratch + 8 * m
        w = kept + 8 * m
        free = (w + FLOAT * m + LINE - 1) // LINE * LINE
        weight = mem.floats(w, m)
        for i in range(m):
            place = mem.load(places + 8 * (first + i))
            mem.store(to_x + 8 * i, place + FLOAT * hidden)
            mem.store(kept + 8 * i, place + line_bytes(2 * hidden))
            weight[i] = mem.floats(weight_at(place, hidden, ffn, gated), 1)[0]
        dy = places + 8 * first
        if which == ALL:
            weight_gradients(m, to_x, dy, w, gradients, hidden, ffn, kept, free)
        else:
            add_gradient(m, to_x, dy, w, gradients, hidden, ffn, kept, free, which, begin, end)
