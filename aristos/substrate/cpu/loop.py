"""The CPU substrate: a worker is a thread that runs steps in compiled code, without the GIL, until the call ends."""

from ...engine import codes, outbox, packing, returns, steps, words
from ...engine.lock import acquire, unlock
from ...kernels import cpu as _lowerings  # noqa: F401  registers what the primitives compile to
from ...primitives import memory as mem
from ...primitives.compile import jit

HEARTBEAT_NS = 20_000_000


@jit
def note(job, st, worker, kind, start, end, what, rows):
    """Keep an event for the timeline, if one is being recorded and there is room."""
    n = words.counter(job, worker, words.N_EVENTS)
    if st[n] >= job[words.EVENTS_MAX]:
        return
    a = words.event(job, worker, st[n])
    st[n] += 1
    mem.store(words.event_kind(a), kind)
    mem.store(words.event_start(a), start)
    mem.store(words.event_end(a), end)
    mem.store(words.event_subject(a), what)
    mem.store(words.event_rows(a), rows)


@jit
def charge(job, st, worker, kind, start, end):
    """Add a command's time to the worker's counters."""
    n = words.counter(job, worker, 0)
    if kind in (codes.EXPERT, codes.SHARE, codes.LIST):
        n += words.N_EXPERT
    elif kind == codes.DISPATCH:
        c = words.command(job, worker)
        outbox.count_put(st, n + words.N_LOCAL_PUTS, st[words.command_rows(c)] * job[words.ROW_BYTES], end - start)
        n += words.N_DISPATCH
    elif kind == codes.BLOCK:
        n += words.N_DISPATCH
    elif kind == codes.COMBINE:
        n += words.N_COMBINE
    elif kind == codes.ROUTE:
        n += words.N_ROUTE
    else:
        n += words.N_PACK
    st[n] += end - start
    if job[words.EVENTS_MAX] != 0:
        c = words.command(job, worker)
        note(job, st, worker, kind, start, end, st[words.command_subject(c)], st[words.command_rows(c)])


@jit
def charge_idle(job, st, worker, peer, start, end):
    """Add idle time to the worker, and to the peer that was waited for when it began."""
    st[words.counter(job, worker, words.N_IDLE)] += end - start
    mem.fetch_add(st.ctypes.data + 8 * (words.peer_wait(job, peer)), end - start)
    if job[words.EVENTS_MAX] != 0:
        note(job, st, worker, codes.IDLE, start, end, peer, 0)


@jit
def rest(job, sweeps):
    """Spin briefly, then give the core away, and sleep in the end: soon where ranks share cores.

    A yield reaches only what the scheduler has in one group with this thread, and launchers give each rank a session,
    which is a group: a rank that yields and yields can keep the one that it waits for from its core.
    """
    if sweeps < job[words.SPINS]:
        for _ in range(8):
            mem.pause()
    elif sweeps < job[words.YIELDS]:
        mem.yield_core()
    else:
        mem.nap()


@jit
def show_life(job, st, worker, now):
    """Publish this rank's progress every so often."""
    if worker == 0 and now - st[words.HEARTBEAT] > HEARTBEAT_NS:
        st[words.HEARTBEAT] = now
        acquire(job)
        progress = st[words.PROGRESS]
        unlock(job)
        steps.heartbeat(job, st, progress)


@jit
def tend_wire(job, st, worker, idle):
    """Look after far peers; True if anything came or went."""
    start = mem.clock()
    if not outbox.turn(job, st, worker, idle):
        return False
    end = mem.clock()
    if not idle:
        st[words.counter(job, worker, words.N_WIRE)] += end - start
    if job[words.EVENTS_MAX] != 0:
        note(job, st, worker, codes.POST, start, end, -1, 0)
    return True


@jit
def work(job, st, worker):
    """Run steps until the call ends (RAN), somebody fails (POISONED) or a slice of time is over (PAUSED)."""
    started = mem.clock()
    now = started
    idle_since, idle_peer = 0, 0
    sweeps, looks = 0, 0  # in vain one after another; all of them: what comes must not keep a wait from being bounded
    while True:
        kind = steps.decide(job, st, worker)
        returns.settle(job, st, worker)
        if kind == codes.SETTLE:
            continue
        if kind == codes.IDLE:
            if idle_since == 0:
                idle_since = mem.clock()
                idle_peer = st[words.command_peer(words.command(job, worker))]
            sweeps, looks = sweeps + 1, looks + 1
            if job[words.REMOTE] != 0 and tend_wire(job, st, worker, True):
                sweeps = 1
            else:
                rest(job, sweeps)
            if looks % 32 == 0:
                now = mem.clock()
                show_life(job, st, worker, now)
                if now - started > job[words.PAUSE_NS]:
                    charge_idle(job, st, worker, idle_peer, idle_since, now)
                    return codes.PAUSED
            continue
        start = mem.clock()
        if idle_since != 0:
            charge_idle(job, st, worker, idle_peer, idle_since, start)
            idle_since, sweeps = 0, 0
        if kind == codes.FINISH:
            return codes.RAN
        if kind == codes.FAIL:
            return codes.POISONED
        if kind == codes.SIZED:
            return codes.ALL_ANNOUNCED
        steps.execute(job, st, worker, kind)
        now = mem.clock()
        charge(job, st, worker, kind, start, now)
        steps.publish(job, st, worker, kind)
        returns.settle(job, st, worker)
        if job[words.REMOTE] != 0:
            tend_wire(job, st, worker, False)
            now = mem.clock()
        if now - started > job[words.PAUSE_NS]:
            show_life(job, st, worker, now)
            return codes.PAUSED


@jit
def run_alone(job, st):
    """A whole call of a single worker in one go, or its first slice."""
    packing.begin(job, st)
    code = work(job, st, 0)
    if code == codes.RAN:
        steps.heartbeat(job, st, -1)
    return code
