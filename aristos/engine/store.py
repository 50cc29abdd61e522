"""The store, where an owner keeps the rows that it computes. Their order does not depend on when they arrive.

A call has a store if its job's STORE is set; backward calls have one. When the owner reads a source's announcement, it
reserves consecutive places for the source's rows, in the source's packed order. So the rows of an expert, source by
source, are in global token order. The kernel copies each row that it computes to the row's place, so the store delays
no ring row, and nothing waits for a stored row. The kernel may keep more data in a row's place; the engine does not
read them.
"""

from kernel_cache.compile import jit

from ..primitives import memory as mem
from . import codes, exchange, tape, words


@jit
def computes(job):
    """Whether a layer's experts compute in this call: True in forward and backward calls, False in an exchange."""
    return job[words.MODE] == codes.MODE_LAYER or job[words.MODE] == codes.MODE_BACKWARD


@jit
def admit(job, st, source, rows):
    """Reserve places for `rows` rows of a source; False if the store has too few places.

    In a call without a store this does nothing and returns True. (Under the lock.)
    """
    if job[words.MODE] != codes.MODE_BACKWARD:
        return True
    if st[words.STORE_NEXT] + rows > job[words.STORE_ROWS]:
        return False
    st[words.store_at(job, source)] = st[words.STORE_NEXT]
    st[words.STORE_NEXT] += rows
    return True


@jit
def list_places(job, st, c):
    """List the addresses of the places of a command's rows. All threads of the worker do this together."""
    have = words.place_list(job, c)
    for i in range(st[words.command_parts(c)]):
        part = words.part(job, c, i)
        rows = st[words.part_rows(part)]
        place = st[words.store_at(job, st[words.part_source(part)])] + tape.number(job, st, part)
        for j in range(mem.thread(), rows, mem.threads()):
            st[have + j] = job[words.STORE] + job[words.STORE_STEP] * (place + j)
        have += rows


@jit
def count_rows(job, st, counts):
    """Fill counts [W, held] int64 with how many rows each source had for each held expert. Use it between two calls."""
    for source in range(job[words.WORLD]):
        for expert in range(job[words.HELD]):
            counts[source, expert] = exchange.count(job, st, expert, source)
