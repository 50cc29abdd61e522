"""Tensor maps: the fields of a descriptor's 128 bytes, and the bytes that a copy of one box moves.

NVIDIA does not publish the form of the bytes, which only cuTensorMapEncodeTiled and `tensormap.replace` write. So the
machine has a form of its own, which `tensor_maps.py` writes. Source of what the fields mean: the PTX ISA, "Tensors",
and the driver API, "Tensor Map Object Managment".
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from . import state as s
from .access import combined
from .bits import get, load, load8, load32, load64, store, store8
from .units import unit

# places of the fields in a descriptor, in bytes; the fields that have one element a dimension come last
ADDRESS, TYPE, RANK, INTERLEAVE, SWIZZLE, FILL, ATOMICITY = 0, 8, 12, 16, 20, 24, 28
DIMS, BOX, STEPS, STRIDES, BYTES = 32, 52, 72, 96, 128
# for each element type, in the order of tensormap.replace's numbers: its bytes, its type in reductions, is it a float
SIZES = (1, 2, 4, 4, 8, 8, 2, 4, 4, 8, 2, 4, 4)
KINDS = (
    0, 0, isa.U32, isa.S32, isa.U64, isa.S64, isa.F16, isa.F32, isa.F32, isa.F64, isa.BF16, isa.F32, isa.F32,
)  # fmt: skip
FLOATS = (0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1)
MOST_TYPES = len(SIZES)
ROWS = 1 << 8  # bit of a copy's flags: each row has a coordinate of its own (gather4, scatter4)
MULTICAST = 1 << 10  # bit of a copy's flags: an operand names the blocks of the cluster that get the box
PAIRED = 1 << 11  # bit of a copy's flags: the mbarrier may lie in the other block of the target's pair
REDUCES = 1 << 9  # bit of a copy's flags: the low bits are the kind of reduction


@jit
def element_size(map_):
    """Bytes of an element."""
    return np.int64(SIZES[np.int64(load32(map_ + TYPE))])


@jit
def rank(map_):
    """The number of dimensions."""
    return np.int64(load32(map_ + RANK)) + 1


@jit
def box(map_, d):
    """Elements of the tensor that the box spans along a dimension. With a stride, fewer of them are copied."""
    return np.int64(load32(map_ + BOX + 4 * d))


@jit
def step(map_, d):
    """The stride between elements of the box along a dimension. 0 means 1."""
    return max(np.int64(load32(map_ + STEPS + 4 * d)), np.int64(1)) if d > 0 else np.int64(1)


@jit
def rows_of(map_, flags):
    """The number of rows of a box: runs of elements along the first dimension."""
    if flags & ROWS:
        return np.int64(4)
    count = np.int64(1)
    for d in range(1, rank(map_)):
        count *= (box(map_, d) + step(map_, d) - 1) // step(map_, d)
    return count


@jit
def width(map_):
    """Bytes of a row of the box."""
    return box(map_, 0) * element_size(map_)


@jit
def pitch(map_):
    """Bytes from one row of the box to the next in shared memory. With a swizzle, this is the width of its pattern."""
    mode = np.int64(load32(map_ + SWIZZLE))
    return width(map_) if mode == 0 else np.int64(16) << mode


@jit
def usable(map_):
    """Whether the machine can use a descriptor: its types are known, and its sizes are within the limits."""
    if np.int64(load32(map_ + TYPE)) >= MOST_TYPES or rank(map_) > 5 or load32(map_ + INTERLEAVE) != np.uint64(0):
        return False
    if load32(map_ + SWIZZLE) > np.uint64(3) or load32(map_ + ATOMICITY) > np.uint64(1):
        return False
    for d in range(rank(map_)):
        if box(map_, d) == 0 or box(map_, d) > 256 or load32(map_ + STEPS + 4 * d) > np.uint64(8):
            return False
    return width(map_) & 15 == 0 and width(map_) <= pitch(map_) and load64(map_) & np.uint64(15) == np.uint64(0)


@jit
def row_start(map_, at, row, flags):
    """The address of a row's element with coordinate 0, or -1 if the row lies outside of the tensor.

    at: the address of the coordinates.
    """
    address = np.int64(load64(map_ + ADDRESS))
    for d in range(1, rank(map_)):
        if flags & ROWS:
            where = get(at, d + row)
        else:
            count = (box(map_, d) + step(map_, d) - 1) // step(map_, d)
            where = get(at, d) + row % count * step(map_, d)
            row //= count
        if where < 0 or where >= np.int64(load32(map_ + DIMS + 4 * d)):
            return np.int64(-1)
        address += where * np.int64(load64(map_ + STRIDES + 8 * (d - 1)))
    return address


@jit
def first_inside(map_, at):
    """The first element of a row, counted in the box, that lies inside the tensor."""
    return min(max(-get(at, 0), np.int64(0)), box(map_, 0))


@jit
def end_inside(map_, at):
    """One past the last element of a row, counted in the box, that lies inside the tensor; at least `first_inside`."""
    return max(min(np.int64(load32(map_ + DIMS)) - get(at, 0), box(map_, 0)), first_inside(map_, at))


@jit
def part_place(map_, place, row, part):
    """Where 16 bytes of the box lie in shared memory. place: the box's beginning. part: their number in the row."""
    at = place + row * pitch(map_) + part * 16
    mode = np.int64(load32(map_ + SWIZZLE))
    if mode == 0:
        return at
    if load32(map_ + ATOMICITY) == np.uint64(1):  # the swizzle moves parts of 32 bytes
        return at ^ ((at >> 7) & 3) << 5
    return at ^ ((at >> 7) & ((1 << mode) - 1)) << 4


