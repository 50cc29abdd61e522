"""A worker of a rank makes a call of the bulk schedule in virtual time, with the phases of `layer/bulk.py`.

An all-to-all is a message to each other rank. It ends on a rank when the messages of all others have landed there, and
the rank has copied its rows. The copy begins when all ranks of the node have entered.
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
    world, runs, experts = get(c.WORLD), mem.load(at), mem.load(at + WORD)
    at += 2 * WORD
    order, ends = mem.words(at, runs), mem.words(at + WORD * runs, experts)
    at += WORD * (runs + experts)
    claimed, sent, came = mem.words(at, 1), mem.words(at + WORD, world), mem.words(at + WORD * (1 + world), world)
    worker = number % get(c.WORKERS)
    for call in range(get(c.CALLS)):
        make_call(job, st, number, worker, call, order, ends, claimed, sent, came)
    scheduler.finish(number)


@jit
def make_call(job, st, number, worker, call, order, ends, claimed, sent, came):
    """Make one call. Worker 0 does what only one worker can do. At the end all workers meet.

    order, ends, claimed: see `run_experts` in engine/bulk.py. sent, came: [W] int64, rows to each rank, and from each.
    """
    world, stride = job[words.WORLD], job[words.RETURN_STRIDE]
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
        all_to_all(job, st, number, sent, came, 0, width)
        step.copy_out(job, st, packed, FAR)
        all_to_all(job, st, number, sent, came, stride, 0)
    scheduler.meet_in_rank(number)
    step.run_experts(job, st, worker, order, ends, FAR, FAR, claimed)
    scheduler.meet_in_rank(number)
    if worker == 0:
        all_to_all(job, st, number, came, sent, stride, 0)
        step.all_back(job, st)
    scheduler.meet_in_rank(number)
    step.combine_all(job, st, worker)
    scheduler.meet_in_rank(number)
    if worker == 0:
        steps.end(job, st)
        for p in range(world):
            st[words.rows_from(job, p)] = came[p]
        scheduler.set_word(rank + WORD * c.ENDED, call, get(c.NOW))
    scheduler.meet(number)


@jit
def all_to_all(job, st, number, sent, came, row, least):
    """Send `least` bytes and `sent[p]` rows of `row` bytes to each rank p, and wait for the messages of all others.

    came: [W] how many rows come from each rank."""
    begun = get(c.NOW)
    messages.enter(number)
    me = number // get(c.WORKERS)
    copied = sent[me] * row
    for p in range(job[words.WORLD]):
        if p != me:
            messages.send(me, p, least + sent[p] * row)
            copied += messages.local(me, p) * (sent[p] + came[p]) * row // 2
    messages.collect(number, copied)
    st[words.counter(job, 0, words.N_IDLE)] += (get(c.NOW) - begun) * job[words.WORKERS]
