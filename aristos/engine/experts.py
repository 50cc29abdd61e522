"""Step `expert`: landed rows of one expert, from several sources, become one run of the expert kernel.

This file decides which expert runs on how many rows. Rows of peers come before own rows, because peers wait for them. A
run of few rows waits a little for rows that are announced, if that saves a second reading of the weights. Many rows are
cut into runs for several workers.
"""

from kernel_cache.compile import jit

from ..primitives import arithmetic
from ..primitives import memory as mem
from . import bounds, call_records, codes, column_runs, scalars, store, tape, words
from .layout import index_from, return_row, ring_of, ring_row_from, staged_row
from .returns import finish_record, note_back

GROUP = 6  # rows that the micro-kernel computes together


@jit
def more_can_land(job, st, expert):
    """Whether all rows that some source announced for `expert` can land before this rank frees more ring rows."""
    if st[words.expert_coming(job, expert)] == 0:
        return False
    for source in range(job[words.WORLD]):
        if source != job[words.RANK] and st[words.verdict(job, source)] == codes.SERVE:
            i = words.source_expert(job, source, expert)
            end = st[words.source_end_at(job, i)]
            granted = st[words.freed_rows(job, source)] + ring_of(job, st, source)
            if st[words.read_rows(job, source)] < end <= granted:
                return True
    return False


@jit
def choose(job, st):
    """Choose the next expert. Returns (the expert, or -1; how many experts have rows)."""
    computed = job[words.COMPUTED]
    remote, own, early, active = -1, -1, -1, 0
    for i in range(computed):
        expert = st[words.NEXT_EXPERT] + i
        if expert >= computed:
            expert -= computed
        rows = st[words.expert_pending(job, expert)]
        if rows == 0:
            continue
        active += 1
        if rows < job[words.MERGE_ROWS] and more_can_land(job, st, expert):
            early = expert if early < 0 else early
        elif st[words.expert_remote(job, expert)] > 0:
            remote = expert if remote < 0 else remote
        elif own < 0:
            own = expert
    if remote >= 0:
        return remote, active
    if own < 0 and st[words.IDLE_SWEEPS] > job[words.MERGE_POLLS]:
        return early, active
    return own, active


