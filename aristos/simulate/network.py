"""The network between nodes: flows that share links by max-min fairness.

A put of more than SMALL_BYTES bytes is a flow. It begins when its first byte has come through the route, and the put
lands when it ends. The flows of one ordered pair of nodes are a class: they use the same links, and at any time they
have the same rate. A class counts the bytes that a flow would have sent since the simulation began. A flow ends when
this count has grown by the flow's own bytes, so the count at its end is known when the flow begins. Rates are computed
again when a flow has begun or ended (progressive filling): the link that has the least free capacity for each of its
flows fixes their rate, and so on with the remaining flows.
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import jit

from ..primitives import memory as mem
from . import control as c
from .control import WORD, entry, get, load_real, pair_record, put, store_real
from .events import push


@jit
def latency(pair):
    """ns from one end of a pair's route to the other."""
    return mem.load(entry(c.LATENCY, mem.load(entry(c.CLASS_OF_PAIR, pair))))


@jit
def record(flow):
    """Address of the record of a flow."""
    return entry(c.FLOWS, c.FLOW_WORDS * flow)


@jit
def rate(which):
    """Address of the rate of a class, in bytes/ns."""
    return entry(c.CLASS_NUMBERS, 2 * which)


@jit
def sent(which):
    """Address of the bytes that a flow of a class would have sent since the simulation began."""
    return entry(c.CLASS_NUMBERS, 2 * which + 1)


@jit
def count_put(pair, nbytes):
    """Count a put between a pair of ranks, which is under way from now on."""
    row = pair_record(pair)
    mem.store(row + WORD * c.UNDER_WAY, mem.load(row + WORD * c.UNDER_WAY) + 1)
    mem.store(row + WORD * c.PUT_BYTES, mem.load(row + WORD * c.PUT_BYTES) + nbytes)
    mem.store(row + WORD * c.PUTS, mem.load(row + WORD * c.PUTS) + 1)


@jit
def send(pair, nbytes):
    """Put `nbytes` between a pair of ranks on different nodes.

    A put of at most SMALL_BYTES takes no share of a link. A larger put is a flow, which begins when its first byte has
    come through the route.
    """
    if nbytes <= get(c.SMALL_BYTES):
        push(get(c.NOW) + latency(pair), c.LAND_PUT, pair, 0, 0, 0)
    else:
        push(get(c.NOW) + latency(pair), c.BEGIN_FLOW, pair, nbytes, 0, 0)


@jit
def begin(pair, nbytes, time):
    """Begin a flow of `nbytes` between a pair of ranks on different nodes, at `time` ns."""
    flow = get(c.FREE_FLOW)
    if get(c.STOP) != 0:
        return
    if flow < 0:
        put(c.STOP, c.FULL)
        return
    advance(time)
    put(c.FREE_FLOW, mem.load(record(flow) + WORD * c.NEXT_FLOW))
    which = mem.load(entry(c.CLASS_OF_PAIR, pair))
    end = load_real(sent(which)) + nbytes
    store_real(record(flow) + WORD * c.FLOW_END, end)
    mem.store(record(flow) + WORD * c.FLOW_PAIR, pair)
    place = entry(c.CLASS_FIRST, which)  # where this flow's number will stand, in a list ordered by ends
    after = mem.load(place)
    while after >= 0 and load_real(record(after) + WORD * c.FLOW_END) <= end:
        place = record(after) + WORD * c.NEXT_FLOW
        after = mem.load(place)
    mem.store(record(flow) + WORD * c.NEXT_FLOW, after)
    mem.store(place, flow)
    count = entry(c.CLASS_FLOWS, which)
    mem.store(count, mem.load(count) + 1)
    if mem.load(count) == 1:
        mem.store(entry(c.PLACES, which), get(c.ACTIVES))
        mem.store(entry(c.ACTIVE, get(c.ACTIVES)), which)
        put(c.ACTIVES, get(c.ACTIVES) + 1)
    put(c.CHANGED, 1)


@jit
def leave(which):
    """Remove a class whose last flow has ended from the list of classes that have flows."""
    last = get(c.ACTIVES) - 1
    put(c.ACTIVES, last)
    place, other = mem.load(entry(c.PLACES, which)), mem.load(entry(c.ACTIVE, last))
    mem.store(entry(c.ACTIVE, place), other)
    mem.store(entry(c.PLACES, other), place)


