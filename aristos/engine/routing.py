"""Step `route`: a block of tokens gets its experts and weights, or what came from outside is checked."""

from ..kernels.common.scores import choose
from ..kernels.cpu.panels import LANES
from ..kernels.cpu.tokens import scores
from ..primitives import memory as mem
from ..primitives.compile import jit
from . import fields as f


def scratch_bytes(panels: int) -> int:
    """Bytes a route command needs: row addresses and the scores of a block of tokens."""
    return f.TOKEN_BLOCK * (2 * 8 + 4 * LANES * panels) + 64


@jit
def claim(job, st, worker):
    """Claim a block of tokens; True if there was one. (Decide, under the lock.)"""
    first = st[f.ROUTE_NEXT]
    if first >= job[f.TOKENS]:
        return False
    count = min(f.TOKEN_BLOCK, job[f.TOKENS] - first)
    st[f.ROUTE_NEXT] = first + count
    c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
    st[c + f.C_KIND] = f.ROUTE
    st[c + f.C_A] = first
    st[c + f.C_ROWS] = count
    st[c + f.C_C] = f.OK
    return True


@jit
def execute(job, st, worker):
    """Route the claimed block, or check the ids and weights given for it; leaves a status in the command."""
    c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
    first, count = st[c + f.C_A], st[c + f.C_ROWS]
    if job[f.ROUTED] != 0:
        st[c + f.C_C] = _check(job, first, count)
    else:
        st[c + f.C_C] = _route(job, first, count, job[f.SCRATCH] + job[f.SCRATCH_STEP] * worker)


@jit
def _route(job, first, count, scratch):
    """Scores, top-k and weights of tokens first..first+count into IDS [S, k] int64 and WEIGHTS [S, k] float32."""
    k, experts = job[f.TOP_K], job[f.EXPERTS]
    width = LANES * job[f.ROUTER_PANELS]
    out = (scratch + 16 * count + 63) // 64 * 64
    x = job[f.X] + job[f.X_STRIDE] * first
    scores(count, x, job[f.X_STRIDE], job[f.HIDDEN], job[f.ROUTER], job[f.ROUTER_PANELS], scratch, out)
    scale = mem.float_of_bits(job[f.SCALE])
    for i in range(count):
        row = mem.floats(out + 4 * width * i, experts)
        ids = mem.words(job[f.IDS] + 8 * k * (first + i), k)
        weights = mem.floats(job[f.WEIGHTS] + 4 * k * (first + i), k)
        if not choose(row, experts, k, job[f.SCORE], job[f.RENORMALIZE], scale, ids, weights):
            return f.NOT_FINITE
    return f.OK


@jit
def _check(job, first, count):
    """Ids in -1..E-1, none twice in a token; weights of choices taken finite."""
    k, experts = job[f.TOP_K], job[f.EXPERTS]
    ids = mem.words(job[f.IDS] + 8 * k * first, k * count)
    weights = mem.floats(job[f.WEIGHTS] + 4 * k * first, k * count)
    for i in range(k * count):
        e = ids[i]
        if e < -1 or e >= experts:
            return f.BAD_IDS
        for j in range(i - i % k, i):
            if e >= 0 and ids[j] == e:
                return f.BAD_IDS
        if e >= 0 and weights[i] - weights[i] != 0:
            return f.NOT_FINITE
    return f.OK


@jit
def publish(job, st, worker):
    """Count the block as routed; the worst status of any block is the rank's. (Under the lock.)"""
    c = job[f.T_COMMAND] + job[f.T_COMMAND_STEP] * worker
    st[f.ROUTE_DONE] += st[c + f.C_ROWS]
    st[f.STATUS] = max(st[f.STATUS], st[c + f.C_C])
