"""The store: where an owner keeps the rows that it computes, in an order that does not depend on when they arrive.

A call has a store if its job's STORE is set. The rows of a source lie there in its packed order, one behind the other,
from a place that they get when the source's announcement is read. So the rows of an expert, source by source, are in
global token order. Nobody waits for a row in the store, and no ring row is held for it: the kernel copies each row that
it computes. What else it leaves in a row's place is its own affair.
"""

from ..primitives import memory as mem
from ..primitives.compile import jit
from . import codes, exchange, words


@jit
def computes(job):
    """Do experts of a layer compute in this call? In an exchange they do not."""
    return job[words.MODE] == codes.MODE_LAYER or job[words.MODE] == codes.MODE_BACKWARD


@jit
def admit(job, st, source, rows):
    """Give the rows of a source their places; False if the store has no room for them. (Under the lock.)"""
    if job[words.MODE] != codes.MODE_BACKWARD:
        return True
    if st[words.STORE_NEXT] + rows > job[words.STORE_ROWS]:
        return False
    st[words.store_at(job, source)] = st[words.STORE_NEXT]
    st[words.STORE_NEXT] += rows
    return True


@jit
def list_places(job, st, c):
    """List the addresses of a command's rows in the store. By all threads of the worker together."""
    have = words.place_list(job, c)
    for i in range(st[words.command_parts(c)]):
        part = words.part(job, c, i)
        source, rows, packed = st[words.part_source(part)], st[words.part_rows(part)], st[words.part_first(part)]
        if source != job[words.RANK]:
            r = words.kept(job, source, st[words.part_where(part)])
            packed += st[words.kept_packed(r)] - st[words.kept_row(r)]
        place = st[words.store_at(job, source)] + packed - st[words.first_packed(job, source)]
        for j in range(mem.thread(), rows, mem.threads()):
            st[have + j] = job[words.STORE] + job[words.STORE_STEP] * (place + j)
        have += rows


@jit
def count_rows(job, st, counts):
    """Fill counts [W, held] with the rows of each source for each held expert. After the call, before the next."""
    for source in range(job[words.WORLD]):
        for expert in range(job[words.HELD]):
            counts[source, expert] = exchange.count(job, st, expert, source)
