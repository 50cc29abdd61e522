"""The CPU substrate: a worker is a thread that runs steps in compiled code, without the GIL, until the call ends."""

from ...engine import fields as f
from ...engine import outbox, packing, returns, steps
from ...primitives import memory as mem
from ...primitives.compile import jit
from ..heartbeat import publish_progress
from ..idle import rest


@jit
def note(job, st, worker, kind, start, end, what, rows):
    """Keep an event for the timeline, up to the most that a worker records."""
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
    """Add idle time to the worker, and to the peer that it waited for at the start."""
    st[job[f.T_COUNTERS] + f.COUNTER_WORDS * worker + f.N_IDLE] += end - start
    mem.fetch_add(st.ctypes.data + 8 * (job[f.T_PEER_WAIT] + peer), end - start)
    if job[f.EVENTS_MAX] != 0:
        note(job, st, worker, f.IDLE, start, end, peer, 0)


@jit
def tend_wire(job, st, worker, idle):
    """Send to remote peers and receive from them; True if anything moved."""
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
    """Run steps until the call ends (RAN), a rank fails (POISONED), or a slice of time is over (PAUSED).

    An exchange also comes back when every announcement is read (ALL_ANNOUNCED).
    """
    started = mem.clock()
    now = started
    idle_since, idle_peer = 0, 0
    # consecutive idle polls; all of them, which no arrival resets: a busy wire must not suppress the timeout
    polls, total = 0, 0
    while True:
        kind = steps.decide(job, st, worker)
        returns.settle(job, st, worker)
        if kind == f.SETTLE:
            continue
        if kind == f.IDLE:
            if idle_since == 0:
                idle_since = mem.clock()
                idle_peer = st[job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker + f.C_PEER]
            polls, total = polls + 1, total + 1
            if job[f.FAR] != 0 and tend_wire(job, st, worker, True):
                polls = 1
            else:
                rest(job, polls)
            if total % 32 == 0:
                now = mem.clock()
                if worker == 0:
                    publish_progress(job, st, now)
                if now - started > job[f.PAUSE_NS]:
                    charge_idle(job, st, worker, idle_peer, idle_since, now)
                    return f.PAUSED
            continue
        start = mem.clock()
        if idle_since != 0:
            charge_idle(job, st, worker, idle_peer, idle_since, start)
            idle_since, polls = 0, 0
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
            if worker == 0:
                publish_progress(job, st, now)
            return f.PAUSED


@jit
def run_alone(job, st):
    """A whole call of a single worker, or its first slice of time."""
    packing.begin(job, st)
    code = work(job, st, 0)
    if code == f.RAN:
        steps.heartbeat(job, st, -1)
    return code
