"""The interpreter's short ways give what its plain ways give: drawn instructions, drawn accesses.

whole_warp.py computes frequent instructions for all lanes at once, where integer.py, floating.py and convert.py go lane
by lane. quick.py records accesses that nothing can be wrong with, where `check` looks at everything. region.py looks up
the memory of a whole warp, where `locate` looks up a lane's. `happened` remembers what a vector clock covers.
"""

from __future__ import annotations

import ctypes

import numba
import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
import ptxsim
from ptxsim import clocks, convert, floating, integer, isa, quick, whole_warp
from ptxsim import state as s
from ptxsim.access import FAULT, locate, location_of, shadow_of, warp_slot
from ptxsim.bits import get, load64
from ptxsim.region import NOWHERE, region_of
from ptxsim.units import python_function
from ptxsim.watch import NOT_COHERENT, SIZE_SHIFT, STRONG

pytestmark = pytest.mark.slow
INTEGERS = (isa.U16, isa.S16, isa.U32, isa.S32, isa.U64, isa.S64)
BITS = (isa.B16, isa.B32, isa.B64)
ALL = (*INTEGERS, *BITS, isa.F32, isa.F64)
# by operation: its types, and the numbers that its immediate operand may be
WORK = {
    isa.MOV: ((*ALL, isa.PREDICATE), (0,)),
    **dict.fromkeys((isa.ADD, isa.SUB, isa.MUL, isa.MAD), (INTEGERS, (0,))),
    isa.MULWIDE: (INTEGERS[:4], (0,)),
    **dict.fromkeys((isa.AND, isa.OR, isa.XOR), ((*BITS, isa.PREDICATE), (0,))),
    isa.SHL: (BITS, (0,)),
    isa.SHR: ((*INTEGERS, *BITS), (0,)),
    isa.SELP: (ALL, (0,)),
    isa.SETP: (INTEGERS, range(10)),
}
FLOATS = (isa.FADD, isa.FSUB, isa.FMUL, isa.FFMA)
# numbers at which rules change, as bits
EDGES = np.array(
    [
        0,
        1,
        2,
        31,
        32,
        63,
        64,
        255,
        256,
        0x7FFF,
        0x8000,
        0xFFFF,
        0x7FFFFFFF,
        1 << 31,
        (1 << 32) - 1,
        1 << 32,
        1 << 63,
        (1 << 63) - 1,
        (1 << 64) - 1,
        0x7F800000,
        0xFF800000,
        0x7FC00000,
        0x7F800001,
        0x00000001,
        0x3F800000,
        0x80000000,
        0x7FF0000000000000,
        0xFFF0000000000000,
        0x7FF8000000000000,
        0x3FF0000000000000,
        0x000FFFFFFFFFFFFF,
    ],
    np.uint64,
)


@numba.njit(error_model="numpy")
def integers_both(lines, rows, fast, plain):
    """Run integer instructions in both ways. Returns how many of them have the short way."""
    taken = 0
    for n in range(len(lines)):
        op, type_, flags, imm = lines[n]
        a, b, c, d = rows[n, 0].ctypes.data, rows[n, 1].ctypes.data, rows[n, 2].ctypes.data, fast[n].ctypes.data
        if whole_warp.integers(op, type_, flags, imm, np.int64(a), np.int64(b), np.int64(c), np.int64(d)):
            taken += 1
        for k in range(32):
            left, right, third = rows[n, 0, k], rows[n, 1, k], rows[n, 2, k]
            plain[n, k] = integer.integer(op, type_, np.int64(0), flags, imm, left, right, third, np.uint64(0))
    return taken


