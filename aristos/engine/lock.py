"""The rank's lock: it guards the state. Steps hold it for microseconds, and never while they copy or compute."""

from ..primitives import memory as mem
from ..primitives.compile import jit
from . import fields as f

NAPS = 6400  # tries after which the holder has lost its core to another rank: see `cpu.rest`


@jit
def lock(job):
    """Try to take the rank's lock."""
    return mem.compare_exchange(job[f.LOCK], 0, 1)


@jit
def acquire(job):
    """Take the rank's lock; whoever holds it may have lost its core, so do not spin for long."""
    tries = 0
    while not lock(job):
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
    mem.store_release(job[f.LOCK], 0)
