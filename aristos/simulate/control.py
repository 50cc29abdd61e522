"""The words of a simulation that its compiled code shares: virtual time, events, actors, costs, network.

A process runs one simulation at a time. An *actor* is a worker of a rank: it has a stack of its own, but only one
actor runs at any moment. Words are int64 unless stated otherwise.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types

from kernel_cache.compile import jit

from ..primitives import memory as mem
from ..primitives.buffers import zeros
from ..primitives.intrinsics import emitted
from ..primitives.named_words import address_of

WORD = 8
FAR = 1 << 60  # addresses from here on have no bytes: rows of tokens and outputs
NEVER = 1 << 62  # a time that does not come
MIB = 1 << 20

(
    NOW,  # ns: the virtual time of the actor that runs
    CURRENT,  # the actor that runs
    STOP,  # why the simulation ends early, 0: it goes on; see the causes below
    NUMBERED,  # how many events have been added
    HEAP,  # address of the events that are to come
    EVENTS,  # how many events are to come
    EVENTS_MOST,  # for how many events the heap has space
    AHEAD,  # ns that an actor may run ahead of the others
    ACTORS,  # address of the actors' records
    WORLD,
    WORKERS,  # how many workers each rank has
    RANKS,  # address of the ranks' records
    MEMORY,  # address of the ranks' regions and outboxes, see regions.py
    RANK_BYTES,
    REGION_BYTES,
    PAIRS,  # address of the records of ordered pairs of ranks
    CALLS,  # calls that each rank makes
    ARRIVED,  # actors that wait at the barrier between calls
    SWAP,  # address of the C function swapcontext
    MAIN,  # address of the context that goes on when the simulation ends
    JOB_WORDS,  # words of each rank's job
    STATE_WORDS,
    LOAD_NS,
    ACQUIRE_NS,
    ATOMIC_NS,
    PAUSE_NS,
    CLOCK_NS,
    DECIDE_NS,
    PEER_NS,  # ns that each rank adds to a decision
    PUBLISH_NS,
    PACK_NS,  # ns of packing a (token, choice) pair
    ROUTE_PS,  # picoseconds of routing a token
    COPY_NS,  # ns of copying a row, whatever its size
    COPY_PS,  # picoseconds of copying a KiB
    COMBINE_NS,  # ns of combining a token, whatever its rows
    COMBINE_PS,  # picoseconds of combining one number of a row
    PUT_NS,  # ns of a put, for the worker that makes it
    FLUSH_NS,
    PROGRESS_NS,
    LOCAL_NS,  # ns until a word is visible to a local peer
    LOCAL_PS,  # picoseconds that the link of a local pair takes for each KiB that a word announces
    CALL_NS,  # ns of a call, outside of the engine's loop
    COLLECTIVE_NS,  # ns of a collective of the bulk schedule, for each rank
    COLLECTIVE_PS,  # picoseconds of each KiB that a collective copies within a node
    MOST_HELD,  # the most experts that a rank holds
    KERNEL,  # address of float64: ns for each million operations of a run, by its number of rows
    KERNEL_ROWS,  # the most rows for which that table has a value
    KERNEL_NS,  # ns of a run of the expert kernel, whatever its number of rows
    SMALL_BYTES,  # puts of at most this many bytes take no share of a link
    NETWORK_TIME,  # ns: the time up to which flows have been advanced
    NETWORK_DUE,  # ns: when the next flow ends
    CHANGED,  # flag: flows have begun or ended since rates were computed
    CLASSES,  # how many classes of flows there are: ordered pairs of nodes
    CLASS_OF_PAIR,  # address: the class of each ordered pair of ranks, -1 within a node
    CLASS_FLOWS,  # address: how many flows each class has
    CLASS_NUMBERS,  # address of float64: for each class its rate and its count of bytes, see network.py
    CLASS_FIRST,  # address: the flow of each class that ends first, -1: none
    ROUTES,  # address: links of each class, ROUTE_MOST of them, -1: no more
    ROUTE_MOST,
    LINKS,  # how many links there are
    CAPACITY,  # address of float64: bytes/ns of each link
    LINK_STARTS,  # address: for each link where its classes start in LINK_CLASSES
    LINK_CLASSES,  # address: classes that use a link
    LINK_BYTES,  # address of float64: bytes that have crossed each link
    SHARES,  # address of float64: space for each link's free capacity
    COUNTS,  # address: space for the number of each link's flows that have no rate yet
    FIXED,  # address: space for a flag of each class: whether it has a rate
    FLOWS,  # address of the flows' records
    FLOWS_MOST,
    FREE_FLOW,  # the first flow that is not in use, -1: none
    LATENCY,  # address: ns from one end of a class's route to the other
    PROGRESSED,  # ns: when a worker last published a command
    ACTIVE,  # address: the classes that have flows
    ACTIVES,  # how many classes have flows
    PLACES,  # address: the position of each class in ACTIVE
    NODE_FIRST,  # flag: rows of bulk calls first go within nodes, then between them
) = range(76)

# records of actors
(
    CONTEXT,  # address
    STANDING,  # READY, PARKED, FLUSHING, WAITING, COLLECTING or DONE
    SERIAL,  # how often the actor has run; an event for an earlier number is void
    RANK,
    STATE,  # address of its rank's state
    JOB,  # address of its rank's job
    BULK,  # address of its rank's words for bulk calls, see `enter` in inside/bulk.py
    RESTED,  # flag: the actor has rested since it last took a lock
    LOCKED,  # flag: the last lock that it tried was taken
    DECIDED,  # ns: when its last poll began
    SEEN,  # how often something had arrived at its rank when that poll began
    PARKED_AT,  # ns: when its next poll would begin
    POLL,  # ns of an idle poll
    MERGE_POLLS,  # idle polls after which its rank runs rows even if they are few
    DECISIONS,  # how often it has decided, including idle polls that were only counted
) = range(15)
ACTOR_WORDS = 16
READY, PARKED, FLUSHING, WAITING, COLLECTING, DONE = range(6)

# records of ranks
(
    WAKES,  # how often something has arrived
    BEGAN,  # address: ns when each call began
    ENDED,  # address: ns when each call ended
    MEETING,  # workers of the rank that wait for its other workers
    TURN,  # the number of its last collective of which all ranks of its node are part
    ENTERED,  # ns: when it entered the last of these with an even number; the next word: with an odd one
    _,
    SLOWNESS,  # 1024 / the rank's speed
    FIRST_READER,
    END_READER,  # the ranks that see at once what is put at the rank: with two levels those of its node
) = range(10)
RANK_WORDS = 16

# records of ordered pairs (source, target)
(
    UNDER_WAY,  # puts that have not landed
    LANDED_AT,  # ns: when the last put landed
    FLUSHER,  # 1 + the actor that waits until the pair's puts have landed, 0: none
    FREE_AT,  # ns: when the link of the pair's local words becomes free
    PUT_BYTES,  # bytes put so far
    PUTS,  # how many puts
    LANDINGS,  # how many puts have landed
    COLLECTED,  # how many of these puts the target has waited for in collectives
) = range(8)
PAIR_WORDS = 8

# records of flows
(
    FLOW_END,  # float64: the flow ends when its class has counted this many bytes, see network.py
    FLOW_PAIR,
    NEXT_FLOW,  # the next flow of its class in the order of ends, or the next free flow; -1: none
) = range(3)
FLOW_WORDS = 4

# events
RUN, LAND, LAND_CODED, LAND_PUT, BEGIN_FLOW = range(5)
EVENT_WORDS = 7  # time, number, kind, four arguments

# causes of an early end
INTERRUPTED, STUCK, FULL, FAILED = 1, 2, 3, 4
STUCK_NS = 120 * 10**9  # after this much virtual time without a published command, the simulation is stuck

CONTROL = zeros((80,))
_control = address_of("aristos_simulated_words", CONTROL)


@jit
def get(word):
    """A word of the simulation."""
    return mem.load(_control() + WORD * word)


@jit
def put(word, value):
    """Set a word of the simulation."""
    mem.store(_control() + WORD * word, value)


@jit
def entry(word, i):
    """Address of entry i of the array whose address is a word of the simulation."""
    return get(word) + WORD * i


@emitted(types.float64, types.int64)
def load_real(builder, addr):
    """The float64 at an address."""
    return builder.load(builder.inttoptr(addr, ir.DoubleType().as_pointer()), align=WORD)


@emitted(types.none, types.int64, types.float64)
def store_real(builder, addr, value):
    """Write a float64 at an address."""
    builder.store(value, builder.inttoptr(addr, ir.DoubleType().as_pointer()), align=WORD)


@jit
def charge(nanoseconds):
    """Add to the virtual time of the actor that runs."""
    now = _control() + WORD * NOW
    mem.store(now, mem.load(now) + nanoseconds)


@jit
def charge_at_speed(nanoseconds):
    """Add time that depends on the speed of the rank that runs: the time of a kernel, or of Python code."""
    charge(nanoseconds * mem.load(rank_record(current_rank()) + WORD * SLOWNESS) // 1024)


@jit
def actor(number):
    """Address of the record of an actor."""
    return get(ACTORS) + WORD * ACTOR_WORDS * number


@jit
def rank_record(rank):
    """Address of the record of a rank."""
    return get(RANKS) + WORD * RANK_WORDS * rank


@jit
def pair_record(pair):
    """Address of the record of an ordered pair of ranks, number source * WORLD + target."""
    return get(PAIRS) + WORD * PAIR_WORDS * pair


@jit
def current_rank():
    """The rank whose actor runs."""
    return mem.load(actor(get(CURRENT)) + WORD * RANK)
