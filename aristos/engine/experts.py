"""Step `expert`: rows of one expert that have landed, from several sources, become one run of the expert kernel.

Which expert, and how many rows, is decided here: rows of remote sources before own rows (somebody waits for those), few
rows wait a little for announced ones when that saves reading the weights twice, many are shared between workers.
"""

from ..kernels.cpu.expert import expert_rows
from ..primitives import memory as mem
from ..primitives.compile import jit
from . import fields as f
from . import team
from .layout import index_from, return_row, ring_row_from, staged_row
from .returns import finish_record, note_back

GROUP = 6  # rows the micro-kernel likes to have together


@jit
def more_is_near(job, st, expert):
    """Are there announced rows of `expert` that can land without this rank freeing anything first?"""
    if st[job[f.T_EXPERT_COMING] + expert] == 0:
        return False
    for source in range(job[f.WORLD]):
        if source != job[f.RANK] and st[job[f.T_ANNOUNCED] + source] == f.SERVE:
            i = source * job[f.MAX_LOCAL] + expert
            end = st[job[f.T_SOURCE_END] + i]
            granted = st[job[f.T_FREED_ROWS] + source] + job[f.RING_ROWS]
            if st[job[f.T_READ_ROWS] + source] < end <= granted:
                return True
    return False


@jit
def choose(job, st):
    """(expert to run or -1, experts that have rows)."""
    local = job[f.LOCAL]
    remote, own, early, active = -1, -1, -1, 0
    for i in range(local):
        expert = st[f.NEXT_EXPERT] + i
        if expert >= local:
            expert -= local
        rows = st[job[f.T_EXPERT_PENDING] + expert]
        if rows == 0:
            continue
        active += 1
        if rows < job[f.MERGE_ROWS] and more_is_near(job, st, expert):
            early = expert if early < 0 else early
        elif st[job[f.T_EXPERT_REMOTE] + expert] > 0:
            remote = expert if remote < 0 else remote
        elif own < 0:
            own = expert
    if remote >= 0:
        return remote, active
    if own < 0 and st[f.IDLE_SWEEPS] > job[f.PATIENCE]:
        return early, active
    return own, active


