"""Step `combine`: adds the weighted rows of each token whose rows are all back, in the order of choices.

The sum is float32, and is rounded once.
"""

from kernel_cache.compile import jit

from ..primitives import arithmetic
from ..primitives import memory as mem
from . import call_records, codes, scalars, words
from .layout import alone, in_a_sum, lines_of, owner_back, row_back, state_word
from .streams import has_sums

ONE = 0x3F800000  # the bits of 1 in float32


@jit
def claim(job, st, worker):
    """Claim a block of tokens whose rows are all back; False if there is none. (Decide, under the lock.)"""
    ready = mem.load_acquire(state_word(job, words.ready(job, st[words.READY_NEXT])))
    if ready == 0:
        return False
    st[words.READY_NEXT] += 1
    c = words.command(job, worker)
    first = (ready - 1) * words.TOKEN_BLOCK
    st[words.command_kind(c)] = codes.COMBINE
    st[words.command_first(c)] = first
    st[words.command_rows(c)] = min(words.TOKEN_BLOCK, job[words.TOKENS] - first)
    return True


@jit
def list_rows(job, st, worker):
    """List the addresses of the claimed tokens' rows, k for each token; 0 for a choice without a row.

    Such a choice is not taken (id -1) or dropped, or its output is in a sum. An identity expert's row is the token
    itself. All threads of the worker do this together.
    """
    c = words.command(job, worker)
    k, rows = job[words.TOP_K], words.row_list(c)
    first = k * st[words.command_first(c)]
    for i in range(mem.thread(), k * st[words.command_rows(c)], mem.threads()):
        packed = st[words.position(job, first + i)]
        if packed >= 0:
            st[rows + i] = 0 if has_sums(job) and in_a_sum(job, st, packed) else row_back(job, st, packed)
        elif job[words.IDENTITY] != 0 and mem.load(job[words.IDS] + 8 * (first + i)) >= 0:
            st[rows + i] = job[words.INPUT] + job[words.INPUT_STRIDE] * ((first + i) // k)
        else:
            st[rows + i] = 0


@jit
def set_weights(job, st, t, weights):
    """Write a token's k combine weights at the address `weights`. Returns this address.

    A sum from a remote node gets the weight 1, because the outputs in the sum are already weighted. An output that is
    alone is not.
    """
    k = job[words.TOP_K]
    for j in range(k):
        packed = st[words.position(job, k * t + j)]
        remote = packed >= 0 and st[words.remote(job, owner_back(job, st, packed))] != 0
        weighted = remote and not alone(job, st, packed)
        scalars.set_weight(weights, j, ONE if weighted else scalars.weight_at(job[words.WEIGHTS], k * t + j))
    return weights


@jit
def execute(job, st, worker):
    """y[t] = sum over j of weights[t, j] * the return row of (t, j), for the claimed tokens.

    A row that is the sum of a remote node counts with weight 1.
    """
    list_rows(job, st, worker)
    c = words.command(job, worker)
    if job[words.SCALARS] != 0:
        scalars.take_back(job, st, c)
    first, k, rows = st[words.command_first(c)], job[words.TOP_K], words.row_list(c)
    scratch = job[words.SCRATCH] + job[words.SCRATCH_STEP] * worker
    space = scratch + lines_of(4 * k) if has_sums(job) else scratch
    for i in range(st[words.command_rows(c)]):
        t = first + i
        weights = job[words.WEIGHTS] + 4 * k * t
        y = job[words.Y] + job[words.RETURN_BYTES] * t
        if has_sums(job):
            weights = set_weights(job, st, t, scratch)
        call = call_records.combine_token(job, y=y, k=k, weights=weights, rows=state_word(job, rows), scratch=space)
        arithmetic.combine_token(job[words.KERNELS], call)
        rows += k


@jit
def publish(job, st, worker):
    """Publish the combined block. (Under the lock.)"""
    st[words.BLOCKS_LEFT] -= 1
