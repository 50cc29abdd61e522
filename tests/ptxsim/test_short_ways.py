"""The interpreter's short ways give what its plain ways give: drawn instructions, drawn accesses.

whole_warp.py computes frequent instructions for all lanes at once, where integer.py, floating.py and convert.py go lane
by lane. quick.py records accesses that nothing can be wrong with, where `check` looks at everything.
"""

from __future__ import annotations

import ctypes

import numba
import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed")
import ptxsim
from ptxsim import convert, floating, integer, isa, quick, whole_warp
from ptxsim import state as s
from ptxsim.access import shadow_of, warp_slot
from ptxsim.bits import load64
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
    [0, 1, 2, 31, 32, 63, 64, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 63,
     (1 << 63) - 1, (1 << 64) - 1, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0x00000001, 0x3F800000, 0x80000000,
     0x7FF0000000000000, 0xFFF0000000000000, 0x7FF8000000000000, 0x3FF0000000000000, 0x000FFFFFFFFFFFFF],
    np.uint64,
)  # fmt: skip


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
.shared .align 8 .b8 there[256];
ld.param.u64 %d1, [p]; mov.u32 %r1, %tid.x; and.b32 %r2, %r1, 7; mad.wide.u32 %d2, %r2, 4, %d1;
atom.add.acq_rel.gpu.global.u32 %r3, [%d2], 1; bar.sync 0;
setp.lt.u32 %p, %r1, 40; @%p atom.add.acq_rel.gpu.global.u32 %r3, [%d2], 1; bar.sync 0;
L: ld.relaxed.sys.global.u32 %r3, [%d1+64]; setp.eq.u32 %p, %r3, 0; @%p bra L;
ret;
}
"""
SIZES = (1, 2, 4, 8)


@numba.njit(error_model="numpy")
def quietly(x, warp, thread, block, space, place, size, how, write, pc):
    """Call `quiet`, as ld and st do."""
    shadow = shadow_of(x, block, space, place)
    return quick.quiet(x, thread, block, warp_slot(x, warp), shadow, size, how, write, pc)


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
        self.quiet, self.both, self.reported = self.quiet + quiet, self.both + 1, self.reported + bool(plain[2])
        assert all(np.array_equal(one, other) for one, other in zip(short, plain)), (size, at, grain, write, how, given)

    def plainly(self, warp, thread, block, space, place, size, how, write, init, cells):
        """(flags, cells, kinds of reports) after `check`."""
        machine = self.machine
        self.check(self.x, warp, thread, block, space, place, size, how, int(write), int(not write), 3)
        count = int(machine.x[s.REPORTS_COUNT])
        kinds = sorted(machine.tables["reports"][:count, s.R_KIND].tolist())
        machine.x[s.REPORTS_COUNT], machine.loader.seen[:] = 0, 0
        return init.copy(), cells.copy(), kinds


@pytest.mark.parametrize("seed", range(3))
def test_accesses_that_the_short_way_records(seed):
    """In the middle of a run, so that threads know some of each other's moments and not others."""
    machine = ptxsim.Machine(seed=seed, sm_count=2)
    device = machine.device(0)
    flags = device.array(np.zeros(32, np.uint32))
    arrays = [device.array(np.zeros(64 // np.dtype(kind).itemsize, kind)) for kind in ("u1", "u2", "u4", "u8")]
    trials = []

    def try_accesses():
        for number in range(60):  # the kernel goes on meanwhile; something changes, so that it does not count as stuck
            flags.store(17, number + 1)
            yield
        trials.append(Trials(machine, arrays, seed))
        for _ in range(3000):
            trials[0].run()
        flags.store(16, 1)

    device.launch(BARRIERS, 3, 64, flags)
    machine.actor(try_accesses)
    assert machine.run() == []
    made = trials[0]
    assert made.both == 3000
    assert 0.1 < made.quiet / made.both < 0.9
    assert made.reported > 100