@jit
def batch_rows(job, rows, active):
    """How many of `rows` pending rows to run at once, when `active` experts have rows: whole groups, equal batches."""
    batches = (rows + job[f.RUN_ROWS] - 1) // job[f.RUN_ROWS]
    share = (job[f.WORKERS] + active - 1) // active
    batches = max(batches, min(share, (rows + 2 * GROUP - 1) // (2 * GROUP)))
    size = (rows + batches - 1) // batches
    return min(job[f.BATCH], (size + GROUP - 1) // GROUP * GROUP)


@jit
def output_row(job, st, source, i, rows, packed):
    """Where outputs of `rows` rows begin: in the source's return rows, or next in an exchange's (expert, source)."""
    if job[f.MODE] != f.MODE_DISPATCH:
        return return_row(job, st, source, packed)
    target = st[job[f.T_TARGET] + i]
    st[job[f.T_TARGET] + i] = target + rows
    return job[f.OUT_ROWS] + job[f.ROW_BYTES] * target


@jit
def take_own(job, st, c, expert, room):
    """Add up to `room` of this rank's own rows, which are read in place from x; returns how many."""
    me = job[f.RANK]
    i = me * job[f.MAX_LOCAL] + expert
    rows = min(room, st[job[f.T_PENDING] + i])
    if rows == 0:
        return 0
    packed = st[job[f.T_NEXT] + i]
    y = output_row(job, st, me, i, rows, packed)
    st[job[f.T_NEXT] + i] = packed + rows
    st[job[f.T_PENDING] + i] -= rows
    add_part(job, st, c, me, packed, rows, packed, y)
    return rows


@jit
def take_remote(job, st, c, source, expert, room):
    """Add up to `room` rows from the front tile of `source` for `expert`, which are read in place from the ring."""
    i = source * job[f.MAX_LOCAL] + expert
    tile, taken = st[job[f.T_NEXT] + i], st[job[f.T_TAKEN] + i]
    r = job[f.T_RECORD] + f.RECORD_WORDS * (source * job[f.SLOTS] + tile % job[f.SLOTS])
    rows = min(room, st[r + f.R_ROWS] - taken)
    first = st[r + f.R_ROW] + taken
    y = output_row(job, st, source, i, rows, st[r + f.R_PACKED] + taken)
    if taken + rows == st[r + f.R_ROWS]:
        st[job[f.T_NEXT] + i] = st[r + f.R_NEXT]
        st[job[f.T_TAKEN] + i] = 0
    else:
        st[job[f.T_TAKEN] + i] = taken + rows
    st[job[f.T_PENDING] + i] -= rows
    st[job[f.T_EXPERT_REMOTE] + expert] -= rows
    add_part(job, st, c, source, tile, rows, first, y)
    return rows


@jit
def part_at(job, c, i):
    """Where part i of a command starts in the state: behind its lists."""
    return c + f.C_LISTS + f.LISTS * job[f.BATCH] + f.PART_WORDS * i


@jit
def add_part(job, st, c, source, where, rows, first, y):
    """Note whose rows these are, where they are read from, and where their outputs begin: see PART_WORDS."""
    part = part_at(job, c, st[c + f.C_PARTS])
    st[part] = source
    st[part + 1] = where
    st[part + 2] = rows
    st[part + 3] = first
    st[part + 4] = y
    st[c + f.C_PARTS] += 1


@jit
def list_rows(job, st, c):
    """The addresses of a command's rows and of their outputs, from its parts: all threads of the worker together."""
    step = job[f.ROW_BYTES] if job[f.MODE] == f.MODE_DISPATCH else job[f.RETURN_STRIDE]
    have = c + f.C_LISTS
    for i in range(st[c + f.C_PARTS]):
        part = part_at(job, c, i)
        source, rows, first, y = st[part], st[part + 2], st[part + 3], st[part + 4]
        far = st[job[f.T_FAR] + source] != 0
        staged = far and job[f.MODE] == f.MODE_LAYER
        for j in range(mem.thread(), rows, mem.threads()):
            if source == job[f.RANK]:
                x = job[f.X] + job[f.X_STRIDE] * st[job[f.T_TOKEN] + first + j]
            elif far:  # pairs, whose rows its index tells, and whose outputs wait to be put
                x = ring_row_from(job, st, source, mem.load(index_from(job, st, source, first + j)))
            else:
                x = ring_row_from(job, st, source, first + j)
            st[have + j] = x
            st[have + job[f.BATCH] + j] = staged_row(job, st, source, first + j) if staged else y + step * j
        have += rows


@jit
def gather(job, st, c, expert, target):
    """Fill a command with up to `target` pending rows of `expert`, remote sources first."""
    me, world = job[f.RANK], job[f.WORLD]
    st[c + f.C_KIND] = f.EXPERT
    st[c + f.C_A] = expert
    st[c + f.C_PARTS] = 0
    have = 0
    for i in range(1, world):
        source = (me + i) % world
        while have < target and st[job[f.T_PENDING] + source * job[f.MAX_LOCAL] + expert] > 0:
            have += take_remote(job, st, c, source, expert, target - have)
    have += take_own(job, st, c, expert, target - have)
    st[c + f.C_ROWS] = have
    st[job[f.T_EXPERT_PENDING] + expert] -= have
    st[f.NEXT_EXPERT] = expert


@jit
def claim(job, st, worker):
    """Claim rows of one expert, or a share of a run; the kind of command, IDLE if none should run now.

    A run that is to be shared comes before shares: its rows are listed while others have those. (Under the lock.)
    """
    if job[f.MODE] == f.MODE_DISPATCH and st[f.TARGETS_SET] == 0:
        return f.IDLE  # where rows are copied to is known when every announcement is read
    expert, active = choose(job, st)
    rows = st[job[f.T_EXPERT_PENDING] + expert] if expert >= 0 else 0
    shared = rows > 0 and team.wanted(job, rows, active)
    if shared:
        slot = team.free_slot(job, st)
        if slot >= 0:
            gather(job, st, team.command(job, slot), expert, team.run_rows(job, rows))
            team.claim(job, st, worker, slot)
            return f.LIST
    if team.take(job, st, worker):
        return f.TEAM
    if rows == 0 or (shared and job[f.ALL_SHARED] != 0):
        return f.IDLE
    c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
    gather(job, st, c, expert, batch_rows(job, rows, active))
    return f.EXPERT


@jit
def execute(job, st, worker):
    """Run the expert on the claimed rows, its outputs going straight into the sources' return rows."""
    list_rows(job, st, job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker)
    compute(job, st, worker)


@jit
def compute(job, st, worker):
    """Run the expert on the rows that are listed, or copy them in an exchange."""
    c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
    lists = st.ctypes.data + 8 * (c + f.C_LISTS)
    if job[f.MODE] == f.MODE_LAYER:
        expert_rows(
            st[c + f.C_ROWS],
            lists,
            lists + 8 * job[f.BATCH],
            team.weights_of(job, st[c + f.C_A]),
            job[f.ACTIVATION],
            job[f.HIDDEN],
            job[f.FFN],
            job[f.SCRATCH] + job[f.SCRATCH_STEP] * worker,
            job[f.WIRE],
        )
        return
    for i in range(st[c + f.C_ROWS]):
        mem.copy_row(st[c + f.C_LISTS + job[f.BATCH] + i], st[c + f.C_LISTS + i], job[f.ROW_BYTES])


@jit
def finish(job, st, worker, c):
    """The rows of a command have had their reader: return and free what is complete; own rows are back.

    (Under the lock.) worker: who notes those, at most one piece of them.
    """
    back = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
    for i in range(st[c + f.C_PARTS]):
        part = part_at(job, c, i)
        source, where, rows = st[part], st[part + 1], st[part + 2]
        if source == job[f.RANK]:
            st[f.OWED] -= rows
            if job[f.MODE] == f.MODE_LAYER:
                note_back(st, back, where, rows)
        else:
            finish_record(job, st, source, where, rows)


@jit
def publish(job, st, worker):
    """The claimed rows are computed. (Under the lock.)"""
    finish(job, st, worker, job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker)


@jit
def list_run(job, st, worker):
    """List the rows of the shared run that this worker has claimed: all its threads together."""
    slot = st[job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker + f.C_RUN]
    list_rows(job, st, team.command(job, slot))
    team.list_hidden(job, st, slot)


@jit
def publish_run(job, st, worker):
    """All shares of a run are done: finish it, free its slot. (Under the lock.)"""
    slot = st[job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker + f.C_RUN]
    finish(job, st, worker, team.command(job, slot))
    team.free(job, st, slot)
