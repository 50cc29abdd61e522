"""The gradients of one expert on a run of rows of bfloat16, as in `expert_backward`, by products of bfloat16.

x, dy and the weights are bfloat16. du, dg and w h become bfloat16: `expert_rows` rounds them once and keeps them.

    d = dy down^T, h as in the forward call, dw = <d, h> + <dy, down_bias>
    du, dg = w d times the derivatives of h; dx = du up^T + dg gate^T
    dup += x^T du, dgate += x^T dg, ddown += (w h)^T dy
    gradients of the biases += the sums over rows of du, dg and w dy

All sums and dx are float32. A row's results depend on the row alone. In each call a sum over rows is one chain in order
of rows. Its blocks of 32 rows, counted from the call's first row, are added as `operands.panel_sums` adds blocks of k.
"""

import numpy as np

from kernel_cache.compile import jit

from ...primitives import memory as mem
from ...primitives import wire as mpi
from ...primitives.buffers import FLOAT, LINE
from ..common.activations import ONE, ZERO
from ..common.backward_records import Expert, Place, Rows, Sums
from .convert import BFLOAT16, round_row, widen_row
from .elements import WIDTH
from .expert import line_bytes
from .expert_backward import ALL, DOWN, GATE, MOST_ROWS, UP, dot, slopes  # noqa: F401  GATE, UP: for callers
from .gemm import KC, PITCH, fetch, settle, stream, transpose
from .micro_kernels import STEP, SUMS
from .operands import (
    SPARE_BYTES,
    begin,
    depth_of,
    end,
    operand_bytes,
    operand_size,
    pack_operand,
    panel_bytes,
    panel_sums,
    round_operand,
)
from .outer import MOST_OUTER, SOON, fetch_row, pass_rows, past_caches
from .panels import LANES
from .rounded_expert import ahead_of, start_sums, up
from .stored_rows import ENTRY, LISTED, expert_of, give_back, halves, list_rows, list_stored, tables
from .widened import DOT

ELEMENT, BYTES = BFLOAT16, 2
CHUNK = 512  # columns of F in a chunk, whose du and dg are kept as operands
TRANSPOSED = 128  # how many columns of x or h are transposed at once: their operand stays in the L2 cache
SIDE = 16  # how many columns of two rows are paired at once
PAIRS = 8  # how many pairs of rows are transposed at once
WORDS = PAIRS * (8 + FLOAT * SIDE)  # bytes of PAIRS rows of SIDE words, and of their addresses


def part_bytes(columns):
    """Bytes of `columns` elements, rounded up to whole lines of 32 elements."""
    return (BYTES * columns + LINE - 1) // LINE * LINE


part_size = jit(part_bytes)


def kept_bytes(ffn, gated):
    """Bytes of the data that `expert_rows` keeps of a row: du, w h, and dg if gated."""
    return (3 if gated else 2) * part_bytes(ffn)


def place_bytes(hidden, ffn, gated):
    """Bytes of a row's place in the store: dy, x, the data that `expert_rows` keeps, and the combine weight."""
    return 2 * part_bytes(hidden) + kept_bytes(ffn, gated) + LINE


def scratch_bytes(rows, hidden, ffn):
    """Bytes of scratch of `expert_rows` for up to `rows` rows, at most MOST_ROWS."""
    operands = 2 * operand_bytes(ELEMENT, rows, hidden) + 2 * operand_bytes(ELEMENT, rows, min(ffn, CHUNK))
    return SPARE_BYTES + operands + 5 * SUMS * rows + FLOAT * (hidden + WIDTH)


