"""A worker of a rank makes a call of the bulk schedule in virtual time, with the phases of `layer/bulk.py`.

An all-to-all is a message to each other rank. It ends on a rank when the messages of all others have landed there, and
when the rank has copied its rows, which it can do once all ranks of its node have entered.
"""

from kernel_cache.compile import jit

from ...engine import bulk as step
from ...engine import steps, words
from .. import control as c
from .. import messages, scheduler
from ..control import FAR, WORD, charge, get, rank_record
from . import actor


@jit
def run(job, st, number, first_epoch, order, ends, claimed, rows):
    """Make all calls of the simulation as one worker, as `actor.run` does.

    order, ends, claimed: see `run_experts` in engine/bulk.py. rows: [2, W] int64, rows to each rank, and from each.
    """
    scheduler.wait(number)
    worker = number % get(c.WORKERS)
    for call in range(get(c.CALLS)):
        if get(c.STOP) == 0:
            make_call(job, st, number, worker, call, first_epoch, order, ends, claimed, rows)
    scheduler.finish(number)


@jit
def make_call(job, st, number, worker, call, first_epoch, order, ends, claimed, rows):
    """Make one call. Worker 0 does what only one worker can do. At the end all workers meet."""
    world, stride = job[words.WORLD], job[words.RETURN_STRIDE]
    rank = rank_record(number // get(c.WORKERS))
    if worker == 0:
        actor.begin(job, st, number, call, first_epoch)
        claimed[0] = 0
    scheduler.meet_in_rank(number)
    step.route(job, st, worker)
    scheduler.meet_in_rank(number)
    if worker == 0:
        charge(get(c.PACK_NS) * job[words.TOKENS] * job[words.TOP_K])
        packed = step.pack(job, st)
        width = 8 * (words.ANNOUNCED_WORDS + get(c.MOST_HELD))
        all_to_all(job, st, number, rows[0], rows[1], 0, width)
        step.copy_out(job, st, packed, FAR)
        all_to_all(job, st, number, rows[0], rows[1], stride, 0)
    scheduler.meet_in_rank(number)
    step.run_experts(job, st, worker, order, ends, FAR, FAR, claimed)
    scheduler.meet_in_rank(number)
    if worker == 0:
        all_to_all(job, st, number, rows[1], rows[0], stride, 0)
        step.all_back(job, st)
    scheduler.meet_in_rank(number)
    step.combine_all(job, st, worker)
    scheduler.meet_in_rank(number)
    if worker == 0:
        steps.end(job, st)
        for p in range(world):
            st[words.rows_from(job, p)] = rows[1, p]
        scheduler.set_word(rank + WORD * c.ENDED, call, get(c.NOW))
    scheduler.meet(number)


@jit
def all_to_all(job, st, number, sent, came, row, least):
    """Send `least` bytes and `sent[p]` rows of `row` bytes to each rank p, and wait for those of all others."""
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
