"""Step `route`: chooses experts and weights for a block of tokens, or checks ids and weights that the user gave."""

from kernel_cache.compile import jit

from ..primitives import arithmetic
from ..primitives import memory as mem
from . import call_records, codes, words


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
    """Route the claimed block, or check its ids and weights. The status is written into the command."""
    c = words.command(job, worker)
    first, count = st[words.command_first(c)], st[words.command_rows(c)]
    scratch = job[words.SCRATCH] + job[words.SCRATCH_STEP] * worker
    if job[words.ROUTED] != 0:
        status = _check(job, first, count)
    else:
        status = _route(job, first, count, scratch)
    if status == codes.OK and job[words.SHARED] != 0:
        status = _share(job, first, count, scratch)
    if status == codes.OK and job[words.ON_INPUT] != 0:
        _weigh_tokens(job, first, count, scratch)
    st[words.command_status(c)] = status


@jit
def _route(job, first, count, scratch):
    """Score tokens first..first+count. Write their choices to ids [S, k] int64 and weights [S, k] float32."""
    pitch, columns, logits = job[words.TOP_K], job[words.EXPERTS], job[words.LOGITS]
    if logits != 0:
        logits += 4 * columns * first
    call = call_records.route_block(
        job,
        tokens=count,
        x=job[words.ROUTER_X] + job[words.ROUTER_X_STRIDE] * first,
        experts=columns,
        ids=job[words.IDS] + 8 * pitch * first,
        weights=job[words.WEIGHTS] + 4 * pitch * first,
        pitch=pitch,
        logits=logits,
        scratch=scratch,
    )
    finite = arithmetic.route_block(job[words.KERNELS], call)
    return codes.OK if finite else codes.NOT_FINITE


@jit
def _share(job, first, count, scratch):
    """Make the shared expert the last choice of every token. Its weight is 1, or the logistic function of a score."""
    pitch = job[words.TOP_K]
    ids = mem.words(job[words.IDS] + 8 * pitch * first, pitch * count)
    weights = mem.floats(job[words.WEIGHTS] + 4 * pitch * first, pitch * count)
    for i in range(pitch - 1, pitch * count, pitch):
        ids[i] = job[words.EXPERTS]
        weights[i] = 1
    if job[words.SHARED_SIGMOID] == 0:
        return codes.OK
    call = call_records.weigh_shared(
        job,
        tokens=count,
        x=job[words.INPUT] + job[words.INPUT_STRIDE] * first,
        weights=job[words.WEIGHTS] + 4 * (pitch * first + pitch - 1),
        pitch=pitch,
        scratch=scratch,
    )
    finite = arithmetic.weigh_shared(job[words.KERNELS], call)
    return codes.OK if finite else codes.NOT_FINITE


@jit
def _weigh_tokens(job, first, count, scratch):
    """Multiply each token by the weight of its choice; the result is the row that travels. Then set the weight to 1."""
    pitch = job[words.TOP_K]
    ids = mem.words(job[words.IDS] + 8 * pitch * first, pitch * count)
    weights = mem.floats(job[words.WEIGHTS] + 4 * pitch * first, pitch * count)
    for i in range(count):
        t = first + i
        if ids[pitch * i] >= 0:
            y, x = job[words.X] + job[words.X_STRIDE] * t, job[words.INPUT] + job[words.INPUT_STRIDE] * t
            weight = job[words.WEIGHTS] + 4 * pitch * t
            call = call_records.weigh_row(job, y=y, weight=weight, x=x, scratch=scratch)
            arithmetic.weigh_row(job[words.KERNELS], call)
        if job[words.KEPT_WEIGHTS] != 0:
            mem.floats(job[words.KEPT_WEIGHTS] + 4 * pitch * t, 1)[0] = weights[pitch * i]
        weights[pitch * i] = 1


@jit
def _check(job, first, count):
    """Check a user's routing and return its status. Ids must be in -1..E-1, and a token may name no expert twice.

    The weight of a choice must be finite, unless its id is -1.
    """
    k, pitch, experts = job[words.CHOICES], job[words.TOP_K], job[words.EXPERTS]
    ids = mem.words(job[words.IDS] + 8 * pitch * first, pitch * count)
    weights = mem.floats(job[words.WEIGHTS] + 4 * pitch * first, pitch * count)
    for t in range(0, pitch * count, pitch):
        for i in range(t, t + k):
            e = ids[i]
            if e < -1 or e >= experts:
                return codes.BAD_IDS
            for j in range(t, i):
                if e >= 0 and ids[j] == e:
                    return codes.BAD_IDS
            if e >= 0 and weights[i] - weights[i] != 0:
                return codes.NOT_FINITE
    return codes.OK


@jit
def publish(job, st, worker):
    """Count the block as routed. The worst status of all blocks becomes the rank's. (Under the lock.)"""
    c = words.command(job, worker)
    st[words.ROUTE_DONE] += st[words.command_rows(c)]
    st[words.STATUS] = max(st[words.STATUS], st[words.command_status(c)])
