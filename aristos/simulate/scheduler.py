"""Runs actors in the order of virtual time. Each actor has a stack of its own, and one of them runs at any moment.

An actor runs ahead of the others until it does something that another actor can see. Then `sync` handles all earlier
events. If one of them is another actor's, the other actor runs first. An actor that finds nothing to do parks: its idle
polls would all find the same, until something arrives at its rank. So the time of these polls passes at once. They are
counted in the rank's state, as the shipped loop counts them. Actors hand over by `swapcontext` of the C library.
"""

from __future__ import annotations

from kernel_cache.compile import jit

from ..engine import words
from ..engine.layout import word_from
from ..primitives import memory as mem
from . import control as c
from . import network
from .control import WORD, actor, charge, get, pair_record, put, rank_record
from .events import pop, push

SKIP_NS = 1_000_000  # a parked actor polls at least this often


@jit
def next_time():
    """When the next event comes, or the next flow ends; NEVER if there is neither."""
    first = mem.load(get(c.HEAP)) if get(c.EVENTS) > 0 else c.NEVER
    return min(first, network.due())


@jit
def step():
    """Handle the next event. If an actor must run now, sets the time and returns the actor; otherwise returns -1."""
    due = network.due()
    if get(c.EVENTS) == 0 or due < mem.load(get(c.HEAP)):
        network.end_flows(due)
        return -1
    time, kind, a, b, x, y = pop()
    if kind == c.RUN:
        if mem.load(actor(a) + WORD * c.SERIAL) != b:
            return -1
        put(c.NOW, time)
        return a
    if kind == c.LAND:
        mem.store_release(a, b)
        wake((a - get(c.MEMORY)) // get(c.RANK_BYTES), time)
    elif kind == c.LAND_CODED:
        mem.copy_row(b, x, y)
        landed(a, time)
        record = rank_record(a % get(c.WORLD))
        for rank in range(mem.load(record + WORD * c.FIRST_READER), mem.load(record + WORD * c.END_READER)):
            wake(rank, time)
    elif kind == c.BEGIN_FLOW:
        network.begin(a, b, time)
    else:
        landed(a, time)
    return -1


@jit
def landed(pair, time):
    """Note that a pair's put has landed. A target that waits for messages goes on, and a flush of the last put."""
    record = pair_record(pair)
    left = mem.load(record + WORD * c.UNDER_WAY) - 1
    mem.store(record + WORD * c.UNDER_WAY, left)
    mem.store(record + WORD * c.LANDED_AT, time)
    mem.store(record + WORD * c.LANDINGS, mem.load(record + WORD * c.LANDINGS) + 1)
    number = pair % get(c.WORLD) * get(c.WORKERS)
    if mem.load(actor(number) + WORD * c.STANDING) == c.COLLECTING:
        start(number, time)
    flusher = mem.load(record + WORD * c.FLUSHER)
    if left == 0 and flusher != 0:
        mem.store(record + WORD * c.FLUSHER, 0)
        start(flusher - 1, time + network.latency(pair))


# ---------------------------------------------------------------- actors


@jit
def start(number, time):
    """Let an actor that does not run go on at a time."""
    record = actor(number)
    mem.store(record + WORD * c.STANDING, c.READY)
    push(time, c.RUN, number, mem.load(record + WORD * c.SERIAL), 0, 0)


@jit
def wake(rank, time):
    """Let the parked actors of a rank poll, because something has arrived there."""
    record = rank_record(rank)
    mem.store(record + WORD * c.WAKES, mem.load(record + WORD * c.WAKES) + 1)
    for number in range(rank * get(c.WORKERS), (rank + 1) * get(c.WORKERS)):
        if mem.load(actor(number) + WORD * c.STANDING) == c.PARKED:
            since, poll = mem.load(actor(number) + WORD * c.PARKED_AT), mem.load(actor(number) + WORD * c.POLL)
            skipped = max(0, (time - since + poll - 1) // poll)
            start(number, since + poll * skipped)


@jit
def sync():
    """Handle all events that come before the time of the actor that runs."""
    if next_time() + get(c.AHEAD) >= get(c.NOW) or get(c.STOP) != 0:
        return
    me, now = get(c.CURRENT), get(c.NOW)
    while next_time() + get(c.AHEAD) < now and get(c.STOP) == 0:
        other = step()
        if other >= 0:
            start(me, now)
            hand_over(actor(me), other)
            return
    if get(c.STOP) != 0:
        end_all(actor(me))


@jit
def block(me):
    """Let other actors run until an event lets this one go on. The caller has arranged for such an event."""
    while get(c.STOP) == 0:
        if next_time() == c.NEVER:
            put(c.STOP, c.STUCK)
            break
        other = step()
        if other == me:
            serial = actor(me) + WORD * c.SERIAL
            mem.store(serial, mem.load(serial) + 1)
            return
        if other >= 0:
            hand_over(actor(me), other)
            return
    end_all(actor(me))


@jit
def hand_over(record, other):
    """Run another actor. Returns when the turn of the caller has come.

    record: the caller's record, whose first word is the address of its context.
    """
    next_record = actor(other)
    mem.store(next_record + WORD * c.SERIAL, mem.load(next_record + WORD * c.SERIAL) + 1)
    put(c.CURRENT, other)
    swap(record, mem.load(next_record + WORD * c.CONTEXT))


@jit
def swap(record, context):
    """Change to a context. Returns when the context of `record` goes on."""
    mem.call(get(c.SWAP), mem.load(record + WORD * c.CONTEXT), context, 0, 0, 0, 0, 0, 0)


@jit
def end_all(record):
    """End the simulation. Neither the caller nor another actor goes on. record: the caller's."""
    swap(record, get(c.MAIN))


# ---------------------------------------------------------------- rest


@jit
def count_decisions(more):
    """Count decisions of the actor that runs."""
    count = actor(get(c.CURRENT)) + WORD * c.DECISIONS
    mem.store(count, mem.load(count) + more)


@jit
def unread(record):
    """Whether a word has landed that the actor's rank has not accepted: its bell has not landed, or does not ring.

    Then the next poll may find it, so an actor must not park. Without bells each poll reads all words.
    """
    job = mem.words(mem.load(record + WORD * c.JOB), get(c.JOB_WORDS))
    st = mem.words(mem.load(record + WORD * c.STATE), get(c.STATE_WORDS))
    for p in range(job[words.WORLD] if st[words.BELLS] != 0 else 0):
        for word in range(words.AT_EPOCH, words.LINE_WORDS if st[words.remote(job, p)] != 0 else 0):
            region = st[words.region_from(job, p)] if word < words.ANNOUNCED else st[words.stream_from(job, p)]
            value = mem.load(words.coded_value(words.coded_word(region, word)))
            if value != mem.load(word_from(job, st, p, word)):
                return True
    return False


@jit
def rest():
    """What an idle actor does between two polls: it parks until something arrives at its rank, or a timer runs out."""
    me = get(c.CURRENT)
    record = actor(me)
    charge(get(c.PAUSE_NS))
    if mem.load(record + WORD * c.LOCKED) != 0:  # it waits for a lock, whose holder is an actor with an earlier time
        sync()
        return
    if mem.load(record + WORD * c.RESTED) != 0:
        return
    mem.store(record + WORD * c.RESTED, 1)
    charge(7 * get(c.PAUSE_NS))
    now = get(c.NOW)
    wakes = mem.load(rank_record(mem.load(record + WORD * c.RANK)) + WORD * c.WAKES)
    if wakes != mem.load(record + WORD * c.SEEN) or unread(record):
        return
    if now - get(c.PROGRESSED) > c.STUCK_NS:
        put(c.STOP, c.STUCK)
        end_all(record)
    poll = max(1, now - mem.load(record + WORD * c.DECIDED))
    mem.store(record + WORD * c.PARKED_AT, now)
    mem.store(record + WORD * c.POLL, poll)
    mem.store(record + WORD * c.STANDING, c.PARKED)
    sweeps = mem.load(record + WORD * c.STATE) + WORD * words.IDLE_SWEEPS
    merging = mem.load(record + WORD * c.MERGE_POLLS) - mem.load(sweeps)
    most = max(1, SKIP_NS // poll)
    until = now + poll * (min(most, merging + 1) if merging >= 0 else most)
    push(until, c.RUN, me, mem.load(record + WORD * c.SERIAL), 0, 0)
    block(me)
    mem.store(record + WORD * c.STANDING, c.READY)
    skipped = max(0, get(c.NOW) - now) // poll
    mem.store(sweeps, mem.load(sweeps) + skipped)
    count_decisions(skipped)


# ---------------------------------------------------------------- calls


@jit
def set_word(where, index, value):
    """Set a word of the array whose address is at `where`."""
    mem.store(mem.load(where) + WORD * index, value)


@jit
def meet(me):
    """Wait until all actors have come here. They go on at the time at which the last one came."""
    sync()
    everyone = get(c.WORLD) * get(c.WORKERS)
    put(c.ARRIVED, get(c.ARRIVED) + 1)
    mem.store(actor(me) + WORD * c.STANDING, c.WAITING)
    if get(c.ARRIVED) == everyone:
        put(c.ARRIVED, 0)
        for number in range(everyone):  # worker 0 of a rank goes on before the rank's other workers
            start(number, get(c.NOW))
    block(me)


@jit
def meet_in_rank(me):
    """Wait until all workers of the rank have come here."""
    workers = get(c.WORKERS)
    if workers == 1:
        return
    sync()
    rank = me // workers
    count = rank_record(rank) + WORD * c.MEETING
    mem.store(count, mem.load(count) + 1)
    if mem.load(count) < workers:
        mem.store(actor(me) + WORD * c.STANDING, c.WAITING)
        block(me)
        return
    mem.store(count, 0)
    for number in range(rank * workers, (rank + 1) * workers):
        if number != me:
            start(number, get(c.NOW))


@jit
def finish(me):
    """End an actor, and let the next one run. After the last actor the simulation ends."""
    mem.store(actor(me) + WORD * c.STANDING, c.DONE)
    begin(actor(me))
    end_all(actor(me))


@jit
def begin(thread):
    """Run all actors. Returns when they have ended, or the simulation ends early.

    thread: address of a record like those of actors, with the context that runs now. An actor that has ended does not
    go on.
    """
    while get(c.STOP) == 0 and next_time() != c.NEVER:
        other = step()
        if other >= 0:
            hand_over(thread, other)
            return
