"""Products of 16-bit elements without tiles: of float16, and of bfloat16 on instruction sets that have no tiles.

Rows are widened to float32 in memory, and weights in registers. Each sum is one chain of fused multiply-adds in order
of k. On two ISAs the CPU multiplies rows that stay bfloat16: avx512bf16 has dot products of pairs, and neonbf16
multiplies 2 x 4 by 4 x 2 matrices.

An *operand* is a matrix of few rows that is prepared as the left side of a product: its rows are packed as in `gemm`,
and padded with zeros to blocks of 32 columns.
"""

from functools import partial
from typing import Any

import numpy as np
from numba.extending import overload

from kernel_cache.compile import inlined, jit

from ...primitives import memory as mem
from ...primitives.buffers import FLOAT, LINE
from ..common.branches import by_code
from . import micro_kernels
from .convert import BFLOAT16, FLOAT16, round_row, widen_row
from .elements import WIDTH
from .gemm import KC, PITCH
from .micro_kernels import NEAR, STEP, SUMS
from .panels import BARE, REGISTER
from .target import FORMAT, ISA

PAIRS = f"llvm.x86.avx512bf16.dpbf16ps.{32 * REGISTER}"  # LLVM's dot products of pairs of bfloat16
_products: dict[str, Any] = {
    "avx512bf16": partial(micro_kernels.dot_bfloat16, instruction=PAIRS),
    "neonbf16": micro_kernels.matrix_bfloat16,
}
DOT = ISA in _products
SPAN = WIDTH if ISA.startswith(("avx512", "amx")) else 16  # columns of a micro-kernel
# the most rows with which the kernel's sums, the loaded and widened weights, and a broadcast fit the registers
ROWS = {"neon": 5, "neonbf16": 6}.get(ISA) or {16: 12, 8: 5, 4: 4}[REGISTER]
AHEAD_GROUPS = 2  # see gemm.py

_bfloat16 = _products.get(ISA, micro_kernels.widened_bfloat16)
# A kernel's number is rows + ROWS * (kind - 1). A kind is the code of an element type, or one of the following.
_ALONE = 1 + max(BFLOAT16, FLOAT16)  # kind of bfloat16 for panels that serve a single group of rows
WIDE = 1 + _ALONE if DOT else BFLOAT16  # kind for weights of bfloat16 and rows of float32


def _float16(rows, vectors, pitch, lanes):
    return micro_kernels.widened_float16(rows, vectors, pitch, lanes, rows > BARE)


def _alone(rows, vectors, pitch, lanes):
    return _bfloat16(rows, vectors, pitch, lanes, True, rows > BARE)


_kinds = [(BFLOAT16, _bfloat16)]
if not FORMAT:
    _kinds.append((FLOAT16, _float16))
    if SPAN == WIDTH:
        _kinds.append((_ALONE, _alone))
elif DOT:
    _kinds.append((WIDE, micro_kernels.widened_bfloat16))
