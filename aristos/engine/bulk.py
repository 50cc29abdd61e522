"""The bulk-synchronous schedule's compiled parts: route, pack, copy, run the experts, combine.

The same kernels and the same packed order as the fused schedule, so the same bits; no windows, no records, no credit.
"""

from ..primitives import memory as mem
from ..primitives.compile import jit
from . import combine, experts, packing, routing
from . import fields as f
from .layout import return_row
from .lock import acquire, unlock


@jit
def route(job, st, worker):
    """Route all tokens, block by block, with whoever else runs this."""
    while True:
        acquire(job)
        found = routing.claim(job, st, worker)
        unlock(job)
        if not found:
            return
        start = mem.clock()
        routing.execute(job, st, worker)
        st[job[f.T_COUNTERS] + f.COUNTER_WORDS * worker + f.N_ROUTE] += mem.clock() - start
        acquire(job)
        routing.publish(job, st, worker)
        unlock(job)


@jit
def pack(job, st):
    """Packed order and block tables; returns rows. A refused input packs no token."""
    tokens = job[f.TOKENS] if st[f.STATUS] == f.OK else 0
    rows = packing.sort(job, st, tokens)
    packing.set_blocks(job, st, tokens)
    packing.set_streams(job, st, rows)
    return rows


@jit
def copy_out(job, st, rows, target):
    """Rows in packed order to `target`, a stride apart."""
    start = mem.clock()
    for p in range(rows):
        source = job[f.X] + job[f.X_STRIDE] * st[job[f.T_TOKEN] + p]
        mem.copy_row(target + job[f.RETURN_STRIDE] * p, source, job[f.ROW_BYTES])
    st[job[f.T_COUNTERS] + f.N_DISPATCH] += mem.clock() - start


@jit
def run_experts(job, st, worker, order, ends, received, results, next_row):
    """Claim runs of rows, expert by expert, until none is left.

    order: [rows] int64, received rows sorted by expert; ends: [L] where each expert's rows end in it; received,
    results: addresses of rows in the order they came; next_row: [1] int64, the first row of `order` nobody has
    claimed.
    """
    c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
    while True:
        acquire(job)
        first = next_row[0]
        expert = 0
        while expert < len(ends) and ends[expert] <= first:
            expert += 1
        rows = 0
        if expert < len(ends):
            rows = experts.batch_rows(job, ends[expert] - first, 1)
            rows = min(rows, ends[expert] - first)
            next_row[0] = first + rows
        unlock(job)
        if rows == 0:
            return
        st[c + f.C_A] = expert
        st[c + f.C_ROWS] = rows
        for i in range(rows):
            st[c + f.C_LISTS + i] = received + job[f.RETURN_STRIDE] * order[first + i]
            st[c + f.C_LISTS + job[f.BATCH] + i] = results + job[f.RETURN_STRIDE] * order[first + i]
        start = mem.clock()
        experts.compute(job, st, worker)
        st[job[f.T_COUNTERS] + f.COUNTER_WORDS * worker + f.N_EXPERT] += mem.clock() - start


@jit
def all_back(job, st):
    """Every block may be combined: all rows are back."""
    tokens = job[f.TOKENS] if st[f.STATUS] == f.OK else 0
    blocks = (tokens + f.TOKEN_BLOCK - 1) // f.TOKEN_BLOCK
    for b in range(blocks):
        st[job[f.T_READY] + b] = 1 + b
    st[f.READY_NEXT] = 0


@jit
def combine_all(job, st, worker):
    """Combine all tokens, block by block, with whoever else runs this."""
    while True:
        acquire(job)
        found = combine.claim(job, st, worker)
        unlock(job)
        if not found:
            return
        start = mem.clock()
        combine.execute(job, st, worker)
        st[job[f.T_COUNTERS] + f.COUNTER_WORDS * worker + f.N_COMBINE] += mem.clock() - start


@jit
def return_base(job, st):
    """Address of this rank's return rows."""
    return return_row(job, st, job[f.RANK], 0)