@numba.njit(error_model="numpy")
def others_both(x, lines, rows, fast, plain):
    """Run instructions of floats, and conversions (op -1), in both ways. Returns how many have the short way."""
    taken = 0
    for n in range(len(lines)):
        op, type_, source, _ = lines[n]
        a, b, c, d = rows[n, 0].ctypes.data, rows[n, 1].ctypes.data, rows[n, 2].ctypes.data, fast[n].ctypes.data
        zero = np.int64(0)
        if op == -1:
            taken += whole_warp.widths(type_, source, np.int64(a), np.int64(d))
        else:
            taken += whole_warp.floats(op, type_, np.int64(a), np.int64(b), np.int64(c), np.int64(d))
        for k in range(32):
            if op == -1:
                plain[n, k] = convert.convert(x, type_, source, zero, rows[n, 0, k])
            else:
                left, right, third = rows[n, 0, k], rows[n, 1, k], rows[n, 2, k]
                plain[n, k] = floating.floating(x, op, type_, zero, zero, left, right, third)
    return taken


def drawn_rows(rng, count):
    """[count, 3, 32] uint64: operands of all lanes, a third of them numbers at which rules change."""
    rows = rng.integers(0, 1 << 64, (count, 3, 32), np.uint64)
    edges = rng.random(rows.shape) < 0.3
    rows[edges] = rng.choice(EDGES, edges.sum())
    small = rng.random(rows.shape) < 0.2
    rows[small] = rng.integers(0, 80, small.sum(), np.uint64)
    return rows


def differing(lines, fast, plain):
    """The instructions whose results differ, with the first lane."""
    return [(tuple(lines[n]), hex(fast[n, k]), hex(plain[n, k])) for n, k in zip(*np.nonzero(fast != plain))][:5]


def test_integers_of_a_whole_warp():
    rng = np.random.default_rng(1)
    ways = [(op, type_, 0, imm) for op, (types, imms) in WORK.items() for type_ in types for imm in imms]
    lines = np.array(ways * 20, np.int64)
    rows = drawn_rows(rng, len(lines))
    predicates = np.isin(lines[:, 1], [isa.PREDICATE])
    rows[predicates] &= np.uint64(1)
    rows[lines[:, 0] == isa.SELP, 2] &= np.uint64(1)
    fast, plain = np.zeros((len(lines), 32), np.uint64), np.zeros((len(lines), 32), np.uint64)
    assert integers_both(lines, rows, fast, plain) == len(lines)
    assert not differing(lines, fast, plain)


def test_what_has_no_short_way_is_left_alone():
    lines = np.array([(isa.DIV, isa.U32, 0, 0), (isa.ADD, isa.S32, isa.SAT, 0), (isa.MULWIDE, isa.U64, 0, 0)], np.int64)
    rows, fast = drawn_rows(np.random.default_rng(2), len(lines)), np.full((len(lines), 32), 7, np.uint64)
    assert integers_both(lines, rows, fast, np.zeros_like(fast)) == 0
    assert (fast == 7).all()


def test_floats_and_conversions_of_a_whole_warp():
    rng = np.random.default_rng(3)
    ways = [(op, type_, 0, 0) for op in FLOATS for type_ in (isa.F32, isa.F64)]
    ways += [(-1, to, source, 0) for to in (*INTEGERS, isa.U8, isa.S8) for source in (*INTEGERS, isa.U8, isa.S8)]
    lines = np.array(ways * 40, np.int64)
    rows = drawn_rows(rng, len(lines))
    singles = lines[:, 1] == isa.F32
    rows[singles] &= np.uint64(0xFFFFFFFF)
    fast, plain = np.zeros((len(lines), 32), np.uint64), np.zeros((len(lines), 32), np.uint64)
    machine = ptxsim.Machine()
    assert others_both(int(machine.x.ctypes.data), lines, rows, fast, plain) == len(lines)
    for type_ in (isa.F64,):  # of float64 any NaN is as good as another
        places = lines[:, 1] == type_
        both = np.isnan(fast[places].view(np.float64)) & np.isnan(plain[places].view(np.float64))
        fast[places] = np.where(both, plain[places], fast[places])
    assert not differing(lines, fast, plain)


