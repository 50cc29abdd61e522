"""Few rows, many workers: one run of an expert shared by columns, so that decoding uses every core of a rank.

First all workers that are free make the hidden activations, COLUMNS of F a share; when they are all there, the output,
COLUMNS of H a share. One such run at a time; its rows lie in a command of its own, after those of the workers. No sum
is split between workers, so bits do not depend on it.
"""

from ..compile import jit
from ..kernels.cpu.expert import down_columns, up_columns
from . import fields as f

COLUMNS = 128  # a multiple of every panel width
MOST_ROWS = 24


def scratch_bytes(ffn: int, gated: bool) -> int:
    """Bytes a rank needs for the hidden activations of a shared run."""
    return 4 * MOST_ROWS * -(-ffn // COLUMNS) * COLUMNS * (2 if gated else 1) + 64


@jit
def command(job):
    """Where the shared run's command starts in the state."""
    return job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * job[f.WORKERS]


@jit
def shares(job, st):
    """Shares of the stage that the run is in."""
    columns = job[f.FFN] if st[f.TEAM_STAGE] == f.STAGE_UP else job[f.HIDDEN]
    return (columns + COLUMNS - 1) // COLUMNS


@jit
def wanted(job, st, rows, active):
    """Is it better to share these rows by columns: too few to share by rows, and too few experts for all workers?"""
    return (
        job[f.MODE] == f.MODE_LAYER
        and st[f.TEAM_OPEN] == 0
        and rows <= MOST_ROWS
        and active < job[f.WORKERS]
        and job[f.FFN] >= 2 * COLUMNS
    )


@jit
def open_run(st):
    """Begin the run whose command has just been filled."""
    st[f.TEAM_OPEN] = 1
    st[f.TEAM_STAGE] = f.STAGE_UP
    st[f.TEAM_NEXT] = 0
    st[f.TEAM_DONE] = 0


@jit
def claim(job, st, worker):
    """Claim a share of the open run; False if there is none now. (Decide, under the lock.)"""
    if st[f.TEAM_OPEN] == 0 or st[f.TEAM_NEXT] >= shares(job, st):
        return False
    c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
    st[c + f.C_KIND] = f.TEAM
    st[c + f.C_A] = st[command(job) + f.C_A]
    st[c + f.C_B] = st[f.TEAM_NEXT] * COLUMNS
    st[c + f.C_C] = st[f.TEAM_STAGE]
    st[c + f.C_ROWS] = st[command(job) + f.C_ROWS]
    st[f.TEAM_NEXT] += 1
    return True


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
    """Compute the claimed columns for all rows of the run."""
    c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
    expert, first, rows = st[c + f.C_A], st[c + f.C_B], st[c + f.C_ROWS]
    x = st.ctypes.data + 8 * (command(job) + f.C_LISTS)
    weights = weights_of(job, expert)
    tables = job[f.SCRATCH] + job[f.SCRATCH_STEP] * worker
    activations = job[f.SCRATCH] + job[f.SCRATCH_STEP] * job[f.ALL_WORKERS]
    wire = job[f.WIRE]
    if st[c + f.C_C] == f.STAGE_UP:
        columns = min(COLUMNS, job[f.FFN] - first)
        up_columns(
            rows, x, activations, weights, job[f.ACTIVATION], job[f.HIDDEN], job[f.FFN], first, columns, tables, wire
        )
    else:
        last = min(first + COLUMNS, job[f.HIDDEN])
        down_columns(rows, activations, x + 8 * job[f.BATCH], weights, job[f.FFN], first, last, tables, wire)


@jit
def share_done(job, st):
    """Count a share; True if it was the run's last. (Under the lock.)"""
    st[f.TEAM_DONE] += 1
    if st[f.TEAM_DONE] < shares(job, st):
        return False
    st[f.TEAM_NEXT] = 0
    st[f.TEAM_DONE] = 0
    if st[f.TEAM_STAGE] == f.STAGE_UP:
        st[f.TEAM_STAGE] = f.STAGE_DOWN
        return False
    st[f.TEAM_OPEN] = 0
    return True
