"""The checker: finds the races of an access, and chooses which of several writes a read returns.

The history of a location holds its last few writes. A read returns a random one of them, but none that is older than
one of these: a write that happened before the read (by the vector clocks), a write that the reading thread has already
read, and a write that a sequentially consistent fence ordered before the read. All threads see the writes of a location
in one order, which need not be the order of execution: a strong write may be placed, at random, before writes that are
not ordered before it. Together these rules give exactly the outcomes that PTX permits for stores that become visible
late.
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inlined
from kernel_cache.compile import inner as jit

from . import isa
from . import state as s
from .bits import get, load, put
from .clocks import (
    LOCATION,
    before_launch,
    happened,
    history_slot,
    in_clock,
    includes,
    join,
    launch_over,
    lookup,
    publish,
    reach_of,
    same_launch,
    single,
)
from .missing import SAME_VALUE, lacking, see
from .published import acquire, linked, published, released
from .units import unit

STRONG, ATOMIC = 1, 8  # flags of an access; bits 1 and 2 are its scope, bits from SIZE_SHIFT on log2 of its bytes
SIZE_SHIFT = 4
NOT_COHERENT = 1 << 6  # flag of a load by ld.global.nc or ldu
SAME = 1 << 7  # flag of a store that writes the value that is there
ANY, LATEST = -1, 1 << 62  # which write a read may return: any that it may see, the last one
ALONE = -1  # a write that is no part of a vector
SETTLED = -1  # in the table SEEN: a finding that nothing replaces
SEQUENCE_STEP = 1 << 16  # between the numbers of two writes, so that writes can be placed between them
GID_MASK = (1 << s.GID_BITS) - 1


@jit
def draw(x):
    """The next random number of 62 bits (xorshift64*)."""
    r = np.uint64(get(x, s.RNG))
    r ^= r >> np.uint64(12)
    r ^= r << np.uint64(25)
    r ^= r >> np.uint64(27)
    put(x, s.RNG, np.int64(r))
    return np.int64((r * np.uint64(0x2545F4914F6CDD1D)) >> np.uint64(2))


@unit
def report(x, kind, pc, gid, address, space, size, other_pc, other_gid, detail, write):
    """Record a finding, unless this run has recorded one of the same kind for the same instruction.

    A race that may change a value replaces a race whose store writes the value that is there. If the runner has already
    taken the replaced race, the new one gets a row of its own, and the runner replaces the report. A finding for which
    the table has no row is left out. It is recorded if it comes again after the runner has taken the rows.
    """
    seen, count = get(x, s.SEEN), get(x, s.REPORTS_COUNT)
    index = pc * len(s.KINDS) + kind
    same = kind == s.RACE and detail & SAME_VALUE != 0
    place = get(seen, index)  # SETTLED, or where a race was recorded whose store writes what is there, or 0
    if place == SETTLED or (place != 0 and same):
        return 0
    row = get(x, s.REPORTS) + (place - 1) * s.R_FIELDS * 8
    if place == 0 or place > count or get(row, s.R_KIND) != kind or get(row, s.R_PC) != pc:
        if count >= s.MAX_REPORTS:
            return 0
        place = count + 1
        row = get(x, s.REPORTS) + count * s.R_FIELDS * 8
        put(x, s.REPORTS_COUNT, place)
        if get(x, s.STRICT):
            put(x, s.STOP, 1)
    put(seen, index, place if same else np.int64(SETTLED))
    put(row, s.R_KIND, kind)
    put(row, s.R_PC, pc)
    put(row, s.R_BLOCK, gid >> 10)
    put(row, s.R_TID, gid & 1023)
    put(row, s.R_ADDRESS, address)
    put(row, s.R_SPACE, space)
    put(row, s.R_SIZE, size)
    put(row, s.R_OTHER_PC, other_pc)
    put(row, s.R_OTHER_GID, other_gid)
    put(row, s.R_DETAIL, detail)
    put(row, s.R_WRITE, write)
    return 0


# ---- races ----
@jit
def log2(size):
    """The base-2 logarithm of 1, 2, 4 or 8."""
    return (size >> 1) - (size >> 3)


@jit
def conflicts(x, thread, block, warp, origin, when, mask, how):
    """Whether this access races with an earlier one.

    origin, when: the two words of a cell that describe the earlier access. mask: the bytes of the item that this access
    touches. Two accesses do not race if they are morally strong: both are strong, touch the same bytes, and have scopes
    that include each other's threads.
    """
    if origin == 0:
        return False
    gid = origin & GID_MASK
    if gid == get(thread, s.T_GID) or (when >> 32) & mask == 0:
        return False
    theirs = when >> 40
    if how & theirs & STRONG and (how ^ theirs) >> SIZE_SHIFT & 3 == 0:
        mine = get(thread, s.T_GID)
        if includes(x, (how >> 1) & 3, mine, gid) and includes(x, (theirs >> 1) & 3, gid, mine):
            return False
    return not happened(x, thread, block, warp, gid, when & 0xFFFFFFFF)


@jit
def noncoherent(cell, k):
    """Whether the access that two words of a cell describe is a load by ld.global.nc or ldu."""
    return (get(cell, k + 1) >> 40) & NOT_COHERENT != 0


@unit
def coherent(x, gid, cell, mask, write, how, address, pc):
    """Report a load by ld.global.nc or ldu of memory that is written while its kernel runs. Call it before `race`.

    The access, to a cell of global memory, is such a load, or a write by a thread, agent or actor. The report names the
    load even if the write comes later.
    """
    if not write:
        w, when = get(cell, 0), get(cell, 1)
        if w != 0 and (when >> 32) & mask != 0 and not before_launch(x, gid, w & GID_MASK, when & 0xFFFFFFFF):
            size = 1 << ((how >> SIZE_SHIFT) & 3)
            store_pc = (w >> s.GID_BITS) & 0x3FFFFF
            report(x, s.NOT_COHERENT, pc, gid, address, isa.GLOBAL, size, store_pc, w & GID_MASK, 0, 0)
        return 0
    for k in range(2, 6, 2):
        r, when = get(cell, k), get(cell, k + 1)
        if r != 0 and noncoherent(cell, k) and (when >> 32) & mask != 0 and not launch_over(x, r & GID_MASK):
            size = 1 << ((when >> (40 + SIZE_SHIFT)) & 3)
            load_pc = (r >> s.GID_BITS) & 0x3FFFFF
            report(x, s.NOT_COHERENT, load_pc, r & GID_MASK, address, isa.GLOBAL, size, pc, gid, 0, 0)
    return 0


@jit
def note_lack(x, thread, block, origin, when, how, store_how):
    """Leave in LACKS what the order of two racing accesses lacks. store_how: the flags of the access that writes."""
    theirs = when >> 40
    equal = (how ^ theirs) >> SIZE_SHIFT & 3 == 0
    lack = lacking(x, thread, block, origin & GID_MASK, when & 0xFFFFFFFF, how & theirs & STRONG, equal)
    put(x, s.LACKS, lack | (SAME_VALUE if store_how & SAME else 0))


@unit
def race(x, thread, block, warp, cell, mask, how, write, pc):
    """Check an access to a cell, and record it there. Returns the first word of the access that it races with, or 0.

    LACKS then says what is missing (missing.py).
    """
    gid = get(thread, s.T_GID)
    origin = gid | pc << s.GID_BITS
    when = get(thread, s.T_CLOCK) | mask << 32 | how << 40
    found = np.int64(0)
    w = get(cell, 0)
    if w != 0 and conflicts(x, thread, block, warp, w, get(cell, 1), mask, how):
        found = w
        note_lack(x, thread, block, w, get(cell, 1), how, how if write else get(cell, 1) >> 40)
    if write:
        for k in range(2, 6, 2):
            r = get(cell, k)
            if r != 0:
                if found == 0 and conflicts(x, thread, block, warp, r, get(cell, k + 1), mask, how):
                    found = r
                    note_lack(x, thread, block, r, get(cell, k + 1), how, how)
                put(cell, k, 0)
        put(cell, 0, origin)
        put(cell, 1, when)
        return found
    record_read(x, thread, block, warp, cell, gid, origin, when, how)
    return found


@jit
def record_read(x, thread, block, warp, cell, gid, origin, when, how):
    """Record a read in one of the two places that a cell has for reads, unless both are kept for others.

    origin, when: the two words for this read. The first place keeps a load by ld.global.nc as long as its launch runs,
    because every store of the launch to the same bytes is an error.
    """
    r, place = get(cell, 2), np.int64(0)
    reader = r & GID_MASK
    kept = r != 0 and noncoherent(cell, 2) and (reader >> 10 == gid >> 10 or same_launch(x, reader, gid))
    if how & NOT_COHERENT and not kept and r != 0 and reader != gid:
        put(cell, 4, r)
        put(cell, 5, get(cell, 3))
        r = np.int64(0)
    if r == 0 or (reader == gid and (not kept or how & NOT_COHERENT)):
        place = np.int64(2)
    else:
        q = get(cell, 4)
        other = q & GID_MASK
        if q == 0 or other == gid:
            place = np.int64(4)
        elif not kept and happened(x, thread, block, warp, reader, get(cell, 3) & 0xFFFFFFFF):
            place = np.int64(2)
        elif reader >> 5 == other >> 5 != gid >> 5 or happened(
            x, thread, block, warp, other, get(cell, 5) & 0xFFFFFFFF
        ):
            place = np.int64(4)
    if place:
        put(cell, place, origin)
        put(cell, place + 1, when)


# ---- acquire and release ----
@jit
def sync_entry(x, location, make):
    """The row of a location in the sync table, or 0 if there is none and `make` is false."""
    cap = get(x, s.SYNC_CAP)
    h = np.int64((np.uint64(location) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)) & (cap - 1)
    while True:
        entry = get(x, s.SYNC) + h * s.S_FIELDS * 8
        key = get(entry, s.S_KEY)
        if key == location + 1:
            return entry
        if key == 0:
            if not make:
                return np.int64(0)
            put(entry, s.S_KEY, location + 1)
            put(entry, s.S_MAP, 0)
            put(x, s.SYNC_USED, get(x, s.SYNC_USED) + 1)
            return entry
        h = (h + 1) & (cap - 1)


@jit
def acquire_last(x, thread, location, order, scope):
    """Take the clocks that a strong read of a location acquires if it reads the last write."""
    slot = history_slot(x, location)
    count = get(slot, s.H_COUNT)
    if count != 0 and get(slot, s.H_ADDRESS) == location:
        message = slot + (s.H_MESSAGES + (count - 1) * s.M_FIELDS) * 8
        see(x, thread, get(message, s.M_GID), get(message, s.M_CLOCK))
    found, writer_scope, writer = np.int64(0), np.int64(0), np.int64(0)
    entry = sync_entry(x, location, False)
    if entry != 0:
        found, writer_scope, writer = get(entry, s.S_MAP), get(entry, s.S_SCOPE), get(entry, s.S_GID)
    acquire(x, thread, location, found, writer_scope, writer, order, scope)


@unit
def fence(x, thread, block, warp, order, scope):
    """Run fence or membar: join the clocks of earlier relaxed reads. Later relaxed writes publish this moment.

    A fence of a wide scope still counts after a later fence of a narrower scope.
    """
    reach = reach_of(scope)
    for d in range(3):
        if d <= reach:
            put(thread, s.T_VC, join(x, get(thread, s.T_VC), get(thread, s.T_PENDING0 + d)))
            put(thread, s.T_PENDING0 + d, 0)
    if reach > 0:  # the fence took what an acquire operation would take, and a map takes much space
        put(thread, s.T_READ_AT, 0)
        put(thread, s.T_READ_MAP, 0)
    now = publish(x, thread, block, warp)
    if order != isa.ACQUIRE:
        for d in range(reach + 1):
            put(thread, s.T_RELEASE0 + d, now)
    if order == isa.SC:
        reach = np.int64(1) if scope == isa.CLUSTER else scope  # a cluster's fences are ordered as its device's
        view = join(x, now, get(thread, s.T_SV))
        number = device_row(x, get(thread, s.T_GID))
        if block != 0:
            view = join(x, view, get(block, s.B_SC))
        if reach >= 1 and number != 0:
            view = join(x, view, get(number, s.D_SC))
        if reach >= 2:
            view = join(x, view, get(x, s.SC_SYSTEM))
        if block != 0:
            put(block, s.B_SC, view)
        if reach >= 1 and number != 0:
            put(number, s.D_SC, view)
        if reach >= 2:
            put(x, s.SC_SYSTEM, view)
        put(thread, s.T_SV, view)
    return 0


@jit
def device_row(x, gid):
    """The row of a thread's device, or 0 for the host."""
    from_launch = np.int64(-1)
    block = gid >> 10
    for number in range(get(x, s.LAUNCH_COUNT) - 1, -1, -1):
        launch = get(x, s.LAUNCHES) + number * s.L_FIELDS * 8
        first = get(launch, s.L_FIRST_GID)
        if first <= block < first + get(launch, s.L_BLOCKS):
            from_launch = get(launch, s.L_DEVICE)
            break
    if from_launch < 0:
        return np.int64(0)
    return get(x, s.DEVICES) + from_launch * (s.D_FIELDS + s.MAX_SMS) * 8


