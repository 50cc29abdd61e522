"""Step `dispatch` in bundles of tiles: each token crosses once into a stream, however many of its experts are there.

Tokens always cross once to a remote owner, or with two levels to a remote node. To a local owner they do so only if the
source has announced it for this call (`packing.crosses_once`).

A bundle covers all tokens in t0..t1 that have a (token, choice) pair for the stream. It holds three things: one row for
each of these tokens; an index entry for each pair, which has the place of the pair's row; a record for each tile.
Entries are ordered by owner, expert, token. A bundle takes as many ring rows as it has pairs; the rows that cross fill
the first of these. So one credit, counted in pairs, bounds the ring, the index and a remote owner's staged outputs.
Steps write the bundle into a local owner's ring, or into the outbox, from which `outbox.py` puts it.
"""

from kernel_cache.compile import jit

from ..primitives import memory as mem
from . import codes, scalars, tape, words
from .layout import ALONE, RECORD_BYTES, WORD, bundle_row_to, index_to, link_to, record_to, ring_of, word_to
from .packing import tile_rows
from .returns import returns_due
from .streams import end_slot, first_slot, freed, has_sums


@jit
def first_from(job, st, slot, token):
    """The first of a slot's unsent packed rows whose token is `token` or later."""
    low, high = st[words.slot_from(job, slot)], st[words.offset(job, slot + 1)]
    while low < high:
        middle = (low + high) // 2
        if st[words.token(job, middle)] < token:
            low = middle + 1
        else:
            high = middle
    return low


@jit
def pairs_before(job, st, peer, token):
    """How many unsent pairs for `peer` have a token before `token`."""
    pairs = 0
    for slot in range(first_slot(job, st, peer), end_slot(job, st, peer)):
        pairs += first_from(job, st, slot, token) - st[words.slot_from(job, slot)]
    return pairs


@jit
def next_token(job, st, peer):
    """The first token that has an unsent pair for `peer`; TOKENS if there is none."""
    token = job[words.TOKENS]
    for slot in range(first_slot(job, st, peer), end_slot(job, st, peer)):
        at = st[words.slot_from(job, slot)]
        if at < st[words.offset(job, slot + 1)]:
            token = min(token, st[words.token(job, at)])
    return token


@jit
def end_token(job, st, peer, first, most):
    """The end of a bundle that begins at token `first`: at most `most` pairs, but at least one token."""
    low, high = first + 1, job[words.TOKENS]  # the pairs before token `low` fit, or the bundle has only one token
    while low < high:
        middle = (low + high + 1) // 2
        if pairs_before(job, st, peer, middle) <= most:
            low = middle
        else:
            high = middle - 1
    return low


@jit
def claim(job, st, worker, peer):
    """Claim the next bundle for the stream at a peer, if there is credit. (Decide, under the lock.)"""
    ring = ring_of(job, st, peer)
    sent = st[words.sent_rows(job, peer)]
    space = ring - sent + freed(job, st, peer)
    first = next_token(job, st, peer)
    # a bundle for n owners may have n * BUNDLE_PAIRS pairs: with fewer, each expert would get fewer rows at once, and
    # workers would read its weights more often
    most_pairs = job[words.BUNDLE_PAIRS] * (st[words.stream_end(job, peer)] - st[words.stream_first(job, peer)])
    end = end_token(job, st, peer, first, min(space, most_pairs))
    pair, most = sent, min(job[words.TILE], ring)
    for owner in range(st[words.stream_first(job, peer)], st[words.stream_end(job, peer)]):
        tiles = returns_due(job, st, owner)
        for slot in range(job[words.slot_start(job, owner)], job[words.slot_start(job, owner + 1)]):
            stop = first_from(job, st, slot, end)
            st[words.slot_to(job, slot)] = stop
            st[words.slot_pair(job, slot)] = pair
            rows = stop - st[words.slot_from(job, slot)]
            pair += rows
            tiles += (rows + most - 1) // most
        if tiles > ring:
            return False
    if pair - sent > space:
        return False
    c = words.command(job, worker)
    st[words.command_kind(c)] = codes.BUNDLE
    st[words.command_owner(c)] = peer
    st[words.command_token(c)] = first
    st[words.command_end(c)] = end
    st[words.command_rows(c)] = pair - sent
    st[words.busy(job, peer)] = 1
    return True


@jit
def write_records(job, st, peer, rows):
    """Write a record for every tile of the bundle; returns how many. The last one says that `rows` rows crossed."""
    tile = st[words.sent_tiles(job, peer)]
    most = min(job[words.TILE], ring_of(job, st, peer))
    last = 0
    tiles = 0
    for owner in range(st[words.stream_first(job, peer)], st[words.stream_end(job, peer)]):
        start = job[words.slot_start(job, owner)]
        for slot in range(start, job[words.slot_start(job, owner + 1)]):
            packed, stop = st[words.slot_from(job, slot)], st[words.slot_to(job, slot)]
            while packed < stop:
                n = tile_rows(stop - packed, most)
                last = record_to(job, st, peer, tile + tiles)
                mem.store(words.record_expert(last), slot - start)
                mem.store(words.record_rows(last), n)
                mem.store(words.record_packed(last), packed)
                mem.store(words.record_bundle(last), 0)
                mem.store(words.record_owner(last), owner)
                packed += n
                tiles += 1
    mem.store(words.record_bundle(last), rows)
    return tiles


