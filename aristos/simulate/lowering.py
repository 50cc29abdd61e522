"""What the engine's primitives do in a simulation: memory, wire and arithmetic in virtual time.

Words, records and indices are stored as on a real machine. Rows have no bytes. Each operation charges the actor that
runs. An operation that other actors can see waits until all earlier events have been handled.
"""

from __future__ import annotations

from kernel_cache.compile import jit

from ..engine.layout import CODED_BYTES
from ..primitives import memory as mem
from . import control as c
from . import network, scheduler
from .control import WORD, actor, charge, charge_at_speed, current_rank, get, pair_record, rank_record
from .events import push

KIB = 1024

# ---------------------------------------------------------------- memory


@jit
def load(addr):
    charge(get(c.LOAD_NS))
    return mem.load(addr)


@jit
def store(addr, value):
    charge(get(c.LOAD_NS))
    mem.store(addr, value)


@jit
def load_acquire(addr):
    charge(get(c.ACQUIRE_NS))
    return mem.load_acquire(addr)


@jit
def store_release(addr, value):
    charge(get(c.LOAD_NS))
    mem.store_release(addr, value)
    if get(c.WORKERS) > 1:
        scheduler.wake(current_rank(), get(c.NOW))


@jit
def notify(word, value, nbytes):
    """A local peer sees the word when its link has carried the bytes. A remote peer's word lies in the outbox."""
    charge(get(c.LOAD_NS))
    inside = word - get(c.MEMORY)
    target, offset = inside // get(c.RANK_BYTES), inside % get(c.RANK_BYTES)
    if target == current_rank():
        mem.store_release(word, value)
        return
    scheduler.sync()
    record = pair_record(offset // get(c.REGION_BYTES) * get(c.WORLD) + target)
    sent = max(get(c.NOW), mem.load(record + WORD * c.FREE_AT)) + nbytes * get(c.LOCAL_PS) // (1000 * KIB)
    mem.store(record + WORD * c.FREE_AT, sent)
    push(sent + get(c.LOCAL_NS), c.LAND, word, value, 0, 0)


@jit
def fetch_add(addr, value):
    charge(get(c.ATOMIC_NS))
    return mem.fetch_add(addr, value)


@jit
def compare_exchange(addr, expected, value):
    """All locks are taken through this function, so it also marks where a poll begins."""
    charge(get(c.ATOMIC_NS))
    scheduler.sync()
    record = actor(get(c.CURRENT))
    if mem.load(record + WORD * c.RESTED) != 0:
        mem.store(record + WORD * c.RESTED, 0)
        mem.store(record + WORD * c.DECIDED, get(c.NOW))
        wakes = mem.load(rank_record(mem.load(record + WORD * c.RANK)) + WORD * c.WAKES)
        mem.store(record + WORD * c.SEEN, wakes)
    taken = mem.compare_exchange(addr, expected, value)
    mem.store(record + WORD * c.LOCKED, 0 if taken else 1)
    return taken


@jit
def copy_row(dst, src, nbytes):
    charge(get(c.COPY_NS) + nbytes * get(c.COPY_PS) // (1000 * KIB))


@jit
def clock():
    charge(get(c.CLOCK_NS))
    return get(c.NOW)


# ---------------------------------------------------------------- wire


@jit
def wire_put(wire, peer, at, source, nbytes):
    """`wire.put`, where `at` is an address. Data is stored at once, coded words and bells when they land, rows never.

    Only a put of a bell has one byte.
    """
    charge(get(c.PUT_NS))
    scheduler.sync()
    pair = current_rank() * get(c.WORLD) + peer
    network.count_put(pair, nbytes)
    inside = (at - get(c.MEMORY)) % get(c.RANK_BYTES) % get(c.REGION_BYTES)
    if source < c.FAR and (inside < CODED_BYTES or nbytes == 1):
        push(get(c.NOW) + network.latency(pair), c.LAND_CODED, pair, at, source, nbytes)
        return
    if source < c.FAR:
        mem.copy_row(at, source, nbytes)
    network.send(pair, nbytes)


@jit
def wire_flush(wire, peer):
    """`wire.flush`: the actor waits until its rank's puts to the peer have landed, and the rank knows that."""
    charge(get(c.FLUSH_NS))
    scheduler.sync()
    me, pair = get(c.CURRENT), current_rank() * get(c.WORLD) + peer
    record = pair_record(pair)
    if mem.load(record + WORD * c.UNDER_WAY) != 0:
        mem.store(record + WORD * c.FLUSHER, 1 + me)
        mem.store(actor(me) + WORD * c.STANDING, c.FLUSHING)
        scheduler.block(me)
        return
    known = mem.load(record + WORD * c.LANDED_AT) + network.latency(pair)
    if known > get(c.NOW):
        c.put(c.NOW, known)


@jit
def wire_sync(wire):
    charge(get(c.CLOCK_NS))


@jit
def wire_progress(wire):
    charge(get(c.PROGRESS_NS))


# ---------------------------------------------------------------- arithmetic


@jit
def kernel_ns(rows, operations):
    """ns of a run of `rows` rows, which has `operations` operations in all. A multiply-add counts as two."""
    return get(c.KERNEL_NS) + int(operations * 1e-6 * c.load_real(c.entry(c.KERNEL, min(rows, get(c.KERNEL_ROWS)))))


@jit
def expert_rows(kernels, call):
    products = 3 if call.weights.gate != 0 else 2
    charge_at_speed(kernel_ns(call.rows, 2.0 * products * call.rows * call.hidden * call.ffn))


@jit
def up_columns(kernels, call):
    products = 2 if call.weights.gate != 0 else 1
    charge_at_speed(kernel_ns(call.rows, 2.0 * products * call.rows * call.hidden * call.columns))


@jit
def down_columns(kernels, call):
    charge_at_speed(kernel_ns(call.rows, 2.0 * call.rows * call.ffn * (call.last - call.first)))


@jit
def combine_token(kernels, call):
    charge(get(c.COMBINE_NS) + call.k * call.hidden * get(c.COMBINE_PS) // 1000)


MEMORY = {
    each.__name__: each
    for each in (load, store, load_acquire, store_release, notify, fetch_add, compare_exchange, copy_row, clock)
}
MEMORY |= {"arrived": load_acquire} | dict.fromkeys(("pause", "yield_core", "nap"), scheduler.rest)
WIRE = {"put": wire_put, "flush": wire_flush, "sync": wire_sync, "progress": wire_progress}
ARITHMETIC = {each.__name__: each for each in (expert_rows, up_columns, down_columns, combine_token)}