def gradient_bytes(rows, hidden, ffn):
    """Bytes of scratch of `weight_gradients` for up to `rows` rows, at most MOST_OUTER."""
    depth, columns = -(-rows // WIDTH) * WIDTH, -(-max(hidden, ffn) // WIDTH) * WIDTH
    blocks = -(-rows // KC)
    transposed = operand_bytes(ELEMENT, TRANSPOSED, depth) + TRANSPOSED * (PITCH * blocks + 8)
    return (
        8 * rows
        + LINE
        + FLOAT * columns
        + WORDS
        + SPARE_BYTES
        + transposed
        + SUMS * TRANSPOSED
        + BYTES * depth * columns
    )


def store_bytes(rows, hidden, ffn):
    """Bytes of scratch of `store_rows` for up to `rows` rows, at most MOST_ROWS."""
    return ENTRY * rows + LINE + scratch_bytes(rows, hidden, ffn)


def stored_bytes(hidden, ffn):
    """Bytes of scratch of `stored_gradients`."""
    return LISTED * MOST_OUTER + LINE + gradient_bytes(MOST_OUTER, hidden, ffn)


@jit
def take_hidden(m, saved, j, ffn, part, u, g):
    """Copy up to 32 columns of m rows, from column j on, to u and g from the tape (`expert.keep_hidden`).

    saved: the address of an array of the rows' places. part: the number of bytes from a row's u to its g in such a
    place, or 0 if there is no g.
    """
    nbytes = min(SUMS, line_bytes(ffn) - FLOAT * j)
    for i in range(m):
        place = mem.load(saved + 8 * i) + FLOAT * j
        take_sums(u + SUMS * i, place, nbytes)
        if part != 0:
            take_sums(g + SUMS * i, place + part, nbytes)


@jit
def take_sums(to, source, nbytes):
    """Copy `nbytes` bytes of float32, and write zeros after them until there are 32 float32."""
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
def expert_rows(rows, expert, scratch, wire):
    """Do what `expert_backward.expert_rows` does, for rows of bfloat16. Rows of dx are `hidden` float32."""
    m, x, dy, w, dx, dw, kept, saved = rows
    weights, transposed, code, hidden, ffn = expert
    up_panels, gate, _, up_bias, gate_bias, down_bias = weights
    up_transposed, gate_transposed, down_transposed = transposed
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
    step, step_transposed = width * up(hidden), width * up(ffn)
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
            panel = down_transposed + at
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
            at, more = step_transposed * (j // WIDTH) + width * f0, j + WIDTH < hidden
            panel = up_transposed + at
            panel_sums(ELEMENT, m, du, count, panel, u, f0, ahead_of(panel, step_transposed, more), spare)
            if gated:
                panel = gate_transposed + at
                panel_sums(ELEMENT, m, dg, count, panel, u, 1, ahead_of(panel, step_transposed, more), spare)
            for i in range(m):
                mem.copy_row(mem.load(dx + 8 * i) + FLOAT * j, u + SUMS * i, nbytes)
    end()


# ---- gradients of weights


@jit
def pack_pairs(m, rows, columns, panels):
    """Write m rows of bfloat16 as panels of 32 columns, in the order of `elements.pack_pairs`.

    Zeros follow, up to the last row that a product of m rows reads. rows: the address of an array of row addresses.
    """
    depth = up(m)
    for p in range(depth_of(ELEMENT, m) // 2):
        lower, upper = row_at(m, rows, 2 * p), row_at(m, rows, 2 * p + 1)
        fetch_row(m, rows, 2 * p + SOON, 0, BYTES * columns)
        fetch_row(m, rows, 2 * p + SOON + 1, 0, BYTES * columns)
        for j in range(0, up(columns), SIDE):
            to = panels + 2 * WIDTH * depth * (j // WIDTH) + STEP * (j // SIDE % 2)
            to += 2 * STEP * (p // SIDE) + FLOAT * SIDE * (p % SIDE)
            pair(lower, upper, j, columns, to)


@jit
def row_at(m, rows, i):
    """The address of row i, or 0 if there is no row i."""
    return mem.load(rows + 8 * i) if i < m else 0


@jit
def pair(lower, upper, j, columns, to):
    """Write 16 columns of two rows, from column j on, as 16 words, each of which holds a pair of elements.

    lower, upper: the addresses of the rows. A row at address 0 gives zeros, and so do columns from `columns` on.
    """
    if upper != 0 and j + SIDE <= columns:
        pair_side(lower + BYTES * j, upper + BYTES * j, to)
    else:
        pair_some(lower, upper, j, columns, to)


@jit
def pair_side(lower, upper, to):
    """Write the 16 elements at `lower` and the 16 at `upper` as 16 words of pairs."""
    a, b, out = mem.bits16(lower, SIDE), mem.bits16(upper, SIDE), mem.bits32(to, SIDE)
    for c in range(SIDE):
        out[c] = np.uint32(a[c]) | np.uint32(b[c]) << np.uint32(16)


@jit
def pair_some(lower, upper, j, columns, to):
    """Do what `pair` does, where a row has address 0 or fewer than 16 columns are left."""
    out, n = mem.bits16(to, 2 * SIDE), min(SIDE, columns - j)
    out[:] = 0
    for c in range(n):
        if lower != 0:
            out[2 * c] = mem.bits16(lower + BYTES * (j + c), 1)[0]
        if upper != 0:
            out[2 * c + 1] = mem.bits16(upper + BYTES * (j + c), 1)[0]


@jit
def transpose_rows(m, rows, first, columns, t, space):
    """Transpose `columns` columns of m rows, from column `first` on, and write them at t.

    Each row at t takes PITCH bytes, and gets one column of all m rows, then zeros. With dot products a row at t holds
    KC entries, as a row of an operand does; further entries go to later blocks. rows: the address of an array of row
    addresses. space: the address of WORDS bytes.
    """
    jump = PITCH * columns - BYTES * KC if DOT else 0
    words = space + 8 * PAIRS
    for q in range(PAIRS):
        mem.store(space + 8 * q, words + FLOAT * SIDE * q)
    for p in range(0, depth_of(ELEMENT, m) // 2, PAIRS):
        place = t + FLOAT * p + jump * (2 * p // KC)
        for i in range(2 * (p + PAIRS), 2 * (p + 2 * PAIRS)):
            fetch_row(m, rows, i, BYTES * first, BYTES * columns)
        for c in range(0, columns, SIDE):
            n = min(SIDE, columns - c)
            for q in range(PAIRS):
                i = 2 * (p + q)
                pair(row_at(m, rows, i), row_at(m, rows, i + 1), first + c, first + c + n, mem.load(space + 8 * q))
            for at in range(0, n, 8):
                transpose(space, FLOAT * at, place + PITCH * (c + at), PITCH)


@jit
def add_transposed(m, n, a, panels, columns, out, pitch, carry, past, sums, spare):
    """Set out[n, columns] to an operand [n, m] times panels, plus out if `carry` is nonzero.

    a: the address of the operand. panels: the address of the panels. pitch: the number of bytes between rows of out.
    past: whether rows of out are written past the caches.
    """
    step = panel_bytes(ELEMENT) * up(m)
    for j in range(0, columns, WIDTH):
        nbytes, ahead = min(SUMS, pitch - FLOAT * j), j + WIDTH < columns
        if carry != 0:
            for i in range(n):
                place = out + pitch * i + FLOAT * j
                if nbytes == SUMS:
                    move(sums + SUMS * i, place)
                else:
                    mem.copy_row(sums + SUMS * i, place, nbytes)
        if ahead and not past:
            for i in range(n):
                fetch(out + pitch * i + FLOAT * j + SUMS)
                fetch(out + pitch * i + FLOAT * j + SUMS + LINE)
        panel = panels + step * (j // WIDTH)
        panel_sums(ELEMENT, n, a, m, panel, sums, carry, ahead_of(panel, step, ahead), spare)
        for i in range(n):
            place = out + pitch * i + FLOAT * j
            if nbytes < SUMS:
                mem.copy_row(place, sums + SUMS * i, nbytes)
            elif past:
                stream(place, sums + SUMS * i, WIDTH // LANES)
            else:
                move(place, sums + SUMS * i)


@jit
def add_rows(m, rows, w, n, out, carry, wide):
    """Set out[n] to the sum of m rows in order, each times w[i] if w is not 0, plus out if `carry` is nonzero.

    rows: the address of an array of row addresses. wide: the address of space for n float32.
    """
    sums, row = mem.floats(out, n), mem.floats(wide, n)
    if carry == 0:
        sums[:] = ZERO
    for i in range(m):
        widen_row(ELEMENT, wide, mem.load(rows + 8 * i), n)
        weight = mem.floats(w, m)[i] if w != 0 else ONE
        for k in range(n):
            sums[k] += weight * row[k]


@jit
def weight_gradients(rows, sums, scratch):
    """Do what `expert_backward.weight_gradients` does, for rows of bfloat16."""
    for which in range(3):
        add_gradient(rows, sums, scratch, which, 0, sums.ffn if which == DOWN else sums.hidden)


@jit
def add_gradient(rows, into, scratch, which, first, last):
    """Do a part of `weight_gradients`: for rows first..last of one matrix, and for its bias if `first` is 0."""
    m, x, dy, w, _, _, kept, _ = rows
    gradients, hidden, ffn, carry, once = into
    target, bias = gradients[which], gradients[3 + which]
    if target == 0:
        return
    past = past_caches(carry, once, FLOAT * hidden * ffn)
    others = scratch
    wide = (others + 8 * m + LINE - 1) // LINE * LINE
    space = wide + FLOAT * up(max(hidden, ffn))
    spare = space + WORDS
    t = spare + SPARE_BYTES
    table = t + PITCH * TRANSPOSED * ((m + KC - 1) // KC)
    a = table + 8 * TRANSPOSED
    sums = a + operand_size(ELEMENT, TRANSPOSED, up(m))
    panels = sums + SUMS * TRANSPOSED
    left, right, columns = x, others, ffn
    if which == DOWN:
        kept_addresses(m, others, kept, 1, ffn)
        left, right, columns = others, dy, hidden
    else:
        kept_addresses(m, others, kept, 2 * which, ffn)
    pack_pairs(m, right, columns, panels)
    if bias != 0 and first == 0:
        add_rows(m, right, w if which == DOWN else 0, columns, bias, carry, wide)
    pitch = FLOAT * ((columns + LANES - 1) // LANES * LANES)
    begin(spare)
    for row in range(first, last, TRANSPOSED):
        n = min(TRANSPOSED, last - row)
        transpose_rows(m, left, row, n, t, space)
        operand = t
        if not DOT:
            for i in range(n):
                mem.store(table + 8 * i, t + PITCH * i)
            pack_operand(ELEMENT, n, table, m, a)
            operand = a
        add_transposed(m, n, operand, panels, columns, target + pitch * row, pitch, carry, past, sums, spare)
    end()
    if past:
        settle()


@jit
def kept_addresses(m, table, kept, which, ffn):
    """Write at `table` the addresses of one kept part of each of m rows. which: 0 for du, 1 for w h, 2 for dg."""
    for i in range(m):
        mem.store(table + 8 * i, mem.load(kept + 8 * i) + part_size(ffn) * which)


# ---- rows in the store: see engine/store.py


@jit
def place_of(hidden, ffn, gated):
    """The Place of rows of bfloat16 in the store."""
    part, kept = part_size(hidden), 2 * part_size(hidden)
    return Place(BYTES * hidden, part, kept, kept + part_size(ffn) * (3 if gated else 2))


@jit
def store_rows(call):
    """Do what `expert_backward.store_rows` does, for rows of bfloat16. dx is float32."""
    expert, found = expert_of(call), tables(call.scratch, call.rows)
    gated = expert.weights.gate != 0
    plain = list_rows(call, place_of(call.hidden, call.ffn, gated), gated, found)
    for rows in halves(call.rows, plain, found):
        if rows.length > 0:
            expert_rows(rows, expert, found.free, call.wire)
    give_back(call.rows, call.scalars, found)


@jit
def stored_gradients(rows, places, gradients, hidden, ffn, carry, scratch, which, first, last):
    """Do what `expert_backward.stored_gradients` does, for rows of bfloat16."""
    gated, each = gradients[1] != 0, pass_rows(rows)
    for row in range(0, rows, each):
        listed, free = list_stored(min(each, rows - row), places + 8 * row, place_of(hidden, ffn, gated), scratch)
        sums = Sums(gradients, hidden, ffn, carry, 1 if listed.length == rows else 0)
        if which == ALL:
            weight_gradients(listed, sums, free)
        else:
            add_gradient(listed, sums, free, which, first, last)
        carry = 1


# ---- rows of float32, without a store


def saved_bytes(hidden, ffn, gated):
    """Bytes that `expert_blocks` needs besides its scratch: a block's rounded rows, and the data kept of them."""
    return MOST_ROWS * (3 * 8 + 2 * part_bytes(hidden) + kept_bytes(ffn, gated)) + LINE + SUMS


def blocks_bytes(hidden, ffn):
    """Bytes of scratch of `expert_blocks`."""
    return max(scratch_bytes(MOST_ROWS, hidden, ffn), gradient_bytes(MOST_ROWS, hidden, ffn))


@jit
def round_exactly(to, source, n, block):
    """Round n float32 to bfloat16 without reading any beyond them. block: the address of space for 32 float32."""
    whole = n // WIDTH * WIDTH
    round_row(ELEMENT, to, source, whole)
    if whole < n:
        mem.copy_row(block, source + FLOAT * whole, FLOAT * (n - whole))
        round_row(ELEMENT, to + BYTES * whole, block, n - whole)


@jit
def expert_blocks(call):
    """Do what `expert_backward.expert_blocks` does, but round x and dy, which are float32, to bfloat16 first."""
    hidden, ffn, scratch, carry, saved = call.hidden, call.ffn, call.scratch, call.carry, call.saved
    expert = Expert(call.weights, call.transposed, call.activation, hidden, ffn)
    to_x, to_dy, kept = saved, saved + 8 * MOST_ROWS, saved + 16 * MOST_ROWS
    block = (saved + 24 * MOST_ROWS + LINE - 1) // LINE * LINE
    first, part = block + SUMS, part_size(hidden)
    step = 2 * part + part_size(ffn) * (3 if call.weights.gate != 0 else 2)
    for i in range(MOST_ROWS):
        mem.store(to_dy + 8 * i, first + step * i)
        mem.store(to_x + 8 * i, first + step * i + part)
        mem.store(kept + 8 * i, first + step * i + 2 * part)
    for row in range(0, call.rows, MOST_ROWS):
        m, word, w = min(MOST_ROWS, call.rows - row), 8 * row, call.w + FLOAT * row
        for i in range(m):
            round_exactly(mem.load(to_dy + 8 * i), mem.load(call.dy + word + 8 * i), hidden, block)
            round_exactly(mem.load(to_x + 8 * i), mem.load(call.x + word + 8 * i), hidden, block)
        rows = Rows(m, to_x, to_dy, w, call.dx + word, call.dw + FLOAT * row, kept, 0)
        expert_rows(rows, expert, scratch, 0)
        weight_gradients(rows, Sums(call.gradients, hidden, ffn, carry, 0), scratch)
        carry = 1