@jit
def pairs_of(job, st, token, low, high):
    """How many of a token's packed rows are in low..high - 1."""
    pairs = 0
    for i in range(token * job[words.TOP_K], (token + 1) * job[words.TOP_K]):
        pairs += low <= st[words.position(job, i)] < high
    return pairs


@jit
def pair_before(job, st, token, low, high):
    """The last of a token's packed rows in low..high - 1, or -1."""
    last = -1
    for i in range(token * job[words.TOP_K], (token + 1) * job[words.TOP_K]):
        packed = st[words.position(job, i)]
        if low <= packed < high:
            last = max(last, packed)
    return last


@jit
def adding_pair(job, st, token, low, high):
    """The packed row of the pair whose owner adds up the outputs of `token`; -1 if it has no pair in low..high - 1.

    It is pair number token mod n of the token's n pairs there, so that owners add up about equally often.
    """
    pairs, packed = pairs_of(job, st, token, low, high), high
    for _ in range(pairs - token % max(1, pairs)):
        packed = pair_before(job, st, token, low, packed)
    return packed if pairs > 0 else -1


@jit
def number_of(job, st, packed, low, high):
    """The number of a packed row's pair in the claimed bundle. The row's slot must be one of low..high - 1."""
    while high - low > 1:
        middle = (low + high) // 2
        if st[words.offset(job, middle)] <= packed:
            low = middle
        else:
            high = middle
    return st[words.slot_pair(job, low)] + packed - st[words.slot_from(job, low)]


@jit
def execute(job, st, worker):
    """Write the claimed bundle: rows, index entries, then records. On a GPU the warps take rows in turn.

    If a node's outputs come back as sums, an index entry holds the pair's weight and whether its owner adds up, and the
    pair's link is written too. Pairs that do not come back, and pairs that are alone, are marked in the table `token`.
    """
    c = words.command(job, worker)
    peer, k = st[words.command_owner(c)], job[words.TOP_K]
    low, high = st[words.offset(job, first_slot(job, st, peer))], st[words.offset(job, end_slot(job, st, peer))]
    ids = mem.words(job[words.IDS], job[words.TOKENS] * k)
    sent = st[words.sent_rows(job, peer)]
    row, nbytes = sent, tape.bytes_to(job, st, peer)
    sums = has_sums(job) and st[words.remote(job, peer)] != 0
    for t in range(st[words.command_token(c)], st[words.command_end(c)]):
        mine, crossed = (row - sent) % mem.warps() == mem.warp(), False
        adding = adding_pair(job, st, t, low, high) if sums else -1
        for i in range(t * k, (t + 1) * k):
            packed = st[words.position(job, i)]
            if packed < low or packed >= high:
                continue
            if mine and not crossed:
                mem.copy_row(bundle_row_to(job, st, peer, row), job[words.X] + job[words.X_STRIDE] * t, nbytes)
            crossed = True
            if mine and mem.lane() == 0:
                slot = job[words.slot_of(job, ids[i])]
                pair = st[words.slot_pair(job, slot)] + packed - st[words.slot_from(job, slot)]
                place = row % ring_of(job, st, peer)
                scalar = scalars.of_pair(job, i)
                if sums:
                    scalar = scalars.weight_at(job[words.WEIGHTS], i)
                    if packed == adding:
                        place |= scalars.ADDS
                    before = pair_before(job, st, t, low, packed)
                    if before < 0:  # the links of a token make a circle
                        before = pair_before(job, st, t, low, high)
                    before = number_of(job, st, before, first_slot(job, st, peer), end_slot(job, st, peer))
                    mem.store(link_to(job, st, peer, pair), before)
                    if before == pair:
                        st[words.token(job, packed)] = ALONE + t
                mem.store(index_to(job, st, peer, pair), scalars.entry(place, scalar))
        if sums:  # only one row comes back
            for i in range(t * k, (t + 1) * k):
                packed = st[words.position(job, i)]
                if low <= packed < high and packed != adding:
                    st[words.token(job, packed)] = ~t
        row += crossed
    mem.block_barrier()
    if mem.thread() == 0:
        st[words.command_tiles(c)] = write_records(job, st, peer, row - sent)
        st[words.command_crossing(c)] = row - sent


@jit
def publish(job, st, worker):
    """Publish the written bundle. (Under the lock.)"""
    c = words.command(job, worker)
    peer, tiles, pairs = st[words.command_owner(c)], st[words.command_tiles(c)], st[words.command_rows(c)]
    most = min(job[words.TILE], ring_of(job, st, peer))
    for owner in range(st[words.stream_first(job, peer)], st[words.stream_end(job, peer)]):
        for slot in range(job[words.slot_start(job, owner)], job[words.slot_start(job, owner + 1)]):
            n = (st[words.slot_to(job, slot)] - st[words.slot_from(job, slot)] + most - 1) // most
            st[words.slot_from(job, slot)] = st[words.slot_to(job, slot)]
            st[words.due_tiles(job, owner)] += n
            st[words.tiles_to(job, owner)] += n
    st[words.sent_tiles(job, peer)] += tiles
    st[words.sent_rows(job, peer)] += pairs
    st[words.cursor(job, peer)] += pairs
    st[words.moved_to(job, peer)] += st[words.command_crossing(c)]
    st[words.busy(job, peer)] = 0
    st[words.UNSENT] -= pairs
    nbytes = st[words.command_crossing(c)] * tape.bytes_to(job, st, peer) + pairs * WORD + tiles * RECORD_BYTES
    mem.notify(word_to(job, st, peer, words.TAIL), st[words.sent_tiles(job, peer)], nbytes)
