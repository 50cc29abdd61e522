"""wgmma: each warp computes its part of a warpgroup's product, 16 rows of A times all of B.

A part is computed when it is issued, and counts as pending until a thread waits for its group. For the checker an agent
(`agents.py`) reads the operands in shared memory. The agent's clock is the number of the group, which a thread learns
by its wait. So a write to the operands before the wait is a race. The registers of a part are marked until the wait,
and an instruction that touches a marked register is reported. The arithmetic is that of mma.sync: exact products, added
to D one by one in float32, in the order of k. Source: the PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions".
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from . import state as s
from .access import FAULT, locate, register, shadow_of, thread_of, warp_slot
from .agents import OF_WARPGROUP, agent_access, agent_number, as_agent, learnt
from .bits import f32_of, fma32, get, load8, load16, load32, put, u32_of, u64_of
from .clocks import publish
from .integer import clamp, spread
from .matrix import INT8, a_place, bits_of, element
from .rounding import HALF, exact, widen
from .rows import SPECIAL
from .small_floats import E2M3, PART, bytes_used, code_at, small_value
from .units import unit
from .watch import report

FULL = 0xFFFFFFFF
# bits in FLAGS of wgmma.mma_async
NEGATES_A, NEGATES_B, TRANSPOSES_A, TRANSPOSES_B, FROM_REGISTERS = 1, 2, 4, 8, 16
UNSIGNED_A, UNSIGNED_B, SATURATES, HALF_RESULT = 32, 64, 128, 256
NO_SWIZZLE, SWIZZLE_128, SWIZZLE_64 = 0, 1, 2  # modes of a descriptor; 3: 32 bytes
NOT_WHOLE, APART, BASE_OFFSET, NOT_ALIGNED = 10, 11, 12, 13  # details of MISUSE reports, after those of bulk.py
LOAD_PENDING = 4  # detail of MISSING_WAIT reports
CONSTANT = -1  # entry of the table FLIGHT for a row that no instruction writes
FIXED_ROWS = len(SPECIAL)


@unit
def warpgroup(x, warp, block, op, mask):
    """Run a wgmma instruction of a warp whose lanes have all arrived."""
    thread = thread_of(x, warp, 0)
    pc = get(thread, s.T_PC)
    line = get(x, s.CODE) + pc * isa.COLUMNS * 8
    if op == isa.WGMMA:
        if (get(warp, s.W_INDEX) | 3) >= get(block, s.B_WARPS) or mask != FULL:
            report(x, s.MISUSE, pc, get(thread, s.T_GID), 0, isa.SHARED, 0, 0, 0, NOT_WHOLE, 0)
            return 0
        product(x, warp, block, line, pc)
    elif op == isa.WGFENCE:
        settle_registers(x, warp, 0)
    elif op == isa.WGCOMMIT:
        put(warp, s.W_GROUP, get(warp, s.W_GROUP) + 1)
    else:
        done = get(warp, s.W_GROUP) - get(line, isa.IMM)
        if done > 0 and get(x, s.CHECK):
            settle_registers(x, warp, done)
            number = agent_number(OF_WARPGROUP, get(thread, s.T_GID))
            old, new = np.int64(-1), np.int64(0)
            for lane in range(32):
                if (mask >> lane) & 1:
                    thread = thread_of(x, warp, lane)
                    if get(thread, s.T_VC) != old:
                        old = get(thread, s.T_VC)
                        new = learnt(x, old, number, done)
                    put(thread, s.T_VC, new)
    return 0


# ---- registers ----
@jit
def rows_of(x):
    """The number of registers of a thread."""
    return get(x, s.REGISTERS_PER_WARP) // 32


@jit
def watch_registers(x, warp, number, launch):
    """Set up the marks of a warp that begins a kernel with wgmma. No fence has ordered a register yet."""
    flight = get(x, s.FLIGHT) + number * get(x, s.REGISTERS_PER_WARP) // 32 * 8
    for row in range(rows_of(x)):
        put(flight, row, 0)
    constants = get(launch, s.L_CONSTANTS)
    for i in range(get(launch, s.L_CONSTANT_COUNT)):
        put(flight, get(constants, 2 * i), CONSTANT)
    put(warp, s.W_FLIGHT, flight)


@jit
def settle_registers(x, warp, done):
    """After a fence (done = 0) mark touched registers as ordered; after a wait free those of groups below `done`."""
    flight = get(warp, s.W_FLIGHT)
    if flight == 0:
        return
    for row in range(rows_of(x)):
        state = get(flight, row)
        if (done == 0 and state == 0) or (state > s.CLEAN and state >> s.F_GROUP < done):
            put(flight, row, s.CLEAN)


@jit
def take_registers(x, warp, items, results, fragments, shape, pc):
    """Mark the registers of a product as used by it.

    Registers touched since the last fence are reported, and registers that a pending product uses in another shape or
    role.
    """
    flight = get(warp, s.W_FLIGHT)
    if flight == 0:
        return
    gid = get(thread_of(x, warp, 0), s.T_GID)
    for k in range(results + fragments):
        row = get(items, k)
        state = get(flight, row)
        kind = s.ACCUMULATOR if k < results else s.FRAGMENT
        mark = get(warp, s.W_GROUP) << s.F_GROUP | shape << s.F_SHAPE | kind
        if state == 0:
            report(x, s.MISSING_FENCE, pc, gid, k, isa.LOCAL, 4, 0, 0, 2, 0)
        elif state > s.CLEAN and (state ^ mark) & ((1 << s.F_GROUP) - 1):
            report(x, s.MISSING_WAIT, pc, gid, k, isa.LOCAL, 4, 0, 0, 1, 0)
        if state != CONSTANT:
            put(flight, row, mark)


@jit
def touch_row(x, warp, flight, row, pc, write):
    """Report a touched register if a wgmma uses it. From now on the register needs a fence."""
    if row < FIXED_ROWS or row >= rows_of(x):
        return
    state = get(flight, row)
    if state > s.CLEAN:
        detail = LOAD_PENDING if state == s.LOADING else 1
        report(x, s.MISSING_WAIT, pc, get(thread_of(x, warp, 0), s.T_GID), row, isa.LOCAL, 4, 0, 0, detail, write)
        if state == s.LOADING:
            put(warp, s.W_FLIGHT, 0)  # so that one load is reported once
    if state != CONSTANT:
        put(flight, row, 0)


@jit
def carried(x, flight, line, op):
    """Whether a vector that is packed or unpacked has a register that tcgen05.ld writes. The result then gets the mark.

    Compilers pack such registers before they wait. The packing only renames registers for the assembler.
    """
    items, count = get(x, s.OPERANDS) + get(line, isa.LIST) * 8, get(line, isa.COUNT)
    if op == isa.UNPACK:
        loading = get(flight, get(line, isa.A)) == s.LOADING
        for k in range(count if loading else 0):
            put(flight, get(items, k), s.LOADING)
        return loading
    loading = False
    for k in range(count):
        loading |= get(flight, get(items, k)) == s.LOADING
    if loading:
        put(flight, get(line, isa.D), s.LOADING)
    return loading


@unit
def touch(x, warp, line, op, pc):
    """Report the registers that an instruction touches while a wgmma or a tcgen05.ld uses them.

    From now on they need a fence.

    A `mov` between registers only renames a value for the assembler, so the mark moves with the value.
    """
    flight = get(warp, s.W_FLIGHT)
    if op == isa.CALL or op == isa.CALLI or op == isa.WGMMA or op == isa.BRX or op == isa.TCLOAD:
        return 0
    if op == isa.MOV:
        source, target = get(line, isa.A), get(line, isa.D)
        state = get(flight, source)
        if state == CONSTANT or source < FIXED_ROWS:
            state = get(flight, 0)  # nothing touches row 0, so its state says whether a fence came
        if get(flight, target) > s.CLEAN and state <= s.CLEAN:
            touch_row(x, warp, flight, target, pc, 1)
        put(flight, target, state)
        return 0
    if (op == isa.PACK or op == isa.UNPACK) and carried(x, flight, line, op):
        return 0
    for column in range(isa.D, isa.PRED + 1):
        touch_row(x, warp, flight, get(line, column), pc, column == isa.D)
    touch_row(x, warp, flight, get(line, isa.D2), pc, 1)
    if op == isa.LD or op == isa.ST or op == isa.PACK or op == isa.UNPACK or op >= isa.MMA:
        items = get(x, s.OPERANDS) + get(line, isa.LIST) * 8
        for k in range(get(line, isa.COUNT)):
            touch_row(x, warp, flight, get(items, k), pc, op != isa.ST)
    return 0


@jit
def load_registers(x, warp, items, count):
    """Mark the registers of a tcgen05.ld until its warp waits."""
    flight = get(x, s.FLIGHT) + get(warp, s.W_SLOT) * rows_of(x) * 8
    if get(warp, s.W_FLIGHT) == 0:
        for row in range(rows_of(x)):
            put(flight, row, s.CLEAN)
        put(warp, s.W_FLIGHT, flight)
    for k in range(count):
        put(flight, get(items, k), s.LOADING)


# ---- operands in shared memory ----
@jit
def swizzled(at, mode):
    """The swizzled form of an address: the bits of the 16-byte part are mixed with those of the 128-byte line."""
    if mode == NO_SWIZZLE:
        return at
    bits = 7 if mode == SWIZZLE_128 else (3 if mode == SWIZZLE_64 else 1)
    return at ^ ((at >> 7) & bits) << 4


@jit
def part_at(descriptor, transposed, line, step):
    """The address of 16 bytes of an operand.

    The 16 bytes are part `step` of row `line`, or if the operand is transposed, part `line` of row `step` of k.

    The descriptor has two strides in bytes: between groups of 8 rows (bits 32 to 45), and between swizzle patterns
    (bits 16 to 29). See the PTX ISA on canonical layouts.
    """
    start = (descriptor & 0x3FFF) << 4
    leading, stride = ((descriptor >> 16) & 0x3FFF) << 4, ((descriptor >> 32) & 0x3FFF) << 4
    mode = (descriptor >> 62) & 3
    if mode == NO_SWIZZLE:
        if transposed:
            return start + line * stride + (step >> 3) * leading + (step & 7) * 16
        return start + (line >> 3) * stride + step * leading + (line & 7) * 16
    width = 128 >> (mode - 1)
    if transposed:
        parts = width >> 4
        at = start + line // parts * leading + line % parts * 16 + (step >> 3) * stride + (step & 7) * width
    else:
        at = start + (line >> 3) * stride + (line & 7) * width + step * 16
    return swizzled(at, mode)


@jit
def described(x, warp, row, thread, pc):
    """Read the matrix descriptor in a register. Lanes that differ, and an unsupported descriptor, are reported."""
    descriptor = np.int64(register(x, warp, row, 0))
    gid = get(thread, s.T_GID)
    for lane in range(1, 32):
        if np.int64(register(x, warp, row, lane)) != descriptor:
            report(x, s.MISUSE, pc, gid, 0, isa.SHARED, 0, 0, 0, APART, 0)
            break
    mode, start = (descriptor >> 62) & 3, (descriptor & 0x3FFF) << 4
    if (descriptor >> 49) & 7:
        report(x, s.MISUSE, pc, gid, 0, isa.SHARED, 0, 0, 0, BASE_OFFSET, 0)
    elif mode != NO_SWIZZLE and start & (7 if mode == SWIZZLE_128 else (3 if mode == SWIZZLE_64 else 1)) << 7:
        report(x, s.MISUSE, pc, gid, start, isa.SHARED, 16, 0, 0, NOT_ALIGNED, 0)
    return descriptor


@jit
def fetch(x, warp, thread, block, pc, row, kind, unsigned, transposed, first, count, out):
    """Read `count` rows of A, or columns of B, from `first` on into out[k, row or column] as float32."""
    descriptor = described(x, warp, row, thread, pc)
    operand(x, warp, thread, block, pc, descriptor, kind, unsigned, transposed, first, count, 0, 0, out)


@jit
def operand(x, warp, thread, block, pc, descriptor, kind, unsigned, transposed, first, count, high, to, out):
    """Read part of an operand, as `fetch` does, by the agent of `agents.as_agent`.

    high: a number added to addresses to name another block (isa.RANK_SHIFT). to: the first row or column of out.
    """
    bits = bits_of(kind)
    depth, per = 256 // bits, 128 // bits
    lines, steps = (count // per, depth) if transposed else (count, 2)
    begin = first // per if transposed else first
    for line in range(lines):
        for step in range(steps):
            address = part_at(descriptor, transposed, begin + line, step) + high
            host, place, _ = locate(x, warp, thread, block, 0, isa.SHARED, address, 16, False, pc)
            if host != FAULT and get(x, s.CHECK):
                read_part(x, thread, block, place, kind, pc)
            for i in range(per):
                value = np.float32(0)
                if host != FAULT:
                    value = np.float32(element_at(host, i, kind, unsigned))
                if transposed:
                    out[step, to + line * per + i] = value
                else:
                    out[step * per + i, to + line] = value


@jit
def read_part(x, thread, block, place, kind, pc):
    """Check and record that the agent of `agents.as_agent` reads 16 bytes of an operand, without their padding."""
    size = bytes_used(kind)
    if size < PART:
        grain = shadow_of(x, block, isa.SHARED, place, size)[1]
        size = (size + grain - 1) // grain * grain
    agent_access(x, thread, block, isa.SHARED, place, size, False, pc)


@jit
def element_at(host, i, kind, unsigned):
    """Element i of 16 bytes of an operand in shared memory, as float64."""
    if kind >= E2M3:
        return small_value(code_at(host, i, kind), kind)
    bits = bits_of(kind)
    if bits == 32:
        return element(np.int64(load32(host + 4 * i)), 0, kind, unsigned)
    raw = np.int64(load16(host + 2 * i)) if bits == 16 else np.int64(load8(host + i))
    return element(raw, 0, kind, unsigned)


# ---- the product ----
@jit
def product(x, warp, block, line, pc):
    """Compute one warp's part of wgmma.mma_async."""
    kind, n, flags = get(line, isa.TYPE), get(line, isa.IMM), get(line, isa.FLAGS)
    bits = bits_of(kind)
    depth = 256 // bits
    items = get(x, s.OPERANDS) + get(line, isa.LIST) * 8
    results = n // 4 if flags & HALF_RESULT else n // 2
    regs = get(warp, s.W_REGS)
    thread = thread_of(x, warp, 31)  # not elect.sync's lane, whose clock may cover more than those of other lanes
    if get(x, s.CHECK):
        gid = get(thread_of(x, warp, 0), s.T_GID)
        vc = publish(x, thread, block, warp_slot(x, warp))
        as_agent(x, agent_number(OF_WARPGROUP, gid), get(warp, s.W_GROUP) + 1, vc)
        take_registers(x, warp, items, results, 4 if flags & FROM_REGISTERS else 0, n // 8, pc)
    a = np.empty((32, 16), np.float32)
    b = np.empty((32, 256), np.float32)
    if flags & FROM_REGISTERS:
        for row in range(16):
            for k in range(depth):
                lane, which, part = a_place(16, depth, bits, row, k)
                raw = np.int64(get(regs, get(items, results + which) * 32 + lane))
                a[k, row] = np.float32(element(raw, part, kind, flags & UNSIGNED_A))
    else:
        first, turned = 16 * (get(warp, s.W_INDEX) & 3), flags & TRANSPOSES_A != 0
        fetch(x, warp, thread, block, pc, get(line, isa.A), kind, flags & UNSIGNED_A, turned, first, 16, a)
    kind_b = get(line, isa.TYPE2)
    fetch(x, warp, thread, block, pc, get(line, isa.B), kind_b, flags & UNSIGNED_B, flags & TRANSPOSES_B != 0, 0, n, b)
    adds = register(x, warp, get(line, isa.C), 0) & np.uint64(1) != np.uint64(0)
    if kind == INT8:
        sum_integers(regs, items, a, b, n, adds, flags & SATURATES)
        return
    sign = np.float32(-1 if (flags & NEGATES_A != 0) != (flags & NEGATES_B != 0) else 1)
    total = np.zeros((16, 256), np.float32)
    for row in range(16):
        if adds:
            for column in range(n):
                total[row, column] = held_value(regs, items, row, column, flags)
        for k in range(depth):
            factor = a[k, row] * sign
            for column in range(n):
                total[row, column] = fma32(factor, b[k, column], total[row, column])
    for row in range(16):
        for column in range(n):
            value = total[row, column]
            if flags & HALF_RESULT:
                keep_half(x, regs, items, row, column, value)
            else:
                raw = np.int64(0x7FFFFFFF) if value != value else np.int64(u32_of(value))
                put(regs, accumulator(items, row, column), raw)


@jit
def sum_integers(regs, items, a, b, n, adds, saturates):
    """Sum integer products to D. float32 holds each product exactly, and int64 each sum."""
    for row in range(16):
        for column in range(n):
            at = accumulator(items, row, column)
            total = spread(get(regs, at), 4) if adds else np.int64(0)
            for k in range(32):
                total += np.int64(a[k, row] * b[k, column])
            if saturates:
                total = clamp(total, np.int64(isa.S32))
            put(regs, at, total & FULL)


@jit
def half_place(items, row, column):
    """Where D[row, column] lies if D has float16: (index among the words of a warp's registers, first bit)."""
    which = 2 * (column >> 3) + (row >> 3)
    return get(items, which) * 32 + (row & 7) * 4 + ((column & 7) >> 1), 16 * (column & 1)


@jit
def held_value(regs, items, row, column, flags):
    """D[row, column] before the product."""
    if flags & HALF_RESULT:
        at, shift = half_place(items, row, column)
        return np.float32(widen((get(regs, at) >> shift) & 0xFFFF, HALF))
    return f32_of(np.uint32(get(regs, accumulator(items, row, column)) & FULL))


@jit
def keep_half(x, regs, items, row, column, value):
    """Round D[row, column] to float16, and keep it."""
    at, shift = half_place(items, row, column)
    raw = np.int64(exact(x, isa.FABS, u64_of(np.float64(value)), 0, 0, HALF, isa.RN))
    put(regs, at, (get(regs, at) & ~(0xFFFF << shift) & FULL) | raw << shift)


@jit
def accumulator(items, row, column):
    """The index, among the words of a warp's registers, of D[row, column] of the warp's 16 rows."""
    which = 4 * (column >> 3) + 2 * (row >> 3) + (column & 1)
    return get(items, which) * 32 + (row & 7) * 4 + ((column & 7) >> 1)