@jit
def advance(time):
    """Let all flows send until `time`, which must not be later than the end of the next flow."""
    passed = time - get(c.NETWORK_TIME)
    if passed <= 0:
        return
    fill()
    put(c.NETWORK_TIME, time)
    most = get(c.ROUTE_MOST)
    for i in range(get(c.ACTIVES)):
        which = mem.load(entry(c.ACTIVE, i))
        flows = mem.load(entry(c.CLASS_FLOWS, which))
        more = load_real(rate(which)) * passed
        store_real(sent(which), load_real(sent(which)) + more)
        for hop in range(which * most, (which + 1) * most):
            link = mem.load(entry(c.ROUTES, hop))
            if link < 0:
                break
            crossed = entry(c.LINK_BYTES, link)
            store_real(crossed, load_real(crossed) + more * flows)


@jit
def fill():
    """If flows have begun or ended, compute the rate of every class, and when the next flow ends."""
    if get(c.CHANGED) == 0:
        return
    put(c.CHANGED, 0)
    links, most = get(c.LINKS), get(c.ROUTE_MOST)
    for link in range(links):
        store_real(entry(c.SHARES, link), load_real(entry(c.CAPACITY, link)))
        mem.store(entry(c.COUNTS, link), 0)
    left = get(c.ACTIVES)
    for i in range(left):
        which = mem.load(entry(c.ACTIVE, i))
        mem.store(entry(c.FIXED, which), 0)
        take(which, most, 0.0, mem.load(entry(c.CLASS_FLOWS, which)))
    while left > 0:
        tightest, least = -1, np.inf
        for link in range(links):
            count = mem.load(entry(c.COUNTS, link))
            if count > 0:
                share = load_real(entry(c.SHARES, link)) / count
                if share < least:
                    tightest, least = link, share
        for m in range(mem.load(entry(c.LINK_STARTS, tightest)), mem.load(entry(c.LINK_STARTS, tightest + 1))):
            which = mem.load(entry(c.LINK_CLASSES, m))
            if mem.load(entry(c.FIXED, which)) == 0 and mem.load(entry(c.CLASS_FLOWS, which)) > 0:
                mem.store(entry(c.FIXED, which), 1)
                store_real(rate(which), least)
                left -= 1
                flows = mem.load(entry(c.CLASS_FLOWS, which))
                take(which, most, least * flows, -flows)
    put(c.NETWORK_DUE, next_end())


@jit
def take(which, most, capacity, flows):
    """Take `capacity` from each link of a class, and add `flows` to the count of the link's flows without a rate."""
    for i in range(which * most, (which + 1) * most):
        link = mem.load(entry(c.ROUTES, i))
        if link < 0:
            break
        free, count = entry(c.SHARES, link), entry(c.COUNTS, link)
        store_real(free, max(0.0, load_real(free) - capacity))
        mem.store(count, mem.load(count) + flows)


@jit
def next_end():
    """When the first flow ends at the present rates, in whole ns, rounded up; NEVER without flows."""
    soonest = np.inf
    for i in range(get(c.ACTIVES)):
        which = mem.load(entry(c.ACTIVE, i))
        first = record(mem.load(entry(c.CLASS_FIRST, which)))
        left = load_real(first + WORD * c.FLOW_END) - load_real(sent(which))
        soonest = min(soonest, left / load_real(rate(which)))
    if soonest == np.inf:
        return c.NEVER
    return get(c.NETWORK_TIME) + max(1, int(np.ceil(soonest)))


@jit
def due():
    """When the next flow ends; NEVER without flows. While an event comes earlier, the result may be too early."""
    if get(c.CHANGED) != 0 and get(c.EVENTS) > 0 and mem.load(get(c.HEAP)) <= get(c.NETWORK_TIME):
        return get(c.NETWORK_TIME) + 1  # later than this event, which may begin a flow and change all rates again
    fill()
    return get(c.NETWORK_DUE)


@jit
def end_flows(time):
    """Advance to a time at which a flow ends, and end every flow that has sent all its bytes."""
    advance(time)
    for i in range(get(c.ACTIVES) - 1, -1, -1):  # from the end, because `leave` fills a gap with the last class
        which = mem.load(entry(c.ACTIVE, i))
        first, count = entry(c.CLASS_FIRST, which), entry(c.CLASS_FLOWS, which)
        while True:
            flow = mem.load(first)
            if flow < 0 or load_real(record(flow) + WORD * c.FLOW_END) > load_real(sent(which)) + 0.5:
                break
            following = record(flow) + WORD * c.NEXT_FLOW
            mem.store(first, mem.load(following))
            mem.store(following, get(c.FREE_FLOW))
            put(c.FREE_FLOW, flow)
            mem.store(count, mem.load(count) - 1)
            put(c.CHANGED, 1)
            pair = mem.load(record(flow) + WORD * c.FLOW_PAIR)
            push(time, c.LAND_PUT, pair, 0, 0, 0)
        if mem.load(count) == 0:
            leave(which)
