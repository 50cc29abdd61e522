"""mbarriers: objects in shared memory that count arrivals of threads and bytes of copies, phase by phase.

A phase ends when all expected arrivals and all expected bytes have arrived. An arrival releases the work before it to
the threads that observe the end of the phase. `try_wait` suspends its lanes. As on hardware, it may also return false
early. Here it does so at random if the checker is on, and whenever no lane can run. If no lane can run even after
PATIENT_ANSWERS such returns, and nothing has changed, the machine reports a deadlock.

The 8 bytes of an mbarrier hold its state, so that a store over them is detected. Source: the PTX ISA, "mbarrier".
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import isa
from . import state as s
from .access import check, locate, register, set_register, thread_of, warp_slot
from .barrier import wake
from .bits import get, load64, put, store64
from .clocks import join, publish
from .cluster import LOW, holder
from .units import unit
from .watch import ATOMIC, STRONG, draw, report

OF_ALL = STRONG | ATOMIC | isa.SYS << 1  # flags of an access that never races with another of this kind
MOST_COUNT = (1 << 20) - 1  # the highest count of arrivals, and the highest count of bytes
# bits in TYPE2 of the instructions
EXPECTS, PARITY, TRIES, NOT_COUNTED, COMPLETES, DROPS, ENDS_NONE = 1, 2, 4, 8, 16, 32, 64
PATIENT_ANSWERS = 3  # how often all waits return false without any change before the machine reports a deadlock
# details of MISUSE reports; explain.py has the messages
REMOTE, ALL_LEFT, ENDS_PHASE = 24, 25, 34
NOT_SHARED, NO_BARRIER, OVERWRITTEN, AGAIN, BAD_COUNT, TOO_MANY, BEYOND, BAD_BYTES = range(8)


@jit
def row_of(x, block, index):
    """The row of a block's mbarrier."""
    return get(x, s.MBARRIERS) + (get(block, s.B_SLOT) * s.MB_MOST + index) * s.MB_FIELDS * 8


@jit
def find(x, block, place):
    """The index of the mbarrier at a place of shared memory, or -1 if there never was one."""
    for index in range(get(block, s.B_MBARRIERS)):
        if get(row_of(x, block, index), s.MB_PLACE) == place:
            return np.int64(index)
    return np.int64(-1)


@jit
def word(row):
    """The state of an mbarrier as 8 bytes: parity of the phase, expected arrivals, pending arrivals, pending bytes."""
    parity, expected = get(row, s.MB_PHASE) & 1, get(row, s.MB_EXPECTED)
    return parity << 63 | expected << 42 | get(row, s.MB_PENDING) << 21 | (get(row, s.MB_TX) & 0x1FFFFF)


@jit
def keep(block, row):
    """Store the state of an mbarrier in its 8 bytes of shared memory."""
    store64(get(block, s.B_SHARED) + get(row, s.MB_PLACE), np.uint64(word(row)))


@jit
def wrong(x, thread, place, what, pc):
    """Record a MISUSE report. what: its detail."""
    report(x, s.MISUSE, pc, get(thread, s.T_GID), place, isa.SHARED, 8, 0, 0, what, 0)


@jit
def live(x, thread, block, place, pc):
    """The index of the live mbarrier at a place. If there is none, this is reported, and -1 returned."""
    index = find(x, block, place)
    if index < 0 or not get(row_of(x, block, index), s.MB_LIVE):
        wrong(x, thread, place, NO_BARRIER, pc)
        return np.int64(-1)
    row = row_of(x, block, index)
    if np.int64(load64(get(block, s.B_SHARED) + place)) != word(row):
        wrong(x, thread, place, OVERWRITTEN, pc)
        keep(block, row)
    return index


@jit
def check_expects(x, thread, row, pc):
    """Report an operation on an mbarrier that no arrival can use any more.

    If all threads have run arrive_drop, the phase after their last one expects 0 arrivals. The least count that PTX
    allows is 1, so only tests of earlier phases and inval may follow. The operation is carried out all the same: bytes
    that are expected and completed then end a phase.
    """
    if get(row, s.MB_EXPECTED) == 0 and get(row, s.MB_PENDING) == 0 and get(row, s.MB_TX) == 0:
        wrong(x, thread, get(row, s.MB_PLACE), ALL_LEFT, pc)


