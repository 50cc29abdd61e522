"""The protocol without experts: rows are copied out when they land, and go back with one record for each source.

An exchange is one call in two phases. In the first phase, dispatch, `expert` commands copy rows instead of computing
them (experts.py), and each tile is returned without rows, which frees its ring rows. In the second phase, combine, the
rows of a source go back with a single record, because they are contiguous in the source's packed order.
"""

from kernel_cache.compile import jit

from ..primitives import memory as mem
from ..primitives import wire as mpi
from . import codes, words
from .layout import return_row
from .returns import count_back, post_return


@jit
def count(job, st, expert, source):
    """How many rows a source announced for a held expert."""
    slot = words.offset(job, job[words.slot_start(job, job[words.RANK])] + expert)
    if source == job[words.RANK]:
        return st[slot + 1] - st[slot]
    if st[words.verdict(job, source)] == codes.SKIP:
        return 0
    return st[words.rows_for(job, source, expert)]


@jit
def set_targets(job, st, counts):
    """Give every row its place, ordered by expert, source, packed row. Fill counts [held, W] int64.

    Returns the number of rows.
    """
    rows = 0
    for expert in range(job[words.HELD]):
        for source in range(job[words.WORLD]):
            n = count(job, st, expert, source)
            counts[expert, source] = n
            st[words.target(job, source, expert)] = rows
            rows += n
    st[words.TARGETS_SET] = 1
    return rows


@jit
def put_back(job, st, source, packed, rows, n):
    """Put n rows at address `rows`, ROW_BYTES apart, into a remote source's return rows.

    The caller holds the wire's lock.
    """
    at = st[words.put_return_rows(job, source)]
    if job[words.ROW_BYTES] == job[words.RETURN_STRIDE]:
        if n > 0:
            mpi.put(job[words.WIRE], source, at + job[words.RETURN_STRIDE] * packed, rows, job[words.ROW_BYTES] * n)
        return
    for j in range(n):
        there = at + job[words.RETURN_STRIDE] * (packed + j)
        mpi.put(job[words.WIRE], source, there, rows + job[words.ROW_BYTES] * j, job[words.ROW_BYTES])


@jit
def give_back(job, st, counts, source, out, status):
    """Put the rows that came from `source` into its return rows. out: all rows, as `set_targets` ordered them.

    Rows of `out` lie ROW_BYTES apart. If this rank refuses its input, `out` is 0 and nothing is copied. Every other
    rank gets one record with this rank's status, even if it has no rows here. This function serves only one source, so
    that Python can handle signals in between.
    """
    packed = st[words.first_packed(job, source)]
    first = packed
    remote = st[words.remote(job, source)] != 0
    if remote:
        while not mpi.try_lock(job[words.WIRE]):
            mem.yield_core()
    for expert in range(job[words.HELD]):
        n = counts[expert, source]
        row = st[words.target(job, source, expert)] - n  # copying the rows has moved `target` past the last one
        if out != 0 and remote:
            put_back(job, st, source, packed, out + job[words.ROW_BYTES] * row, n)
        elif out != 0:
            for j in range(n):
                target = return_row(job, st, source, packed + j)
                mem.copy_row(target, out + job[words.ROW_BYTES] * (row + j), job[words.ROW_BYTES])
        packed += n
    if remote:
        mpi.flush(job[words.WIRE], source)
        mpi.unlock(job[words.WIRE])
    if source == job[words.RANK]:
        count_back(job, st, first, packed - first)
    else:
        post_return(job, st, source, first, packed - first, status, codes.UNSTAGED)


@jit
def expect_back(job, st):
    """Begin the second phase, in which every owner owes one more record."""
    st[words.PHASE] = codes.PHASE_RUN
    for p in range(job[words.WORLD]):
        if p != job[words.RANK]:
            st[words.extra(job, p)] += 1
