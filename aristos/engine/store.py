"""The store: where an owner keeps the rows that it computes, in an order that does not depend on when they arrive.

Backward calls have a store: the job's STORE is set. When the owner reads a source's announcement, it gives the source
as many consecutive places as the source has rows for it; the rows lie there in the source's packed order. So the rows
of an expert, source by source, are in global token order. The kernel copies each row that it computes to its place, so
no ring row is held for the store, and nothing waits for a row of it. The kernel may keep more in a row's place; the
engine does not read it.
"""

from kernel_cache.compile import jit

from ..primitives import memory as mem
from . import codes, exchange, tape, words


@jit
def computes(job):
    """Whether experts of a layer compute in this call, forward or backward; in an exchange none does."""
    return job[words.MODE] == codes.MODE_LAYER or job[words.MODE] == codes.MODE_BACKWARD


@jit
def admit(job, st, source, rows):
    """Give a source places for `rows` rows; False if the store has too few left. True in a call without a store.

    (Under the lock.)
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
    """List the addresses of the places of a command's rows. By all threads of the worker together."""
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
    """Fill counts [W, held] int64: the rows of each source for each held expert. After a call, before the next."""
    for source in range(job[words.WORLD]):
        for expert in range(job[words.HELD]):
            counts[source, expert] = exchange.count(job, st, expert, source)
