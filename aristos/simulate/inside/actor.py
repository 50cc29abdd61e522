"""A worker of a rank in virtual time: it makes calls with the shipped loop, and meets all workers between calls."""

from kernel_cache.compile import jit

from ...engine import codes, packing, steps, words
from ...primitives import memory as mem
from ...substrate.cpu import loop
from .. import control as c
from .. import scheduler
from ..control import WORD, charge_at_speed, get, put, rank_record
from . import costs  # noqa: F401  replaces functions of steps and loop


def enter(number):
    """The C function in which the context of an actor begins. It makes all calls of the simulation as one worker."""
    job, st = job_of(number), state_of(number)
    worker = number % get(c.WORKERS)
    for call in range(get(c.CALLS)):
        make_call(job, st, number, worker, call)
    scheduler.finish(number)


@jit
def job_of(number):
    """The job of an actor's rank."""
    return mem.words(mem.load(c.actor(number) + WORD * c.JOB), get(c.JOB_WORDS))


@jit
def state_of(number):
    """The state of an actor's rank."""
    return mem.words(mem.load(c.actor(number) + WORD * c.STATE), get(c.STATE_WORDS))


@jit
def begin(job, st, number, call):
    """Begin a call on a rank, as its worker 0."""
    job[words.EPOCH] = 1 + call
    scheduler.set_word(rank_record(number // get(c.WORKERS)) + WORD * c.BEGAN, call, get(c.NOW))
    charge_at_speed(get(c.CALL_NS))
    packing.begin(job, st)


@jit
def make_call(job, st, number, worker, call):
    """Make one call. Worker 0 opens it, and runs before its rank's other workers. At the end all workers meet."""
    rank = rank_record(number // get(c.WORKERS))
    if worker == 0:
        begin(job, st, number, call)
    code = codes.PAUSED
    while code == codes.PAUSED and get(c.STOP) == 0:
        code = loop.work(job, st, worker)
    if code == codes.POISONED and get(c.STOP) == 0:
        put(c.STOP, c.FAILED)
        scheduler.end_all(c.actor(number))
    if worker == 0:
        steps.end(job, st)
        scheduler.set_word(rank + WORD * c.ENDED, call, get(c.NOW))
    scheduler.meet(number)
