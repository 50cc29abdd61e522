"""Products of rows and packed weights by panels of 32 columns, in the format `target.FORMAT`.

The sum of a column adds the sums of its groups of k in order. A group's sum is scale * (sum of x * code - zero point *
sum of x). The sum of x * code starts from zero, and is computed as if the codes were bfloat16 weights (`widened`,
`tiles`). One fused multiply-add then applies the zero point, and another one applies the scale. The sum of x adds the
sums of blocks of 32 k in order. The sum of a block adds eight partial sums, each over every eighth value.

Products are computed in one of two ways, which give equal bits. Products of up to MOST rows of float32 decode codes in
registers, for FEW rows at a time. Products of up to FEW rows of bfloat16 do the same if dot products multiply codes
(DOTS). All other products first convert the codes of SHARED_DEPTH k, or of the rest of a group if it is shorter, to a
panel of bfloat16 in the L1 cache. Then all rows read this panel; with tiles, two groups of rows read it, and the next
two convert the codes again. With tiles and up to TILE_ROWS rows, one kernel unpacks and multiplies at the same time.
"""

import numpy as np
from numba.extending import overload

from kernel_cache.compile import inlined, jit

from ...primitives import memory as mem
from ...primitives.buffers import FLOAT, LINE
from ...primitives.intrinsics import forward
from ...quantised import FP4
from ...weight_types import FORMATS
from ..common.branches import by_code
from . import code_words, packed_kernels, tiles, unpack_kernels, widened
from .code_words import FP8_SCALE
from .convert import BFLOAT16
from .gemm import KC, PITCH
from .micro_kernels import STEP, SUMS
from .packed_kernels import BEGINS, ENDS, PAIR_BYTES, WHOLE
from .packed_panels import CODES, GROUP, SCALE, SCALE_CODES, SHARED, UNIT, WIDTH, ZEROS
from .packed_panels import STEP as PANEL_BYTES
from .panels import BARE, REGISTER
from .target import FORMAT, ISA
from .unpack_kernels import NEAR
from .widened import DOT, PAIRS, SPAN, WIDE

TILED = ISA == "amx"
FORM = FORMAT or "int8"  # with plain weights no function of this module is compiled, so any format may stand here
TABLE = ISA.startswith(("avx512", "amx"))  # whether a permutation can look up values in a table of 16
DOTS = ISA == "avx512bf16"  # whether dot products multiply rows of bfloat16 by codes
# the function of `code_words` by which codes become words of two bfloat16, or None
WORDS = code_words.looked_up_words if DOTS else code_words.unit_words if TILED and FORM != "int8" else None
SHARED_DEPTH = 128  # how many k are unpacked at once for all rows: they take 8 KiB as bfloat16
MOST_DEPTH, TILE_ROWS = 256, 32  # most k at once, and most rows, of the kernel that unpacks and multiplies by tiles
GROUPS = MOST_DEPTH // WIDTH if TILED else 1  # most groups in MOST_DEPTH k; each group has its own sums
# the most rows whose sums fit the registers beside decoded codes, and beside the tables of `looked_up_words`
FEW = {16: 9 if DOTS and FORMATS[FORM].bits == 8 else 12, 8: 2, 4: 2}[REGISTER]
# most rows for which the kernels with the fewest micro-operations are used: on Cascade Lake these kernels are faster
# for up to LEAN rows, and no faster for more
LEAN = (FEW if FORM == "fp8" else 4) if ISA == "avx512" else 0
MOST = 1 << 30 if TABLE and FORM != "fp8" else FEW  # most rows of float32 for which codes are decoded in registers
FLOAT32_SCALE, BFLOAT16_SCALE = SCALE_CODES["float32"], SCALE_CODES["bfloat16"]
FLOAT16_SCALE = SCALE_CODES["float16"]  # scales that have none of these three codes are e8m0
ROW_BYTES = 128  # bytes of spare memory for the shapes of tiles, or for one row of 32 elements
PAIR = PAIR_BYTES[FORM]
SCALE_BYTES = packed_kernels.SCALE_BYTES[FORM]
BITS = PAIR // 8
TOGETHER = UNIT[BITS]
ZEROED = FORMATS[FORM].zeros  # whether weights may have zero points