@jit
def filling(map_, offset):
    """The byte of an element outside of the tensor, at an offset in the element."""
    size = element_size(map_)
    if load32(map_ + FILL) == np.uint64(0) or not FLOATS[np.int64(load32(map_ + TYPE))]:
        return np.uint64(0)
    return np.uint64(0x7F if offset == size - 1 else 0xFF)


@unit
def box_to_shared(x, block, map_, at, place, flags):
    """Copy a box to shared memory. Elements outside of the tensor become zeros, or NaNs if the map says so."""
    size, shared, memory = element_size(map_), get(block, s.B_SHARED), get(x, s.MEMORY) - isa.GLOBAL_START
    first, end = first_inside(map_, at) * size, end_inside(map_, at) * size
    for row in range(rows_of(map_, flags)):
        start = row_start(map_, at, row, flags)
        begin = start + get(at, 0) * size
        for part in range(width(map_) // 16):
            target = shared + part_place(map_, place, row, part)
            for i in range(16):
                byte = part * 16 + i
                value = filling(map_, byte % size)
                if start >= 0 and first <= byte < end:
                    value = load8(memory + begin + byte)
                store8(target + i, value)
    return 0


@unit
def box_to_global(x, block, map_, at, place, flags):
    """Copy a box to global memory, or combine it with what is there. Elements outside of the tensor are left out."""
    size, shared, memory = element_size(map_), get(block, s.B_SHARED), get(x, s.MEMORY) - isa.GLOBAL_START
    first, end = first_inside(map_, at), end_inside(map_, at)
    type_ = np.int64(KINDS[np.int64(load32(map_ + TYPE))])
    for row in range(rows_of(map_, flags)):
        start = row_start(map_, at, row, flags)
        if start < 0:
            continue
        begin = start + get(at, 0) * size
        for k in range(first, end):
            byte = k * size
            source = shared + part_place(map_, place, row, byte // 16) + byte % 16
            target = memory + begin + byte
            value = load(source, size)
            if flags & REDUCES:
                value = combined(x, flags & 15, type_, load(target, size), value, np.uint64(0), True)
            store(target, size, value)
    return 0
