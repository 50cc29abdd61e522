"""The compiled parts of the bulk-synchronous schedule: route, pack, copy, run the experts, combine.

Kernels and packed order are those of the fused schedule, so both schedules give the same bits. There are no windows,
records or credit.
"""

from kernel_cache.compile import jit

from ..primitives import memory as mem
from . import codes, combine, experts, packing, routing, words
from .layout import return_row
from .lock import acquire, unlock


@jit
def route(job, st, worker):
    """Route all tokens, block by block. Several workers may run this at once."""
    while True:
        acquire(job, 1 + worker)
        found = routing.claim(job, st, worker)
        unlock(job)
        if not found:
            return
        start = mem.clock()
        routing.execute(job, st, worker)
        st[words.counter(job, worker, words.N_ROUTE)] += mem.clock() - start
        acquire(job, 1 + worker)
        routing.publish(job, st, worker)
        unlock(job)


@jit
def pack(job, st):
    """Make the packed order and the tables of blocks. Returns the number of rows, 0 for a refused input."""
    tokens = job[words.TOKENS] if st[words.STATUS] == codes.OK else 0
    rows = packing.sort(job, st, tokens)
    packing.set_blocks(job, st, tokens)
    packing.set_streams(job, st)
    return rows


@jit
def copy_out(job, st, rows, target):
    """Copy rows in packed order to `target`, where rows lie RETURN_STRIDE bytes apart."""
    start = mem.clock()
    shared, end = rows, rows  # packed rows of the shared expert; they are copied unweighted, even if X is weighted
    if job[words.SHARED] != 0:
        slot = job[words.slot_of(job, job[words.EXPERTS])]
        shared, end = st[words.offset(job, slot)], st[words.offset(job, slot + 1)]
    for p in range(rows):
        if shared <= p < end:
            source = job[words.INPUT] + job[words.INPUT_STRIDE] * st[words.token(job, p)]
        else:
            source = job[words.X] + job[words.X_STRIDE] * st[words.token(job, p)]
        mem.copy_row(target + job[words.RETURN_STRIDE] * p, source, job[words.ROW_BYTES])
    st[words.counter(job, 0, words.N_DISPATCH)] += mem.clock() - start


@jit
def run_experts(job, st, worker, order, ends, received, results, next_row):
    """Claim and compute runs of rows, expert by expert, until no row is left.

    order: [rows] int64, the numbers of received rows, sorted by expert. ends: [held], where each expert's rows end in
    `order`. received, results: addresses of received rows and of their outputs, in the order of arrival. next_row: [1]
    int64, the first entry of `order` that is not claimed.
    """
    c = words.command(job, worker)
    while True:
        acquire(job, 1 + worker)
        first = next_row[0]
        expert = 0
        while expert < len(ends) and ends[expert] <= first:
            expert += 1
        rows = 0
        if expert < len(ends):
            # the fewer experts are left, the more workers an expert's rows are divided among
            rows = experts.batch_rows(job, ends[expert] - first, len(ends) - expert)
            rows = min(rows, ends[expert] - first)
            next_row[0] = first + rows
        unlock(job)
        if rows == 0:
            return
        st[words.command_expert(c)] = expert
        st[words.command_rows(c)] = rows
        for i in range(rows):
            st[words.row_list(c) + i] = received + job[words.RETURN_STRIDE] * order[first + i]
            st[words.output_list(job, c) + i] = results + job[words.RETURN_STRIDE] * order[first + i]
        start = mem.clock()
        experts.compute(job, st, worker)
        st[words.counter(job, worker, words.N_EXPERT)] += mem.clock() - start


@jit
def all_back(job, st):
    """Queue every token block for the combine, because all rows are back."""
    tokens = job[words.TOKENS] if st[words.STATUS] == codes.OK else 0
    blocks = (tokens + words.TOKEN_BLOCK - 1) // words.TOKEN_BLOCK
    for b in range(blocks):
        st[words.ready(job, b)] = 1 + b
    st[words.READY_NEXT] = 0


@jit
def combine_all(job, st, worker):
    """Combine all tokens, block by block. Several workers may run this at once."""
    while True:
        acquire(job, 1 + worker)
        found = combine.claim(job, st, worker)
        unlock(job)
        if not found:
            return
        start = mem.clock()
        combine.execute(job, st, worker)
        st[words.counter(job, worker, words.N_COMBINE)] += mem.clock() - start


@jit
def return_base(job, st):
    """Address of this rank's return rows."""
    return return_row(job, st, job[words.RANK], 0)
