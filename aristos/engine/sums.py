"""Step `sum`: a node adds up its weighted outputs for a token, so that they cross as one row (combine="sums").

It applies in forward calls with two levels, to the streams of remote sources. An owner stages its outputs as it does
without sums. When all owners of the node have staged all outputs of a bundle, each owner adds up the outputs of those
tokens for which the source names it, in the order of pairs: by rank, then by expert. It writes each sum in
place of its own output. Then it returns its tiles of the bundle, and gives credit. Only sums are put. So an owner's
credit says that the owner has finished reading the node's staged outputs.

Every owner publishes marks: for each source, a word at each local peer that says up to which pair the owner has staged
its outputs. It does so in every call, also without sums, because a local peer may have made a call with sums
(`streams.note_staged`).
"""

from kernel_cache.compile import jit

from ..primitives import arithmetic
from ..primitives import memory as mem
from . import bounds, call_records, codes, scalars, words
from .layout import index_from, lines_of, link_from, mark_from, staged_row, state_word
from .returns import free_rows, post_return


@jit
def all_staged(job, st, source, pair):
    """Whether all ranks of this node have staged their outputs for a source's pairs before number `pair`.

    If not, LATE_OWNER becomes a rank that has not staged them.
    """
    read, freed, ring = st[words.read_rows(job, source)], st[words.freed_rows(job, source)], job[words.RING_ROWS]
    for p in range(job[words.NODE_FIRST], job[words.NODE_END]):
        if p == job[words.RANK]:
            continue
        staged = mem.arrived(mark_from(job, st, p, source))
        if not bounds.within(st, p, bounds.STAGED, staged, read - ring, freed + ring) or staged < pair:
            st[words.LATE_OWNER] = p
            return False
    return True


@jit
def claim(job, st, worker):
    """Claim a source's first bundle, all of whose outputs are staged; False if there is none. (Under the lock.)"""
    if st[words.UNSUMMED] == 0:
        return False
    st[words.LATE_OWNER] = job[words.RANK]
    for source in range(job[words.WORLD]):
        if st[words.unsummed(job, source)] == 0 or st[words.summing(job, source)] != 0:
            continue
        first = st[words.free_tiles(job, source)]
        tile, pair, own, whole = first, st[words.freed_rows(job, source)], 0, False
        while tile < st[words.read_tiles(job, source)] and not whole:
            r = words.landed(job, source, tile)
            if st[words.landed_left(r)] > 0:
                break
            own += st[words.landed_left(r)] == codes.UNSUMMED_TILE
            pair += st[words.landed_rows(r)]
            tile += 1
            whole = st[words.landed_last(r)] != 0
        if whole and own > 0 and all_staged(job, st, source, pair):
            c = words.command(job, worker)
            st[words.command_source(c)] = source
            st[words.command_tile(c)] = first
            st[words.command_tiles(c)] = tile - first
            st[words.command_rows(c)] = pair - st[words.freed_rows(job, source)]
            st[words.summing(job, source)] = 1
            return True
    return False


@jit
def execute(job, st, worker):
    """Write the sums of those tokens of the claimed bundle that the source has left to this rank (`scalars.adds`).

    An output that is the only one of its token on this node stays as it is; the source weights it.
    """
    c = words.command(job, worker)
    source, first = st[words.command_source(c)], st[words.command_tile(c)]
    for tile in range(first, first + st[words.command_tiles(c)]):
        r = words.landed(job, source, tile)
        if st[words.landed_left(r)] == codes.UNSUMMED_TILE:
            row = st[words.landed_row(r)]
            for pair in range(row, row + st[words.landed_rows(r)]):
                entry = mem.load(index_from(job, st, source, pair))
                if scalars.adds(entry) and mem.load(link_from(job, st, source, pair)) != pair:
                    add_up(job, st, worker, source, pair)


@jit
def add_up(job, st, worker, source, adding):
    """Add up the outputs of a token's pairs in the order of pairs, in place of the output of pair `adding`.

    The link of a pair is the number of the token's pair before it; the first pair's link names the last pair. So the
    links lead back to `adding`, after at most k pairs. If they do not, or leave the bundle, this rank fails.
    """
    c = words.command(job, worker)
    rows, k = words.row_list(c), job[words.TOP_K]
    weights = job[words.SCRATCH] + job[words.SCRATCH_STEP] * worker
    first = st[words.landed_row(words.landed(job, source, st[words.command_tile(c)]))]
    end, pair, n = first + st[words.command_rows(c)], adding, 0
    while n < k and bounds.within(st, source, bounds.LINK, pair, first, end - 1):
        i = n
        while i > 0 and st[rows + i - 1] > pair:
            st[rows + i] = st[rows + i - 1]
            i -= 1
        st[rows + i] = pair
        n, pair = n + 1, mem.load(link_from(job, st, source, pair))
        if pair == adding:
            break
    bounds.within(st, source, bounds.LINK, pair, adding, adding)
    for i in range(n):
        scalars.set_weight(weights, i, scalars.scalar_of(mem.load(index_from(job, st, source, st[rows + i]))))
        st[rows + i] = staged_row(job, st, source, st[rows + i])
    y = weights + lines_of(4 * k)
    scratch = y + lines_of(job[words.RETURN_BYTES])
    call = call_records.combine_token(job, y=y, k=n, weights=weights, rows=state_word(job, rows), scratch=scratch)
    arithmetic.combine_token(job[words.KERNELS], call)
    mem.copy_row(staged_row(job, st, source, adding), y, job[words.RETURN_BYTES])


@jit
def publish(job, st, worker):
    """Return this rank's tiles of the claimed bundle, and give credit. (Under the lock.)"""
    c = words.command(job, worker)
    source, first = st[words.command_source(c)], st[words.command_tile(c)]
    for tile in range(first, first + st[words.command_tiles(c)]):
        r = words.landed(job, source, tile)
        if st[words.landed_left(r)] == codes.UNSUMMED_TILE:
            rows = st[words.landed_rows(r)]
            st[words.landed_left(r)] = 0
            st[words.OWED] -= rows
            st[words.UNSUMMED] -= 1
            st[words.unsummed(job, source)] -= 1
            post_return(job, st, source, st[words.landed_packed(r)], rows, codes.OK, st[words.landed_row(r)])
    st[words.summing(job, source)] = 0
    free_rows(job, st, source)