# ---- the checker ----
BARRIERS = """.version 8.0
.target sm_90
.address_size 64
.visible .entry k(.param .u64 p)
{
.reg .b32 %r<4>; .reg .b64 %d<4>; .reg .pred %p;
.shared .align 4 .b8 few[4]; .shared .align 8 .b8 there[256]; .local .align 8 .b8 mine[64];
ld.param.u64 %d1, [p]; mov.u32 %r1, %tid.x; and.b32 %r2, %r1, 7; mad.wide.u32 %d2, %r2, 4, %d1;
atom.add.acq_rel.gpu.global.u32 %r3, [%d2], 1; bar.sync 0;
setp.lt.u32 %p, %r1, 40; @%p atom.add.acq_rel.gpu.global.u32 %r3, [%d2], 1; bar.sync 0;
L: ld.relaxed.sys.global.u32 %r3, [%d1+64]; setp.eq.u32 %p, %r3, 0; @%p bra L;
ret;
}
"""
SIZES = (1, 2, 4, 8)
BASE = 40  # a row of registers for drawn addresses


@numba.njit(error_model="numpy")
def quietly(x, warp, thread, block, space, place, size, how, write, pc):
    """Call `quiet`, as ld and st do."""
    shadow = shadow_of(x, block, space, place, size)
    return quick.quiet(x, thread, block, warp_slot(x, warp), shadow, size, how, write, pc)


@numba.njit(error_model="numpy")
def happened_both(x, thread, block, warp, gid, clock):
    """Whether a moment happened before a thread's, as `happened` says, and as follows from the clocks alone."""
    short = clocks.happened(x, thread, block, warp, gid, clock)
    mine = get(thread, s.T_GID)
    plain = gid == mine or clocks.earlier_run(x, gid) or clocks.in_clock(x, get(thread, s.T_VC), gid, clock)
    if gid >> 10 == mine >> 10:
        known = get(x, s.KNOWN) + (warp * 1024 + (mine & 31) * 32) * 8
        same = gid >> 5 == mine >> 5 and get(known, gid & 31) >= clock
        plain = plain or clock < get(block, s.B_FLOOR) or same
    return short, plain


@numba.njit(error_model="numpy")
def regions_both(x, warp, block, space, size, write, mask, found):
    """Look up the addresses in row BASE of a warp by `region_of`, and each by `locate`. Returns the region's space.

    found: [2, 32, 8] int64. In both ways, for each lane: the address in this process, the place, its space, its number,
    its init flag, the bytes of an item, the first cell, the offset from there.
    """
    region = region_of(x, warp, block, space, BASE, 0, size, write, mask)
    regs = get(warp, s.W_REGS)
    for lane in range(32):
        if not (mask >> lane) & 1:
            continue
        address, thread = get(regs, BASE * 32 + lane), get(warp, s.W_THREADS) + lane * s.T_FIELDS * 8
        host, place, kind = locate(x, warp, thread, block, lane, space, address, size, write, np.int64(3))
        found[1, lane, :3] = host, place, kind
        if host != FAULT and (kind == isa.GLOBAL or kind == isa.SHARED):
            init, grain, cells, first, _ = shadow_of(x, block, kind, place, size)
            found[1, lane, 3:] = location_of(x, block, kind, place), init, grain, cells, first
        if region.space != NOWHERE:
            found[0, lane, :3] = region.host + address + lane * region.step, region.place + address, region.space
            if region.space != isa.LOCAL:
                found[0, lane, 3] = region.location + address
                found[0, lane, 4:6] = region.init + address, region.grain
                found[0, lane, 6:] = region.cells, region.first + address
    return region.space


@numba.njit(error_model="numpy")
def words(address, count):
    """The words from an address on."""
    found = np.empty(count, np.int64)
    for k in range(count):
        found[k] = np.int64(load64(address + 8 * k))
    return found


