"""Runs of an expert that workers share by columns, so that few rows use every core, and many blocks one machine.

A run lives in a *slot*, which has a command of its own behind those of the workers, and hidden activations of its own.
It is claimed under the rank's lock; the claimer lists its rows and opens it. Then it is `UP_SHARES` shares of the
hidden activations and, when they are all there, `DOWN_SHARES` of the outputs, taken and counted without the lock: NEXT,
LIMIT and DONE of a slot count shares as long as the engine lives. Whoever takes a share moves NEXT on by
compare_exchange, as long as it is below LIMIT; a number is never there twice, so nobody takes a share of one run for
that of another. BASE is where the run's begin: it is written before LIMIT, and stays while one of its shares is not
done. No sum is split between workers, so bits do not depend on who takes what.
"""

from ..kernels.cpu.expert import down_columns, up_columns
from ..primitives import memory as mem
from ..primitives.compile import jit
from . import fields as f
from .returns import state_word

COLUMNS = 128  # of a share, on CPUs: a multiple of every panel width
MOST_ROWS = 24  # of a run that is shared, on CPUs
SHARES_A_LOOK = 8  # shares that a rank's workers take for each time that one of them tries to look after peers


def scratch_bytes(ffn: int, gated: bool) -> int:
    """Bytes a CPU rank needs for the hidden activations of a shared run."""
    return 4 * MOST_ROWS * -(-ffn // COLUMNS) * COLUMNS * (2 if gated else 1) + 64


def shares(columns: int) -> int:
    """Shares of so many columns, on CPUs."""
    return -(-columns // COLUMNS)


@jit
def command(job, slot):
    """Where a shared run's command starts in the state."""
    return job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * (job[f.ALL_WORKERS] + slot)


@jit
def hidden(job, slot):
    """Address of a shared run's hidden activations."""
    return job[f.SCRATCH] + job[f.SCRATCH_STEP] * job[f.ALL_WORKERS] + job[f.RUN_STEP] * slot


@jit
def free_slot(job, st):
    """A slot without a run, -1 if there is none. (Under the lock.)"""
    if st[f.RUNS_TAKEN] == job[f.RUNS]:
        return -1
    for slot in range(job[f.RUNS]):
        if st[job[f.T_RUN] + f.RUN_WORDS * slot + f.RUN_TAKEN] == 0:
            return slot
    return -1


@jit
def wanted(job, rows, active):
    """Is it better to share these rows by columns: too few to share by rows, and too few experts for all workers?"""
    if job[f.MODE] != f.MODE_LAYER:
        return False
    few = rows <= job[f.TEAM_ROWS] and active < job[f.WORKERS] and job[f.FFN] >= 2 * COLUMNS
    return job[f.ALL_SHARED] != 0 or few


@jit
def run_rows(job, rows):
    """Rows of the next of the runs that `rows` rows are cut into, of nearly equal size."""
    runs = (rows + job[f.TEAM_ROWS] - 1) // job[f.TEAM_ROWS]
    return (rows + runs - 1) // runs


@jit
def claim(job, st, worker, slot):
    """The slot has a run, whose command is filled: this worker lists its rows. (Decide, under the lock.)"""
    st[job[f.T_RUN] + f.RUN_WORDS * slot + f.RUN_TAKEN] = 1
    st[f.RUNS_TAKEN] += 1
    c, run = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker, command(job, slot)
    st[c + f.C_KIND] = f.LIST
    st[c + f.C_A] = st[run + f.C_A]
    st[c + f.C_ROWS] = st[run + f.C_ROWS]
    st[c + f.C_RUN] = slot


@jit
def list_hidden(job, st, slot):
    """Addresses of the rows of a run's hidden activations: all threads of the claimer together."""
    c = command(job, slot)
    for i in range(mem.thread(), st[c + f.C_ROWS], mem.threads()):
        st[c + f.C_LISTS + 2 * job[f.BATCH] + i] = hidden(job, slot) + job[f.RUN_PITCH] * i


@jit
def open_half(job, run, limit):
    """Shares below `limit` may be taken."""
    mem.store_release(state_word(job, run + f.RUN_LIMIT), limit)
    mem.fetch_add(state_word(job, f.RUNS_OPENED), 1)  # after it: who has seen this looks at the limit


@jit
def open_run(job, st, slot):
    """The rows are listed: shares of the first half may be taken."""
    run = job[f.T_RUN] + f.RUN_WORDS * slot
    base = mem.load_acquire(state_word(job, run + f.RUN_LIMIT))  # all shares before are done
    st[run + f.RUN_BASE] = base
    open_half(job, run, base + job[f.UP_SHARES])


@jit
def take_from(job, st, worker, slot):
    """Take a share of a slot's run; False if there is none now."""
    run = job[f.T_RUN] + f.RUN_WORDS * slot
    limit = mem.load_acquire(state_word(job, run + f.RUN_LIMIT))
    share = mem.load_acquire(state_word(job, run + f.RUN_NEXT))
    while share < limit:
        if mem.compare_exchange(state_word(job, run + f.RUN_NEXT), share, share + 1):
            share -= st[run + f.RUN_BASE]  # of the run that this is a share of: it cannot end before it
            stage = f.STAGE_UP if share < job[f.UP_SHARES] else f.STAGE_DOWN
            c, whole = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker, command(job, slot)
            st[c + f.C_KIND] = f.TEAM
            st[c + f.C_A] = st[whole + f.C_A]
            st[c + f.C_B] = share - job[f.UP_SHARES] * stage
            st[c + f.C_C] = stage
            st[c + f.C_ROWS] = st[whole + f.C_ROWS]
            st[c + f.C_RUN] = slot
            return True
        share = mem.load_acquire(state_word(job, run + f.RUN_NEXT))
    return False


@jit
def share_first(job, st, worker):
    """May this worker take a share before it looks after peers? Few workers look first, many in turns."""
    c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
    return (st[c + f.C_SHARES] + worker) % (1 + job[f.WORKERS] // SHARES_A_LOOK) != 0


@jit
def take(job, st, worker):
    """Take a share of any run, first of the one this worker has been at; False if there is none. Without the lock."""
    c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
    opened = mem.load_acquire(state_word(job, f.RUNS_OPENED))
    if st[c + f.C_OPENED] == opened:
        return False
    slot = st[c + f.C_RUN]
    for _ in range(job[f.RUNS]):
        if take_from(job, st, worker, slot):
            st[c + f.C_SHARES] += 1
            return True
        slot = slot + 1 if slot + 1 < job[f.RUNS] else 0
    st[c + f.C_OPENED] = opened
    return False


@jit
def weights_of(job, expert):
    """Addresses (up, gate, down, up_bias, gate_bias, down_bias) of a local expert's weights, 0 for what it has not."""
    gate, up_bias, gate_bias, down_bias = job[f.GATE], job[f.UP_BIAS], job[f.GATE_BIAS], job[f.DOWN_BIAS]
    return (
        job[f.UP] + job[f.UP_STEP] * expert,
        gate + job[f.UP_STEP] * expert if gate != 0 else 0,
        job[f.DOWN] + job[f.DOWN_STEP] * expert,
        up_bias + job[f.UP_BIAS_STEP] * expert if up_bias != 0 else 0,
        gate_bias + job[f.UP_BIAS_STEP] * expert if gate_bias != 0 else 0,
        down_bias + job[f.DOWN_BIAS_STEP] * expert if down_bias != 0 else 0,
    )


@jit
def execute(job, st, worker):
    """Compute the taken columns for all rows of the run, on a CPU."""
    c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
    expert, first, rows, slot = st[c + f.C_A], st[c + f.C_B] * COLUMNS, st[c + f.C_ROWS], st[c + f.C_RUN]
    x = state_word(job, command(job, slot) + f.C_LISTS)
    weights = weights_of(job, expert)
    tables = job[f.SCRATCH] + job[f.SCRATCH_STEP] * worker
    activations, wire = hidden(job, slot), job[f.WIRE]
    if st[c + f.C_C] == f.STAGE_UP:
        columns = min(COLUMNS, job[f.FFN] - first)
        up_columns(
            rows, x, activations, weights, job[f.ACTIVATION], job[f.HIDDEN], job[f.FFN], first, columns, tables, wire
        )
    else:
        last = min(first + COLUMNS, job[f.HIDDEN])
        down_columns(rows, activations, x + 8 * job[f.BATCH], weights, job[f.FFN], first, last, tables, wire)


@jit
def share_done(job, st, slot):
    """Count a share; True if it was the run's last: then the run is to be finished and its slot freed."""
    run = job[f.T_RUN] + f.RUN_WORDS * slot
    base, up, down = st[run + f.RUN_BASE], job[f.UP_SHARES], job[f.DOWN_SHARES]
    done = mem.fetch_add(state_word(job, run + f.RUN_DONE), 1) + 1 - base
    if done == up:  # whoever takes a share of the second half knows of the whole first
        open_half(job, run, base + up + down)
    return done == up + down


@jit
def free(job, st, slot):
    """The slot may have another run. (Under the lock.)"""
    st[job[f.T_RUN] + f.RUN_WORDS * slot + f.RUN_TAKEN] = 0
    st[f.RUNS_TAKEN] -= 1
