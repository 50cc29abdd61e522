"""The gradients of one expert on a run of rows of bfloat16: as `expert_backward`, by products of bfloat16.

x, dy and the weights are bfloat16; so are du, dg and w h, each rounded once, that `expert_rows` keeps of each row:

    d = dy down^T, h as in the forward call, dw = <d, h> + <dy, down_bias>
    du, dg = w d times the derivatives of h; dx = du up^T + dg gate^T
    dup += x^T du, dgate += x^T dg, ddown += (w h)^T dy, and the sums of du, dg, w dy to the biases

All sums are float32, and so is dx. A row's results depend on the row alone. A sum over rows is one chain in order of
rows for each call: blocks of 32 rows, counted from the call's first, are added as `operands.panel_sums` does.
"""

import numpy as np

from ...primitives import memory as mem
from ...primitives import taped
from ...primitives import wire as mpi
from ...primitives.buffers import FLOAT, LINE
from ...primitives.compile import jit
from ..common.activations import ONE, ZERO
from .convert import BFLOAT16, round_row, widen_row
from .elements import WIDTH
from .expert import line_bytes
from .expert_backward import ALL, DOWN, GATE, MOST_ROWS, UP, dot, plain_first, slopes  # noqa: F401  GATE, UP: for callers
from .gemm import PITCH, fetch
from .micro_kernels import STEP, SUMS
from .operands import (
    SPARE_BYTES,
    begin,
    end,
    operand_bytes,
    operand_size,
    pack_operand,
    panel_bytes,
    panel_sums,
    round_operand,
)
from .panels import LANES
from .rounded_expert import ahead_of, start_sums, up
from .widened import DOT

ELEMENT, BYTES = BFLOAT16, 2
CHUNK = 512  # columns of F whose du and dg are kept as operands
OUTER_ROWS = 512  # rows of a pass over the gradients: whole blocks of 32, at most an operand's columns
TURNED = 128  # columns of x, or of h, that are transposed at once: their operand stays in the L2 cache
SIDE = 16  # of a block of the transposition


def part_bytes(columns):
    """Bytes of `columns` elements, in whole lines: blocks of 32 elements."""
    return (BYTES * columns + LINE - 1) // LINE * LINE


part_size = jit(part_bytes)


def kept_bytes(ffn, gated):
    """Bytes of what `expert_rows` keeps of a row: du, w h, and dg if gated."""
    return (3 if gated else 2) * part_bytes(ffn)


def place_bytes(hidden, ffn, gated):
    """Bytes of a row's place in the store: dy, x, what `expert_rows` keeps, the combine weight."""
    return 2 * part_bytes(hidden) + kept_bytes(ffn, gated) + LINE


def scratch_bytes(rows, hidden, ffn):
    """Bytes of scratch of `expert_rows` and of `weight_gradients` for up to `rows` rows, at most MOST_ROWS."""
    operands = 2 * operand_bytes(ELEMENT, rows, hidden) + 2 * operand_bytes(ELEMENT, rows, min(ffn, CHUNK))
    first = SPARE_BYTES + operands + 5 * SUMS * rows + FLOAT * (hidden + WIDTH)
    return max(first, outer_bytes(rows, max(hidden, ffn)))


def store_bytes(rows, hidden, ffn):
    """Bytes of scratch of `store_rows` for up to `rows` rows, at most MOST_ROWS, and of `stored_gradients`."""
    first = (7 * 8 + 2 * FLOAT) * rows + LINE + SUMS + scratch_bytes(rows, hidden, ffn)
    return max(first, 3 * 8 * OUTER_ROWS + LINE + outer_bytes(OUTER_ROWS, max(hidden, ffn)))