# ---- reads and writes ----
@unit
def read(x, thread, block, warp, location, host, size, order, scope, newest):
    """Choose the value that a load returns. An acquire load joins the clock that the write published.

    newest: ANY, LATEST, or the number of a write; then the load returns this write or an older one, if it may. The
    number of the write that was chosen is left in CHOSEN.
    """
    put(x, s.CHOSEN, LATEST)
    if not get(x, s.WEAK_MEMORY):
        newest = np.int64(LATEST)
    value = np.int64(load(host, size))
    slot = history_slot(x, location)
    count = get(slot, s.H_COUNT)
    if count != 0 and get(slot, s.H_ADDRESS) == location and get(slot, s.H_SIZE) == size:
        at = count - 1
        floor = np.int64(-2)
        while at >= 0:
            message = slot + (s.H_MESSAGES + at * s.M_FIELDS) * 8
            gid, clock = get(message, s.M_GID), get(message, s.M_CLOCK)
            if gid == get(thread, s.T_GID) or happened(x, thread, block, warp, gid, clock):
                break
            if in_clock(x, get(thread, s.T_SV), gid, clock):
                break
            if floor == -2:
                key = LOCATION | location
                floor = max(lookup(x, get(thread, s.T_VC), key), lookup(x, get(thread, s.T_SV), key))
            if floor >= get(message, s.M_SEQUENCE):
                break
            if (draw(x) & 1) if newest == ANY else get(message, s.M_SEQUENCE) <= newest:
                put(
                    thread,
                    s.T_VC,
                    join(x, get(thread, s.T_VC), single(x, LOCATION | location, get(message, s.M_SEQUENCE))),
                )
                break
            at -= 1
        if at >= 0:
            message = slot + (s.H_MESSAGES + at * s.M_FIELDS) * 8
            value = get(message, s.M_VALUE)
            found, writer_scope, writer = get(message, s.M_MAP), get(message, s.M_SCOPE), get(message, s.M_GID)
            put(x, s.CHOSEN, get(message, s.M_SEQUENCE))
            if order != isa.WEAK:
                see(x, thread, writer, get(message, s.M_CLOCK))
        else:
            put(x, s.CHOSEN, 0)
            value = get(slot, s.H_BASE)
            found, writer_scope, writer = get(slot, s.H_BASE_MAP), get(slot, s.H_BASE_SCOPE), get(slot, s.H_BASE_GID)
        if order != isa.WEAK:
            acquire(x, thread, location, found, writer_scope, writer, order, scope)
        return value
    if order != isa.WEAK:
        acquire_last(x, thread, location, order, scope)
    return value


