"""The rank's lock, which guards the state. Steps hold it for microseconds, and never while they copy or compute."""

from kernel_cache.compile import jit

from ..primitives import memory as mem
from . import words

OUTSIDE = -1  # stands for a holder that runs no step: the host's thread, the wire, worker 0 between steps
NAPS = 6400  # after this many tries the holder has surely lost its core to another rank, see `substrate/idle.py`


@jit
def lock(job, holder):
    """Try to take the rank's lock; True if it was free.

    holder: 1 + worker, or OUTSIDE; the message about a hang names it.
    """
    return mem.compare_exchange(job[words.LOCK], 0, holder)


@jit
def acquire(job, holder):
    """Wait for the rank's lock and take it. The holder may have lost its core, so this does not spin for long."""
    tries = 0
    while not lock(job, holder):
        tries += 1
        if tries % 64 == 0:
            if tries < NAPS:
                mem.yield_core()
            else:
                mem.nap()
        else:
            mem.pause()


@jit
def unlock(job):
    """Release the rank's lock."""
    mem.store_release(job[words.LOCK], 0)