def outer_bytes(rows, widest):
    """Bytes of scratch of `add_gradient` for up to `rows` rows; widest: the most columns of either side."""
    depth, columns = -(-rows // WIDTH) * WIDTH, -(-widest // WIDTH) * WIDTH
    packed = operand_bytes(ELEMENT, TURNED, depth) + TURNED * (PITCH + 8)
    return 8 * rows + LINE + FLOAT * columns + SPARE_BYTES + packed + SUMS * TURNED + BYTES * depth * columns


@jit
def take_hidden(m, saved, j, ffn, part, u, g):
    """Copy 32 sums of m rows from column j of what `expert.keep_hidden` wrote. part: bytes from u to g, 0: no gate."""
    nbytes = min(SUMS, line_bytes(ffn) - FLOAT * j)
    for i in range(m):
        place = mem.load(saved + 8 * i) + FLOAT * j
        take_sums(u + SUMS * i, place, nbytes)
        if part != 0:
            take_sums(g + SUMS * i, place + part, nbytes)


@jit
def take_sums(to, source, nbytes):
    """Copy up to 32 float32, then zeros."""
    if nbytes == SUMS:
        move(to, source)
    else:
        mem.floats(to, WIDTH)[:] = ZERO
        mem.copy_row(to, source, nbytes)


@jit
def move(to, source):
    """Copy 32 float32."""
    a, b = mem.floats(to, WIDTH), mem.floats(source, WIDTH)
    for k in range(WIDTH):
        a[k] = b[k]


@jit
def scale(at, by):
    """Multiply 32 float32 by a factor."""
    values = mem.floats(at, WIDTH)
    for k in range(WIDTH):
        values[k] *= by


@jit
def expert_rows(m, x, dy, w, dx, dw, weights, turned, code, hidden, ffn, kept, saved, scratch, wire):
    """As `expert_backward.expert_rows`, of rows of bfloat16; dx is float32 of `hidden` columns. At most MOST_ROWS."""
    up_panels, gate, _, up_bias, gate_bias, down_bias = weights
    up_turned, gate_turned, down_turned = turned
    gated, part = gate != 0, part_size(ffn)
    chunk = min(ffn, CHUNK)
    spare, a = scratch, scratch + SPARE_BYTES
    b = a + operand_size(ELEMENT, m, hidden)
    du = b + operand_size(ELEMENT, m, hidden)
    dg = du + operand_size(ELEMENT, m, chunk)
    u = dg + operand_size(ELEMENT, m, chunk)
    g, d, h = u + SUMS * m, u + 2 * SUMS * m, u + 3 * SUMS * m
    by = h + SUMS * m
    wide = by + SUMS * m
    weight, share = mem.floats(w, m), mem.floats(dw, m)
    begin(spare)
    if saved == 0:
        pack_operand(ELEMENT, m, x, hidden, a)
    pack_operand(ELEMENT, m, dy, hidden, b)
    for i in range(m):
        share[i] = ZERO
        if down_bias != 0:
            widen_row(ELEMENT, wide, mem.load(dy + 8 * i), hidden)
            share[i] = dot(wide, down_bias, hidden)
    width = panel_bytes(ELEMENT)
    step, step_turned = width * up(hidden), width * up(ffn)
    for f0 in range(0, ffn, chunk):
        count = min(chunk, ffn - f0)
        for j in range(f0, f0 + count, WIDTH):
            mpi.tend(wire)
            at, more = step * (j // WIDTH), j + WIDTH < ffn
            if saved != 0:
                take_hidden(m, saved, j, ffn, line_bytes(ffn) if gated else 0, u, g)
            else:
                carry = start_sums(m, up_bias + FLOAT * j if up_bias != 0 else 0, u)
                panel = up_panels + at
                panel_sums(ELEMENT, m, a, hidden, panel, u, carry, ahead_of(panel, step, more), spare)
                if gated:
                    carry = start_sums(m, gate_bias + FLOAT * j if gate_bias != 0 else 0, g)
                    panel = gate + at
                    panel_sums(ELEMENT, m, a, hidden, panel, g, carry, ahead_of(panel, step, more), spare)
            panel = down_turned + at
            panel_sums(ELEMENT, m, b, hidden, panel, d, 0, ahead_of(panel, step, more), spare)
            slopes(code, gated, u, g, d, h, ONE, WIDTH * m, by)
            for i in range(m):
                place, factor = SUMS * i, weight[i]
                share[i] += dot(d + place, h + place, min(WIDTH, ffn - j))
                scale(u + place, factor)
                scale(h + place, factor)
                to = mem.load(kept + 8 * i) + BYTES * j
                round_row(ELEMENT, to, u + place, WIDTH)
                round_row(ELEMENT, to + part, h + place, WIDTH)
                if gated:
                    scale(g + place, factor)
                    round_row(ELEMENT, to + 2 * part, g + place, WIDTH)
            round_operand(ELEMENT, m, u, j - f0, count, du, spare)
            if gated:
                round_operand(ELEMENT, m, g, j - f0, count, dg, spare)
        for j in range(0, hidden, WIDTH):
            mpi.tend(wire)
            nbytes = FLOAT * min(WIDTH, hidden - j)
            if f0 > 0:
                for i in range(m):
                    mem.copy_row(u + SUMS * i, mem.load(dx + 8 * i) + FLOAT * j, nbytes)
            at, more = step_turned * (j // WIDTH) + width * f0, j + WIDTH < hidden
            panel = up_turned + at
            panel_sums(ELEMENT, m, du, count, panel, u, f0, ahead_of(panel, step_turned, more), spare)
            if gated:
                panel = gate_turned + at
                panel_sums(ELEMENT, m, dg, count, panel, u, 1, ahead_of(panel, step_turned, more), spare)
            for i in range(m):
                mem.copy_row(mem.load(dx + 8 * i) + FLOAT * j, u + SUMS * i, nbytes)
    end()


# ---- gradients of weights


@jit
def pack_pairs(m, rows, columns, panels):
    """Write m rows of bfloat16 as panels of 32 columns, zeros behind; as `elements.pack_pairs` does.

    rows: address of an array of row addresses.
    """
    depth = up(m)
    for p in range(depth // 2):
        lower, upper = mem.load(rows + 16 * p) if 2 * p < m else 0, mem.load(rows + 16 * p + 8) if 2 * p + 1 < m else 0
        for j in range(0, up(columns), SIDE):
            to = panels + 2 * WIDTH * depth * (j // WIDTH) + STEP * (j // SIDE % 2)
            to += 2 * STEP * (p // SIDE) + FLOAT * SIDE * (p % SIDE)
            if upper != 0 and j + SIDE <= columns:
                pair_side(lower + BYTES * j, upper + BYTES * j, to)
            else:
                pair_some(lower, upper, j, columns, to)


@jit
def pair_side(lower, upper, to):
    """16 pairs of elements as words."""
    a, b, out = mem.bits16(lower, SIDE), mem.bits16(upper, SIDE), mem.bits32(to, SIDE)
    for c in range(SIDE):
        out[c] = np.uint32(a[c]) | np.uint32(b[c]) << np.uint32(16)


@jit
def pair_some(lower, upper, j, columns, to):
    """As `pair_side`, of columns j.. of two rows at addresses; 0 of a row at address 0, and beyond `columns`."""
    out, n = mem.bits16(to, 2 * SIDE), min(SIDE, columns - j)
    out[:] = 0
    for c in range(n):
        if lower != 0:
            out[2 * c] = mem.bits16(lower + BYTES * (j + c), 1)[0]
        if upper != 0:
            out[2 * c + 1] = mem.bits16(upper + BYTES * (j + c), 1)[0]


@jit
def turn_rows(m, rows, first, columns, t, words):
    """Write columns first.. of m rows transposed: a row at t of PITCH bytes holds one column of all m, zeros behind.

    words: address of SIDE words.
    """
    buffer = mem.bits32(words, SIDE)
    for c0 in range(0, columns, SIDE):
        n = min(SIDE, columns - c0)
        for p in range(up(m) // 2):
            lower, upper = mem.load(rows + 16 * p) if 2 * p < m else 0, 0
            if 2 * p + 1 < m:
                upper = mem.load(rows + 16 * p + 8)
            if upper != 0 and n == SIDE:
                pair_side(lower + BYTES * (first + c0), upper + BYTES * (first + c0), words)
            else:
                pair_some(lower, upper, first + c0, first + c0 + n, words)
            for c in range(n):
                mem.bits32(t + PITCH * (c0 + c) + FLOAT * p, 1)[0] = buffer[c]


@jit
def add_turned(m, n, a, panels, columns, out, pitch, sums, spare):
    """out[n, columns] += the operand at a, of n rows and m columns, times panels. pitch: bytes between rows of out."""
    step = panel_bytes(ELEMENT) * up(m)
    for j in range(0, columns, WIDTH):
        nbytes, ahead = min(SUMS, pitch - FLOAT * j), j + WIDTH < columns
        for i in range(n):
            place = out + pitch * i + FLOAT * j
            if nbytes == SUMS:
                move(sums + SUMS * i, place)
            else:
                mem.copy_row(sums + SUMS * i, place, nbytes)
            if ahead:
                fetch(place + SUMS)
                fetch(place + SUMS + LINE)
        panel = panels + step * (j // WIDTH)
        panel_sums(ELEMENT, n, a, m, panel, sums, 1, ahead_of(panel, step, ahead), spare)
        for i in range(n):
            place = out + pitch * i + FLOAT * j
            if nbytes == SUMS:
                move(place, sums + SUMS * i)
            else:
                mem.copy_row(place, sums + SUMS * i, nbytes)


@jit
def add_rows(m, rows, w, n, out, wide):
    """out[n] += each of m rows in order, times w[i] if w is not 0. wide: space for n float32."""
    sums, row = mem.floats(out, n), mem.floats(wide, n)
    for i in range(m):
        widen_row(ELEMENT, wide, mem.load(rows + 8 * i), n)
        weight = mem.floats(w, m)[i] if w != 0 else ONE
        for k in range(n):
            sums[k] += weight * row[k]


@jit
def weight_gradients(m, x, dy, w, gradients, hidden, ffn, kept, scratch):
    """As `expert_backward.weight_gradients`, of rows of bfloat16; at most OUTER_ROWS rows."""
    for which in range(3):
        last = ffn if which == DOWN else hidden
        add_gradient(m, x, dy, w, gradients, hidden, ffn, kept, scratch, which, 0, last)


@jit
def add_gradient(m, x, dy, w, gradients, hidden, ffn, kept, scratch, which, first, last):
    """A part of `weight_gradients`: rows first.. before last of one matrix; its bias comes with row 0."""
    target, bias = gradients[which], gradients[3 + which]
    if target == 0:
        return
    others = scratch
    wide = (others + 8 * m + LINE - 1) // LINE * LINE
    spare = wide + FLOAT * up(max(hidden, ffn))
    t = spare + SPARE_BYTES
    table = t + PITCH * TURNED
    a = table + 8 * TURNED
    sums = a + operand_size(ELEMENT, TURNED, up(m))
    panels = sums + SUMS * TURNED
    left, right, columns = x, others, ffn
    if which == DOWN:
        kept_addresses(m, others, kept, 1, ffn)
        left, right, columns = others, dy, hidden
    else:
        kept_addresses(m, others, kept, 2 * which, ffn)
    pack_pairs(m, right, columns, panels)
    if bias != 0 and first == 0:
        add_rows(m, right, w if which == DOWN else 0, columns, bias, wide)
    pitch = FLOAT * ((columns + LANES - 1) // LANES * LANES)
    begin(spare)
    for row in range(first, last, TURNED):
        n = min(TURNED, last - row)
        turn_rows(m, left, row, n, t, wide)
        operand = t
        if not DOT:
            for i in range(n):
                mem.store(table + 8 * i, t + PITCH * i)
            pack_operand(ELEMENT, n, table, up(m), a)
            operand = a
        add_turned(m, n, operand, panels, columns, target + pitch * row, pitch, sums, spare)
    end()


@jit
def kept_addresses(m, table, kept, which, ffn):
    """Write the addresses of what was kept of m rows at `table`. which: 0 du, 1 w h, 2 dg."""
    for i in range(m):
        mem.store(table + 8 * i, mem.load(kept + 8 * i) + part_size(ffn) * which)


# ---- rows in the store: see engine/store.py


@jit
def weight_at(place, hidden, ffn, gated):
    """Address of the combine weight in a row's place."""
    return place + 2 * part_size(hidden) + part_size(ffn) * (3 if gated else 2)


@jit
def round_exactly(to, source, n, block):
    """Round n float32, reading no more than these. block: space for 32."""
    whole = n // WIDTH * WIDTH
    round_row(ELEMENT, to, source, whole)
    if whole < n:
        mem.copy_row(block, source + FLOAT * whole, FLOAT * (n - whole))
        round_row(ELEMENT, to + BYTES * whole, block, n - whole)


@jit
def store_row(x, place, entry, hidden, ffn, gated, block):
    """Round a row [dy | x] of float32 to its place; x comes from the tape, in bfloat16, if it was kept there.

    block: space for 32 float32.
    """
    to_x, kept = place + part_size(hidden), taped.kept_of(entry)
    round_exactly(place, x, hidden, block)
    if kept & taped.X == 0:
        round_exactly(to_x, x + FLOAT * hidden, hidden, block)
        return
    from_x = taped.place_of(entry)
    if kept & taped.HIDDEN:
        from_x += line_bytes(ffn) * (2 if gated else 1)
    mem.copy_row(to_x, from_x, BYTES * hidden)


@jit
def store_rows(rows, x, dx, places, scalars, weights, code, hidden, ffn, scratch, wire, tape):
    """As `expert_backward.store_rows`: rows [dy | x] of float32 are rounded to their places, dx is float32."""
    to_x, to_dy, to_dx, kept = scratch, scratch + 8 * rows, scratch + 16 * rows, scratch + 24 * rows
    saved, order = scratch + 32 * rows, scratch + 40 * rows
    w, dw = scratch + 48 * rows, scratch + (48 + FLOAT) * rows
    block = (dw + FLOAT * rows + LINE - 1) // LINE * LINE
    free = block + SUMS
    nine = mem.words(weights, 9)
    packed, turned = (nine[0], nine[1], nine[2], nine[3], nine[4], nine[5]), (nine[6], nine[7], nine[8])
    gated, plain = nine[1] != 0, plain_first(rows, tape, order)
    weight, back = mem.floats(w, rows), mem.floats(dw, rows)
    for to in range(rows):
        i = mem.load(order + 8 * to)
        place, entry = mem.load(places + 8 * i), mem.load(tape + 8 * i) if tape != 0 else 0
        store_row(mem.load(x + 8 * i), place, entry, hidden, ffn, gated, block)
        mem.store(to_x + 8 * to, place + part_size(hidden))
        mem.store(to_dy + 8 * to, place)
        mem.store(to_dx + 8 * to, mem.load(dx + 8 * i))
        mem.store(kept + 8 * to, place + 2 * part_size(hidden))
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
def stored_gradients(rows, places, gradients, hidden, ffn, scratch, which, first, last):
    """`add_gradient` of any number of rows after `store_rows`, in the order of `places`; arguments as there."""
    gated = gradients[1] != 0
    for row in range(0, rows, OUTER_ROWS):
        m = min(OUTER_ROWS, rows - row)
        to_x, kept = scratch, scratch + 8 * m
        w = kept + 8 * m
        free = (w + FLOAT * m + LINE - 1) // LINE * LINE
        weight = mem.floats(w, m)
        for i in range(m):
            place = mem.load(places + 8 * (row + i))
            mem.store(to_x + 8 * i, place + part_size(hidden))
            mem.store(kept + 8 * i, place + 2 * part_size(hidden))
            weight[i] = mem.floats(weight_at(place, hidden, ffn, gated), 1)[0]
        dy = places + 8 * row
        if which == ALL:
            weight_gradients(m, to_x, dy, w, gradients, hidden, ffn, kept, free)
        else:
            add_gradient(m, to_x, dy, w, gradients, hidden, ffn, kept, free, which, first, last)


# ---- rows of float32, without a store


def saved_bytes(hidden, ffn, gated):
    """Bytes that `expert_blocks` needs beside its scratch: the rows of a block, rounded, and what is kept of them."""
    return MOST_ROWS * (3 * 8 + 2 * part_bytes(hidden) + kept_bytes(ffn, gated)) + LINE + SUMS


@jit
def expert_blocks(rows, x, dy, w, dx, dw, weights, turned, gradients, code, hidden, ffn, saved, scratch):
    """`expert_rows` and `weight_gradients` on any number of rows of one expert, in order; x and dy are float32.

    saved: `saved_bytes(hidden, ffn, gated)` bytes.
    """
    to_x, to_dy, kept = saved, saved + 8 * MOST_ROWS, saved + 16 * MOST_ROWS
    block = (saved + 24 * MOST_ROWS + LINE - 1) // LINE * LINE
    first, part = block + SUMS, part_size(hidden)
    step = 2 * part + part_size(ffn) * (3 if weights[1] != 0 else 2)
    for i in range(MOST_ROWS):
        mem.store(to_dy + 8 * i, first + step * i)
        mem.store(to_x + 8 * i, first + step * i + part)
        mem.store(kept + 8 * i, first + step * i + 2 * part)
    for row in range(0, rows, MOST_ROWS):
        m, word, value = min(MOST_ROWS, rows - row), 8 * row, FLOAT * row
        for i in range(m):
            round_exactly(mem.load(to_dy + 8 * i), mem.load(dy + word + 8 * i), hidden, block)
            round_exactly(mem.load(to_x + 8 * i), mem.load(x + word + 8 * i), hidden, block)
        expert_rows(
            m, to_x, to_dy, w + value, dx + word, dw + value, weights, turned, code, hidden, ffn, kept, 0, scratch, 0
        )
        weight_gradients(m, to_x, to_dy, w + value, gradients, hidden, ffn, kept, scratch)
