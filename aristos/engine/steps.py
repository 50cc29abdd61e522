"""The steps of a worker: decide what to do next, do it, publish that it was done.

`decide` and `publish` run under the rank's lock and take microseconds; `execute` runs outside it, on what was claimed.
"""

from ..primitives import memory as mem
from ..primitives.compile import jit
from . import arrivals, blocks, combine, dispatch, experts, outbox, packing, routing, team
from . import fields as f
from .layout import word_to
from .lock import acquire, lock, unlock
from .returns import returns_due


@jit
def finished(job, st):
    """A call ends when own tokens are combined, every announcement is read, and all announced rows are returned."""
    combined = st[f.BLOCKS_LEFT] == 0 or job[f.MODE] == f.MODE_DISPATCH
    if job[f.MODE] == f.MODE_COMBINE:  # owners that had no rows for this rank still say whether they refused
        for p in range(job[f.WORLD]):
            combined = combined and (p == job[f.RANK] or returns_due(job, st, p) == 0)
    served = combined and st[f.UNREAD] == 0 and st[f.OWED] == 0 and st[f.UNSENT] == 0
    return served and (job[f.FAR] == 0 or outbox.all_posted(job, st))


@jit
def next_command(job, st, worker):
    """What this worker does next; claims it. Peers are served before own tokens: somebody waits for them."""
    if st[f.FAILED] != 0:
        return f.FAIL
    if st[f.PHASE] == f.PHASE_ROUTE:
        if routing.claim(job, st, worker):
            return f.ROUTE
        if st[f.ROUTE_DONE] < job[f.TOKENS]:
            return f.IDLE
        st[f.PHASE] = f.PHASE_PACKING
        return f.PACK
    if st[f.PHASE] == f.PHASE_PACKING:
        return f.IDLE
    if st[f.PHASE] == f.PHASE_DONE:
        return f.FINISH
    if arrivals.absorb(job, st, worker):
        st[f.IDLE_SWEEPS] = 0
    kind = dispatch.claim(job, st, worker)
    if kind != f.IDLE:
        return kind
    if job[f.MODE] == f.MODE_DISPATCH and st[f.UNREAD] == 0 and st[f.TARGETS_SET] == 0:
        return f.SIZED
    kind = experts.claim(job, st, worker)
    if kind != f.IDLE:
        return kind
    if job[f.MODE] != f.MODE_DISPATCH and combine.claim(job, st, worker):
        return f.COMBINE
    if finished(job, st):
        st[f.PHASE] = f.PHASE_DONE
        return f.FINISH
    st[f.IDLE_SWEEPS] += 1
    if st[f.IDLE_SWEEPS] % 32 == 0:
        origin = arrivals.poisoned(job, st)
        if origin >= 0:
            st[f.FAILED] = 1 + origin
            return f.FAIL
    c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
    if st[c + f.C_KIND] != f.IDLE:
        st[c + f.C_PEER] = arrivals.awaited(job, st)  # whom the idle time that begins now is charged to
    return f.IDLE


@jit
def decide(job, st, worker):
    """Claim a command for this worker; idle if another worker is deciding just now.

    Shares of runs are taken without the lock, and by many workers before they try it. Nobody starves by that: the
    workers try in turns (`team.share_first`), and whoever does looks after peers, tokens and new runs, or finds that
    another one does so just now. A rank that has failed opens no more runs: soon its workers have no shares, and learn
    it under the lock.

    SETTLE has nothing to do but `returns.settle`, which follows every decision: then there may be more to find.
    """
    c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
    if team.share_first(job, st, worker) and team.take(job, st, worker):
        return f.TEAM
    if not lock(job):
        return f.TEAM if team.take(job, st, worker) else f.IDLE
    kind = next_command(job, st, worker)
    if kind == f.IDLE and st[c + f.C_BACK] != 0:
        kind = f.SETTLE
    st[c + f.C_KIND] = kind
    unlock(job)
    return kind


@jit
def execute(job, st, worker, kind):
    """Do what was claimed."""
    if kind == f.EXPERT:
        experts.execute(job, st, worker)
    elif kind == f.DISPATCH:
        dispatch.execute(job, st, worker)
    elif kind == f.BLOCK:
        blocks.execute(job, st, worker)
    elif kind == f.COMBINE:
        combine.execute(job, st, worker)
    elif kind == f.ROUTE:
        routing.execute(job, st, worker)
    elif kind == f.PACK:
        packing.execute(job, st)
    elif kind == f.TEAM:
        team.execute(job, st, worker)
    elif kind == f.LIST:
        experts.list_run(job, st, worker)


@jit
def publish(job, st, worker, kind):
    """Say that it was done."""
    if kind in (f.LIST, f.TEAM):
        slot = st[job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker + f.C_RUN]
        if kind == f.LIST:
            team.open_run(job, st, slot)
            return
        if not team.share_done(job, st, slot):
            return
    acquire(job)
    if kind == f.EXPERT:
        experts.publish(job, st, worker)
    elif kind == f.DISPATCH:
        dispatch.publish(job, st, worker)
    elif kind == f.BLOCK:
        blocks.publish(job, st, worker)
    elif kind == f.COMBINE:
        combine.publish(job, st, worker)
    elif kind == f.ROUTE:
        routing.publish(job, st, worker)
    elif kind == f.PACK:
        st[f.PHASE] = f.PHASE_RUN
    elif kind == f.TEAM:
        experts.publish_run(job, st, worker)
    st[f.PROGRESS] += 1
    st[f.IDLE_SWEEPS] = 0
    unlock(job)


@jit
def heartbeat(job, st, phase):
    """Publish {epoch, phase} to every peer, for its timeout; phase -1 is outside a call."""
    me, world = job[f.RANK], job[f.WORLD]
    for p in range(world):
        if p != me:
            mem.store_release(word_to(job, st, p, f.AT_EPOCH), job[f.EPOCH])
            mem.store_release(word_to(job, st, p, f.AT_PHASE), phase)


@jit
def poison(job, st, origin, cause):
    """Tell every peer, once, that this epoch has failed; the engine is unusable after.

    All in one word, so that no reader sees half of it: epoch, origin, cause.
    """
    me, world = job[f.RANK], job[f.WORLD]
    st[f.FAILED] = cause
    told = (((job[f.EPOCH] << f.ORIGIN_BITS) + origin) << f.CAUSE_BITS) + cause
    for p in range(world):
        if p != me:
            mem.store_release(word_to(job, st, p, f.POISON), told)