@unit
def newest_of(x, location, size, count):
    """Which write the load of a vector may return for its first item: LATEST, or ANY if all items have equal histories.
    The other items are then read by the number of the write that was chosen for the first, so that a vector that one
    store wrote is read whole. count: the number of items.
    """
    first = history_slot(x, location)
    number, known = get(first, s.H_COUNT), np.int64(0)
    for k in range(count):
        slot = history_slot(x, location + k * size)
        here = get(slot, s.H_ADDRESS) == location + k * size and get(slot, s.H_SIZE) == size
        if not here or get(slot, s.H_COUNT) != number or number == 0:
            return np.int64(LATEST)
        last = get(slot + (s.H_MESSAGES + (number - 1) * s.M_FIELDS) * 8, s.M_SEQUENCE)
        if k > 0 and last != known:
            return np.int64(LATEST)
        known = last
    return np.int64(ANY)


@unit
def read_latest(x, thread, location, order, scope):
    """Take the clocks that an atomic operation acquires. It always reads the last write."""
    acquire_last(x, thread, location, order, scope)
    return 0


@unit
def wrote(x, thread, block, warp, location, size, old, value, order, scope, atomic, item):
    """Record a write: the clocks that it publishes, and the previous value, which other threads may still read.

    item: the place of the value in the vector that is written, or ALONE. The items of a vector have one number.
    Returns 1 if the write was placed before an earlier write. The memory must then keep the earlier write's value.
    """
    if order == isa.WEAK:
        wrote_weakly(x, thread, location, size, old, value, scope)
        return 0
    gid = get(thread, s.T_GID)
    r0, r1, r2 = released(x, thread, block, warp, location, order, scope)
    entry = sync_entry(x, location, r0 != 0)
    observed = np.int64(0)
    if atomic and entry != 0 and linked(x, get(entry, s.S_GID), get(entry, s.S_SCOPE), gid, scope):
        observed = get(entry, s.S_MAP)
    shown = published(x, gid, r0, r1, r2, observed)
    slot, count = room(x, location, size, old, entry)
    sequence = get(x, s.SEQUENCE)
    if item <= 0:
        sequence += SEQUENCE_STEP
        put(x, s.SEQUENCE, sequence)
    at = count
    if not atomic and item == ALONE and get(x, s.WEAK_MEMORY):
        at = before_others(x, thread, block, warp, location, slot, count)
    message = slot + (s.H_MESSAGES + at * s.M_FIELDS) * 8
    if at < count:
        sequence = between(slot, at)
        for i in range((count - at) * s.M_FIELDS - 1, -1, -1):
            put(message, i + s.M_FIELDS, get(message, i))
    # a release has advanced the clock; the write itself belongs to the moment that it publishes
    clock = get(thread, s.T_CLOCK) - (1 if order >= isa.RELEASE else 0)
    put_message(message, value, gid, clock, shown, scope, sequence, atomic)
    put(slot, s.H_COUNT, count + 1)
    if at < count:
        return 1
    if entry != 0:
        publish_last(entry, shown, scope, gid)
    return 0


