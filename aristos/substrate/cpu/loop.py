"""The CPU substrate: a worker is a thread that runs steps in compiled code, without the GIL, until the call ends."""

from ...engine import fields as f
from ...engine import outbox, packing, returns, steps
from ...engine.lock import acquire, unlock
from ...primitives import memory as mem
from ...primitives.compile import jit

HEARTBEAT_NS = 20_000_000


@jit
def note(job, st, worker, kind, start, end, what, rows):
    """Keep an event for the timeline, if one is being recorded and there is room."""
    n = job[f.T_COUNTERS] + f.COUNTER_WORDS * worker + f.N_EVENTS
    if st[n] >= job[f.EVENTS_MAX]:
        return
    a = job[f.EVENTS] + 8 * f.EVENT_WORDS * (worker * job[f.EVENTS_MAX] + st[n])
    st[n] += 1
    mem.store(a, kind)
    mem.store(a + 8, start)
    mem.store(a + 16, end)
    mem.store(a + 24, what)
    mem.store(a + 32, rows)


@jit
def charge(job, st, worker, kind, start, end):
    """Add a command's time to the worker's counters."""
    n = job[f.T_COUNTERS] + f.COUNTER_WORDS * worker
    if kind in (f.EXPERT, f.TEAM, f.LIST):
        n += f.N_EXPERT
    elif kind == f.DISPATCH:
        c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
        outbox.count_put(st, n + f.N_MESSAGES, st[c + f.C_ROWS] * job[f.ROW_BYTES], end - start)
        n += f.N_DISPATCH
    elif kind == f.BLOCK:
        n += f.N_DISPATCH
    elif kind == f.COMBINE:
        n += f.N_COMBINE
    elif kind == f.ROUTE:
        n += f.N_ROUTE
    else:
        n += f.N_PACK
    st[n] += end - start
    if job[f.EVENTS_MAX] != 0:
        c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
        note(job, st, worker, kind, start, end, st[c + f.C_A], st[c + f.C_ROWS])


@jit
def charge_idle(job, st, worker, peer, start, end):
    """Add idle time to the worker, and to the peer that was waited for when it began."""
    st[job[f.T_COUNTERS] + f.COUNTER_WORDS * worker + f.N_IDLE] += end - start
    mem.fetch_add(st.ctypes.data + 8 * (job[f.T_PEER_WAIT] + peer), end - start)
    if job[f.EVENTS_MAX] != 0:
        note(job, st, worker, f.IDLE, start, end, peer, 0)


@jit
def rest(job, sweeps):
    """Spin briefly, then give the core away, and sleep in the end: soon where ranks share cores.

    A yield reaches only what the scheduler has in one group with this thread, and launchers give each rank a session,
    which is a group: a rank that yields and yields can keep the one that it waits for from its core.
    """
    if sweeps < job[f.SPINS]:
        for _ in range(8):
            mem.pause()
    elif sweeps < job[f.YIELDS]:
        mem.yield_core()
    else:
        mem.nap()


@jit
def show_life(job, st, worker, now):
    """Publish this rank's progress every so often."""
    if worker == 0 and now - st[f.HEARTBEAT] > HEARTBEAT_NS:
        st[f.HEARTBEAT] = now
        acquire(job)
        progress = st[f.PROGRESS]
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
        st[job[f.T_COUNTERS] + f.COUNTER_WORDS * worker + f.N_WIRE] += end - start
    if job[f.EVENTS_MAX] != 0:
        note(job, st, worker, f.POST, start, end, -1, 0)
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
        if kind == f.SETTLE:
            continue
        if kind == f.IDLE:
            if idle_since == 0:
                idle_since = mem.clock()
                idle_peer = st[job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker + f.C_PEER]
            sweeps, looks = sweeps + 1, looks + 1
            if job[f.FAR] != 0 and tend_wire(job, st, worker, True):
                sweeps = 1
            else:
                rest(job, sweeps)
            if looks % 32 == 0:
                now = mem.clock()
                show_life(job, st, worker, now)
                if now - started > job[f.PAUSE_NS]:
                    charge_idle(job, st, worker, idle_peer, idle_since, now)
                    return f.PAUSED
            continue
        start = mem.clock()
        if idle_since != 0:
            charge_idle(job, st, worker, idle_peer, idle_since, start)
            idle_since, sweeps = 0, 0
        if kind == f.FINISH:
            return f.RAN
        if kind == f.FAIL:
            return f.POISONED
        if kind == f.SIZED:
            return f.ALL_ANNOUNCED
        steps.execute(job, st, worker, kind)
        now = mem.clock()
        charge(job, st, worker, kind, start, now)
        steps.publish(job, st, worker, kind)
        returns.settle(job, st, worker)
        if job[f.FAR] != 0:
            tend_wire(job, st, worker, False)
            now = mem.clock()
        if now - started > job[f.PAUSE_NS]:
            show_life(job, st, worker, now)
            return f.PAUSED


@jit
def run_alone(job, st):
    """A whole call of a single worker in one go, or its first slice."""
    packing.begin(job, st)
    code = work(job, st, 0)
    if code == f.RAN:
        steps.heartbeat(job, st, -1)
    return code
