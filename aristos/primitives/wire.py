"""The wire: MPI's one-sided calls from compiled code, through the function pointers of the MPI library in use.

A wire is a few int64 words at an address: function addresses, handles, a lock, and what is being waited for. MPI is
called by whoever holds the lock, one at a time. It refuses to know what is sent: `engine/outbox.py` does.
Source of the semantics: MPI 4.1, chapter 12 (passive target, Win_flush, Win_sync; separate puts are unordered).
"""

from . import memory as mem
from .compile import jit

(
    LOCK,  # 1 while somebody is in MPI
    PUT, FLUSH, SYNC, PROBE, SLEEP,  # addresses of MPI_Put, MPI_Win_flush, MPI_Win_sync, MPI_Iprobe, usleep
    WINDOW, COMM, BYTE, ANY_SOURCE, ANY_TAG,  # handles and constants
    FLAG,  # where MPI_Iprobe writes its answer
    LAST,  # when progress was last made, ns on CLOCK_MONOTONIC
    TURNED,  # when somebody last looked at what is to be put
    PEER, SINCE,  # 1 + the rank that MPI is being called about or 0, and since when: read by the watchdog
    IN_CALL,  # nonzero while workers look after progress themselves
    STOP,  # nonzero: the pacing thread ends
    ERROR,  # what MPI_Iprobe has returned but success: the watchdog ends the job; an error of the window does at once
    STATUS,  # room for an MPI_Status, 16 words; then UNDER_WAY
) = range(20)  # fmt: skip
UNDER_WAY = STATUS + 16  # a word a rank: nonzero while puts to it are not flushed


def words(world):
    """Words of a wire to `world` ranks."""
    return UNDER_WAY + world


TEND_NS = 50_000  # within a call somebody makes progress at least this often
PACE_US = 1000  # outside calls
ALONE_NS = 5_000_000  # in a call whose workers have not come for so long, the pacing thread makes progress too
MOST_BYTES = 1 << 30  # of one MPI_Put: MPI counts in ints


@jit
def take(wire):
    """Try to become the one who calls MPI."""
    return mem.compare_exchange(wire + 8 * LOCK, 0, 1)


@jit
def leave(wire):
    """Let others call MPI."""
    mem.store_release(wire + 8 * LOCK, 0)


@jit
def begin(wire, peer):
    """Tell the watchdog that MPI is now called about `peer`, and may take long."""
    mem.store(wire + 8 * SINCE, mem.clock())
    mem.store_release(wire + 8 * PEER, 1 + peer)


@jit
def put(wire, peer, at, source, nbytes):
    """Put `nbytes` from address `source` to byte `at` of the window of `peer`. (Holding the lock.)

    It may not come back: over TCP, MPICH connects to a peer that is gone again and again.
    """
    byte = mem.load(wire + 8 * BYTE)
    window = mem.load(wire + 8 * WINDOW)
    mem.store(wire + 8 * (UNDER_WAY + peer), 1)
    begin(wire, peer)
    for first in range(0, nbytes, MOST_BYTES):
        n = min(nbytes - first, MOST_BYTES)
        mem.call(mem.load(wire + 8 * PUT), source + first, n, byte, peer, at + first, n, byte, window)
    mem.store_release(wire + 8 * PEER, 0)


@jit
def flush(wire, peer):
    """Wait until all puts to `peer` have landed. It cannot be bounded: a watchdog reads whom it waits for.

    Over libfabric MPICH counts a window's puts together, so that it waits for those to other ranks too.
    """
    begin(wire, peer)
    mem.call(mem.load(wire + 8 * FLUSH), peer, mem.load(wire + 8 * WINDOW), 0, 0, 0, 0, 0, 0)
    mem.store(wire + 8 * (UNDER_WAY + peer), 0)
    mem.store_release(wire + 8 * PEER, 0)


@jit
def sync(wire):
    """What has landed before what was read just now is visible from here on. (Holding the lock.)"""
    mem.call(mem.load(wire + 8 * SYNC), mem.load(wire + 8 * WINDOW), 0, 0, 0, 0, 0, 0, 0)


@jit
def progress(wire):
    """Let MPI move what is under way, and make what has landed visible. (Holding the lock.)"""
    code = mem.call(
        mem.load(wire + 8 * PROBE),
        mem.load(wire + 8 * ANY_SOURCE),
        mem.load(wire + 8 * ANY_TAG),
        mem.load(wire + 8 * COMM),
        wire + 8 * FLAG,
        wire + 8 * STATUS,
        0,
        0,
        0,
    )
    if code != 0:
        mem.store_release(wire + 8 * ERROR, code)
    sync(wire)
    mem.store(wire + 8 * LAST, mem.clock())


@jit
def tend(wire):
    """Make progress if nobody has lately; for the kernels, between panels. wire 0: nothing to look after."""
    if wire == 0 or mem.clock() - mem.load(wire + 8 * LAST) < TEND_NS:
        return
    if take(wire):
        progress(wire)
        leave(wire)


@jit
def pace(wire):
    """Make progress every millisecond outside calls, and where nobody else does, until STOP; for its own thread."""
    while mem.load_acquire(wire + 8 * STOP) == 0:
        mem.call(mem.load(wire + 8 * SLEEP), PACE_US, 0, 0, 0, 0, 0, 0, 0)
        alone = mem.load_acquire(wire + 8 * IN_CALL) == 0 or mem.clock() - mem.load(wire + 8 * LAST) > ALONE_NS
        if alone and take(wire):
            progress(wire)
            leave(wire)
