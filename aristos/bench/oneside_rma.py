"""Compiled loops of the microbenchmarks over transport rma: the loops of `oneside.py` with MPI puts between nodes.

A signal is a word {value, complement} that is put after a flush. A waiting rank makes progress. `at` and `*_at` are
offsets in the peer's MPI window. `here` and `*_here` are addresses in this rank's MPI window. coded: address of 16
bytes from which words are put. Nothing else may use the wire while a loop runs. Every wait is bounded by a deadline,
past which a function returns 0.
"""

from kernel_cache.compile import jit, warm_up

from ..kernels.cpu import llvm as _lowerings  # noqa: F401  registers the primitives' compiled bodies
from ..primitives import memory as mem
from ..primitives import wire as mpi
from ..primitives.buffers import LINE
from .oneside import entry

SPINS = 64  # idle polls before a waiter yields its core
CODED_WORD = 16
ROUND = 4000  # dependent multiply-adds between two calls for progress
BATCH = 64  # the most messages of a stream before a flush


@jit
def read_word(addr):
    """The word at `addr`, or -1 while its halves disagree."""
    value = mem.load(addr)
    return value if mem.load(addr + 8) == ~value else -1


@jit
def await_coded(wire, addr, value, deadline):
    """Make progress until the word is at least `value`. Returns 1, or 0 if `deadline` (ns on mem.clock) has passed."""
    polls = 0
    while value > 0 and read_word(addr) < value:
        mpi.progress(wire)
        polls += 1
        if polls % SPINS == 0:
            if mem.clock() > deadline:
                return 0
            mem.yield_core()
    return 1


@jit
def put_word(wire, peer, at, coded, value):
    """Send a signal: flush earlier puts, then put the word."""
    mpi.flush(wire, peer)
    mem.store(coded, value)
    mem.store(coded + 8, ~value)
    mpi.put(wire, peer, at, coded, CODED_WORD)


@jit
def put_origin(
    wire, peer, slots_at, stride, source, nbytes, puts, flag_at, ack_here, coded, base, samples, deadline, out
):
    """Time `samples` samples, each of `puts` puts and a flush. out: [samples] ns."""
    for s in range(samples):
        if await_coded(wire, ack_here, base + s, deadline) == 0:
            return 0
        start = mem.clock()
        for p in range(puts):
            mpi.put(wire, peer, slots_at + p * stride, source, nbytes)
        mpi.flush(wire, peer)
        out[s] = mem.clock() - start
        put_word(wire, peer, flag_at, coded, base + s + 1)
    done = await_coded(wire, ack_here, base + samples, deadline)
    mpi.flush(wire, peer)
    return done


@jit
def put_target(wire, peer, flag_here, ack_at, coded, base, samples, deadline):
    """The target's side of `put_origin`: make progress, and signal when a sample has arrived."""
    for s in range(samples):
        if await_coded(wire, flag_here, base + s + 1, deadline) == 0:
            return 0
        put_word(wire, peer, ack_at, coded, base + s + 1)
    mpi.flush(wire, peer)
    return 1


@jit
def ping(
    wire,
    peer,
    slots_at,
    slots_here,
    source,
    nbytes,
    asked_at,
    answered_here,
    coded,
    base,
    repeats,
    samples,
    deadline,
    out,
):
    """Time `samples` samples, each of `repeats` round trips of a payload, a flush and a signal. out: [samples] ns.

    The first word of the payload is the number of the round trip. Returns -1 if a wrong number came back.
    """
    turn = base
    for s in range(samples):
        start = mem.clock()
        for _ in range(repeats):
            turn += 1
            if nbytes > 0:
                mem.store(source, turn)
                mpi.put(wire, peer, slots_at, source, nbytes)
            put_word(wire, peer, asked_at, coded, turn)
            if await_coded(wire, answered_here, turn, deadline) == 0:
                return 0
            if nbytes > 0 and mem.load(slots_here) != turn:
                return -1
        out[s] = mem.clock() - start
    mpi.flush(wire, peer)
    return 1


@jit
def pong(wire, peer, slots_at, slots_here, nbytes, answered_at, asked_here, coded, base, turns, deadline):
    """Send back each payload that arrives, `turns` times."""
    for turn in range(base + 1, base + turns + 1):
        if await_coded(wire, asked_here, turn, deadline) == 0:
            return 0
        if nbytes > 0:
            mpi.put(wire, peer, slots_at, slots_here, nbytes)
        put_word(wire, peer, answered_at, coded, turn)
    mpi.flush(wire, peer)
    return 1


