"""A worker of a rank in virtual time: it makes calls with the shipped loop, and meets the others between calls."""

from kernel_cache.compile import jit

from ...engine import codes, packing, steps, words
from ...substrate.cpu import loop
from .. import control as c
from .. import scheduler
from ..control import WORD, charge_at_speed, get, put, rank_record
from . import costs, timeline  # noqa: F401  they replace functions of steps and loop


@jit
def run(job, st, number, first_epoch):
    """Make all calls of the simulation as one worker. Returns when they have ended, or the simulation ends early."""
    scheduler.wait(number)
    worker = number % get(c.WORKERS)
    for call in range(get(c.CALLS)):
        if get(c.STOP) == 0:
            make_call(job, st, number, worker, call, first_epoch)
    scheduler.finish(number)


@jit
def begin(job, st, number, call, first_epoch):
    """Begin a call on a rank, as its worker 0."""
    job[words.EPOCH] = first_epoch + call
    scheduler.set_word(rank_record(number // get(c.WORKERS)) + WORD * c.BEGAN, call, get(c.NOW))
    charge_at_speed(get(c.CALL_NS))
    packing.begin(job, st)


@jit
def make_call(job, st, number, worker, call, first_epoch):
    """Make one call. Worker 0 opens it, and runs before its rank's other workers. At the end all workers meet."""
    rank = rank_record(number // get(c.WORKERS))
    if worker == 0:
        begin(job, st, number, call, first_epoch)
    code = codes.PAUSED
    while code == codes.PAUSED and get(c.STOP) == 0:
        code = loop.work(job, st, worker)
    if code == codes.POISONED and get(c.STOP) == 0:
        put(c.STOP, c.FAILED)
        scheduler.end_all()
    if worker == 0:
        steps.end(job, st)
        scheduler.set_word(rank + WORD * c.ENDED, call, get(c.NOW))
    scheduler.meet(number)
