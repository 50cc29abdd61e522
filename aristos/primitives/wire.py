"""The wire: MPI's one-sided calls from compiled code, by function pointers of the MPI library in use.

A wire is a few int64 words at an address: function addresses, handles, a lock, and the rank for which MPI waits.
Only the thread that holds the lock calls MPI. `engine/outbox.py` decides when data is put.
Semantics: MPI 4.1, chapter 12 (passive target, Win_flush, Win_sync; separate puts are unordered).
"""

from kernel_cache.compile import jit

from . import memory as mem

(
    LOCK,  # 1 while a thread is in MPI
    PUT,  # address of MPI_Put
    FLUSH,  # address of MPI_Win_flush
    SYNC,  # address of MPI_Win_sync
    PROBE,  # address of MPI_Iprobe
    SLEEP,  # address of usleep
    WINDOW,  # handle of the window
    COMM,  # handle of the communicator
    BYTE,  # handle of MPI_BYTE
    ANY_SOURCE,  # the constant MPI_ANY_SOURCE
    ANY_TAG,  # the constant MPI_ANY_TAG
    FLAG,  # MPI_Iprobe writes its result here
    LAST,  # when progress was last made, ns on CLOCK_MONOTONIC
    SERVED,  # when a worker last served the wire, in ns
    PEER,  # for the watchdog: 1 + the peer of the MPI call in progress, or 0
    SINCE,  # for the watchdog: when that MPI call began, in ns
    IN_CALL,  # nonzero while workers make progress themselves
    STOP,  # nonzero: the progress thread ends
    ERROR,  # MPI_Iprobe's error code, for which the watchdog ends the job; an error of the window ends the job at once
    STATUS,  # 16 words for an MPI_Status; then comes UNDER_WAY
) = range(20)
UNDER_WAY = STATUS + 16  # a word for each rank, nonzero while puts to it are not flushed


def words(world):
    """The number of words of a wire to `world` ranks."""
    return UNDER_WAY + world


TEND_NS = 50_000  # interval at which workers make progress within a layer call
PROGRESS_US = 1000  # interval at which the progress thread makes progress outside of layer calls
ALONE_NS = 5_000_000  # within a layer call the progress thread acts if no worker has made progress for this long
MOST_BYTES = 1 << 30  # most bytes of one MPI_Put, because MPI counts in ints


@jit
def try_lock(wire):
    """Try to take the lock that allows calls of MPI; True if taken."""
    return mem.compare_exchange(wire + 8 * LOCK, 0, 1)


@jit
def unlock(wire):
    """Release the lock."""
    mem.store_release(wire + 8 * LOCK, 0)


@jit
def begin(wire, peer):
    """Record for the watchdog that a possibly long MPI call for `peer` begins."""
    mem.store(wire + 8 * SINCE, mem.clock())
    mem.store_release(wire + 8 * PEER, 1 + peer)


@jit
def put(wire, peer, at, source, nbytes):
    """Put `nbytes` from address `source` to byte `at` of the window of `peer`. The caller holds the lock.

    The put may never return: over TCP, MPICH tries for ever to connect to a peer that has ended.
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
    """Wait until all puts to `peer` have landed. The watchdog bounds the wait.

    Over libfabric MPICH counts all puts of a window together, so this also waits for puts to other ranks.
    """
    begin(wire, peer)
    mem.call(mem.load(wire + 8 * FLUSH), peer, mem.load(wire + 8 * WINDOW), 0, 0, 0, 0, 0, 0)
    mem.store(wire + 8 * (UNDER_WAY + peer), 0)
    mem.store_release(wire + 8 * PEER, 0)


@jit
def sync(wire):
    """Make the data visible that landed before the words that were just read. The caller holds the lock."""
    mem.call(mem.load(wire + 8 * SYNC), mem.load(wire + 8 * WINDOW), 0, 0, 0, 0, 0, 0, 0)


@jit
def progress(wire):
    """Let MPI make progress on puts in flight, and make landed data visible. The caller holds the lock."""
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
    """Make progress if no thread has done so for TEND_NS. Kernels call this between panels. wire: 0 means none."""
    if wire == 0 or mem.clock() - mem.load(wire + 8 * LAST) < TEND_NS:
        return
    if try_lock(wire):
        progress(wire)
        unlock(wire)


@jit
def run_progress_thread(wire):
    """The progress thread's loop: makes progress every PROGRESS_US until STOP, in a call only if no worker does."""
    while mem.load_acquire(wire + 8 * STOP) == 0:
        mem.call(mem.load(wire + 8 * SLEEP), PROGRESS_US, 0, 0, 0, 0, 0, 0, 0)
        alone = mem.load_acquire(wire + 8 * IN_CALL) == 0 or mem.clock() - mem.load(wire + 8 * LAST) > ALONE_NS
        if alone and try_lock(wire):
            progress(wire)
            unlock(wire)
