"""The gradients of one expert on a run of float32 rows: of x, of the combine weights w, and of the expert's weights.

    d = dy down^T, h as in the forward call, dw = <d, h> + <dy, down_bias>
    du, dg = w d times the derivatives of h; dx = du up^T + dg gate^T

`expert_rows` keeps du, h and dg of each row; `weight_gradients` reads them:

    dup += x^T du, dgate += x^T dg, ddown += h^T (w dy)
    gradients of the biases += the sums over rows of du, dg and w dy

Every output of `expert_rows` is one chain of fused multiply-adds in order of k, whichever rows are computed together.
Each entry of a weight's gradient is one chain in order of rows, which continues from call to call. So the entry depends
only on the rows and their order, not on where the rows are cut into runs.
"""

from kernel_cache.compile import jit

from ...primitives import memory as mem
from ...primitives import wire as mpi
from ...primitives.buffers import FLOAT, LINE
from ..common.activations import ZERO, at_most, code_of, factor, limit_of, limits, shift_of
from ..common.backward_records import Expert, Place, Rows, Sums
from ..common.branches import unrolled
from ..common.slopes import FUNCTIONS
from .expert import FC, fill_rows, line_bytes, row_addresses
from .gemm import KC, PITCH, pack_rows, packed_bytes, panel_rows, vectors_of
from .outer import MOST_OUTER, add_outer, add_rows, outer_bytes, pass_rows, past_caches
from .panels import LANES, NR
from .stored_rows import ENTRY, LISTED, expert_of, give_back, halves, list_rows, list_stored, tables

MOST_ROWS = 256  # most rows of a run; at most KC
UP, GATE, DOWN, ALL = range(4)  # matrices of an expert