@unit
def mbarrier(x, warp, block, line, pc, op, mask):
    """Run an mbarrier instruction or cp.async.mbarrier.arrive for the lanes of mask, one after the other."""
    space = (get(line, isa.FLAGS) >> isa.SPACE_SHIFT) & 7
    writes = op == isa.MBINIT or op == isa.MBINVAL
    how = 0 if writes else OF_ALL
    waits = op != isa.MBWAIT or not get(x, s.CHECK) or draw(x) & 7 != 0  # else try_wait returns false at once
    for lane in range(32):
        if not (mask >> lane) & 1:
            continue
        thread = thread_of(x, warp, lane)
        address = np.int64(register(x, warp, get(line, isa.A), lane)) + get(line, isa.IMM)
        host, place, kind = locate(x, warp, thread, block, lane, space, address, 8, op != isa.MBWAIT, pc)
        set_register(x, warp, get(line, isa.D), lane, np.uint64(op == isa.MBWAIT))
        if host < 0:
            continue
        if kind != isa.SHARED:
            wrong(x, thread, place, NOT_SHARED, pc)
            continue
        owner = holder(x, block, place)
        if owner != block and op != isa.MBARRIVE and op != isa.MBEXPECT:
            wrong(x, thread, place, REMOTE, pc)
            continue
        if op == isa.MBINIT:
            initialise(x, warp, thread, block, line, lane, place, pc)
        index = live(x, thread, owner, place & LOW, pc)
        if index < 0:
            continue
        if get(x, s.CHECK):
            check(x, warp, thread, block, isa.SHARED, place, 8, how, op != isa.MBWAIT, op != isa.MBINIT, pc)
        row = row_of(x, owner, index)
        if op == isa.MBARRIVE or op == isa.MBEXPECT or op == isa.MBCOPIES:
            check_expects(x, thread, row, pc)
        if op == isa.MBINVAL:
            put(row, s.MB_LIVE, 0)
        elif op == isa.MBARRIVE or op == isa.MBEXPECT:
            arrive(x, warp, thread, block, owner, line, lane, op, row, index, pc)
        elif op == isa.MBWAIT:
            wait(x, warp, thread, line, lane, row, index, pc, waits)
        elif op == isa.MBCOPIES:
            arrive_after_copies(x, thread, block, line, row, index, pc)
    return 0


@jit
def initialise(x, warp, thread, block, line, lane, place, pc):
    """Run mbarrier.init."""
    count = np.int64(register(x, warp, get(line, isa.B), lane)) & 0xFFFFFFFF
    if count < 1 or count > MOST_COUNT:
        wrong(x, thread, place, BAD_COUNT, pc)
        count = np.int64(1)
    index = find(x, block, place)
    phase = np.int64(0)
    if index < 0:
        index = get(block, s.B_MBARRIERS)
        if index == s.MB_MOST:
            wrong(x, thread, place, TOO_MANY, pc)
            return
        put(block, s.B_MBARRIERS, index + 1)
    else:
        row = row_of(x, block, index)
        if get(row, s.MB_LIVE) and np.int64(load64(get(block, s.B_SHARED) + place)) == word(row):
            wrong(x, thread, place, AGAIN, pc)
        phase = (get(row, s.MB_PHASE) + 2) & ~1  # phase numbers never repeat, because they are clocks
    row = row_of(x, block, index)
    for field in range(s.MB_FIELDS):
        put(row, field, 0)
    put(row, s.MB_PLACE, place)
    put(row, s.MB_LIVE, 1)
    put(row, s.MB_PHASE, phase)
    put(row, s.MB_EXPECTED, count)
    put(row, s.MB_PENDING, count)
    put(row, s.MB_GID, get(thread, s.T_GID))
    put(row, s.MB_CLOCK, get(thread, s.T_CLOCK))
    put(row, s.MB_OLD, -1)
    keep(block, row)
    put(x, s.PROGRESS, get(x, s.STEP))


