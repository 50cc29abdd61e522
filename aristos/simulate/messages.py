"""Messages of collectives between ranks, in virtual time.

For each pair of ranks the target counts the messages for which it has waited. A rank's *turn* is the number of the last
collective that it has entered, of those of which all ranks of its node are part. In each of these a rank waits for its
node, so it is at most one turn ahead of a local peer. Therefore two times of entry are enough.
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
def enter(number, turns):
    """Begin a collective on the rank of actor `number`. turns: 1 if all ranks of the node are part, else 0.

    With turns = 1 the rank's turn and its time of entry are recorded.
    """
    charge_at_speed(get(c.COLLECTIVE_NS))
    scheduler.sync()
    if turns == 0:
        return
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
def collect(number, turns, came, copied):
    """Wait until a message of each rank p with came[p] >= 0 has landed, and `copied` bytes have been copied.

    turns: as for `enter`. With 1 the copy begins when all ranks of the node have entered, with 0 it begins at once.
    """
    workers, world = get(c.WORKERS), get(c.WORLD)
    me = number // workers
    odd = mem.load(rank_record(me) + WORD * c.TURN) % 2
    began = get(c.NOW) * (1 - turns)
    for p in range(world):
        if p == me or came[p] < 0:
            continue
        record = pair_record(p * world + me)
        collected = mem.load(record + WORD * c.COLLECTED)
        while mem.load(record + WORD * c.LANDINGS) <= collected and get(c.STOP) == 0:
            mem.store(actor(number) + WORD * c.STANDING, c.COLLECTING)
            scheduler.block(number)
        mem.store(record + WORD * c.COLLECTED, collected + 1)
    for p in range(world * turns):
        if p == me or local(me, p):
            began = max(began, mem.load(rank_record(p) + WORD * (c.ENTERED + odd)))
    put(c.NOW, max(get(c.NOW), began + copied * get(c.COLLECTIVE_PS) // (1000 * KIB)))
