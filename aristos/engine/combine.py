"""Step `combine`: tokens whose rows are all back become output, choices in order, in float32, rounded once."""

from ..kernels.cpu.tokens import combine_token
from ..primitives import memory as mem
from ..primitives.compile import jit
from . import fields as f
from .layout import row_back
from .returns import state_word


@jit
def claim(job, st, worker):
    """Claim a block of tokens that misses no row; False if there is none. (Decide, under the lock.)"""
    ready = mem.load_acquire(state_word(job, job[f.T_READY] + st[f.READY_NEXT]))
    if ready == 0:
        return False
    st[f.READY_NEXT] += 1
    c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
    first = (ready - 1) * f.TOKEN_BLOCK
    st[c + f.C_KIND] = f.COMBINE
    st[c + f.C_A] = first
    st[c + f.C_ROWS] = min(f.TOKEN_BLOCK, job[f.TOKENS] - first)
    return True


@jit
def list_rows(job, st, worker):
    """Addresses of the rows that the claimed tokens' choices came back to, k a token; 0 for a choice not taken."""
    c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
    k, rows = job[f.TOP_K], c + f.C_LISTS
    for i in range(mem.thread(), k * st[c + f.C_ROWS], mem.threads()):
        packed = st[job[f.T_POSITION] + k * st[c + f.C_A] + i]
        st[rows + i] = row_back(job, st, packed) if packed >= 0 else 0


@jit
def execute(job, st, worker):
    """y[t] = sum over j of weights[t, j] * return row of (t, j), for the claimed tokens."""
    list_rows(job, st, worker)
    c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
    first, k, rows = st[c + f.C_A], job[f.TOP_K], c + f.C_LISTS
    for i in range(st[c + f.C_ROWS]):
        t = first + i
        weights = mem.floats(job[f.WEIGHTS] + 4 * k * t, k)
        combine_token(job[f.Y] + job[f.ROW_BYTES] * t, k, weights, st[rows : rows + k], job[f.HIDDEN])
        rows += k


@jit
def publish(job, st, worker):
    """One block less to go. (Under the lock.)"""
    st[f.BLOCKS_LEFT] -= 1
