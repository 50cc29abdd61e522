"""One expert on a run of rows by panels of 32 columns: y = round(round(h) down + b2).

h = act(x up + b1), or act(x gate + bg) * (x up + b1) if there is a gate.

The kernels serve elements of 16 bits, split float32, and all rows with packed weights. Sums, biases and activations are
float32. Hidden activations and outputs are each rounded once to the rows' type; with split float32, hidden activations
are rounded to 16 significant bits. A panel of 32 columns is finished before the next one begins, so its sums stay in
the L1 cache. A run keeps either all its hidden activations, or the hidden activations of one chunk of F and the sums of
the outputs, whichever takes less memory. The order of every sum is the same in both cases.
"""

from kernel_cache.compile import inlined, jit

from ...primitives import memory as mem
from ...primitives import taped
from ...primitives import wire as mpi
from ...primitives.buffers import FLOAT
from .convert import SPLIT
from .elements import WIDTH
from .elementwise import activate, multiply
from .expert import line_bytes
from .micro_kernels import SUMS
from .operands import (
    begin,
    end,
    operand_bytes,
    operand_size,
    pack_operand,
    panel_bytes,
    panel_step,
    panel_sums,
    round_operand,
    spare_bytes,
    write_rows,
)
from .target import FORMAT

FC = 512  # columns of F in a chunk, if not all hidden activations are kept


@inlined
def chunk_of(element, hidden, ffn):
    """How many columns of F a chunk has.

    A chunk has all columns if their activations take no more bytes than the activations of FC columns and the sums of
    the outputs. With packed weights it always has all columns, because a group of k may be longer than FC.
    """
    return ffn if FORMAT or ffn <= FC + (hidden if element == SPLIT else 2 * hidden) else FC