@jit
def wrote_weakly(x, thread, location, size, old, value, scope):
    """Record a weak write: the previous value, which other threads may still read. It publishes no clocks."""
    gid, entry = get(thread, s.T_GID), np.int64(0)
    if get(x, s.SYNC_USED) != 0:
        entry = sync_entry(x, location, False)
    slot, count = room(x, location, size, old, entry)
    message = slot + (s.H_MESSAGES + count * s.M_FIELDS) * 8
    put_message(message, value, gid, get(thread, s.T_CLOCK), np.int64(0), scope, next_number(x), False)
    put(slot, s.H_COUNT, count + 1)
    if entry != 0:
        publish_last(entry, np.int64(0), scope, gid)


@jit
def wrote_afresh(x, gid, clock, location, size, old, value, scope):
    """`wrote_weakly` if the location has no history, and no location publishes clocks. gid, clock: the thread's."""
    slot = history_slot(x, location)
    put_base(slot, location, size, old, np.int64(0))
    put_message(slot + s.H_MESSAGES * 8, value, gid, clock, np.int64(0), scope, next_number(x), False)
    put(slot, s.H_COUNT, 1)


@jit
def next_number(x):
    """Take the number of a write. Returns it."""
    sequence = get(x, s.SEQUENCE) + SEQUENCE_STEP
    put(x, s.SEQUENCE, sequence)
    return sequence


