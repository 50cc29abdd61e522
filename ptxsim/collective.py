"""Instructions that lanes of a warp execute together: shuffles, votes, matches, reductions, accesses to matrices.

The lanes that the instruction's mask names wait for each other, even if they execute it at different places of the
program. Values are read when all these lanes have arrived.
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from . import state as s
from .access import examine, locate, register, set_register, thread_of, warp_slot
from .bits import f32_of, get, load16, load32, put, store16, store32, u32_of
from .clocks import join
from .floating import least_most
from .integer import read as as_integer
from .matrix import multiply
from .missing import share_hints
from .quick import rewritten
from .requests import count_access
from .tensor_memory import tensor_memory
from .units import unit
from .warpgroup import warpgroup
from .watch import ALONE, ANY, read, report, wrote

FULL = 0xFFFFFFFF


@jit
def line_of(x, thread):
    """The address of the row that a thread's current instruction has in the table of the code."""
    return get(x, s.CODE) + get(thread, s.T_PC) * isa.COLUMNS * 8


@unit
def run_collective(x, warp, block, op, mask):
    """Execute a collective instruction for the lanes of mask, each at its own T_PC."""
    if op == isa.SHFL:
        shuffle(x, warp, mask)
    elif op == isa.VOTE:
        vote(x, warp, mask)
    elif op == isa.MATCH:
        match(x, warp, mask)
    elif op == isa.REDUX:
        reduce(x, warp, mask)
    elif op == isa.ELECT:
        leader = np.int64(-1)
        for lane in range(32):
            if (mask >> lane) & 1:
                line = line_of(x, thread_of(x, warp, lane))
                if leader < 0:
                    leader = np.int64(lane)
                set_register(x, warp, get(line, isa.D), lane, np.uint64(leader))
                set_register(x, warp, get(line, isa.D2), lane, np.uint64(leader == lane))
    elif op == isa.WARPSYNC:
        if get(x, s.CHECK):
            meet(x, warp, block, mask)
    elif op == isa.MMA:
        first = np.int64(0)
        while not (mask >> first) & 1:
            first += 1
        multiply(x, warp, line_of(x, thread_of(x, warp, first)))
    elif op == isa.MOVMATRIX:
        transpose(x, warp, mask)
    elif op >= isa.WGMMA:
        warpgroup(x, warp, block, op, mask)
    elif op >= isa.TCALLOC:
        tensor_memory(x, warp, block, op, mask)
    else:
        matrices(x, warp, block, op, mask)
    return 0


@jit
def shuffle(x, warp, mask):
    """Run shfl. The immediate chooses up, down, bfly or idx."""
    values = get(x, s.SCRATCH)
    for lane in range(32):
        if (mask >> lane) & 1:
            line = line_of(x, thread_of(x, warp, lane))
            put(values, lane, np.int64(register(x, warp, get(line, isa.A), lane)) & FULL)
    for lane in range(32):
        if not (mask >> lane) & 1:
            continue
        thread = thread_of(x, warp, lane)
        line = line_of(x, thread)
        b = np.int64(register(x, warp, get(line, isa.B), lane)) & 31
        c = np.int64(register(x, warp, get(line, isa.C), lane))
        clamp, segment = c & 31, (c >> 8) & 31
        most = (lane & segment) | (clamp & ~segment & 31)
        mode = get(line, isa.IMM)
        if mode == 0:
            source = lane - b
            inside = source >= most
        else:
            if mode == 1:
                source = lane + b
            elif mode == 2:
                source = lane ^ b
            else:
                source = (lane & segment) | (b & ~segment & 31)
            inside = source <= most
        if not inside:
            source = np.int64(lane)
        if not (mask >> source) & 1:
            if (get(warp, s.W_EXISTS) >> source) & 1 and get(x, s.CHECK):
                pc = get(thread, s.T_PC)
                report(x, s.UNINITIALISED, pc, get(thread, s.T_GID), source, -1, 4, 0, 0, source, 0)
            source = np.int64(lane)
        put(values, 32 + lane, get(values, source))
        set_register(x, warp, get(line, isa.D2), lane, np.uint64(inside))
    for lane in range(32):
        if (mask >> lane) & 1:
            line = line_of(x, thread_of(x, warp, lane))
            set_register(x, warp, get(line, isa.D), lane, np.uint64(get(values, 32 + lane)))


