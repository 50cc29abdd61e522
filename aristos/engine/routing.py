"""Step `route`: choose experts and weights for a block of tokens, or check those that the user gave."""

from ..primitives import arithmetic
from ..primitives import memory as mem
from ..primitives.compile import jit
from . import codes, words


@jit
def claim(job, st, worker):
    """Claim a block of tokens; False if none is left. (Decide, under the lock.)"""
    first = st[words.ROUTE_NEXT]
    if first >= job[words.TOKENS]:
        return False
    count = min(words.TOKEN_BLOCK, job[words.TOKENS] - first)
    st[words.ROUTE_NEXT] = first + count
    c = words.command(job, worker)
    st[words.command_kind(c)] = codes.ROUTE
    st[words.command_first(c)] = first
    st[words.command_rows(c)] = count
    st[words.command_status(c)] = codes.OK
    return True


@jit
def execute(job, st, worker):
    """Route the claimed block, or check its ids and weights; the command gets the status."""
    c = words.command(job, worker)
    first, count = st[words.command_first(c)], st[words.command_rows(c)]
    if job[words.ROUTED] != 0:
        st[words.command_status(c)] = _check(job, first, count)
    else:
        st[words.command_status(c)] = _route(job, first, count, job[words.SCRATCH] + job[words.SCRATCH_STEP] * worker)


@jit
def _route(job, first, count, scratch):
    """Scores, top-k and weights of tokens first..first+count into ids [S, k] int64 and weights [S, k] float32."""
    k = job[words.TOP_K]
    finite = arithmetic.route_block(
        job[words.KERNELS],
        count,
        job[words.X] + job[words.X_STRIDE] * first,
        job[words.X_STRIDE],
        job[words.HIDDEN],
        job[words.ROUTER],
        job[words.EXPERTS],
        k,
        job[words.SCORE],
        job[words.RENORMALIZE],
        job[words.SCALE],
        job[words.IDS] + 8 * k * first,
        job[words.WEIGHTS] + 4 * k * first,
        scratch,
    )
    return codes.OK if finite else codes.NOT_FINITE


@jit
def _check(job, first, count):
    """Status of given routing: ids in -1..E-1, none twice in a token; weights of the choices taken finite."""
    k, experts = job[words.TOP_K], job[words.EXPERTS]
    ids = mem.words(job[words.IDS] + 8 * k * first, k * count)
    weights = mem.floats(job[words.WEIGHTS] + 4 * k * first, k * count)
    for i in range(k * count):
        e = ids[i]
        if e < -1 or e >= experts:
            return codes.BAD_IDS
        for j in range(i - i % k, i):
            if e >= 0 and ids[j] == e:
                return codes.BAD_IDS
        if e >= 0 and weights[i] - weights[i] != 0:
            return codes.NOT_FINITE
    return codes.OK


@jit
def publish(job, st, worker):
    """Count the block as routed; the worst status of any block is the rank's. (Under the lock.)"""
    c = words.command(job, worker)
    st[words.ROUTE_DONE] += st[words.command_rows(c)]
    st[words.STATUS] = max(st[words.STATUS], st[words.command_status(c)])