_kernels = {
    rows + ROWS * (kind - 1): emit(rows, SPAN // REGISTER, PITCH, REGISTER)
    for kind, emit in _kinds
    for rows in range(ROWS, 0, -1)
}


def block(code, a, b, sums, pairs, carry, ahead, pace):
    """Set sums[i, :SPAN] to A[i, :2 * pairs] x panel; if `carry` is nonzero, add to the sums.

    code: the kernel's number. a: the address of the first row of the operand. b: the address of the panel, or of its
    second half. sums: the address of the first row of 32 sums. ahead, pace: see `micro_kernels.widened_bfloat16`.
    """
    kind, rows, depth = 1 + (code - 1) // ROWS, 1 + (code - 1) % ROWS, 2 * pairs
    element = FLOAT16 if kind == FLOAT16 else BFLOAT16
    panel = np.empty((depth, SPAN), np.float32)
    if element == BFLOAT16:
        raw = mem.bits16(b, STEP * (2 * ((depth + 31) // 32) - 1 + SPAN // WIDTH) // 2)
        for k in range(depth):
            for n in range(SPAN):
                place = STEP * (k // 32) + STEP // 2 * (n // 16) + 32 * (k % 32 // 2) + 2 * (n % 16) + k % 2
                panel[k, n] = (np.uint32(raw[place]) << np.uint32(16)).view(np.float32)
    else:
        for k in range(depth):
            panel[k] = mem.bits16(b + 64 * k, SPAN).view(np.float16)
    for i in range(rows):
        if DOT and kind in (BFLOAT16, _ALONE):
            left = (mem.bits16(a + PITCH * i, depth).astype(np.uint32) << np.uint32(16)).view(np.float32)
        else:
            left = mem.floats(a + PITCH * i, depth)
        out = mem.floats(sums + SUMS * i, SPAN)
        total = out.copy() if carry else np.zeros(SPAN, np.float32)
        for k in range(depth):
            total += left[k] * panel[k]
        out[:] = total


overload(block)(by_code(block, _kernels, globals()))


@inlined
def operand_size(element, rows, columns):
    """Bytes of an operand of `rows` rows."""
    return rows * PITCH * ((columns + KC - 1) // KC)


@inlined
def depth_of(element, rows):
    """How many packed rows `panel_sums` reads of a matrix of `rows` rows, including the zeros behind them."""
    return (rows + 3) // 4 * 4


@jit
def widen_rows(element, m, x, columns, a):
    """Widen m rows of `columns` elements into packed rows of float32 at `a`.

    x: the address of an array of row addresses.
    """
    for k0 in range(0, columns, KC):
        n = min(KC, columns - k0)
        rest = (n + WIDTH - 1) // WIDTH * WIDTH - n
        for i in range(m):
            widen_row(element, a, mem.load(x + 8 * i) + 2 * k0, n)
            if rest > 0:
                mem.bits32(a + FLOAT * n, rest)[:] = 0
            a += PITCH


@jit
def copy_rows(size, m, x, columns, a):
    """Copy m rows of `columns` elements of `size` bytes to packed rows at `a`.

    x: the address of an array of row addresses.
    """
    for k0 in range(0, columns, KC):
        n = min(KC, columns - k0)
        rest = (n + WIDTH - 1) // WIDTH * WIDTH - n
        for i in range(m):
            mem.copy_row(a, mem.load(x + 8 * i) + size * k0, size * n)
            if rest > 0:
                mem.bits8(a + size * n, size * rest)[:] = 0
            a += PITCH


@jit
def pack_operand(element, m, x, columns, a):
    """Write m rows of `columns` elements into an operand.

    x: the address of an array of row addresses. a: the address of the operand.
    """
    if DOT and element == BFLOAT16:
        copy_rows(2, m, x, columns, a)
    else:
        widen_rows(element, m, x, columns, a)


@jit
def round_operand(element, m, sums, j, columns, a, spare):
    """Round 32 sums of each of m rows to elements, and store them as columns j.. of an operand.

    a: the address of the operand. spare: the address of 64 spare bytes.
    """
    kept = DOT and element == BFLOAT16
    place = a + PITCH * m * (j // KC) + (2 if kept else FLOAT) * (j % KC)
    for i in range(m):
        if kept:
            round_row(element, place, sums + SUMS * i, WIDTH)
        else:
            round_row(element, spare, sums + SUMS * i, WIDTH)
            widen_row(element, place, spare, WIDTH)
        place += PITCH


@jit
def part_sums(kind, m, a, pairs, panel, sums, carry, ahead, pace):
    """Do a part of `panel_sums`: `pairs` pairs of k in one block of packed rows. Returns the next address to prefetch.

    kind: the kind of kernel. a: the address of the first row at the first k. For each pair of k, the kernel prefetches
    the line at `ahead` and adds `pace` to `ahead`.
    """
    groups = (m + ROWS - 1) // ROWS
    size = m // groups
    larger = m - size * groups
    half_bytes = 2 * SPAN if kind == FLOAT16 else STEP
    for half in range(WIDTH // SPAN):
        i = 0
        for g in range(groups):
            rows = size + 1 if g < larger else size
            code = rows + ROWS * (kind - 1)
            right = panel + half_bytes * half
            block(code, a + PITCH * i, right, sums + SUMS * i + 64 * half, pairs, carry, ahead, pace)
            ahead += pairs * pace
            i += rows
    return ahead


@jit
def panel_sums(element, m, a, depth, panel, sums, carry, ahead, spare):
    """Set sums[m, 32] to operand x panel for k below `depth`; if `carry` is nonzero, add to the sums.

    a: the address of the operand. panel: the address of the panel at the operand's first k. sums: the address of m rows
    of 32 sums. ahead: the address of the next panel, of which each group of rows prefetches its share.
    """
    groups = (m + ROWS - 1) // ROWS
    parts = groups * (WIDTH // SPAN)
    pace = (2 * STEP // 16 + parts - 1) // parts
    kind = element
    if groups == 1 and SPAN == WIDTH and element == BFLOAT16:
        kind = _ALONE
    if parts < AHEAD_GROUPS:
        ahead, pace = (panel, 0) if m <= BARE else (panel + NEAR, 2 * LINE)
    for k0 in range(0, depth, KC):
        count = min(KC, depth - k0)
        ahead = part_sums(kind, m, a, (count + 1) // 2, panel, sums, carry, ahead, pace)
        carry = 1
        panel += 2 * STEP * count // WIDTH
        a += PITCH * m
