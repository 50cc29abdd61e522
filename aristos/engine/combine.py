"""Step `combine`: tokens whose rows are all back become output, choices in order, in float32, rounded once."""

from .. import memory as mem
from ..compile import jit
from ..kernels.cpu.tokens import combine_token
from . import fields as f
from .layout import row_back


@jit
def claim(job, st, worker):
    """Claim a block of tokens that misses no row; False if there is none. (Decide, under the lock.)"""
    if st[f.READY_COUNT] == 0:
        return False
    st[f.READY_COUNT] -= 1
    c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
    first = st[job[f.T_READY] + st[f.READY_COUNT]] * f.TOKEN_BLOCK
    st[c + f.C_KIND] = f.COMBINE
    st[c + f.C_A] = first
    st[c + f.C_ROWS] = min(f.TOKEN_BLOCK, job[f.TOKENS] - first)
    return True


@jit
def execute(job, st, worker):
    """y[t] = sum over j of weights[t, j] * return row of (t, j), for the claimed tokens."""
    c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
    first, k, hidden, rows = st[c + f.C_A], job[f.TOP_K], job[f.HIDDEN], c + f.C_LISTS
    for t in range(first, first + st[c + f.C_ROWS]):
        weights = mem.floats(job[f.WEIGHTS] + 4 * k * t, k)
        for j in range(k):
            packed = st[job[f.T_POSITION] + k * t + j]
            st[rows + j] = row_back(job, st, packed) if packed >= 0 else 0
        combine_token(job[f.Y] + 4 * hidden * t, k, weights, st[rows : rows + k], hidden)


@jit
def publish(job, st, worker):
    """One block less to go. (Under the lock.)"""
    st[f.BLOCKS_LEFT] -= 1