@jit
def arrive(x, warp, thread, block, owner, line, lane, op, row, index, pc):
    """Run mbarrier.arrive, arrive_drop, expect_tx, complete_tx, or arrive.expect_tx. owner: the mbarrier's block."""
    place, how = get(row, s.MB_PLACE), get(line, isa.TYPE2)
    if op == isa.MBARRIVE:
        set_register(x, warp, get(line, isa.D), lane, np.uint64(word(row)))
    if op == isa.MBEXPECT or how & EXPECTS:
        size = np.int64(register(x, warp, get(line, isa.C), lane)) & 0xFFFFFFFF
        expect(x, thread, row, -size if how & COMPLETES else size, pc)
    if op == isa.MBARRIVE:
        if get(x, s.CHECK):
            published = get(thread, s.T_RELEASE0)
            if get(line, isa.FLAGS) & 15 == isa.RELEASE:
                published = publish(x, thread, block, warp_slot(x, warp))
            put(row, s.MB_VC, join(x, get(row, s.MB_VC), published))
        count = np.int64(register(x, warp, get(line, isa.B), lane)) & 0xFFFFFFFF
        if count < 1 or count > get(row, s.MB_PENDING):
            wrong(x, thread, place, BEYOND if count >= 1 else BAD_COUNT, pc)
            count = min(count, get(row, s.MB_PENDING))
        put(row, s.MB_PENDING, get(row, s.MB_PENDING) - count)
        if how & DROPS:  # later phases expect fewer arrivals
            put(row, s.MB_EXPECTED, get(row, s.MB_EXPECTED) - count)
        if how & ENDS_NONE and get(row, s.MB_PENDING) == 0 and get(row, s.MB_TX) == 0:
            wrong(x, thread, place, ENDS_PHASE, pc)
    settle_phase(x, owner, row, index)


@jit
def expect(x, thread, row, size, pc):
    """Add size to the number of bytes that the phase waits for. size: negative for bytes that have been copied."""
    total = get(row, s.MB_TX) + size
    if not -MOST_COUNT <= size <= MOST_COUNT or not -MOST_COUNT <= total <= MOST_COUNT:
        wrong(x, thread, get(row, s.MB_PLACE), BAD_BYTES, pc)
        return
    put(row, s.MB_TX, total)


@unit
def settle_phase(x, block, row, index):
    """End the phase if everything has arrived, and release the lanes that wait for it."""
    if get(row, s.MB_PENDING) == 0 and get(row, s.MB_TX) == 0:
        put(row, s.MB_PHASE, get(row, s.MB_PHASE) + 1)
        put(row, s.MB_PENDING, get(row, s.MB_EXPECTED))
        put(row, s.MB_DONE, get(row, s.MB_VC))
        put(row, s.MB_OLD, -1)
        for i in range(get(block, s.B_WARPS)):
            warp = get(x, s.WARPS) + (get(block, s.B_FIRST_WARP) + i) * s.W_FIELDS * 8
            waits = get(warp, s.W_WAIT)
            for lane in range(32):
                if (waits >> lane) & 1:
                    thread = thread_of(x, warp, lane)
                    if get(thread, s.T_WAIT) == s.AT_MBARRIER and get(thread, s.T_BARRIER) == index:
                        go_on(x, warp, thread, lane, row)
            wake(x, warp)
    keep(block, row)
    put(x, s.PROGRESS, get(x, s.STEP))
    return 0


@jit
def go_on(x, warp, thread, lane, row):
    """Release a lane that waits. row: its mbarrier, whose phase has ended, or 0 for a timeout."""
    line = get(x, s.CODE) + get(thread, s.T_RESULT) * isa.COLUMNS * 8
    set_register(x, warp, get(line, isa.D), lane, np.uint64(row != 0))
    if row != 0:
        take_in(x, thread, line, row)
    put(thread, s.T_WAIT, s.RUNS)
    put(warp, s.W_WAIT, get(warp, s.W_WAIT) & ~(1 << lane))
    put(warp, s.W_DIVERGED, 1)