@jit
def vote(x, warp, mask):
    """Run vote. The immediate chooses all, any, uni or ballot."""
    ballot = np.int64(0)
    for lane in range(32):
        if (mask >> lane) & 1:
            line = line_of(x, thread_of(x, warp, lane))
            if register(x, warp, get(line, isa.A), lane) & np.uint64(1):
                ballot |= 1 << lane
    for lane in range(32):
        if (mask >> lane) & 1:
            line = line_of(x, thread_of(x, warp, lane))
            kind = get(line, isa.IMM)
            if kind == 0:
                result = np.int64(ballot == mask)
            elif kind == 1:
                result = np.int64(ballot != 0)
            elif kind == 2:
                result = np.int64(ballot == 0 or ballot == mask)
            else:
                result = ballot
            set_register(x, warp, get(line, isa.D), lane, np.uint64(result))


@jit
def match(x, warp, mask):
    """Run match, which finds the lanes with the same value. The immediate is 0 for match.any, 1 for match.all."""
    values = get(x, s.SCRATCH)
    for lane in range(32):
        if (mask >> lane) & 1:
            line = line_of(x, thread_of(x, warp, lane))
            put(values, lane, as_integer(register(x, warp, get(line, isa.A), lane), get(line, isa.TYPE)))
    for lane in range(32):
        if not (mask >> lane) & 1:
            continue
        line = line_of(x, thread_of(x, warp, lane))
        same = np.int64(0)
        for other in range(32):
            if (mask >> other) & 1 and get(values, other) == get(values, lane):
                same |= 1 << other
        if get(line, isa.IMM) == 1:
            set_register(x, warp, get(line, isa.D2), lane, np.uint64(same == mask))
            same = same if same == mask else np.int64(0)
        set_register(x, warp, get(line, isa.D), lane, np.uint64(same))


@jit
def reduce(x, warp, mask):
    """Run redux. All lanes of mask get the same result."""
    total, first = np.int64(0), True
    for lane in range(32):
        if not (mask >> lane) & 1:
            continue
        line = line_of(x, thread_of(x, warp, lane))
        type_, kind, flags = get(line, isa.TYPE), get(line, isa.IMM), get(line, isa.FLAGS)
        raw = register(x, warp, get(line, isa.A), lane)
        value = as_integer(raw, type_)
        if type_ == isa.F32 and flags & isa.XORSIGN:  # .abs
            value &= 0x7FFFFFFF
        if first:
            total = value
        elif type_ == isa.F32:
            op = isa.FMIN if kind == 3 else isa.FMAX
            a, b = f32_of(np.uint32(total)), f32_of(np.uint32(value))
            best = np.float32(least_most(op, np.float64(a), np.float64(b), flags & isa.NAN))
            total = np.int64(0x7FFFFFFF) if best != best else np.int64(u32_of(best))
        elif kind == 0:
            total += value
        elif kind == 3:
            total = min(total, value)
        elif kind == 4:
            total = max(total, value)
        elif kind == 7:
            total &= value
        elif kind == 8:
            total |= value
        else:
            total ^= value
        first = False
    for lane in range(32):
        if (mask >> lane) & 1:
            line = line_of(x, thread_of(x, warp, lane))
            set_register(x, warp, get(line, isa.D), lane, np.uint64(total & FULL))


@jit
def meet(x, warp, block, mask):
    """Run bar.warp.sync: all past actions of each lane of mask happen before the next actions of all of them."""
    slot = warp_slot(x, warp)
    known = get(x, s.KNOWN) + slot * 1024 * 8
    vc, sv = np.int64(0), np.int64(0)
    best = get(x, s.SCRATCH)
    for other in range(32):
        put(best, other, -1)
    for lane in range(32):
        if not (mask >> lane) & 1:
            continue
        thread = thread_of(x, warp, lane)
        vc = join(x, vc, get(thread, s.T_VC))
        sv = join(x, sv, get(thread, s.T_SV))
        for other in range(32):
            put(best, other, max(get(best, other), get(known, lane * 32 + other)))
    for lane in range(32):
        if (mask >> lane) & 1:
            put(best, lane, get(thread_of(x, warp, lane), s.T_CLOCK))
    for lane in range(32):
        if not (mask >> lane) & 1:
            continue
        thread = thread_of(x, warp, lane)
        for other in range(32):
            put(known, lane * 32 + other, get(best, other))
        put(thread, s.T_VC, vc)
        put(thread, s.T_SV, sv)
        clock = get(thread, s.T_CLOCK) + 1
        put(thread, s.T_CLOCK, clock)
        if clock > get(block, s.B_MAX_CLOCK):
            put(block, s.B_MAX_CLOCK, clock)
    share_hints(x, block, slot, mask)