def scratch_bytes(element, rows, hidden, ffn, gated):
    """Bytes of scratch memory for up to `rows` rows: the operands of both products, and sums."""
    chunk = chunk_of(element, hidden, ffn)
    sums = (2 if gated else 1) + (-(-hidden // WIDTH) if chunk < ffn else 0)
    operands = operand_bytes(element, rows, hidden) + operand_bytes(element, rows, chunk)
    return spare_bytes(rows, max(hidden, ffn)) + operands + rows * SUMS * sums


def product_bytes(element, rows, depth):
    """Bytes of scratch of a product of up to `rows` rows."""
    return spare_bytes(rows, depth) + operand_bytes(element, rows, depth) + rows * SUMS


def activation_bytes(element, rows, ffn):
    """Bytes of all hidden activations of a column-split run, which form an operand."""
    return operand_bytes(element, rows, ffn)


@jit
def start_sums(m, bias, sums):
    """Set m rows of 32 sums to the bias, if there is a bias. Returns 1 if there is one, else 0.

    bias: the address of 32 float32, or 0 if there is no bias.
    """
    if bias == 0:
        return 0
    for i in range(m):
        mem.copy_row(sums + SUMS * i, bias, SUMS)
    return 1


@jit
def up(n):
    """n columns rounded up to whole panels."""
    return (n + WIDTH - 1) // WIDTH * WIDTH


@inlined
def ahead_of(panel, step, more):
    """The address of the panel that is prefetched during the product with `panel`: the next panel, if there is one.

    more: whether there is a next panel. During the product with the last panel, that panel is prefetched, which costs
    nothing.
    """
    return panel + step if more else panel


@jit
def keep_hidden(m, kept, j, ffn, u, g):
    """Copy 32 sums to the tape, to columns j.., for those of m rows whose hidden activations the tape keeps.

    kept: the address of the rows' entries, see primitives/taped.py. u, g: the addresses of the sums of the up
    projection and of the gate. g is 0 if there is no gate.
    """
    nbytes = min(SUMS, line_bytes(ffn) - FLOAT * j)
    for i in range(m):
        entry = mem.load(kept + 8 * i)
        if taped.kept_of(entry) & taped.HIDDEN:
            place = taped.place_of(entry) + FLOAT * j
            mem.copy_row(place, u + SUMS * i, nbytes)
            if g != 0:
                mem.copy_row(place + line_bytes(ffn), g + SUMS * i, nbytes)


@jit
def hidden_panels(
    element, m, a, weights, code, hidden, ffn, first, last, j0, h, columns, after, sums, spare, wire, kept
):
    """Compute hidden activations first..last of m rows, and round them into columns first - j0.. of the operand h.

    a: the address of the operand of x. columns: how many columns h has. after: the address of the weights that are read
    next, or 0. sums: the address of m rows of 32 sums, or of twice as many rows if there is a gate. kept: see
    ExpertRows in `primitives.arithmetic`.
    """
    up_weights, gate, _, up_bias, gate_bias, _ = weights
    step = panel_step(element, up_weights, hidden)
    gates = sums + SUMS * m
    for j in range(first, last, WIDTH):
        mpi.tend(wire)
        offset = step * (j // WIDTH)
        more = j + WIDTH < last
        ahead = ahead_of(up_weights + offset, step, more) if more or after == 0 else after
        carry = start_sums(m, up_bias + FLOAT * j if up_bias != 0 else 0, sums)
        panel_sums(element, m, a, hidden, up_weights + offset, sums, carry, ahead, spare)
        if gate != 0:
            carry = start_sums(m, gate_bias + FLOAT * j if gate_bias != 0 else 0, gates)
            ahead = ahead_of(gate + offset, step, more)
            panel_sums(element, m, a, hidden, gate + offset, gates, carry, ahead, spare)
        if kept != 0:
            keep_hidden(m, kept, j, ffn, sums, gates if gate != 0 else 0)
        if gate != 0:
            activate(code, gates, m * WIDTH)
            multiply(code, sums, gates, m * WIDTH)
        else:
            activate(code, sums, m * WIDTH)
        round_operand(element, m, sums, j - j0, columns, h, spare)


@jit
def expert_rows(element, call):
    """Run one expert on rows. call: an ExpertRows.

    Rows of x and y have elements of this type. If these have 16 bits, each row of y must have space for `hidden`
    elements rounded up to a multiple of 32. weights: the addresses of packed panels, and of float32 biases padded to
    multiples of 32. scratch: the address of `scratch_bytes(element, rows, hidden, ffn, gated)` bytes, 64-byte aligned.
    """
    m, y, weights, code, hidden, ffn = call.rows, call.y, call.weights, call.activation, call.hidden, call.ffn
    wire, kept = call.wire, call.kept
    chunk = chunk_of(element, hidden, ffn)
    spare, a = call.scratch, call.scratch + spare_bytes(m, max(hidden, ffn))
    h = a + operand_size(element, m, hidden)
    sums = h + operand_size(element, m, chunk)
    outputs = sums + SUMS * m * (2 if weights.gate != 0 else 1)
    apart = 0 if chunk == ffn else SUMS * m  # bytes from one panel's sums of outputs to the next one's
    if apart == 0:
        outputs = sums
    begin(spare)
    pack_operand(element, m, call.x, hidden, a)
    down, down_bias = weights.down, weights.down_bias
    width, step = panel_bytes(element), panel_step(element, down, ffn)
    for f0 in range(0, ffn, chunk):
        last = min(ffn, f0 + chunk)
        after = down + width * f0
        hidden_panels(
            element, m, a, weights, code, hidden, ffn, f0, last, f0, h, last - f0, after, sums, spare, wire, kept
        )
        for j in range(0, hidden, WIDTH):
            mpi.tend(wire)
            out = outputs + apart * (j // WIDTH)
            carry = f0
            if f0 == 0:
                carry = start_sums(m, down_bias + FLOAT * j if down_bias != 0 else 0, out)
            panel = down + step * (j // WIDTH) + width * f0
            panel_sums(element, m, h, last - f0, panel, out, carry, ahead_of(panel, step, j + WIDTH < hidden), spare)
            if last == ffn:
                write_rows(element, m, out, y, j, hidden)
    end()


@jit
def up_columns(element, call):
    """Compute hidden activations first..first + columns, a worker's share of a column-split run. call: an UpColumns.

    activations: the address of `activation_bytes(element, rows, ffn)` bytes. scratch: the address of scratch memory,
    see `scratch_bytes`.
    """
    m, hidden, ffn = call.rows, call.hidden, call.ffn
    spare, a = call.scratch, call.scratch + spare_bytes(m, max(hidden, ffn))
    sums = a + operand_size(element, m, hidden)
    begin(spare)
    pack_operand(element, m, call.x, hidden, a)
    hidden_panels(
        element, m, a, call.weights, call.activation, hidden, ffn, call.first, call.first + call.columns, 0,
        call.activations, ffn, 0, sums, spare, call.wire, call.kept,
    )  # fmt: skip
    end()


@jit
def down_columns(element, call):
    """Compute columns first..last of the outputs, after `up_columns` has computed all of h. call: a DownColumns."""
    m, y, ffn, last, activations = call.rows, call.y, call.ffn, call.last, call.activations
    spare, sums = call.scratch, call.scratch + spare_bytes(m, ffn)
    down, down_bias = call.weights.down, call.weights.down_bias
    step = panel_step(element, down, ffn)
    begin(spare)
    for j in range(call.first, last, WIDTH):
        mpi.tend(call.wire)
        carry = start_sums(m, down_bias + FLOAT * j if down_bias != 0 else 0, sums)
        panel = down + step * (j // WIDTH)
        panel_sums(element, m, activations, ffn, panel, sums, carry, ahead_of(panel, step, j + WIDTH < last), spare)
        write_rows(element, m, sums, y, j, last)
    end()


@jit
def product(element, call):
    """Compute y = round(x W). call: a Product.

    Each row of y must have space for `columns` elements rounded up to a multiple of 32. scratch: the address of
    `product_bytes(element, rows, depth)` bytes, 64-byte aligned.
    """
    m, depth, columns = call.rows, call.depth, call.columns
    spare, a = call.scratch, call.scratch + spare_bytes(m, depth)
    sums, step = a + operand_size(element, m, depth), panel_step(element, call.panels, depth)
    begin(spare)
    pack_operand(element, m, call.x, depth, a)
    for j in range(0, columns, WIDTH):
        panel = call.panels + step * (j // WIDTH)
        panel_sums(element, m, a, depth, panel, sums, 0, ahead_of(panel, step, j + WIDTH < columns), spare)
        write_rows(element, m, sums, call.y, j, columns)
    end()