def value_of(code):
    """The float32 that a code of FORMAT stands for in products."""
    if BITS == 8:
        return code_words.values_of_8_bits(FORM)[code]
    if FORM == "mxfp4":
        return FP4[code]
    return np.float32(code - 2 * (code & 8))


def _codes(codes, pairs, columns=WIDTH):
    """The codes of `pairs` pairs of k at the address `codes`, as an array [2 * pairs, columns]."""
    if BITS == 8:
        return np.stack([mem.bits8(codes + WIDTH * k, columns) for k in range(2 * pairs)])
    units = (pairs + TOGETHER - 1) // TOGETHER
    raw = np.stack([mem.bits8(codes + TOGETHER * WIDTH * u, TOGETHER * columns) for u in range(units)])
    raw = raw.reshape(units, columns, 2, 2).transpose(0, 3, 2, 1)  # unit, two pairs, parity of k, column
    return np.stack([raw & 15, raw >> 4], axis=2).reshape(2 * TOGETHER * units, columns)[: 2 * pairs]


def unpack(codes, panel, blocks, near):
    """Unpack codes of `blocks` >= 1 blocks of 32 k at the address `codes` into a panel of bfloat16.

    near: the address of bytes to prefetch, as many as the codes have.
    """
    found = _codes(codes, 16 * blocks)
    for k in range(32 * blocks):
        for n in range(WIDTH):
            place = panel + 2 * STEP * (k // 32) + STEP * (n // 16) + 64 * (k % 32 // 2) + 4 * (n % 16) + 2 * (k % 2)
            mem.bits16(place, 1)[0] = np.float32(value_of(int(found[k, n]))).view(np.uint32) >> 16


def code_sums(a, below, codes, ring, sums, groups, blocks, carry, pitch, near, upper, lower):
    """Compute sums of up to 32 rows for each of several groups of codes: see `unpack_kernels.code_tiles`.

    ring: the address of space for unpack_kernels.RING blocks of a panel.
    """
    for g in range(groups):
        for n in range(blocks):
            k = blocks * g + n
            unpack(codes + 16 * PAIR * k, ring, 1, near)
            tiles.tile_sums(
                a + tiles.ROW * upper * k, below, ring, sums + pitch * g, 1, carry or n > 0, ring, 0, upper, lower
            )


def rows_by_codes(code, a, codes, sums, groups, pairs, scales, x, x_pitch, parts, flags):
    """Compute products of rows and codes of SPAN columns, group by group: see `packed_kernels.packed_rows`.

    code: the number of float32 rows, or FEW + the number of bfloat16 rows.
    """
    kept, code = code > FEW, (code - 1) % FEW + 1
    assert groups == 1 or pairs % TOGETHER == 0
    for g in range(groups):
        found = _codes(codes + g * pairs * PAIR, pairs, SPAN)
        for i in range(code):
            waiting = mem.floats(parts + SUMS * i, SPAN)
            total = np.zeros(SPAN, np.float32) if flags & BEGINS else waiting.copy()
            if kept:
                bits = mem.bits16(a + PITCH * i + 4 * g * pairs, 2 * pairs)
                left = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
            else:
                left = mem.floats(a + PITCH * i + 8 * g * pairs, 2 * pairs)
            for k in range(2 * pairs):
                total += left[k] * np.array([value_of(int(n)) for n in found[k]], np.float32)
            waiting[:] = total
            if flags & ENDS:
                _close(SPAN, waiting, sums + SUMS * i, scales + SCALE_BYTES * g, x + x_pitch * i + 4 * g if x else 0)


def close_groups(m, groups, parts, pitch, sums, scales, x, x_pitch):
    """Scale each group's m rows of 32 sums, and add them to `sums`: see `unpack_kernels.close_groups`."""
    for i in range(m):
        for g in range(groups):
            found = mem.floats(parts + SUMS * i + pitch * g, WIDTH)
            _close(WIDTH, found, sums + SUMS * i, scales + SCALE_BYTES * g, x + x_pitch * i + FLOAT * g if x else 0)


def widen_scales(code, source, target, groups, shared):
    """Convert scales of a panel's groups to float32: see `packed_kernels.widen_scales`. code: one of SCALE_CODES."""
    n = 1 if shared else WIDTH
    for g in range(groups):
        out = mem.floats(target + SCALE_BYTES * g, WIDTH)
        if code == FLOAT32_SCALE:
            out[:] = mem.floats(source + FLOAT * n * g, n)
        elif code == BFLOAT16_SCALE:
            out[:] = (mem.bits16(source + 2 * n * g, n).astype(np.uint32) << np.uint32(16)).view(np.float32)
        elif code == FLOAT16_SCALE:
            out[:] = mem.bits16(source + 2 * n * g, n).view(np.float16)
        else:
            out[:] = np.ldexp(np.float32(1), mem.bits8(source + n * g, n).astype(np.int32) - 127)
        if FORM == "fp8":
            out *= np.float32(FP8_SCALE)


def widen_zeros(source, target, groups):
    """Convert zero points of a panel's groups to float32, negated: see `packed_kernels.widen_zeros`."""
    for g in range(groups):
        stored = mem.bits8(source + WIDTH * BITS // 8 * g, WIDTH * BITS // 8)
        if BITS == 4:
            stored = np.stack([stored & 15, stored >> 4], axis=1).reshape(WIDTH)
        mem.floats(target + SCALE_BYTES * g, WIDTH)[:] = np.float32(1 << (BITS - 1)) - stored.astype(np.float32)


def _close(n, found, sums, scales, x):
    if x:
        found = found + mem.floats(x, 1)[0] * mem.floats(scales + SUMS, n)
    mem.floats(sums, n)[:] += found * mem.floats(scales, n)


_kernels = {  # the kernels for rows of float32, then those for rows of bfloat16 if they use dot products
    rows + FEW * kind: packed_kernels.packed_rows(
        FORM,
        rows,
        SPAN // REGISTER,
        PITCH,
        REGISTER,
        TABLE,
        2 if LEAN < rows <= FEW // 3 else 1,
        dot,
        rows <= LEAN,
        WORDS if kind else None,
        2 * packed_kernels.NEAR if BARE else packed_kernels.NEAR,  # Zen 4 then reads int4 1.2 times as fast
    )
    for kind, dot in enumerate(("", PAIRS)[: 1 + DOTS])
    for rows in range(FEW, 0, -1)
}
_unpack = unpack_kernels.unpack(FORM, REGISTER, TABLE, WORDS)
_close_groups = unpack_kernels.close_groups(FORM, REGISTER)
_scales = {code: packed_kernels.widen_scales(name, FORM, REGISTER) for name, code in SCALE_CODES.items()}
overload(widen_scales)(by_code(widen_scales, _scales, globals()))
overload(widen_zeros)(forward(widen_zeros, packed_kernels.widen_zeros(FORM)))
overload(rows_by_codes)(by_code(rows_by_codes, _kernels, globals()))
overload(unpack)(forward(unpack, _unpack))
overload(close_groups)(forward(close_groups, _close_groups))
if TILED:
    overload(code_sums)(tiles.by_rows(code_sums, lambda down: unpack_kernels.code_tiles(FORM, down, WORDS)))


@inlined
def rows_size(element, rows, columns):
    """Bytes of the rows of an operand, without the sums of blocks behind them."""
    if TILED and element == BFLOAT16:
        return tiles.operand_size(element, rows, columns)
    return widened.operand_size(BFLOAT16, rows, columns)


@inlined
def operand_size(element, rows, columns):
    """Bytes of an operand of `rows` rows.

    An operand has the rows in the form that the instruction set needs, and behind them the sum of each block of 32 k of
    each row.
    """
    return rows_size(element, rows, columns) + (rows * FLOAT * ((columns + WIDTH - 1) // WIDTH) + 63) // 64 * 64


@inlined
def spare_bytes(rows, depth):
    """Bytes that `panel_sums` needs for `rows` rows and up to `depth` k.

    This memory holds a spare row or the shapes of tiles, a panel's scales, each row's sums by group of k, the products'
    sums for GROUPS groups, and a panel of SHARED_DEPTH k.
    """
    groups = (depth + WIDTH - 1) // WIDTH
    parts = max(rows, min(rows, TILE_ROWS) * GROUPS)
    return ROW_BYTES + groups * SCALE_BYTES + (rows * FLOAT * groups + 63) // 64 * 64 + parts * SUMS + 64 * SHARED_DEPTH


@jit
def block_place(element, m, columns, a, i, block):
    """The address of block number `block`, of 32 k, of row i in an operand of m rows."""
    if TILED and element == BFLOAT16:
        return tiles.block_place(m, columns, a, i, block)
    k = WIDTH * block
    return a + PITCH * (m * (k // KC) + i) + (2 if DOT and element == BFLOAT16 else FLOAT) * (k % KC)


@jit
def block_sum(element, place):
    """The sum of a row's block of 32 k, in the order that the module's docstring states. place: the block's address."""
    total = np.float32(0)
    if (DOT or TILED) and element == BFLOAT16:
        bits = mem.bits16(place, WIDTH)
        for j in range(8):
            part = np.float32(0)
            for i in range(4):
                part += mem.float_of_bits(int(bits[8 * i + j]) << 16)
            total += part
    else:
        values = mem.floats(place, WIDTH)
        for j in range(8):
            part = np.float32(0)
            for i in range(4):
                part += values[8 * i + j]
            total += part
    return total


@jit
def put_sums(element, m, columns, a, first, last):
    """Store the sums of blocks first..last of m rows behind the rows of an operand of `columns` columns."""
    blocks = (columns + WIDTH - 1) // WIDTH
    sums = mem.floats(a + rows_size(element, m, columns), m * blocks)
    for i in range(m):
        for block in range(first, last):
            sums[blocks * i + block] = block_sum(element, block_place(element, m, columns, a, i, block))


@jit
def pack_operand(element, m, x, columns, a):
    """Write m rows of `columns` elements, and the sums of their blocks if needed, into an operand.

    x: the address of an array of row addresses. a: the address of the operand.
    """
    if element != BFLOAT16:
        widened.copy_rows(FLOAT, m, x, columns, a)
    elif TILED:
        tiles.pack_operand(element, m, x, columns, a)
    else:
        widened.pack_operand(element, m, x, columns, a)
    if ZEROED:
        put_sums(element, m, columns, a, 0, (columns + WIDTH - 1) // WIDTH)


@jit
def round_operand(element, m, sums, j, columns, a, spare):
    """Round 32 sums of each of m rows to elements, and store them as columns j.. of an operand.

    columns: how many columns the operand has. spare: the address of 64 spare bytes.
    """
    if element != BFLOAT16:
        place = a + PITCH * m * (j // KC) + FLOAT * (j % KC)
        for i in range(m):
            mem.copy_row(place + PITCH * i, sums + SUMS * i, SUMS)
    elif TILED:
        tiles.round_operand(element, m, sums, j, columns, a, spare)
    else:
        widened.round_operand(element, m, sums, j, columns, a, spare)
    if ZEROED:
        put_sums(element, m, columns, a, j // WIDTH, j // WIDTH + 1)


@jit
def read_scales(panel, groups, scales):
    """Convert a panel's scales and zero points to float32 at `scales`, SCALE_BYTES for each group."""
    zeros = mem.load(panel + ZEROS)
    widen_scales(mem.load(panel + SCALE), panel + LINE, scales, groups, mem.load(panel + SHARED))
    if ZEROED and zeros != 0:
        widen_zeros(panel + zeros, scales + SUMS, groups)


@jit
def read_sums(element, m, a, depth, group, groups, x):
    """Write the sums of m rows by group of k at x, as [m, groups] float32.

    They are computed from the sums of blocks behind an operand's rows. group: how many k a group has.
    """
    blocks = (depth + WIDTH - 1) // WIDTH
    stored, out = mem.floats(a + rows_size(element, m, depth), m * blocks), mem.floats(x, m * groups)
    for i in range(m):
        for g in range(groups):
            total = np.float32(0)
            for block in range(g * group // WIDTH, min(blocks, (g + 1) * group // WIDTH)):
                total += stored[blocks * i + block]
            out[groups * i + g] = total


@jit
def whole_groups(k, group):
    """k // group, computed without a division. group: a power of 2 that is at least 32, or the number of all k."""
    if k <= group:
        return 1 if k == group else 0
    shift = 5
    while (1 << shift) < group:
        shift += 1
    return k >> shift


@jit
def by_codes(kept, m, a, depth, panel, sums, group, scales, x, x_pitch, parts):
    """Multiply rows by a panel's codes, which each group of rows decodes for itself.

    kept: 1 if rows stay bfloat16, else 0.
    """
    nbytes = 2 if kept else FLOAT
    codes, row_groups = panel + mem.load(panel + CODES), (m + FEW - 1) // FEW
    size = m if row_groups == 1 else m // row_groups
    larger = m - size * row_groups
    for half in range(WIDTH // SPAN):
        k, here, at = 0, a, codes + TOGETHER * SPAN * half
        while k < depth:
            g, end = whole_groups(k, group), min(depth, (k // KC + 1) * KC)
            last = min(depth, (g + 1) * group)
            flags, groups, count = WHOLE, whole_groups(end - k, group), group
            if groups == 0 or k > g * group:
                groups, count = 1, min(end, last) - k
                flags = (BEGINS if k == g * group else 0) | (ENDS if k + count == last else 0)
            i = 0
            for part in range(row_groups):
                rows = size + 1 if part < larger else size
                rows_by_codes(
                    rows + FEW * kept,
                    here + PITCH * i + nbytes * (k % KC),
                    at + PAIR * (k // 2),
                    sums + SUMS * i + 64 * half,
                    groups,
                    (count + 1) // 2,
                    scales + SCALE_BYTES * g + 64 * half,
                    x + x_pitch * i + FLOAT * g if x != 0 else 0,
                    x_pitch,
                    parts + SUMS * i + 64 * half,
                    flags,
                )
                i += rows
            k += groups * count
            if k % KC == 0:
                here += PITCH * m


@jit
def near_of(codes, end, ahead):
    """The address that is prefetched while the codes at `codes` are read.

    end: the address of the end of their panel. ahead: the address of the next panel.
    """
    near = codes + NEAR
    return near if near < end else ahead + (near - end)


@jit
def by_tiles(m, a, depth, panel, sums, group, scales, x, x_pitch, parts, ahead, spare):
    """Multiply up to TILE_ROWS rows by a panel's codes with tiles, MOST_DEPTH k at a time.

    parts: the address of space for the sums of GROUPS groups, then for unpack_kernels.RING blocks of a panel.
    """
    ring = parts + m * SUMS * GROUPS
    codes, end = panel + mem.load(panel + CODES), panel + mem.load(panel + PANEL_BYTES)
    rows, upper = tiles.group_rows(m, 0, 1)
    step, steps = tiles.ROW * upper, (depth + WIDTH - 1) // WIDTH
    tiles.shape_tiles(upper, rows - upper, spare)
    k = 0
    while k < depth:
        g = whole_groups(k, group)
        last = min(depth, (g + 1) * group)
        groups, count = 1, min(MOST_DEPTH, last - k)
        if last - k == group and 2 * group <= MOST_DEPTH:
            groups, count = whole_groups(min(MOST_DEPTH, depth - k), group), group
        here, blocks = codes + PAIR * (k // 2), (count + WIDTH - 1) // WIDTH
        near = near_of(here, end, ahead)
        carry, place = 0 if k == g * group else 1, a + step * (k // WIDTH)
        code_sums(place, step * steps, here, ring, parts, groups, blocks, carry, SUMS * m, near, upper, rows - upper)
        k += groups * count
        if k >= last:
            of_x = x + FLOAT * g if x != 0 else 0
            close_groups(m, groups, parts, SUMS * m, sums, scales + SCALE_BYTES * g, of_x, x_pitch)


@jit
def by_panels(element, m, a, depth, panel, sums, group, scales, x, x_pitch, parts, ahead, spare):
    """Multiply rows by a panel's codes, which are unpacked to bfloat16 for all rows, SHARED_DEPTH k at a time.

    parts: the address of space for the sums of one group, then for a panel of SHARED_DEPTH k.
    """
    codes, end, unpacked, k = (
        panel + mem.load(panel + CODES),
        panel + mem.load(panel + PANEL_BYTES),
        parts + m * SUMS,
        0,
    )
    while k < depth:
        g = whole_groups(k, group)
        last = min(depth, (g + 1) * group)
        count = min(SHARED_DEPTH, last - k)
        blocks = (count + WIDTH - 1) // WIDTH
        here = codes + PAIR * (k // 2)
        unpack(here, unpacked, blocks, near_of(here, end, ahead))
        carry = 0 if k == g * group else 1
        if TILED and element == BFLOAT16:
            steps = (depth + WIDTH - 1) // WIDTH
            tiles.part_sums(element, m, a, k // WIDTH, steps, unpacked, parts, blocks, carry, unpacked, 0, spare)
        else:
            kind = BFLOAT16 if element == BFLOAT16 else WIDE
            place = block_place(element, m, depth, a, 0, k // WIDTH)
            # kernels that multiply several pairs at once read whole blocks
            widened.part_sums(kind, m, place, blocks * (WIDTH // 2), unpacked, parts, carry, unpacked, 0)
        k += count
        if k == last:
            of_x = x + FLOAT * g if x != 0 else 0
            close_groups(m, 1, parts, 0, sums, scales + SCALE_BYTES * g, of_x, x_pitch)


@jit
def by_groups_of_rows(m, a, depth, panel, sums, group, scales, x, x_pitch, parts, ahead, spare):
    """Multiply any number of rows with tiles.

    Two neighbouring groups with equally many rows share unpacked codes, because the sums of two groups fit the L1
    cache. Groups of different sizes do not share them, because the shapes of tiles would change at every step.
    """
    groups, g = (m + TILE_ROWS - 1) // TILE_ROWS, 0
    while g < groups:
        rows, upper = tiles.group_rows(m, g, groups)
        nbytes = 2 * tiles.ROW * upper * ((depth + WIDTH - 1) // WIDTH)
        if g + 1 < groups and tiles.group_rows(m, g + 1, groups)[0] == rows:
            rows, nbytes, g = 2 * rows, 2 * nbytes, g + 2
            by_panels(BFLOAT16, rows, a, depth, panel, sums, group, scales, x, x_pitch, parts, ahead, spare)
        else:
            by_tiles(rows, a, depth, panel, sums, group, scales, x, x_pitch, parts, ahead, spare)
            g += 1
        a += nbytes
        sums += SUMS * rows
        x += x_pitch * rows if x != 0 else 0


@jit
def panel_sums(element, m, a, depth, panel, sums, carry, ahead, spare):
    """Set sums[m, 32] to operand x panel, over all `depth` k of the operand; if `carry` is nonzero, add to the sums.

    a: the address of the operand. panel: the address of the panel. sums: the address of m rows of 32 sums. ahead: the
    address of the next panel. spare: the address of spare memory, see `spare_bytes`.
    """
    group = mem.load(panel + GROUP)
    groups, blocks = whole_groups(depth, group), (depth + WIDTH - 1) // WIDTH
    groups += 1 if groups * group < depth else 0
    scales = spare + ROW_BYTES
    x, x_pitch = scales + blocks * SCALE_BYTES, FLOAT * groups
    parts = x + (m * FLOAT * blocks + 63) // 64 * 64
    read_scales(panel, groups, scales)
    if ZEROED and mem.load(panel + ZEROS) != 0:
        read_sums(element, m, a, depth, group, groups, x)
    else:
        x = 0
    if carry == 0:
        for i in range(m):
            mem.floats(sums + SUMS * i, WIDTH)[:] = 0
    kept = 1 if DOTS and element == BFLOAT16 else 0
    panels = element == BFLOAT16 and not DOTS and (DOT or TILED)
    if not panels and m <= (FEW if kept else MOST):
        by_codes(kept, m, a, depth, panel, sums, group, scales, x, x_pitch, parts)
    elif TILED and element == BFLOAT16:
        by_groups_of_rows(m, a, depth, panel, sums, group, scales, x, x_pitch, parts, ahead, spare)
    else:
        by_panels(element, m, a, depth, panel, sums, group, scales, x, x_pitch, parts, ahead, spare)


@inlined
def depth_of(element, rows):
    """The counterpart of `widened.depth_of`. It is never called, because packed weights have no gradients."""
    return rows
