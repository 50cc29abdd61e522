"""tex, suld, sust, txq and suq: textures and surfaces of arrays in global memory.

An instruction on a vector is lowered to one instruction for each element, because the elements lie at different
addresses. The checker treats the read of a texture like ld.global.nc, because the texture cache does not see writes of
the same kernel. It treats accesses to surfaces as weak accesses. Source: the PTX ISA, "Texture Instructions" and
"Surface Instructions", and the CUDA programming guide, "Texture Fetching". The guide says that the weights of linear
filters have 8 bits after the point. It does not say how the weights and the sum are rounded. Here the weights are
rounded to the nearest, and the sum is rounded once to float32.
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from . import state as s
from .access import FAULT, check, locate, location_of, register, set_register, thread_of, warp_slot
from .bits import f32_of, get, load, put, store, u32_of
from .integer import spread
from .quick import rewritten
from .requests import count_access
from .rounding import HALF, widen
from .units import unit
from .watch import ALONE, ANY, NOT_COHERENT, report, wrote
from .watch import read as read_history

# FLAGS: the number of coordinates in the low 3 bits. FLOATS: coordinates are floats. LAYER: the first coordinate is a
# layer. CUBE: the layers are a cube's faces. From OUTSIDE_SHIFT on: what an access outside the surface does (TRAPS,
# CLAMPS or ZERO)
FLOATS, LAYER, CUBE, OUTSIDE_SHIFT = 8, 16, 32, 8
TRAPS, CLAMPS, ZERO = range(3)
# details of MISUSE reports, after those of tensor_memory.py
NO_TEXTURE, NO_SURFACE, OTHER_GEOMETRY, OUTSIDE_SURFACE = 28, 29, 30, 31
WIDTH, HEIGHT, DEPTH, ARRAY_SIZE, NORMALIZED, LEVELS = range(6)  # what txq and suq ask for


@unit
def sample(x, warp, block, line, pc, op, mask):
    """Run an instruction on textures or surfaces for the lanes of mask.

    IMM: the number of the vector's element, or for txq and suq what they ask for (WIDTH to LEVELS).
    """
    seen = np.int64(isa.PARAM)
    size = get(line, isa.TYPE) & 15
    for lane in range(32):
        if not (mask >> lane) & 1:
            continue
        put(get(x, s.SCRATCH), lane, -1)
        thread = thread_of(x, warp, lane)
        first = op == isa.TEXQUERY or get(line, isa.IMM) == 0  # only a vector's first element makes reports
        row = described(x, thread, np.int64(register(x, warp, get(line, isa.A), lane)), op, first, pc)
        value = np.uint64(0)
        if row and op == isa.TEXQUERY:
            value = np.uint64(asked(row, get(line, isa.IMM)))
        elif row and op == isa.TEX and get(row, s.X_LINEAR) and get(line, isa.FLAGS) & FLOATS:
            value = np.uint64(u32_of(filtered(x, warp, thread, block, line, lane, row, pc)))
            if np.int64(get(get(x, s.SCRATCH), lane)) >= 0:
                size, seen = get(row, s.X_TYPE) & 15, np.int64(isa.GLOBAL)
        elif row and op == isa.TEX:
            address = texel(x, warp, thread, line, lane, row, pc)
            if address > 0 and get(line, isa.IMM) < get(row, s.X_CHANNELS):
                size, seen = get(row, s.X_TYPE) & 15, np.int64(isa.GLOBAL)
                address += get(line, isa.IMM) * size
                put(get(x, s.SCRATCH), lane, address)
                value = converted(row, fetched(x, warp, thread, block, lane, address, size, NOT_COHERENT, pc))
        elif row:
            address = element(x, warp, thread, line, lane, row, pc)
            if address > 0:
                seen = np.int64(isa.GLOBAL)
                put(get(x, s.SCRATCH), lane, address)
                if op == isa.SUSTORE:
                    stored(x, warp, thread, block, lane, address, register(x, warp, get(line, isa.B), lane), size, pc)
                else:
                    value = fetched(x, warp, thread, block, lane, address, size, 0, pc)
        if op != isa.SUSTORE:
            set_register(x, warp, get(line, isa.D), lane, value)
    if op != isa.TEXQUERY:
        count_access(x, warp, line, pc, mask, seen, size, op == isa.SUSTORE)
    return 0


@jit
def described(x, thread, handle, op, reports, pc):
    """The row of a texture or surface, or 0 if the handle names no object that `op` accepts.

    reports: whether to report a handle that is not accepted.
    """
    number = handle - isa.TEXTURE_START
    if 0 <= number < get(x, s.TEXTURE_COUNT):
        row = get(x, s.TEXTURES) + number * s.X_COUNT * 8
        if op == isa.TEXQUERY or (get(row, s.X_KIND) == s.TEXTURE) == (op == isa.TEX):
            return row
    what = NO_TEXTURE if op == isa.TEX else NO_SURFACE
    if reports:
        report(x, s.MISUSE, pc, get(thread, s.T_GID), handle, isa.GLOBAL, 8, 0, 0, what, 0)
    return np.int64(0)


@jit
def asked(row, what):
    """The answer of txq or suq."""
    if what == ARRAY_SIZE:
        return get(row, s.X_SIZES + 2) if get(row, s.X_LAYERED) else np.int64(0)
    if what == NORMALIZED:
        return get(row, s.X_NORMALIZED)
    if what == LEVELS:
        return np.int64(1)
    return get(row, s.X_SIZES + what) if what < get(row, s.X_DIMENSIONS) else np.int64(0)


@jit
def coordinate(x, warp, line, lane, k):
    """Coordinate k of a lane: its bits."""
    items = get(x, s.OPERANDS) + get(line, isa.LIST) * 8
    return np.int64(register(x, warp, get(items, k), lane)) & 0xFFFFFFFF


@jit
def fits(x, thread, line, row, pc):
    """Whether a texture or surface has the dimensions that an instruction names. If not, this is reported."""
    flags = get(line, isa.FLAGS)
    layered = np.int64(flags & LAYER != 0)
    good = get(row, s.X_DIMENSIONS) == (flags & 7) - layered and get(row, s.X_LAYERED) == layered
    if good and flags & CUBE:
        width, height, faces = get(row, s.X_SIZES), get(row, s.X_SIZES + 1), get(row, s.X_SIZES + 2)
        good = width == height and faces == 6 and get(row, s.X_NORMALIZED) != 0
    if good:
        return True
    if get(line, isa.IMM) == 0:
        report(x, s.MISUSE, pc, get(thread, s.T_GID), 0, isa.GLOBAL, 8, 0, 0, OTHER_GEOMETRY, 0)
    return False


# ---- textures ----
@jit
def texel(x, warp, thread, line, lane, row, pc):
    """The address of the element that a lane's coordinates name.

    Returns 0 if the lane reads the border's value, or if the instruction does not fit the texture's dimensions.
    """
    if not fits(x, thread, line, row, pc):
        return np.int64(0)
    flags, address = get(line, isa.FLAGS), get(row, s.X_ADDRESS)
    first = np.int64(0)
    if flags & LAYER:
        layer = spread(coordinate(x, warp, line, lane, 0), 4)
        address += min(max(layer, 0), get(row, s.X_SIZES + 2) - 1) * get(row, s.X_STRIDES + 2)
        first = np.int64(1)
    for k in range(first, flags & 7):
        size, bits = get(row, s.X_SIZES + k - first), coordinate(x, warp, line, lane, k)
        at = nearest(row, f32_of(np.uint32(bits)), size) if flags & FLOATS else spread(bits, 4)
        if at < 0 or at >= size:
            if get(row, s.X_MODE) == s.BORDER:
                return np.int64(0)
            at = min(max(at, 0), size - 1)
        address += at * get(row, s.X_STRIDES + k - first)
    return address


@jit
def nearest(row, at, size):
    """The index of the element at a coordinate. The index may lie outside [0, size). The index of a NaN is 0."""
    if at != at:
        return np.int64(0)
    if get(row, s.X_NORMALIZED):
        mode = get(row, s.X_MODE)
        whole = np.floor(at)
        if mode == s.WRAP:
            at -= whole
        elif mode == s.MIRROR:
            odd = whole * np.float32(0.5) != np.floor(whole * np.float32(0.5))
            at = np.float32(1) - (at - whole) if odd else at - whole
        at = at * np.float32(size)
        if mode == s.WRAP or mode == s.MIRROR:
            return min(np.int64(np.floor(at)), size - 1)
    return np.int64(np.floor(min(max(at, np.float32(-1)), np.float32(size))))


@jit
def filtered(x, warp, thread, block, line, lane, row, pc):
    """The mean of the elements around a lane's coordinates, by the weights of a linear filter: a float32.

    The address of the first element that is read becomes the lane's entry of SCRATCH, so only this access is counted.
    """
    flags, channel = get(line, isa.FLAGS), get(line, isa.IMM)
    if not fits(x, thread, line, row, pc) or channel >= get(row, s.X_CHANNELS):
        return np.float32(0)
    size, base, first, axes = get(row, s.X_TYPE) & 15, get(row, s.X_ADDRESS), np.int64(0), flags & 7
    if flags & LAYER:
        layer = spread(coordinate(x, warp, line, lane, 0), 4)
        base += min(max(layer, 0), get(row, s.X_SIZES + 2) - 1) * get(row, s.X_STRIDES + 2)
        first, axes = np.int64(1), axes - 1
    total = np.float64(0)
    for corner in range(1 << axes):
        address, weight = base + channel * size, np.float64(1)
        for k in range(axes):
            at = centred(row, f32_of(np.uint32(coordinate(x, warp, line, lane, first + k))), get(row, s.X_SIZES + k))
            upper, fraction = (corner >> k) & 1, np.floor((at - np.floor(at)) * 256 + 0.5)
            weight *= (fraction if upper else 256 - fraction) / 256
            place = inside(row, np.int64(np.floor(at)) + upper, get(row, s.X_SIZES + k))
            if place < 0:
                weight = np.float64(0)
            address += place * get(row, s.X_STRIDES + k)
        if weight != 0:
            if np.int64(get(get(x, s.SCRATCH), lane)) < 0:
                put(get(x, s.SCRATCH), lane, address)
            raw = converted(row, fetched(x, warp, thread, block, lane, address, size, NOT_COHERENT, pc))
            total += weight * np.float64(f32_of(np.uint32(raw)))
    return np.float32(total)


@jit
def centred(row, at, size):
    """A coordinate in elements, counted from the middle of the first one: a float64 from -2 to size + 1."""
    if at != at:
        return np.float64(-0.5)
    wide = np.float64(at)
    if get(row, s.X_NORMALIZED):
        if get(row, s.X_MODE) == s.WRAP:
            wide -= np.floor(wide)
        elif get(row, s.X_MODE) == s.MIRROR:
            wide -= 2 * np.floor(wide / 2)
            wide = 2 - wide if wide > 1 else wide
        if wide != wide:  # an infinite coordinate has no place in a pattern that repeats
            return np.float64(-0.5)
        wide *= size
    return min(max(wide - 0.5, np.float64(-2)), np.float64(size + 1))


@jit
def inside(row, place, size):
    """The index of the element that is read at index `place` of an axis; -1 if the border's value is read."""
    if 0 <= place < size:
        return place
    if get(row, s.X_MODE) == s.BORDER:
        return np.int64(-1)
    if get(row, s.X_NORMALIZED) and get(row, s.X_MODE) == s.WRAP:
        return place % size
    return min(max(place, 0), size - 1)