@unit
def matrices(x, warp, block, op, mask):
    """Run ldmatrix or stmatrix on 8x8 matrices of 16-bit elements. The lanes have the addresses of the rows."""
    first = np.int64(0)
    while not (mask >> first) & 1:
        first += 1
    line = line_of(x, thread_of(x, warp, first))
    pc = get(thread_of(x, warp, first), s.T_PC)
    count, base, offset = get(line, isa.COUNT), get(line, isa.A), get(line, isa.IMM)
    items = get(x, s.OPERANDS) + get(line, isa.LIST) * 8
    flipped = get(line, isa.FLAGS) & isa.HIGH != 0
    writes = op == isa.STMATRIX
    where = get(x, s.SCRATCH)
    slot = warp_slot(x, warp)
    for lane in range(32):  # addresses are read before results are written, because a result may overwrite one
        put(where, lane, np.int64(register(x, warp, base, lane)) + offset if lane < 8 * count else -1)
    for matrix in range(count):
        for row in range(8):
            source = matrix * 8 + row
            thread = thread_of(x, warp, source)
            address = get(where, source)
            host, place, kind = locate(x, warp, thread, block, source, isa.SHARED, address, 16, writes, pc)
            for pair in range(4):
                lane = row * 4 + pair
                if flipped:  # then the element at (row, column) in memory is (column, row) of the matrix
                    for half in range(2):
                        column = 2 * pair + half
                        holder, part = column * 4 + row // 2, row & 1
                        r = get(items, matrix)
                        old = register(x, warp, r, holder)
                        if writes:
                            value = (old >> np.uint64(16 * part)) & np.uint64(0xFFFF)
                            if host >= 0:
                                put16(x, warp, thread, block, slot, host, place, column, value, pc)
                        else:
                            value = np.uint64(0)
                            if host >= 0:
                                value = get16(x, warp, thread, block, slot, host, place, column, pc)
                            shift = np.uint64(16 * part)
                            kept = old & ~(np.uint64(0xFFFF) << shift)
                            set_register(x, warp, r, holder, (kept | (value << shift)) & np.uint64(FULL))
                elif writes:
                    value = register(x, warp, get(items, matrix), lane) & np.uint64(FULL)
                    if host >= 0:
                        if get(x, s.CHECK):
                            examine(x, warp, thread, block, slot, kind, place + 4 * pair, 4, 0, True, False, pc)
                            at = 1 << 61 | get(block, s.B_GID) << 20 | (place + 4 * pair)
                            wrote(
                                x, thread, block, slot, at, 4, load32(host + 4 * pair), value, isa.WEAK, 0, False, ALONE
                            )
                        store32(host + 4 * pair, value)
                else:
                    value = np.uint64(0)
                    if host >= 0:
                        value = load32(host + 4 * pair)
                        if get(x, s.CHECK):
                            examine(x, warp, thread, block, slot, kind, place + 4 * pair, 4, 0, False, True, pc)
                            at = 1 << 61 | get(block, s.B_GID) << 20 | (place + 4 * pair)
                            if rewritten(x, at, 4):
                                source_of = host + 4 * pair
                                value = np.uint64(read(x, thread, block, slot, at, source_of, 4, isa.WEAK, 0, ANY))
                    set_register(x, warp, get(items, matrix), lane, value)
    if writes:
        put(x, s.PROGRESS, get(x, s.STEP))
    count_access(x, warp, line, pc, (1 << (8 * count)) - 1, isa.SHARED, 16, writes)
    return 0


@jit
def get16(x, warp, thread, block, slot, host, place, column, pc):
    """Check the access to one element of a row, and load it."""
    if get(x, s.CHECK):
        examine(x, warp, thread, block, slot, isa.SHARED, place + 2 * column, 2, 0, False, True, pc)
    return load16(host + 2 * column)


@jit
def put16(x, warp, thread, block, slot, host, place, column, value, pc):
    """Check the access to one element of a row, and store it."""
    if get(x, s.CHECK):
        examine(x, warp, thread, block, slot, isa.SHARED, place + 2 * column, 2, 0, True, False, pc)
        at = 1 << 61 | get(block, s.B_GID) << 20 | (place + 2 * column)
        wrote(x, thread, block, slot, at, 2, load16(host + 2 * column), value, isa.WEAK, 0, False, ALONE)
    store16(host + 2 * column, value)


@jit
def transpose(x, warp, mask):
    """Run movmatrix, which transposes the 8x8 matrix of 16-bit elements in the lanes' registers."""
    values = get(x, s.SCRATCH)
    for lane in range(32):
        line = line_of(x, thread_of(x, warp, lane))
        put(values, lane, np.int64(register(x, warp, get(line, isa.A), lane)))
    for lane in range(32):
        if not (mask >> lane) & 1:
            continue
        line = line_of(x, thread_of(x, warp, lane))
        row, result = lane // 4, np.int64(0)
        for half in range(2):
            column = 2 * (lane & 3) + half
            element = (get(values, column * 4 + row // 2) >> (16 * (row & 1))) & 0xFFFF
            result |= element << (16 * half)
        set_register(x, warp, get(line, isa.D), lane, np.uint64(result))
