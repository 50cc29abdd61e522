"""The CPU substrate: a worker is a thread that runs steps in compiled code, without the GIL, until the call ends."""

from kernel_cache.compile import jit

from ...engine import codes, outbox, packing, returns, steps, tape, words
from ...kernels import cpu as _lowerings  # noqa: F401  registers what the primitives compile to
from ...primitives import memory as mem
from ..heartbeat import publish_progress
from ..idle import rest


@jit
def note(job, st, worker, kind, start, end, what, rows):
    """Keep an event for the timeline, unless the worker has already EVENTS_MAX events. start, end: in nanoseconds.

    what: the event's subject, such as a rank, an expert or a token.
    """
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
        nbytes = tape.bytes_to_owner(job, st[words.command_owner(c)])
        outbox.count_put(st, n + words.N_LOCAL_PUTS, st[words.command_rows(c)] * nbytes, end - start)
        n += words.N_DISPATCH
    elif kind == codes.BUNDLE:
        c = words.command(job, worker)
        if st[words.remote(job, st[words.command_owner(c)])] == 0:
            nbytes = st[words.command_crossing(c)] * tape.bytes_to(job, st, st[words.command_owner(c)])
            outbox.count_put(st, n + words.N_LOCAL_PUTS, nbytes, end - start)
        n += words.N_DISPATCH
    elif kind in (codes.COMBINE, codes.SUM):
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
    """Add idle time to the worker, and to the peer that it waited for when the time began."""
    st[words.counter(job, worker, words.N_IDLE)] += end - start
    mem.fetch_add(st.ctypes.data + 8 * (words.peer_wait(job, peer)), end - start)
    if job[words.EVENTS_MAX] != 0:
        note(job, st, worker, codes.IDLE, start, end, peer, 0)


@jit
def tend_wire(job, st, worker, idle):
    """Send to remote peers and receive from them; True if anything moved."""
    start = mem.clock()
    if not outbox.serve_wire(job, st, worker, idle):
        return False
    end = mem.clock()
    if not idle:
        st[words.counter(job, worker, words.N_WIRE)] += end - start
    if job[words.EVENTS_MAX] != 0:
        note(job, st, worker, codes.POST, start, end, -1, 0)
    return True


@jit
def work(job, st, worker):
    """Run steps until the call ends (RAN), a rank fails (POISONED), or a slice of time is over (PAUSED).

    In the first phase of an exchange this function also returns once every announcement is read (ALL_ANNOUNCED).
    """
    started = mem.clock()
    now = started
    idle_since, idle_peer = 0, 0
    # polls: consecutive idle polls. total: all idle polls of this slice; messages do not reset this number, so that a
    # busy wire cannot suppress the timeout
    polls, total = 0, 0
    while True:
        kind = steps.decide(job, st, worker)
        returns.settle(job, st, worker)
        if kind == codes.SETTLE:
            continue
        if kind == codes.IDLE:
            if idle_since == 0:
                idle_since = mem.clock()
                idle_peer = st[words.command_peer(words.command(job, worker))]
            polls, total = polls + 1, total + 1
            if job[words.REMOTE] != 0 and tend_wire(job, st, worker, True):
                polls = 1
            else:
                rest(job, polls)
            if total % 32 == 0:
                now = mem.clock()
                if worker == 0:
                    publish_progress(job, st, now)
                if now - started > job[words.PAUSE_NS]:
                    charge_idle(job, st, worker, idle_peer, idle_since, now)
                    return codes.PAUSED
            continue
        start = mem.clock()
        if idle_since != 0:
            charge_idle(job, st, worker, idle_peer, idle_since, start)
            idle_since, polls = 0, 0
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
            if worker == 0:
                publish_progress(job, st, now)
            return codes.PAUSED


@jit
def run_alone(job, st):
    """Run a call of a single worker to its end, or for its first slice of time."""
    packing.begin(job, st)
    code = work(job, st, 0)
    if code == codes.RAN:
        steps.end(job, st)
    return code