@jit
def converted(row, raw):
    """The 32 bits that a register gets for a texture's element: the integer, extended, or a float32."""
    type_ = get(row, s.X_TYPE)
    signed = type_ & 0xF0 == isa.S
    if type_ == isa.F16:
        return np.uint64(u32_of(np.float32(widen(np.int64(raw) & 0xFFFF, HALF))))
    number = spread(np.int64(raw), type_ & 15) if signed else np.int64(raw)
    if get(row, s.X_FLOATS):
        most = (1 << (8 * (type_ & 15) - (1 if signed else 0))) - 1
        return np.uint64(u32_of(max(np.float32(number) / np.float32(most), np.float32(-1))))
    return np.uint64(number) & np.uint64(0xFFFFFFFF)


# ---- surfaces ----
@jit
def element(x, warp, thread, line, lane, row, pc):
    """The address of the element of a surface that a lane reads or writes; 0 if there is no access.

    The first coordinate counts bytes. TYPE2: the bytes of the whole vector. Only the vector's first element reports a
    misaligned access, or with .trap an access outside the surface.
    """
    if not fits(x, thread, line, row, pc):
        return np.int64(0)
    flags, address, whole = get(line, isa.FLAGS), get(row, s.X_ADDRESS), get(line, isa.TYPE2)
    outside, first, gid = flags >> OUTSIDE_SHIFT, np.int64(0), get(thread, s.T_GID)
    if flags & LAYER:
        first = np.int64(1)
    for k in range(flags & 7):
        axis = np.int64(2) if k < first else k - first
        at, size, step = spread(coordinate(x, warp, line, lane, k), 4), get(row, s.X_SIZES + axis), np.int64(1)
        if axis == 0:
            size, step = size * get(row, s.X_CHANNELS) * (get(row, s.X_TYPE) & 15) - whole + 1, np.int64(1)
            if at & (whole - 1):
                if get(line, isa.IMM) == 0:
                    report(x, s.MISALIGNED, pc, gid, address + at, isa.GLOBAL, whole, 0, 0, 0, 0)
                return np.int64(0)
        else:
            step = get(row, s.X_STRIDES + axis)
        if at < 0 or at >= size:
            if outside == CLAMPS:
                at = min(max(at, 0), size - 1)
            else:
                if outside == TRAPS and get(line, isa.IMM) == 0:
                    report(x, s.MISUSE, pc, gid, address, isa.GLOBAL, whole, 0, 0, OUTSIDE_SURFACE, 0)
                return np.int64(0)
        address += at * step
    return address + get(line, isa.IMM) * (get(line, isa.TYPE) & 15)