@inlined
def put_base(slot, location, size, old, entry):
    """Begin the history of a location. old: its value. entry: its row in the sync table, or 0."""
    put(slot, s.H_ADDRESS, location)
    put(slot, s.H_SIZE, size)
    put(slot, s.H_BASE, np.int64(old))
    put(slot, s.H_BASE_MAP, 0 if entry == 0 else get(entry, s.S_MAP))
    put(slot, s.H_BASE_SCOPE, 0 if entry == 0 else get(entry, s.S_SCOPE))
    put(slot, s.H_BASE_GID, 0 if entry == 0 else get(entry, s.S_GID))


@jit
def room(x, location, size, old, entry):
    """Make room for one more write in the history of a location. Returns (its slot, the number of writes there).

    old: the value before the write. entry: the location's row in the sync table, or 0.
    """
    slot = history_slot(x, location)
    count = get(slot, s.H_COUNT)
    if count == 0 or get(slot, s.H_ADDRESS) != location or get(slot, s.H_SIZE) != size:
        count = np.int64(0)
        put_base(slot, location, size, old, entry)
    if count == s.M_MOST:
        first = slot + s.H_MESSAGES * 8
        put(slot, s.H_BASE, get(first, s.M_VALUE))
        put(slot, s.H_BASE_MAP, get(first, s.M_MAP))
        put(slot, s.H_BASE_SCOPE, get(first, s.M_SCOPE))
        put(slot, s.H_BASE_GID, get(first, s.M_GID))
        for i in range(s.M_FIELDS * (s.M_MOST - 1)):
            put(first, i, get(first, i + s.M_FIELDS))
        count -= 1
    return slot, count


