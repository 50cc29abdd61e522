"""The protocol without the experts: rows are copied out where they land, and go back with one record a source.

An exchange is one call in two halves. In the first, `expert` commands copy rows instead of computing (experts.py),
and each tile is returned empty, so that its slots are free again. In the second, a source's rows, which are
contiguous in its packed order, go back with a single record.
"""

from ..primitives import memory as mem
from ..primitives import wire as mpi
from ..primitives.compile import jit
from . import fields as f
from .layout import announcement_from, return_row
from .returns import count_back, post_return


@jit
def count(job, st, expert, source):
    """Announced rows of a local expert from a source."""
    slot = job[f.T_OFFSET] + job[job[f.SLOT_START] + job[f.RANK]] + expert
    if source == job[f.RANK]:
        return st[slot + 1] - st[slot]
    if st[job[f.T_ANNOUNCED] + source] == f.SKIP:
        return 0
    return mem.load(announcement_from(job, st, source, job[f.EPOCH]) + 8 * (f.ANNOUNCE_WORDS + expert))


@jit
def set_targets(job, st, counts):
    """Order the rows by expert, source, packed row; counts: [L, W] int64, filled in. Returns rows."""
    rows = 0
    for expert in range(job[f.LOCAL]):
        for source in range(job[f.WORLD]):
            n = count(job, st, expert, source)
            counts[expert, source] = n
            st[job[f.T_TARGET] + source * job[f.MAX_LOCAL] + expert] = rows
            rows += n
    st[f.TARGETS_SET] = 1
    return rows


@jit
def put_back(job, st, source, packed, rows, n):
    """Put n rows at address `rows`, ROW_BYTES apart, into a far source's return rows. (Holding the wire's lock.)"""
    at = st[job[f.T_RETURNS_AT] + source]
    if job[f.ROW_BYTES] == job[f.RETURN_STRIDE]:
        if n > 0:
            mpi.put(job[f.WIRE], source, at + job[f.RETURN_STRIDE] * packed, rows, job[f.ROW_BYTES] * n)
        return
    for j in range(n):
        there = at + job[f.RETURN_STRIDE] * (packed + j)
        mpi.put(job[f.WIRE], source, there, rows + job[f.ROW_BYTES] * j, job[f.ROW_BYTES])


@jit
def give_back(job, st, counts, source, out, status):
    """Put the rows of `out` (in the order of `set_targets`, ROW_BYTES apart) that are of `source` into its return rows.

    Every source gets one record with this rank's status, whether it has rows here or not. `out` 0: nothing is copied,
    because this rank refuses. A source at a time: the caller may be interrupted between them.
    """
    packed = st[job[f.T_FIRST] + source]
    first = packed
    far = st[job[f.T_FAR] + source] != 0
    if far:
        while not mpi.take(job[f.WIRE]):
            mem.yield_core()
    for expert in range(job[f.LOCAL]):
        n = counts[expert, source]
        row = st[job[f.T_TARGET] + source * job[f.MAX_LOCAL] + expert] - n  # the copying has moved it to its end
        if out != 0 and far:
            put_back(job, st, source, packed, out + job[f.ROW_BYTES] * row, n)
        elif out != 0:
            for j in range(n):
                target = return_row(job, st, source, packed + j)
                mem.copy_row(target, out + job[f.ROW_BYTES] * (row + j), job[f.ROW_BYTES])
        packed += n
    if far:
        mpi.flush(job[f.WIRE], source)
        mpi.leave(job[f.WIRE])
    if source == job[f.RANK]:
        count_back(job, st, first, packed - first)
    else:
        post_return(job, st, source, first, packed - first, status, f.UNSTAGED)


@jit
def expect_back(job, st):
    """Open the second half: every owner owes one more record."""
    st[f.PHASE] = f.PHASE_RUN
    for p in range(job[f.WORLD]):
        if p != job[f.RANK]:
            st[job[f.T_EXTRA] + p] += 1
