"""The events of a simulation, ordered by time: a heap.

Events are read and written by address, and not through arrays over this memory: Numba removes a write to such an array
if the function does not read the array again.
"""

from __future__ import annotations

from kernel_cache.compile import jit

from ..primitives import memory as mem
from . import control as c
from .control import WORD, entry, get, put

TIME, NUMBER, KIND, A, B, X, Y = range(c.EVENT_WORDS)


@jit
def event(i):
    """Address of event i of the heap."""
    return entry(c.HEAP, c.EVENT_WORDS * i)


@jit
def move(source, target):
    """Copy an event to another address."""
    for w in range(c.EVENT_WORDS):
        mem.store(target + WORD * w, mem.load(source + WORD * w))


@jit
def before(one, other):
    """Whether the event at an address comes before the event at another."""
    first, second = mem.load(one), mem.load(other)
    return first < second or (first == second and mem.load(one + WORD * NUMBER) < mem.load(other + WORD * NUMBER))


@jit
def push(time, kind, a, b, x, y):
    """Add an event. kind: one of control.py's. Events with equal times come in the order in which they were added."""
    i = get(c.EVENTS)
    if get(c.STOP) != 0:  # all actors end at once
        return
    if i == get(c.EVENTS_MOST):
        put(c.STOP, c.FULL)
        return
    put(c.EVENTS, i + 1)
    put(c.NUMBERED, get(c.NUMBERED) + 1)
    while i > 0 and mem.load(event((i - 1) // 2)) > time:
        move(event((i - 1) // 2), event(i))
        i = (i - 1) // 2
    at = event(i)
    mem.store(at, time)
    mem.store(at + WORD * NUMBER, get(c.NUMBERED))
    mem.store(at + WORD * KIND, kind)
    mem.store(at + WORD * A, a)
    mem.store(at + WORD * B, b)
    mem.store(at + WORD * X, x)
    mem.store(at + WORD * Y, y)


@jit
def pop():
    """Remove the next event. There must be one. Returns (time, kind, its four arguments)."""
    n = get(c.EVENTS) - 1
    put(c.EVENTS, n)
    at = event(0)
    found = (
        mem.load(at),
        mem.load(at + WORD * KIND),
        mem.load(at + WORD * A),
        mem.load(at + WORD * B),
        mem.load(at + WORD * X),
        mem.load(at + WORD * Y),
    )
    i, below = 0, 1
    while below < n:  # event n, the last one, moves to the place of the removed one, or below it
        if below + 1 < n and before(event(below + 1), event(below)):
            below += 1
        if not before(event(below), event(n)):
            break
        move(event(below), event(i))
        i, below = below, 2 * below + 1
    move(event(n), event(i))
    return found