@jit
def put_message(message, value, gid, clock, shown, scope, sequence, atomic):
    """Fill the row of a write in a history."""
    put(message, s.M_VALUE, np.int64(value))
    put(message, s.M_GID, gid)
    put(message, s.M_CLOCK, clock)
    put(message, s.M_MAP, shown)
    put(message, s.M_SCOPE, scope)
    put(message, s.M_SEQUENCE, sequence)
    put(message, s.M_ATOMIC, atomic)


@jit
def publish_last(entry, shown, scope, gid):
    """Note in the row of the sync table what the last write of a location publishes."""
    put(entry, s.S_MAP, shown)
    put(entry, s.S_SCOPE, scope)
    put(entry, s.S_GID, gid)


@jit
def between(slot, at):
    """A number for a write just before message `at`, or that message's own number if none is free."""
    last = get(slot + (s.H_MESSAGES + at * s.M_FIELDS) * 8, s.M_SEQUENCE)
    first = last - SEQUENCE_STEP
    if at > 0:
        first = max(first, get(slot + (s.H_MESSAGES + (at - 1) * s.M_FIELDS) * 8, s.M_SEQUENCE))
    middle = (first + last) // 2
    return middle if middle > first else last


@jit
def before_others(x, thread, block, warp, location, slot, count):
    """Choose, at random, the index of a strong write among its location's messages (the writes recorded so far).

    The write is never placed before a message that happened before it, that its thread wrote or read, or that a fence
    ordered before it. Nor is it placed before the write of an atomic operation, which must directly follow the write
    that the operation read.
    """
    key = LOCATION | location
    floor = np.int64(-2)
    at = count
    while at > 0:
        message = slot + (s.H_MESSAGES + (at - 1) * s.M_FIELDS) * 8
        gid, clock = get(message, s.M_GID), get(message, s.M_CLOCK)
        if get(message, s.M_ATOMIC) or gid == get(thread, s.T_GID) or happened(x, thread, block, warp, gid, clock):
            break
        if in_clock(x, get(thread, s.T_SV), gid, clock):
            break
        if floor == -2:
            floor = max(lookup(x, get(thread, s.T_VC), key), lookup(x, get(thread, s.T_SV), key))
        if floor >= get(message, s.M_SEQUENCE) or draw(x) & 1:
            break
        if between(slot, at - 1) == get(message, s.M_SEQUENCE):
            break
        at -= 1
    return at


@jit
def saw_latest(x, thread, location, size):
    """Note that a thread has read the last write, by an atomic operation that wrote nothing.

    The thread then reads no older write.
    """
    slot = history_slot(x, location)
    count = get(slot, s.H_COUNT)
    if count != 0 and get(slot, s.H_ADDRESS) == location and get(slot, s.H_SIZE) == size:
        sequence = get(slot + (s.H_MESSAGES + (count - 1) * s.M_FIELDS) * 8, s.M_SEQUENCE)
        if lookup(x, get(thread, s.T_VC), LOCATION | location) < sequence:
            put(thread, s.T_VC, join(x, get(thread, s.T_VC), single(x, LOCATION | location, sequence)))
