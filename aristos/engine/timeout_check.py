"""Timeout check for device code, which cannot call back into Python.

A peer inside this call may be without progress for `timeout`, a peer still in user code for `absent_timeout`. The state
keeps what was last seen of the peer, for the error message.
"""

from kernel_cache.compile import jit

from ..primitives import memory as mem
from . import arrivals, words
from .layout import word_from


@jit
def overdue(job, st, now):
    """Whether the awaited rank has made no progress for too long. One worker calls this now and then while it waits."""
    peer, own_progress, _ = arrivals.standing(job, st)
    epoch, progress = job[words.EPOCH], 0
    if peer != job[words.RANK]:
        progress = mem.load_acquire(word_from(job, st, peer, words.AT_PROGRESS))
        epoch = mem.load_acquire(word_from(job, st, peer, words.AT_EPOCH))
    same = st[words.WAIT_OWN_PROGRESS] == own_progress and st[words.WAIT_PEER] == peer
    same = same and st[words.WAIT_EPOCH] == epoch and st[words.WAIT_PROGRESS] == progress
    if not same or st[words.WAIT_SINCE] == 0:
        st[words.WAIT_OWN_PROGRESS], st[words.WAIT_PEER] = own_progress, peer
        st[words.WAIT_EPOCH], st[words.WAIT_PROGRESS] = epoch, progress
        st[words.WAIT_SINCE] = now
        return False
    inside = progress >= 0 and epoch == job[words.EPOCH]
    limit = job[words.TIMEOUT_NS] if inside or peer == job[words.RANK] else job[words.ABSENT_NS]
    return now - st[words.WAIT_SINCE] > limit