@jit
def take_in(x, thread, line, row):
    """Join the clock of an mbarrier's last phase into the clock of a thread whose wait succeeded.

    The last result is kept and used again, because most lanes have equal clocks before the wait.
    """
    if not get(x, s.CHECK):
        return
    if get(line, isa.FLAGS) & 15 == isa.RELAXED:
        put(thread, s.T_PENDING0, join(x, get(thread, s.T_PENDING0), get(row, s.MB_DONE)))
        return
    if get(thread, s.T_VC) != get(row, s.MB_OLD):
        put(row, s.MB_OLD, get(thread, s.T_VC))
        put(row, s.MB_NEW, join(x, get(thread, s.T_VC), get(row, s.MB_DONE)))
    put(thread, s.T_VC, get(row, s.MB_NEW))


@jit
def wait(x, warp, thread, line, lane, row, index, pc, waits):
    """Run test_wait or try_wait, which name a phase by the state that an arrival returned, or by its parity.

    waits: whether try_wait suspends the lane; otherwise it returns false at once.
    """
    asked = np.int64(register(x, warp, get(line, isa.B), lane))
    parity = asked & 1 if get(line, isa.TYPE2) & PARITY else (asked >> 63) & 1
    if parity != get(row, s.MB_PHASE) & 1:
        take_in(x, thread, line, row)
    elif waits and get(line, isa.TYPE2) & TRIES:
        put(thread, s.T_WAIT, s.AT_MBARRIER)
        put(thread, s.T_BARRIER, index)
        put(thread, s.T_RESULT, pc)
        put(warp, s.W_WAIT, get(warp, s.W_WAIT) | 1 << lane)
        put(warp, s.W_DIVERGED, 1)
    else:
        set_register(x, warp, get(line, isa.D), lane, np.uint64(0))
        put(warp, s.W_SPINS, get(warp, s.W_SPINS) + 1)


@unit
def time_out(x):
    """Let all waits return false, because no lane can run. Returns the number of these waits.

    Does nothing and returns 0 if this has been done PATIENT_ANSWERS times without any change.
    """
    if get(x, s.TIMED_AT) != get(x, s.PROGRESS):
        put(x, s.TIMED_AT, get(x, s.PROGRESS))
        put(x, s.TIMES, 0)
    if get(x, s.TIMES) >= PATIENT_ANSWERS:
        return 0
    put(x, s.TIMES, get(x, s.TIMES) + 1)
    woken = np.int64(0)
    for i in range(get(x, s.WARP_SLOTS)):
        warp = get(x, s.WARPS) + i * s.W_FIELDS * 8
        for lane in range(32):
            if (get(warp, s.W_WAIT) & get(warp, s.W_LIVE)) >> lane & 1:
                thread = thread_of(x, warp, lane)
                if get(thread, s.T_WAIT) == s.AT_MBARRIER:
                    go_on(x, warp, thread, lane, 0)
                    woken += 1
        wake(x, warp)
    return woken


@jit
def arrive_after_copies(x, thread, block, line, row, index, pc):
    """Run cp.async.mbarrier.arrive, which arrives when the thread's copies by cp.async are done.

    Without .noinc the phase expects one more arrival; with .noinc the mbarrier's count includes it.
    """
    if not get(line, isa.TYPE2) & NOT_COUNTED:
        if get(row, s.MB_PENDING) == MOST_COUNT:
            wrong(x, thread, get(row, s.MB_PLACE), BAD_COUNT, pc)
            return
        put(row, s.MB_PENDING, get(row, s.MB_PENDING) + 1)
        keep(block, row)
    pending(x, s.P_ARRIVE, block, thread, 0, 0, 0, index, 0, pc)


@jit
def pending(x, kind, block, thread, to, source, size, index, group, pc):
    """Add a row to the table of pending work, which bulk.py carries out. Returns the row.

    The interpreter's loop ensures that there is space.
    """
    n = get(x, s.PENDING_COUNT)
    row = get(x, s.PENDING) + n * s.P_FIELDS * 8
    put(row, s.P_KIND, kind)
    put(row, s.P_BLOCK, block)
    put(row, s.P_THREAD, thread)
    put(row, s.P_TO, to)
    put(row, s.P_FROM, source)
    put(row, s.P_SIZE, size)
    put(row, s.P_BARRIER, index)
    put(row, s.P_GROUP, group)
    put(row, s.P_PC, pc)
    put(x, s.PENDING_COUNT, n + 1)
    return row
