"""Compiled loops of the microbenchmarks: puts, signals and waits on shared windows, without the engine.

The loops' times are a lower bound for the engine's. Every wait is bounded by a deadline, past which a function returns
0. base: the value of a loop's counters before it runs. The suites check whole payloads with NumPy.
"""

from numba import types

from kernel_cache.compile import jit

from ..kernels.cpu import llvm as _lowerings  # noqa: F401  registers the primitives' compiled bodies
from ..primitives import memory as mem
from ..primitives.buffers import LINE

SPINS = 512  # idle polls before a waiter yields its core


@jit
def await_word(addr, value, deadline):
    """Wait until the word is at least `value`. Returns 1, or 0 if `deadline` (ns on mem.clock) has passed."""
    polls = 0
    while mem.load_acquire(addr) < value:
        mem.pause()
        polls += 1
        if polls % SPINS == 0:
            if mem.clock() > deadline:
                return 0
            mem.yield_core()
    return 1


@jit
def put_origin(slots, stride, source, nbytes, puts, flag, ack, scratch, base, samples, deadline, out):
    """Time `samples` samples, each of `puts` puts and a quiet. slots: address of the first slot at the target.

    Before each sample the target has read the slots. So their lines are in the target's cache, as the lines of a ring
    are in its owner's cache. flag: word at the target. ack: word of this rank. scratch: any word of this rank. out:
    [samples] ns.
    """
    for s in range(samples):
        if await_word(ack, base + s, deadline) == 0:
            return 0
        start = mem.clock()
        for p in range(puts):
            mem.copy_row(slots + p * stride, source, nbytes)
        mem.fetch_add(scratch, 0)  # the quiet: an atomic waits until all stores before it are visible
        out[s] = mem.clock() - start
        mem.store_release(flag, base + s + 1)
    return await_word(ack, base + samples, deadline)


@jit
def put_target(slots, stride, nbytes, puts, flag, ack, base, samples, deadline, out):
    """The target's side of `put_origin`: read the first word of every line of the slots after each sample.

    out: [1] sum of the words read.
    """
    total = 0
    for s in range(samples):
        if await_word(flag, base + s + 1, deadline) == 0:
            return 0
        for p in range(puts):
            for at in range(0, nbytes, LINE):
                total += mem.load(slots + p * stride + at)
        mem.store_release(ack, base + s + 1)
    out[0] = total
    return 1


@jit
def ping(there, here, source, nbytes, flag_there, flag_here, base, repeats, samples, deadline, out):
    """Time `samples` samples, each of `repeats` round trips of a payload and a signal. out: [samples] ns.

    The first word of the payload is the number of the round trip. there, flag_there: addresses at the peer. here,
    flag_here: addresses at this rank. Returns -1 if a wrong number came back.
    """
    turn = base
    for s in range(samples):
        start = mem.clock()
        for _ in range(repeats):
            turn += 1
            if nbytes > 0:
                mem.store(source, turn)
                mem.copy_row(there, source, nbytes)
            mem.store_release(flag_there, turn)
            if await_word(flag_here, turn, deadline) == 0:
                return 0
            if nbytes > 0 and mem.load(here) != turn:
                return -1
        out[s] = mem.clock() - start
    return 1


@jit
def pong(there, here, nbytes, flag_there, flag_here, base, turns, deadline):
    """Send the payload that arrives at `here` back, `turns` times."""
    for turn in range(base + 1, base + turns + 1):
        if await_word(flag_here, turn, deadline) == 0:
            return 0
        if nbytes > 0:
            mem.copy_row(there, here, nbytes)
        mem.store_release(flag_there, turn)
    return 1


@jit
def stream_send(ring, slots, stride, payload, nbytes, tail, credit, base, count, deadline):
    """Send `count` messages through a ring of `slots`. The first word of message i holds i."""
    freed = base
    for i in range(base, base + count):
        if i - freed >= slots:
            if await_word(credit, i - slots + 1, deadline) == 0:
                return 0
            freed = mem.load_acquire(credit)
        mem.store(payload, i)
        mem.copy_row(ring + (i % slots) * stride, payload, nbytes)
        mem.store_release(tail, i + 1)
    return await_word(credit, base + count, deadline)


@jit
def stream_receive(ring, slots, stride, tail, credit, base, count, deadline, out):
    """Receive the messages of `stream_send`. out: [1] the sum of their numbers."""
    seen, total = base, 0
    while seen < base + count:
        if await_word(tail, seen + 1, deadline) == 0:
            return 0
        landed = mem.load_acquire(tail)
        for i in range(seen, landed):
            total += mem.load(ring + (i % slots) * stride)
        seen = landed
        mem.store_release(credit, seen)
    out[0] = total
    return 1


@jit
def all_to_all(rank, bases, flags, data, source, send_at, send_bytes, land_at, epoch, deadline):
    """A one-sided all-to-all: a put and a signal to every rank from rank + 1 on, then a wait for every rank's signal.

    bases: [W] window addresses. flags, data: offsets, in every window, of the W flag lines and of the blocks; the
    caller passes two values of `data` in turn, one in even and one in odd epochs. send_at, send_bytes: [W] range of
    `source` for each rank. land_at: [W] offset of this rank's block in the data of each rank.
    """
    world = bases.size
    for d in range(1, world + 1):
        to = (rank + d) % world
        mem.copy_row(bases[to] + data + land_at[to], source + send_at[to], send_bytes[to])
        mem.store_release(bases[to] + flags + LINE * rank, epoch)
    for peer in range(world):
        if await_word(bases[rank] + flags + LINE * peer, epoch, deadline) == 0:
            return 0
    return 1


def entry(function):
    """(function, argument types) for `warm_up`. Arguments with the names of arrays are arrays, all others int64."""
    arrays = ("out", "bases", "shift", "send_at", "send_bytes", "land_at")
    code = getattr(function, "py_func", function).__code__
    names = code.co_varnames[: code.co_argcount]
    return function, tuple(types.int64[::1] if name in arrays else types.int64 for name in names)
