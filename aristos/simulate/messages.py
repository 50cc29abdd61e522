"""Messages of a collective between all ranks, in virtual time.

Collectives are numbered by turns. A rank cannot be more than one collective ahead of another, so two counts of landed
messages, for even and for odd collectives, are enough.
"""

from __future__ import annotations

from kernel_cache.compile import jit

from ..primitives import memory as mem
from . import control as c
from . import network, scheduler
from .control import WORD, actor, charge, charge_at_speed, entry, get, pair_record, put, rank_record
from .events import push

KIB = 1024


@jit
def local(source, target):
    """1 if two ranks are on one node, 0 if not."""
    return 1 if mem.load(entry(c.CLASS_OF_PAIR, source * get(c.WORLD) + target)) < 0 else 0


@jit
def enter(number):
    """Note when a rank enters its next collective."""
    charge_at_speed(get(c.COLLECTIVE_NS))
    scheduler.sync()
    rank = rank_record(number // get(c.WORKERS))
    turn = mem.load(rank + WORD * c.TURN) + 1
    mem.store(rank + WORD * c.TURN, turn)
    mem.store(rank + WORD * (c.ENTERED + turn % 2), get(c.NOW))


@jit
def send(source, target, nbytes):
    """Begin a message to a rank. Between nodes it is a put, and within a node the link of the pair carries it."""
    pair = source * get(c.WORLD) + target
    if local(source, target):
        record = pair_record(pair)
        mem.store(record + WORD * c.UNDER_WAY, mem.load(record + WORD * c.UNDER_WAY) + 1)
        sent = max(get(c.NOW), mem.load(record + WORD * c.FREE_AT)) + nbytes * get(c.LOCAL_PS) // (1000 * KIB)
        mem.store(record + WORD * c.FREE_AT, sent)
        push(sent + get(c.LOCAL_NS), c.LAND_PUT, pair, 0, 0, 0)
        return
    charge(get(c.PUT_NS))
    scheduler.sync()
    network.count_put(pair, nbytes)
    network.send(pair, nbytes)


@jit
def collect(number, copied):
    """Wait until a message of each other rank has landed, and `copied` bytes have been copied within the node.

    The copy begins when all ranks of the node have entered.
    """
    workers, world = get(c.WORKERS), get(c.WORLD)
    me = number // workers
    rank = rank_record(me)
    odd = mem.load(rank + WORD * c.TURN) % 2
    landed = rank + WORD * (c.MESSAGES + odd)
    while mem.load(landed) < world - 1 and get(c.STOP) == 0:
        mem.store(actor(number) + WORD * c.STANDING, c.COLLECTING)
        scheduler.block(number)
    mem.store(landed, mem.load(landed) - (world - 1))
    began = 0
    for p in range(world):
        if p == me or local(me, p):
            began = max(began, mem.load(rank_record(p) + WORD * (c.ENTERED + odd)))
    put(c.NOW, max(get(c.NOW), began + copied * get(c.COLLECTIVE_PS) // (1000 * KIB)))
