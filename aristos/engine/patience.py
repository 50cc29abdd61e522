"""How long a wait may last, for a substrate that cannot ask Python meanwhile.

The rule is DESIGN's: a peer inside this call may stand still for `timeout`, one that is still in user code for OVERDUE
times that. What was seen last stays in the state, for whoever says what went wrong.
"""

from ..config import OVERDUE
from ..primitives import memory as mem
from ..primitives.compile import jit
from . import arrivals
from . import fields as f
from .layout import word_from


@jit
def overdue(job, st, now):
    """Has the rank that is waited for stood still for too long? By one worker, every now and then while it waits."""
    peer, done, _ = arrivals.standing(job, st)
    epoch, phase = job[f.EPOCH], 0
    if peer != job[f.RANK]:
        phase = mem.load_acquire(word_from(job, st, peer, f.AT_PHASE))
        epoch = mem.load_acquire(word_from(job, st, peer, f.AT_EPOCH))
    same = st[f.WAIT_DONE] == done and st[f.WAIT_PEER] == peer
    if not same or st[f.WAIT_EPOCH] != epoch or st[f.WAIT_PHASE] != phase or st[f.WAIT_SINCE] == 0:
        st[f.WAIT_DONE], st[f.WAIT_PEER], st[f.WAIT_EPOCH], st[f.WAIT_PHASE] = done, peer, epoch, phase
        st[f.WAIT_SINCE] = now
        return False
    inside = phase >= 0 and epoch == job[f.EPOCH]
    limit = job[f.TIMEOUT_NS] if inside or peer == job[f.RANK] else OVERDUE * job[f.TIMEOUT_NS]
    return now - st[f.WAIT_SINCE] > limit