@jit
def batch_rows(job, rows, active):
    """How many of `rows` pending rows the next run takes, so that runs are nearly equal.

    active: how many experts have rows.
    """
    batches = (rows + job[words.RUN_ROWS] - 1) // job[words.RUN_ROWS]
    share = (job[words.WORKERS] + active - 1) // active
    batches = max(batches, min(share, (rows + 2 * GROUP - 1) // (2 * GROUP)))
    size = (rows + batches - 1) // batches
    return min(job[words.BATCH], (size + GROUP - 1) // GROUP * GROUP)


@jit
def output_row(job, st, source, i, rows, packed):
    """Address of the outputs of `rows` rows: in the source's return rows, or reserved in an exchange's output."""
    if job[words.MODE] != codes.MODE_DISPATCH:
        return return_row(job, st, source, packed)
    target = st[words.target_at(job, i)]
    st[words.target_at(job, i)] = target + rows
    return job[words.OUT_ROWS] + job[words.ROW_BYTES] * target


@jit
def take_own(job, st, c, expert, most):
    """Add up to `most` own rows, which are read in place from x, to a command. Returns how many."""
    me = job[words.RANK]
    i = words.source_expert(job, me, expert)
    rows = min(most, st[words.pending_at(job, i)])
    if rows == 0:
        return 0
    packed = st[words.front_at(job, i)]
    y = output_row(job, st, me, i, rows, packed)
    st[words.front_at(job, i)] = packed + rows
    st[words.pending_at(job, i)] -= rows
    add_part(job, st, c, me, packed, rows, packed, y)
    return rows


@jit
def take_tile(job, st, c, source, expert, most):
    """Add to a command up to `most` rows of the first pending tile of `source` for `expert`, to be read in the ring.

    Returns how many.
    """
    i = words.source_expert(job, source, expert)
    tile, taken = st[words.front_at(job, i)], st[words.taken_at(job, i)]
    r = words.landed(job, source, tile)
    rows = min(most, st[words.landed_rows(r)] - taken)
    first = st[words.landed_row(r)] + taken
    y = output_row(job, st, source, i, rows, st[words.landed_packed(r)] + taken)
    if taken + rows == st[words.landed_rows(r)]:
        st[words.front_at(job, i)] = st[words.landed_next(r)]
        st[words.taken_at(job, i)] = 0
    else:
        st[words.taken_at(job, i)] = taken + rows
    st[words.pending_at(job, i)] -= rows
    st[words.expert_remote(job, expert)] -= rows
    add_part(job, st, c, source, tile, rows, first, y)
    return rows


@jit
def add_part(job, st, c, source, where, rows, first, y):
    """Add a part to a command; a part is a record `part` of schema.py."""
    part = words.part(job, c, st[words.command_parts(c)])
    st[words.part_source(part)] = source
    st[words.part_where(part)] = where
    st[words.part_rows(part)] = rows
    st[words.part_first(part)] = first
    st[words.part_output(part)] = y
    st[words.command_parts(c)] += 1


@jit
def list_rows(job, st, c):
    """List the addresses of a command's rows and outputs, from its parts.

    All threads of the worker do this together.
    """
    step = job[words.ROW_BYTES] if job[words.MODE] == codes.MODE_DISPATCH else job[words.RETURN_STRIDE]
    have = words.row_list(c)
    own, own_step = job[words.X], job[words.X_STRIDE]
    if st[words.command_expert(c)] + 1 == job[words.SHARED]:  # the shared expert's tokens are never weighted
        own, own_step = job[words.INPUT], job[words.INPUT_STRIDE]
    for i in range(st[words.command_parts(c)]):
        part = words.part(job, c, i)
        source, rows = st[words.part_source(part)], st[words.part_rows(part)]
        first, y = st[words.part_first(part)], st[words.part_output(part)]
        once = st[words.once_from(job, source)] != 0
        staged = st[words.remote(job, source)] != 0 and store.computes(job)
        for j in range(mem.thread(), rows, mem.threads()):
            if source == job[words.RANK]:
                x = own + own_step * st[words.token(job, first + j)]
            elif once:  # first + j is the number of a pair, whose row the index names
                place = scalars.place_of(mem.load(index_from(job, st, source, first + j)))
                bounds.within(st, source, bounds.PLACE, place, 0, ring_of(job, st, source) - 1)
                x = ring_row_from(job, st, source, place)  # a row of the ring, even if the index entry is damaged
            else:
                x = ring_row_from(job, st, source, first + j)
            st[have + j] = x
            st[have + job[words.BATCH] + j] = staged_row(job, st, source, first + j) if staged else y + step * j
        have += rows


@jit
def gather(job, st, c, expert, target):
    """Fill a command with up to `target` pending rows of `expert`, rows of peers first.

    With sums all ranks of a node take sources and experts in the same order. So they complete the outputs for a source
    at about the same time, and the sums for this source cross while the outputs for the next source are computed.
    """
    me, world = job[words.RANK], job[words.WORLD]
    first = job[words.NODE_END] if job[words.SUMS] else me + 1
    st[words.command_kind(c)] = codes.EXPERT
    st[words.command_expert(c)] = expert
    st[words.command_parts(c)] = 0
    have = 0
    for i in range(world):
        source = (first + i) % world
        while source != me and have < target and st[words.pending(job, source, expert)] > 0:
            have += take_tile(job, st, c, source, expert, target - have)
    have += take_own(job, st, c, expert, target - have)
    st[words.command_rows(c)] = have
    st[words.expert_pending(job, expert)] -= have
    st[words.NEXT_EXPERT] = expert + job[words.SUMS]


@jit
def claim(job, st, worker):
    """Claim rows of one expert, or a share of a run. Returns the kind of command; IDLE if nothing should run now.

    A new column-split run is claimed before shares, so that its rows are listed while other workers still have shares.
    (Under the lock.)
    """
    if job[words.MODE] == codes.MODE_DISPATCH and st[words.TARGETS_SET] == 0:
        return codes.IDLE  # the places of rows are known only when every announcement has been read
    expert, active = choose(job, st)
    rows = st[words.expert_pending(job, expert)] if expert >= 0 else 0
    split = rows > 0 and column_runs.wanted(job, rows, active)
    if split:
        number = column_runs.free_number(job, st)
        if number >= 0:
            gather(job, st, words.run_command(job, number), expert, column_runs.run_rows(job, rows))
            column_runs.claim(job, st, worker, number)
            return codes.LIST
    if column_runs.take_share(job, st, worker):
        return codes.SHARE
    if rows == 0 or (split and job[words.ALL_SPLIT] != 0):
        return codes.IDLE
    c = words.command(job, worker)
    gather(job, st, c, expert, batch_rows(job, rows, active))
    return codes.EXPERT


@jit
def execute(job, st, worker):
    """Run the expert on the claimed rows. Each output goes to the address that `list_rows` lists for it."""
    c = words.command(job, worker)
    list_rows(job, st, c)
    if job[words.SCALARS] != 0:
        scalars.list_out(job, st, c)
    if job[words.MODE] == codes.MODE_BACKWARD:
        store.list_places(job, st, c)
    keep(job, st, c)
    compute(job, st, worker)
    if job[words.SCALARS] != 0:
        scalars.put_back(job, st, c)


@jit
def keep(job, st, c):
    """In a call with a tape, list the places where the listed rows are kept. A forward call also copies rows there."""
    if job[words.TAPED] != 0:
        tape.list_places(job, st, c)
        if job[words.MODE] == codes.MODE_LAYER:
            tape.keep_rows(job, st, c)


@jit
def compute(job, st, worker):
    """Run the expert on the listed rows, forwards or backwards, or copy them in an exchange."""
    c = words.command(job, worker)
    lists = st.ctypes.data + 8 * words.row_list(c)
    if job[words.MODE] == codes.MODE_BACKWARD:
        expert = st[words.command_expert(c)]
        back = call_records.backward_rows(
            job,
            rows=st[words.command_rows(c)],
            x=lists,
            y=lists + 8 * job[words.BATCH],
            places=st.ctypes.data + 8 * words.place_list(job, c),
            scalars=st.ctypes.data + 8 * words.scalar_list(job, c),
            weights=job[words.BACKWARD_WEIGHTS] + arithmetic.BACKWARD_WEIGHTS_BYTES * expert,
            scratch=job[words.SCRATCH] + job[words.SCRATCH_STEP] * worker,
            kept=tape.list_of(job, st, c),
        )
        arithmetic.backward_rows(job[words.KERNELS], back)
        return
    if job[words.MODE] == codes.MODE_LAYER:
        call = call_records.expert_rows(
            job,
            rows=st[words.command_rows(c)],
            x=lists,
            y=lists + 8 * job[words.BATCH],
            weights=column_runs.weights_of(job, st[words.command_expert(c)]),
            ffn=column_runs.ffn_of(job, st[words.command_expert(c)]),
            scratch=job[words.SCRATCH] + job[words.SCRATCH_STEP] * worker,
            kept=tape.list_of(job, st, c),
        )
        arithmetic.expert_rows(job[words.KERNELS], call)
        return
    for i in range(st[words.command_rows(c)]):
        mem.copy_row(st[words.output_list(job, c) + i], st[words.row_list(c) + i], job[words.ROW_BYTES])


@jit
def finish(job, st, worker, c):
    """Return and free those tiles that are complete now that a command's rows are computed.

    Own rows are noted in records `back` of the worker's command. (Under the lock.)
    """
    back = words.command(job, worker)
    for i in range(st[words.command_parts(c)]):
        part = words.part(job, c, i)
        source, where = st[words.part_source(part)], st[words.part_where(part)]
        rows = st[words.part_rows(part)]
        if source == job[words.RANK]:
            st[words.OWED] -= rows
            if store.computes(job):
                note_back(st, back, where, rows)
        else:
            finish_record(job, st, source, where, rows)


@jit
def publish(job, st, worker):
    """Publish that the claimed rows are computed. (Under the lock.)"""
    finish(job, st, worker, words.command(job, worker))


@jit
def list_run(job, st, worker):
    """List the rows of the column-split run that this worker has claimed. All its threads do this together."""
    number = st[words.command_run(words.command(job, worker))]
    list_rows(job, st, words.run_command(job, number))
    keep(job, st, words.run_command(job, number))
    column_runs.list_hidden(job, st, number)


@jit
def publish_run(job, st, worker):
    """Finish a run whose shares are all done, and free its number. (Under the lock.)"""
    number = st[words.command_run(words.command(job, worker))]
    finish(job, st, worker, words.run_command(job, number))
    column_runs.free(job, st, number)