@jit
def fetched(x, warp, thread, block, lane, address, size, how, pc):
    """Load an element. how: NOT_COHERENT for textures, 0 for surfaces."""
    host, place, kind = locate(x, warp, thread, block, lane, isa.GLOBAL, address, size, False, pc)
    if host == FAULT:
        return np.uint64(0)
    if get(x, s.CHECK):
        check(x, warp, thread, block, kind, place, size, how, False, True, pc)
        at = location_of(x, block, kind, place)
        if not how and get(x, s.WEAK_MEMORY) and rewritten(x, at, size):
            slot = warp_slot(x, warp)
            return np.uint64(read_history(x, thread, block, slot, at, host, size, isa.WEAK, 0, np.int64(ANY)))
    return load(host, size)


@jit
def stored(x, warp, thread, block, lane, address, value, size, pc):
    """Store an element of a surface."""
    host, place, kind = locate(x, warp, thread, block, lane, isa.GLOBAL, address, size, True, pc)
    if host == FAULT:
        return
    value = value & (~np.uint64(0) >> np.uint64(64 - 8 * size))
    old, hidden = load(host, size), np.int64(0)
    if old != value:
        put(x, s.PROGRESS, get(x, s.STEP))
    if get(x, s.CHECK):
        check(x, warp, thread, block, kind, place, size, 0, True, False, pc)
        at, slot = location_of(x, block, kind, place), warp_slot(x, warp)
        hidden = wrote(x, thread, block, slot, at, size, old, value, isa.WEAK, 0, False, ALONE)
    if not hidden:
        store(host, size, value)