def kept_bytes(ffn, gated):
    """Bytes that `expert_rows` keeps of a row for `weight_gradients`: du, h, and dg if gated, in whole lines."""
    return (3 if gated else 2) * (-(-FLOAT * ffn // LINE) * LINE)


def scratch_bytes(rows, hidden, ffn):
    """Bytes of scratch of `expert_rows` for up to `rows` rows, at most MOST_ROWS."""
    return 3 * 8 * rows + LINE + 2 * packed_bytes(rows, hidden) + (4 * rows + 1) * PITCH


def gradient_bytes(rows, hidden, ffn):
    """Bytes of scratch of `weight_gradients` for up to `rows` rows, at most MOST_OUTER."""
    return 8 * rows + outer_bytes(rows, max(hidden, ffn))


def place_bytes(hidden, ffn, gated):
    """Bytes of a row's place in the store: received dy and x, the data that `expert_rows` keeps, the combine weight."""
    return -(-2 * FLOAT * hidden // LINE) * LINE + kept_bytes(ffn, gated) + LINE


def store_bytes(rows, hidden, ffn):
    """Bytes of scratch of `store_rows` for up to `rows` rows, at most MOST_ROWS."""
    return ENTRY * rows + LINE + scratch_bytes(rows, hidden, ffn)


def stored_bytes(hidden, ffn):
    """Bytes of scratch of `stored_gradients`."""
    return LISTED * MOST_OUTER + LINE + gradient_bytes(MOST_OUTER, hidden, ffn)


@jit
def chunk_columns(m, a, depth, panels, bias, total, first, columns, c, wire):
    """Set C[m, columns] to A B, plus the bias, if there is one.

    A: m packed rows at `a`. B: `columns` columns of the panels [depth, total], from column `first` on.
    bias: the address of the bias, or 0. c: the address of an array of row addresses.
    """
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
    """Compute n columns of a row: h from the products u and g, then du and dg, which overwrite u and g.

    u, g, d, h, spare: addresses of n float32. d has dy down^T; spare is space for intermediate results. weight: the
    row's combine weight. The gradient of a value beyond a limit is zero; the gradient of a value at the limit is not.
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
    """The dot product of n float32 at two addresses: eight chains, added in pairs. All ISAs give equal bits."""
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
def expert_rows(rows, expert, scratch, wire):
    """Compute at most MOST_ROWS rows of an expert backwards: dx, dw, and in `kept` the data for `weight_gradients`.

    rows: a Rows. Rows of x and dy hold `hidden` float32. Rows of dx have space for `hidden` rounded up to vectors. Rows
    of kept have space for `kept_bytes(ffn, gated)` bytes. Rows of saved are as `expert.keep_hidden` wrote them.
    expert: an Expert. scratch: the address of `scratch_bytes(rows.length, hidden, ffn)` bytes, 64-byte aligned.
    """
    m, x, dy, w, dx, dw, kept, saved = rows
    weights, transposed, code, hidden, ffn = expert
    up, gate, _, up_bias, gate_bias, down_bias = weights
    up_transposed, gate_transposed, down_transposed = transposed
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
        chunk_columns(m, b, hidden, down_transposed, 0, ffn, f0, columns, to_d, wire)
        for i in range(m):
            at, to = PITCH * i, mem.load(kept + 8 * i) + FLOAT * f0
            slopes(code, gated, du + at, dg + at, ds + at, h + at, weight[i], columns, spare)
            share[i] += dot(ds + at, h + at, count)
            mem.copy_row(to, du + at, FLOAT * count)
            mem.copy_row(to + part, h + at, FLOAT * count)
            if gated:
                mem.copy_row(to + 2 * part, dg + at, FLOAT * count)
        add_columns(m, du, up_transposed, ffn, f0, count, hidden, dx, f0, wire)
        if gated:
            add_columns(m, dg, gate_transposed, ffn, f0, count, hidden, dx, 1, wire)


@jit
def take_hidden(m, saved, f0, columns, part, u, g):
    """Copy columns f0.. of m rows of u and g from the tape, where `expert.keep_hidden` wrote them.

    saved: the address of an array of the rows' places. part: the number of bytes from a row's u to its g in such a
    place; 0 if there is no g.
    """
    for i in range(m):
        place = mem.load(saved + 8 * i) + FLOAT * f0
        mem.copy_row(u + PITCH * i, place, FLOAT * columns)
        if part != 0:
            mem.copy_row(g + PITCH * i, place + part, FLOAT * columns)


@jit
def add_columns(m, a, panels, depth, first, count, columns, c, carry, wire):
    """Set C[m, columns] to A B; if `carry` is nonzero, add to C instead.

    A: m packed rows of `count` columns at `a`. B: `count` rows of the panels [depth, columns], from row `first` on.
    c: the address of an array of row addresses.
    """
    for j in range(0, columns, NR):
        mpi.tend(wire)
        vectors = vectors_of(columns - j)
        width = LANES * vectors
        panel = panels + FLOAT * (j * depth + first * width)
        panel_rows(m, vectors, a, panel, c, j, count, carry, panel + FLOAT * width * depth)


@jit
def weight_gradients(rows, sums, scratch):
    """Add some rows' contributions to the weights' gradients, after `expert_rows` has computed the same rows.

    rows: a Rows of at most MOST_OUTER rows. sums: a Sums. Its matrices are [H, F] and [F, H], with columns rounded up
    to vectors. scratch: the address of `gradient_bytes(rows.length, hidden, ffn)` bytes.
    """
    for which in range(3):
        add_gradient(rows, sums, scratch, which, 0, sums.ffn if which == DOWN else sums.hidden)


@jit
def add_gradient(rows, sums, scratch, which, begin, end):
    """Do a part of `weight_gradients`: for rows begin..end of one matrix, and for its bias if `begin` is 0.

    which: UP, GATE or DOWN.
    """
    m, x, dy, w, _, _, kept, _ = rows
    gradients, hidden, ffn, carry, once = sums
    target, bias = gradients[which], gradients[3 + which]
    if target == 0:
        return
    past = past_caches(carry, once, FLOAT * hidden * ffn)
    table, free = scratch, scratch + 8 * m
    if which == DOWN:
        kept_addresses(m, table, kept, 1, ffn)
        add_outer(m, table, begin, end, dy, w, hidden, target, carry, past, free)
        if bias != 0 and begin == 0:
            add_rows(m, dy, w, hidden, bias, carry)
    else:
        kept_addresses(m, table, kept, 2 * which, ffn)
        add_outer(m, x, begin, end, table, 0, ffn, target, carry, past, free)
        if bias != 0 and begin == 0:
            add_rows(m, table, 0, ffn, bias, carry)


@jit
def kept_addresses(m, table, kept, which, ffn):
    """Write at `table` the addresses of one kept part of each of m rows. which: 0 for du, 1 for h, 2 for dg."""
    for i in range(m):
        mem.store(table + 8 * i, mem.load(kept + 8 * i) + line_bytes(ffn) * which)


# ---- rows in the store: see engine/store.py


@jit
def place_of(hidden, ffn, gated):
    """The Place of rows of float32 in the store."""
    kept = line_bytes(2 * hidden)
    return Place(FLOAT * hidden, FLOAT * hidden, kept, kept + line_bytes(ffn) * (3 if gated else 2))


@jit
def store_rows(call):
    """Copy at most MOST_ROWS rows [dy | x] to their places, then do what `expert_rows` does.

    call: a BackwardRows. A place has `place_bytes` bytes. scratch: the address of `store_bytes(rows, hidden, ffn)`
    bytes, 64-byte aligned.
    """
    expert, found = expert_of(call), tables(call.scratch, call.rows)
    gated = expert.weights.gate != 0
    plain = list_rows(call, place_of(call.hidden, call.ffn, gated), gated, found)
    for rows in halves(call.rows, plain, found):
        if rows.length > 0:
            expert_rows(rows, expert, found.free, call.wire)
    give_back(call.rows, call.scalars, found)


@jit
def stored_gradients(rows, places, gradients, hidden, ffn, carry, scratch, which, begin, end):
    """Do what `add_gradient` does for any number of rows after `store_rows`, in the order of `places`.

    places: the address of an array of the rows' addresses. carry: 0 if the gradients are overwritten, else nonzero.
    scratch: the address of `stored_bytes(hidden, ffn)` bytes, 64-byte aligned. which: a matrix as in `add_gradient`, or
    ALL for all matrices.
    """
    gated, each = gradients[1] != 0, pass_rows(rows)
    for first in range(0, rows, each):
        listed, free = list_stored(min(each, rows - first), places + 8 * first, place_of(hidden, ffn, gated), scratch)
        sums = Sums(gradients, hidden, ffn, carry, 1 if listed.length == rows else 0)
        if which == ALL:
            weight_gradients(listed, sums, free)
        else:
            add_gradient(listed, sums, free, which, begin, end)
        carry = 1


# ---- rows without a store


def saved_bytes(hidden, ffn, gated):
    """Bytes of the data that `expert_blocks` keeps of a block of rows between its two steps, for any `hidden`."""
    return MOST_ROWS * (8 + kept_bytes(ffn, gated)) + LINE


def blocks_bytes(hidden, ffn):
    """Bytes of scratch of `expert_blocks`."""
    return max(scratch_bytes(MOST_ROWS, hidden, ffn), gradient_bytes(MOST_ROWS, hidden, ffn))


@jit
def expert_blocks(call):
    """Do what `expert_rows` and `weight_gradients` do, for any number of rows of an expert. call: an ExpertBlocks."""
    hidden, ffn, scratch, carry = call.hidden, call.ffn, call.scratch, call.carry
    expert = Expert(call.weights, call.transposed, call.activation, hidden, ffn)
    kept, step = call.saved, line_bytes(ffn) * (3 if call.weights.gate != 0 else 2)
    first = (kept + 8 * MOST_ROWS + LINE - 1) // LINE * LINE
    for i in range(MOST_ROWS):
        mem.store(kept + 8 * i, first + step * i)
    for i in range(0, call.rows, MOST_ROWS):
        m, word, value = min(MOST_ROWS, call.rows - i), 8 * i, FLOAT * i
        rows = Rows(m, call.x + word, call.dy + word, call.w + value, call.dx + word, call.dw + value, kept, 0)
        expert_rows(rows, expert, scratch, 0)
        weight_gradients(rows, Sums(call.gradients, hidden, ffn, carry, 0), scratch)
        carry = 1
