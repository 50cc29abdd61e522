"""Charges for work that steps do without a primitive. Each function here takes a step's place, and calls the step.

Events of a timeline take no virtual time, so a simulation has the same times whether it keeps events or not.
"""

from kernel_cache.compile import jit

from ...engine import packing, routing, steps, words
from ...primitives import memory as mem
from ...substrate.cpu import loop
from .. import control as c
from .. import scheduler
from ..control import WORD, actor, charge, get, put

_decide, _publish, _pack, _route = steps.decide, steps.publish, packing.execute, routing.execute
_note = loop.note


@jit
def decide(job, st, worker):
    """`steps.decide`, with a charge for the tables that it reads.

    The first lock that the step takes marks the beginning of a poll.
    """
    mem.store(actor(get(c.CURRENT)) + WORD * c.RESTED, 1)
    charge(get(c.DECIDE_NS) + get(c.PEER_NS) * job[words.WORLD])
    scheduler.count_decisions(1)
    return _decide(job, st, worker)


@jit
def publish(job, st, worker, kind):
    """`steps.publish`, with a charge for the tables that it writes."""
    charge(get(c.PUBLISH_NS))
    put(c.PROGRESSED, get(c.NOW))
    _publish(job, st, worker, kind)


@jit
def pack(job, st):
    """`packing.execute`, with a charge for the sort."""
    charge(get(c.PACK_NS) * job[words.TOKENS] * job[words.TOP_K])
    _pack(job, st)


@jit
def route(job, st, worker):
    """`routing.execute`, with a charge for the tokens of the block."""
    charge(get(c.ROUTE_PS) * st[words.command_rows(words.command(job, worker))] // 1000)
    _route(job, st, worker)


@jit
def note(job, st, worker, kind, start, end, what, rows):
    """`loop.note`, without virtual time."""
    now = get(c.NOW)
    _note(job, st, worker, kind, start, end, what, rows)
    put(c.NOW, now)


steps.decide, steps.publish, packing.execute, routing.execute = decide, publish, pack, route
loop.note = note