class Trials:
    """Draws accesses of live threads and states of the memory that they touch, and makes each access in both ways."""

    def __init__(self, machine, arrays, seed):
        self.machine, self.arrays, self.rng = machine, arrays, np.random.default_rng(seed)
        self.x = int(machine.x.ctypes.data)
        self.check = python_function("check")
        self.quiet, self.both, self.reported = 0, 0, 0

    def live(self):
        """(warp, thread, block) of a thread that runs: the addresses of their rows."""
        tables, x = self.machine.tables, self.machine.x
        warps = tables["warps"]
        slots = [n for n in range(len(warps) - 1) if warps[n, s.W_LIVE]]
        slot = int(self.rng.choice(slots))
        lane = int(self.rng.choice([k for k in range(32) if warps[slot, s.W_LIVE] >> k & 1]))
        warp = int(x[s.WARPS]) + slot * s.W_FIELDS * 8
        block = int(x[s.BLOCKS]) + int(warps[slot, s.W_BLOCK]) * s.B_FIELDS * 8
        return warp, int(warps[slot, s.W_THREADS]) + lane * s.T_FIELDS * 8, block, int(warps[slot, s.W_BLOCK])

    def word_pair(self, mine, grain, read):
        """The two words of a cell for an earlier access, or zeros."""
        if self.rng.random() < 0.4:
            return 0, 0
        _, thread, _, _ = self.live()
        gid, clock = (
            int(n) for n in words(mine if self.rng.random() < 0.2 else thread, s.T_FIELDS)[[s.T_GID, s.T_CLOCK]]
        )
        how = int(self.rng.choice([0, 0, STRONG, STRONG | 1 << 1, STRONG | 2 << 1]))
        how |= int(self.rng.integers(0, 4)) << SIZE_SHIFT
        if read and self.rng.random() < 0.05:
            how |= NOT_COHERENT
        mask = int(self.rng.choice([(1 << grain) - 1, (1 << grain) - 1, int(self.rng.integers(1, 1 << grain))]))
        return gid | 5 << s.GID_BITS, int(self.rng.integers(0, clock + 2)) | mask << 32 | how << 40

    def run(self):
        """Make one access in both ways, and compare what is left behind."""
        rng, machine = self.rng, self.machine
        warp, thread, block, number = self.live()
        size = int(rng.choice(SIZES))
        at = int(rng.integers(0, 64 // size)) * size
        write = bool(rng.random() < 0.5)
        how = int(rng.choice([0, 0, 0, STRONG, STRONG | 1 << 1, STRONG | 2 << 1]))
        if rng.random() < 0.5:
            space, allocation = isa.GLOBAL, self.arrays[int(rng.integers(len(self.arrays)))].allocation
            grain = int(machine.memory.table[allocation.number, s.A_GRANULE])
            first = int(machine.memory.table[allocation.number, s.A_SHADOW]) * s.CELL_WORDS * 8 + int(
                machine.x[s.SHADOW]
            )
            place, init = allocation.start + at, machine.memory.init[allocation.start : allocation.start + 64]
            if not write and how == 0 and rng.random() < 0.1:
                how = NOT_COHERENT
        else:
            space, place = isa.SHARED, at
            row = machine.tables["blocks"][number]
            grain = int(machine.tables["launches"][row[s.B_LAUNCH], s.L_GRANULE])
            first = int(row[s.B_SHADOW])
            start = int(row[s.B_INIT]) - int(machine.x[s.SHARED_INIT])
            init = machine.tables["shared_init"][start : start + 64]
        cells = np.ctypeslib.as_array((ctypes.c_int64 * (64 // grain * s.CELL_WORDS)).from_address(first))
        cells = cells.reshape(-1, s.CELL_WORDS)
        before = init.copy(), cells.copy()
        init[:] = 1 if rng.random() < 0.7 else rng.choice([0, 1, 1, 1, 2], 64)
        for cell in cells[at // grain : (at + size - 1) // grain + 1]:
            for k in range(0, s.CELL_WORDS, 2):
                cell[k : k + 2] = self.word_pair(thread, grain, k > 0)
        given = init.copy(), cells.copy()
        log = size.bit_length() - 1
        quiet = quietly(self.x, warp, thread, block, space, place, size, how | log << SIZE_SHIFT, write, 3)
        short = init.copy(), cells.copy(), []
        if not quiet:
            short = self.plainly(warp, thread, block, space, place, size, how, write, init, cells)
        init[:], cells[:] = given
        plain = self.plainly(warp, thread, block, space, place, size, how, write, init, cells)
        init[:], cells[:] = before
        self.quiet, self.both, self.reported = self.quiet + bool(quiet), self.both + 1, self.reported + bool(plain[2])
        assert all(np.array_equal(one, other) for one, other in zip(short, plain)), (size, at, grain, write, how, given)
        if quiet == quick.UNWRITTEN:
            assert not given[1][at // grain : (at + size - 1) // grain + 1, 0].any()

    def plainly(self, warp, thread, block, space, place, size, how, write, init, cells):
        """(flags, cells, kinds of reports) after `check`."""
        machine = self.machine
        self.check(self.x, warp, thread, block, space, place, size, how, int(write), int(not write), 3)
        count = int(machine.x[s.REPORTS_COUNT])
        kinds = sorted(machine.tables["reports"][:count, s.R_KIND].tolist())
        machine.x[s.REPORTS_COUNT], machine.loader.seen[:] = 0, 0
        return init.copy(), cells.copy(), kinds


def waiting_run(machine, middle, *launches):
    """Run kernels of BARRIERS, (blocks, flags, stream) each, and call `middle` while they wait for flags[16]."""

    def act():
        for number in range(60):  # the kernels go on meanwhile; something changes, so that they do not count as stuck
            for _, flags, _ in launches:
                flags.store(17, number + 1)
            yield
        middle()
        for _, flags, _ in launches:
            flags.store(16, 1)

    for blocks, flags, stream in launches:
        machine.device(0).launch(BARRIERS, blocks, 64, flags, stream=stream)
    machine.actor(act)
    assert machine.run() == []


@pytest.mark.parametrize("seed", range(3))
def test_accesses_that_the_short_way_records(seed):
    """In the middle of a run, so that threads know some of each other's moments and not others."""
    machine = ptxsim.Machine(seed=seed, sm_count=2)
    device = machine.device(0)
    flags = device.array(np.zeros(32, np.uint32))
    arrays = [device.array(np.zeros(64 // np.dtype(kind).itemsize, kind)) for kind in ("u1", "u2", "u4", "u8")]
    made = Trials(machine, arrays, seed)

    def try_accesses():
        for _ in range(3000):
            made.run()

    waiting_run(machine, try_accesses, (3, flags, None))
    assert made.both == 3000
    assert 0.1 < made.quiet / made.both < 0.9
    assert made.reported > 100


def test_what_happened_before():
    """For drawn threads of an earlier run, and of launches in two streams that know nothing of each other.

    Each moment is asked of two threads, so that the remembered answer fits sometimes, and sometimes not.
    """
    machine = ptxsim.Machine(seed=5, sm_count=2)
    device = machine.device(0)
    over, *flags = (device.array(np.array([0] * 16 + [last] + [0] * 15, np.uint32)) for last in (1, 0, 0))
    streams = [device.stream(blocking=False) for _ in flags]
    device.launch(BARRIERS, 2, 64, over)
    assert machine.run() == []
    device.launch(BARRIERS, 2, 64, over, stream=streams[0])
    made = []

    def try_pairs():
        rng, trials = np.random.default_rng(6), Trials(machine, [], 6)
        for _ in range(3000):
            gid, clock = (int(n) for n in words(trials.live()[1], s.T_FIELDS)[[s.T_GID, s.T_CLOCK]])
            if rng.random() < 0.3:
                gid = int(rng.integers(1, gid >> 10)) << 10 | int(rng.integers(0, 64))
            clock = max(int(clock + rng.integers(-3, 2)), 0)
            for _ in range(2):
                warp, thread, block, _ = trials.live()
                slot = int(words(warp, s.W_FIELDS)[s.W_SLOT])
                made.append(happened_both(trials.x, thread, block, slot, gid, clock))

    waiting_run(machine, try_pairs, *((2, one, stream) for one, stream in zip(flags, streams)))
    assert len(made) == 6000
    assert all(short == plain for short, plain in made)
    assert 0.1 < np.mean([short for short, _ in made]) < 0.9


def drawn_addresses(rng, arrays, size):
    """(space, [32] int64 addresses) of a warp: mostly in one region, sometimes with a lane that lies elsewhere.

    Bytes 4 to 127 of shared memory belong to no variable. Local memory has 80 bytes.
    """
    starts = [arrays[k].allocation.start + isa.GLOBAL_START for k in range(len(arrays))]
    shared, local = isa.SHARED_WINDOW, isa.LOCAL_WINDOW
    space, start, length = [
        (isa.GENERIC, starts[0], 64),
        (isa.GLOBAL, starts[1], 64),
        (isa.CONST, starts[2], 64),
        (isa.SHARED, 128, 256),
        (isa.SHARED, shared + 128, 256),
        (isa.GENERIC, shared + 128, 256),
        (isa.LOCAL, 0, 80),
        (isa.GENERIC, local, 80),
        (isa.GENERIC, isa.PARAM_WINDOW, 8),
        (isa.PARAM, isa.PARAM_WINDOW, 8),
    ][rng.integers(10)]
    made = start + rng.integers(0, length // size, 32) * size
    if rng.random() < 0.3:
        made[:] = start + np.arange(32) % (length // size) * size
    if rng.random() < 0.3:
        odd = [
            *starts,
            starts[0] - 8,
            starts[1] + 64,
            shared,
            shared + 4,
            shared + 384,
            local,
            local + 80,
            isa.PARAM_WINDOW,
            0,
            4,
            64,
            80,
            384,
            -8,
            1 << 62,
            start + 1,
            start + length,
        ]
        made[rng.integers(32)] = rng.choice(odd)
    return space, made


@pytest.mark.parametrize("check", [False, True])
def test_regions(check):
    """`region_of` finds what `locate` finds lane by lane, whenever no lane faults and all lie in one region."""
    machine = ptxsim.Machine(seed=7, check=check)
    arrays = [machine.device(0).array(np.zeros(64 // np.dtype(kind).itemsize, kind)) for kind in ("u1", "u4", "u8")]
    flags = machine.device(0).array(np.zeros(32, np.uint32))
    spaces = []

    def try_accesses():
        rng, trials = np.random.default_rng(8), Trials(machine, [], 8)
        for _ in range(3000):
            warp, _, block, _ = trials.live()
            size, write = int(rng.choice([1, 2, 4, 8])), bool(rng.random() < 0.5)
            mask = 0xFFFFFFFF if rng.random() < 0.5 else int(rng.integers(1, 1 << 32))
            space, addresses = drawn_addresses(rng, arrays, size)
            first = int(words(warp, s.W_FIELDS)[s.W_REGS]) + BASE * 256
            row = np.ctypeslib.as_array((ctypes.c_int64 * 32).from_address(first))
            before, found = row.copy(), np.zeros((2, 32, 8), np.int64)
            row[:] = addresses
            got = regions_both(trials.x, warp, block, space, size, write, mask, found)
            row[:] = before
            machine.x[s.REPORTS_COUNT], machine.loader.seen[:] = 0, 0
            lanes = [lane for lane in range(32) if mask >> lane & 1]
            hosts, kinds, cells = found[1, lanes, 0], set(found[1, lanes, 2]), set(found[1, lanes, 6])
            kind = min(kinds)
            one = (hosts != FAULT).all() and len(kinds) == 1 and kind != isa.PARAM
            one = one and (kind != isa.GLOBAL or not check or len(cells) == 1)
            one = one and len(set(addresses[lanes] - found[1, lanes, 1])) == 1  # not some as generic addresses
            assert (got != NOWHERE) == one, (space, size, write, addresses[lanes])
            if one:
                columns = 3 if kind == isa.LOCAL else (8 if check else 4)
                assert np.array_equal(found[0, lanes, :columns], found[1, lanes, :columns]), (space, addresses[lanes])
            spaces.append(got)

    waiting_run(machine, try_accesses, (3, flags, None))
    assert len(spaces) == 3000
    assert all(spaces.count(kind) > 100 for kind in (NOWHERE, isa.GLOBAL, isa.SHARED, isa.LOCAL))
