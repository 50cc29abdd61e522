"""The steps of a worker: decide what to do next, execute it, publish that it is done.

`decide` and `publish` run under the rank's lock and take microseconds. `execute` runs outside the lock, on what was
claimed.
"""

from kernel_cache.compile import jit

from ..primitives import memory as mem
from . import (
    arrivals,
    bounds,
    bundles,
    codes,
    column_runs,
    combine,
    dispatch,
    experts,
    outbox,
    packing,
    routing,
    sums,
    words,
)
from .layout import word_to
from .lock import acquire, lock, unlock
from .poison import poison_word
from .returns import returns_due

POISON_SWEEPS = 32  # each time this many decisions in a row have found nothing, the peers' poison is checked


@jit
def finished(job, st):
    """Whether the call can end: own tokens are combined, all announcements read, and all announced rows returned."""
    combined = st[words.BLOCKS_LEFT] == 0 or job[words.MODE] == codes.MODE_DISPATCH
    if job[words.MODE] == codes.MODE_COMBINE:  # every owner reports whether it refused, even one without rows
        for p in range(job[words.WORLD]):
            combined = combined and (p == job[words.RANK] or returns_due(job, st, p) == 0)
    served = combined and st[words.UNREAD] == 0 and st[words.OWED] == 0 and st[words.UNSENT] == 0
    return served and (job[words.REMOTE] == 0 or outbox.all_posted(job, st))


@jit
def next_command(job, st, worker):
    """Claim this worker's next command; returns its kind.

    Work for peers comes before work for own tokens, because peers wait.
    """
    if st[words.FAILED] != 0:
        return codes.FAIL
    if st[words.PHASE] == codes.PHASE_ROUTE:
        if routing.claim(job, st, worker):
            return codes.ROUTE
        if st[words.ROUTE_DONE] < job[words.TOKENS]:
            return codes.IDLE
        st[words.PHASE] = codes.PHASE_PACKING
        return codes.PACK
    if st[words.PHASE] == codes.PHASE_PACKING:
        return codes.IDLE
    if st[words.PHASE] == codes.PHASE_DONE:
        return codes.FINISH
    if arrivals.absorb(job, st, worker):
        st[words.IDLE_SWEEPS] = 0
    kind = dispatch.claim(job, st, worker)
    if kind != codes.IDLE:
        return kind
    if job[words.MODE] == codes.MODE_DISPATCH and st[words.UNREAD] == 0 and st[words.TARGETS_SET] == 0:
        return codes.SIZED
    if sums.claim(job, st, worker):
        return codes.SUM
    kind = experts.claim(job, st, worker)
    if kind != codes.IDLE:
        return kind
    if job[words.MODE] != codes.MODE_DISPATCH and combine.claim(job, st, worker):
        return codes.COMBINE
    if finished(job, st):
        st[words.PHASE] = codes.PHASE_DONE
        return codes.FINISH
    st[words.IDLE_SWEEPS] += 1
    if st[words.IDLE_SWEEPS] % POISON_SWEEPS == 0:
        peer = arrivals.poisoned(job, st)
        if peer >= 0:
            _, origin, cause = arrivals.read_poison(job, st, peer)
            if bounds.poison(job, st, peer, origin, cause):
                st[words.FAILED] = cause
            return codes.FAIL
    c = words.command(job, worker)
    if st[words.command_kind(c)] != codes.IDLE:
        st[words.command_peer(c)] = arrivals.awaited(job, st)  # this peer is charged the idle time that begins now
    return codes.IDLE


