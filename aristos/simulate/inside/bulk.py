"""A worker of a rank makes a call of the bulk schedule in virtual time, with the phases of `layer/bulk.py`.

An all-to-all is a message to each other rank. It ends on a rank when the messages of all others have landed there, and
the rank has copied its rows. The copy begins when all ranks of the node have entered. With two levels rows go as in
`layer/node_first.py`.
"""

from kernel_cache.compile import jit

from ...engine import bulk as step
from ...engine import steps, words
from ...primitives import memory as mem
from .. import control as c
from .. import messages, scheduler
from ..control import FAR, WORD, charge, get, rank_record
from . import actor


def enter(number):
    """The C function in which the context of an actor begins, in place of `actor.enter`.

    `bulk_words` in rank.py says which words a rank has for bulk calls.
    """
    job, st = actor.job_of(number), actor.state_of(number)
    at = mem.load(c.actor(number) + WORD * c.BULK)
    runs, experts = mem.load(at), mem.load(at + WORD)
    at += 2 * WORD
    order, ends = mem.words(at, runs), mem.words(at + WORD * runs, experts)
    at += WORD * (runs + experts)
    claimed = mem.words(at, 1)
    worker = number % get(c.WORKERS)
    for call in range(get(c.CALLS)):
        make_call(job, st, number, worker, call, order, ends, claimed, at + WORD)
    scheduler.finish(number)


@jit
def make_call(job, st, number, worker, call, order, ends, claimed, rows):
    """Make one call. Worker 0 does what only one worker can do. At the end all workers meet.

    order, ends, claimed: `order`, `ends` and `next_row` of `run_experts` in engine/bulk.py. rows: the address of
    tables [2, W] int64, as `all_to_all` takes them: one for the whole call, then one for each step of the all-to-all
    that sends rows, then one for each step of the all-to-all that sends outputs back.
    """
    world, stride = job[words.WORLD], job[words.RETURN_STRIDE]
    out = rows + WORD * 2 * world
    back = out + WORD * 2 * world * (1 + get(c.NODE_FIRST))
    rank = rank_record(number // get(c.WORKERS))
    if worker == 0:
        actor.begin(job, st, number, call)
        claimed[0] = 0
    scheduler.meet_in_rank(number)
    step.route(job, st, worker)
    scheduler.meet_in_rank(number)
    if worker == 0:
        charge(get(c.PACK_NS) * job[words.TOKENS] * job[words.TOP_K])
        packed = step.pack(job, st)
        width = 8 * (words.ANNOUNCED_WORDS + get(c.MOST_HELD))
        all_to_all(job, st, number, rows, 0, width, 1)
        step.copy_out(job, st, packed, FAR)
        send_rows(job, st, number, out, stride)
    scheduler.meet_in_rank(number)
    step.run_experts(job, st, worker, order, ends, FAR, FAR, claimed)
    scheduler.meet_in_rank(number)
    if worker == 0:
        send_rows(job, st, number, back, stride)
        step.all_back(job, st)
    scheduler.meet_in_rank(number)
    step.combine_all(job, st, worker)
    scheduler.meet_in_rank(number)
    if worker == 0:
        steps.end(job, st)
        came = mem.words(rows + WORD * world, world)
        for p in range(world):
            st[words.rows_from(job, p)] = came[p]
        scheduler.set_word(rank + WORD * c.ENDED, call, get(c.NOW))
    scheduler.meet(number)


@jit
def send_rows(job, st, number, rows, stride):
    """The all-to-all of rows. rows: the address of one table for each step, as `all_to_all` takes it."""
    if get(c.NODE_FIRST):
        all_to_all(job, st, number, rows, 0, WORD * job[words.WORLD], 1)  # MPI_Allgather of row counts within the node
    all_to_all(job, st, number, rows, stride, 0, 1)
    if get(c.NODE_FIRST):
        all_to_all(job, st, number, rows + WORD * 2 * job[words.WORLD], stride, 0, 0)


@jit
def all_to_all(job, st, number, rows, row, least, turns):
    """Send `least` bytes and the rows of `row` bytes to each rank, and wait for the messages of others.

    rows: the address of a table [2, W] int64: how many rows go to each rank, then how many come from each; -1 where
    there is no message. turns: see `messages.enter`.
    """
    begun, world = get(c.NOW), job[words.WORLD]
    sent, came = mem.words(rows, world), mem.words(rows + WORD * world, world)
    messages.enter(number, turns)
    me = number // get(c.WORKERS)
    copied = sent[me] * row
    for p in range(world):
        if p != me and sent[p] >= 0:
            messages.send(me, p, least + sent[p] * row)
            copied += messages.local(me, p) * (sent[p] + came[p]) * row // 2
    messages.collect(number, turns, came, copied)
    st[words.counter(job, 0, words.N_IDLE)] += (get(c.NOW) - begun) * job[words.WORKERS]