@jit
def stream_send(wire, peer, ring_at, slots, stride, source, nbytes, tail_at, credit_here, coded, base, count, deadline):
    """Send `count` messages through a ring of `slots`, up to BATCH for each flush and tail. Message i holds i.

    source: memory as long as the ring, because bytes must not change while they are put.
    """
    sent, freed, end = base, base, base + count
    while sent < end:
        n = min(BATCH, end - sent, slots - (sent - freed))
        if n == 0 and await_coded(wire, credit_here, sent - slots + 1, deadline) == 0:
            return 0
        for i in range(sent, sent + n):
            place = (i % slots) * stride
            mem.store(source + place, i)
            mpi.put(wire, peer, ring_at + place, source + place, nbytes)
        sent += n
        if n > 0:
            put_word(wire, peer, tail_at, coded, sent)
        freed = max(freed, read_word(credit_here))
    done = await_coded(wire, credit_here, end, deadline)
    mpi.flush(wire, peer)
    return done


@jit
def stream_receive(wire, peer, ring_here, slots, stride, tail_here, credit_at, coded, base, count, deadline, out):
    """Receive the messages of `stream_send`. out: [1] the sum of their numbers."""
    seen, total = base, 0
    while seen < base + count:
        if await_coded(wire, tail_here, seen + 1, deadline) == 0:
            return 0
        landed = read_word(tail_here)
        if landed <= seen:
            continue  # this tail was read while the next one was being written over it
        for i in range(seen, landed):
            total += mem.load(ring_here + (i % slots) * stride)
        seen = landed
        put_word(wire, peer, credit_at, coded, seen)
    out[0] = total
    mpi.flush(wire, peer)
    return 1


@jit
def all_to_all(
    wire, rank, bases, shift, here, coded, flags, data, source, send_at, send_bytes, land_at, epoch, deadline
):
    """`oneside.all_to_all` between nodes: stores to rank p if bases[p] is not 0, else MPI puts.

    bases: [W] window addresses of local ranks, 0 for remote ones. shift: [W] bytes from the start of each rank's MPI
    window to its part of it, where offsets begin. here: address of this rank's part. coded: address of [W] buffers from
    which words are put. A flag of a remote rank is a word {value, complement}, at the same offset of its part.
    """
    world = bases.size
    for d in range(1, world + 1):
        to = (rank + d) % world
        if bases[to] == 0:
            mpi.put(wire, to, shift[to] + data + land_at[to], source + send_at[to], send_bytes[to])
    for d in range(1, world + 1):
        to = (rank + d) % world
        if bases[to] != 0:
            mem.copy_row(bases[to] + data + land_at[to], source + send_at[to], send_bytes[to])
            mem.store_release(bases[to] + flags + LINE * rank, epoch)
            mpi.progress(wire)
    for d in range(1, world + 1):
        to = (rank + d) % world
        if bases[to] == 0:
            put_word(wire, to, shift[to] + flags + LINE * rank, coded + CODED_WORD * to, epoch)
    for peer in range(world):
        if bases[peer] == 0:
            if await_coded(wire, here + flags + LINE * peer, epoch, deadline) == 0:
                return 0
        else:
            while mem.load_acquire(bases[rank] + flags + LINE * peer) < epoch:
                mpi.progress(wire)
                if mem.clock() > deadline:
                    return 0
                mem.yield_core()
    return 1


@jit
def compute(wire, span, out):
    """Compute on one core for `span` ns, with progress in between unless `wire` is 0.

    out: [3] ns, number of rounds, result of the arithmetic times 1e6.

    The caller gives a time and not a number of rounds, so that the target still computes while puts to it are timed.
    """
    start = mem.clock()
    x, rounds, elapsed = 1.0, 0, 0
    while elapsed < span:
        for _ in range(ROUND):
            x = x * 0.999 + 1e-3
        rounds += 1
        mpi.tend(wire)
        elapsed = mem.clock() - start
    out[0], out[1], out[2] = elapsed, rounds, int(x * 1e6)
    return 1


@jit
def put_for(wire, peer, slots_at, source, nbytes, delay, span, deadline, out):
    """Wait `delay` ns, then put and flush for `span` ns, at least once. Returns the number of puts.

    out: [n] ns of each put.
    """
    begin = mem.clock()
    while mem.clock() - begin < delay:
        mem.pause()
    done = 0
    while done == 0 or (done < out.size and mem.clock() - begin < delay + span):
        start = mem.clock()
        mpi.put(wire, peer, slots_at, source, nbytes)
        mpi.flush(wire, peer)
        out[done] = mem.clock() - start
        done += 1
        if mem.clock() > deadline:
            return 0
    return done


def compile_for_progress() -> None:
    """Compile or load the loops of the suite `progress`."""
    warm_up([entry(compute), entry(put_for), entry(await_coded), entry(put_word)])
