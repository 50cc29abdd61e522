"""Timeout check for device code, which cannot call back into Python.

A peer inside this call may go without progress for `timeout`, a peer still in user code for OVERDUE times that. What
was last seen of the peer stays in the state, for the error message.
"""

from ..config import OVERDUE
from ..primitives import memory as mem
from ..primitives.compile import jit
from . import arrivals, words
from .layout import word_from


@jit
def overdue(job, st, now):
    """Has the awaited rank made no progress for too long? Called by one worker from time to time while it waits."""
    peer, done, _ = arrivals.standing(job, st)
    epoch, phase = job[words.EPOCH], 0
    if peer != job[words.RANK]:
        phase = mem.load_acquire(word_from(job, st, peer, words.AT_PHASE))
        epoch = mem.load_acquire(word_from(job, st, peer, words.AT_EPOCH))
    same = st[words.WAIT_DONE] == done and st[words.WAIT_PEER] == peer
    if not same or st[words.WAIT_EPOCH] != epoch or st[words.WAIT_PHASE] != phase or st[words.WAIT_SINCE] == 0:
        st[words.WAIT_DONE], st[words.WAIT_PEER], st[words.WAIT_EPOCH], st[words.WAIT_PHASE] = done, peer, epoch, phase
        st[words.WAIT_SINCE] = now
        return False
    inside = phase >= 0 and epoch == job[words.EPOCH]
    limit = job[words.TIMEOUT_NS] if inside or peer == job[words.RANK] else OVERDUE * job[words.TIMEOUT_NS]
    return now - st[words.WAIT_SINCE] > limit