@jit
def decide(job, st, worker):
    """Claim a command for this worker; IDLE if another worker is deciding now.

    Shares of column-split runs need no lock; many workers mostly take them before they try the lock. Peers do not
    starve: workers try the lock in turns (`column_runs.share_first`), and its holder serves peers, tokens and new runs.
    A failed rank opens no more runs, so its workers soon find no shares, and see the failure under the lock.

    SETTLE only asks for `returns.settle`, which follows every decision; then the worker decides again.
    """
    c = words.command(job, worker)
    if column_runs.share_first(job, st, worker) and column_runs.take_share(job, st, worker):
        return codes.SHARE
    if not lock(job, 1 + worker):
        return codes.SHARE if column_runs.take_share(job, st, worker) else codes.IDLE
    kind = next_command(job, st, worker)
    if kind == codes.IDLE and st[words.command_backs(c)] != 0:
        kind = codes.SETTLE
    st[words.command_kind(c)] = kind
    unlock(job)
    return kind


@jit
def execute(job, st, worker, kind):
    """Execute the claimed command."""
    if kind == codes.EXPERT:
        experts.execute(job, st, worker)
    elif kind == codes.DISPATCH:
        dispatch.execute(job, st, worker)
    elif kind == codes.BUNDLE:
        bundles.execute(job, st, worker)
    elif kind == codes.COMBINE:
        combine.execute(job, st, worker)
    elif kind == codes.ROUTE:
        routing.execute(job, st, worker)
    elif kind == codes.PACK:
        packing.execute(job, st)
    elif kind == codes.SHARE:
        column_runs.execute(job, st, worker)
    elif kind == codes.LIST:
        experts.list_run(job, st, worker)
    elif kind == codes.SUM:
        sums.execute(job, st, worker)


@jit
def publish(job, st, worker, kind, counted=False):
    """Publish that the command is done. counted: whether to add the wait for the lock to the counter N_LOCK."""
    if kind in (codes.LIST, codes.SHARE):
        number = st[words.command_run(words.command(job, worker))]
        if kind == codes.LIST:
            column_runs.open_run(job, st, number)
            return
        if not column_runs.share_done(job, st, number):
            return
    asked = mem.clock() if counted else 0
    acquire(job, 1 + worker)
    if counted:
        st[words.counter(job, worker, words.N_LOCK)] += mem.clock() - asked
    if st[words.FAILED] != 0:
        kind = codes.FAIL  # what was computed may follow from a damaged word, so it must not reach a peer
    if kind == codes.EXPERT:
        experts.publish(job, st, worker)
    elif kind == codes.DISPATCH:
        dispatch.publish(job, st, worker)
    elif kind == codes.BUNDLE:
        bundles.publish(job, st, worker)
    elif kind == codes.COMBINE:
        combine.publish(job, st, worker)
    elif kind == codes.ROUTE:
        routing.publish(job, st, worker)
    elif kind == codes.PACK:
        st[words.PHASE] = codes.PHASE_RUN
    elif kind == codes.SHARE:
        experts.publish_run(job, st, worker)
    elif kind == codes.SUM:
        sums.publish(job, st, worker)
    st[words.PROGRESS] += 1
    st[words.IDLE_SWEEPS] = 0
    unlock(job)


@jit
def heartbeat(job, st, progress):
    """Publish epoch and progress to every peer, for the peers' timeouts. progress: -1 outside a call."""
    me, world = job[words.RANK], job[words.WORLD]
    for p in range(world):
        if p != me:
            mem.store_release(word_to(job, st, p, words.AT_EPOCH), job[words.EPOCH])
            mem.store_release(word_to(job, st, p, words.AT_PROGRESS), progress)


@jit
def end(job, st):
    """Publish that the call has ended here. This rank no longer reads peers' weights, so peers may change them."""
    heartbeat(job, st, -1)
    for p in range(job[words.WORLD]):
        if p != job[words.RANK] and st[words.remote(job, p)] == 0:
            mem.store_release(word_to(job, st, p, words.ENDED), job[words.EPOCH])


@jit
def poison(job, st, origin, cause):
    """Notify every peer, once, that this epoch has failed. The engine is unusable afterwards."""
    me, world = job[words.RANK], job[words.WORLD]
    st[words.FAILED] = cause
    word = poison_word(job[words.EPOCH], origin, cause)
    for p in range(world):
        if p != me:
            mem.store_release(word_to(job, st, p, words.POISON), word)
