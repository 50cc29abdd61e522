"""Deliberate bugs of the wire with two levels. The explorer must find each."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from aristos.engine import (
    arrivals,
    bundles,
    call_records,
    codes,
    combine,
    dispatch,
    experts,
    layout,
    outbox,
    packing,
    returns,
    scalars,
    streams,
    sums,
    tape,
    words,
)
from aristos.explore import places
from aristos.explore.mutation import Instead, Put, mutation
from aristos.host.nodes import Nodes
from aristos.primitives import arithmetic, memory

# rank 0 is a node of its own, ranks 1 and 2 share a node; each rank has two experts
SIZES: tuple[tuple[str, Any], ...] = (("node_of", (0, 1, 1)), ("placement", (0, 0, 1, 1, 2, 2)), ("max_tokens", 6))
SMALL = (*SIZES, ("rows", 2), ("tile", 1), ("top_k", 2), ("bundle", 2))
BACKWARD = (*SIZES, ("backward", True), ("save", 1), ("reserve", 7), ("top_k", 2))


def readers_of(st: Any, job: Any, peer: int) -> range:
    """The readers of the stream at a peer."""
    return range(st[words.stream_first(job, peer)], st[words.stream_end(job, peer)])


def credit_of(put: Put, chosen: Callable[[list[int]], int]) -> None:
    """Take something else than the least credit of a stream's readers. chosen: a function of their credits."""

    def freed(job: Any, st: Any, peer: int) -> int:
        word = words.CREDIT
        credits = [memory.arrived(layout.word_from(job, st, p, word)) for p in readers_of(st, job, peer)]
        return chosen(credits) if credits else int(st[words.sent_rows(job, peer)])

    put(bundles, "freed", freed)
    put(dispatch, "freed", freed)


def read_otherwise(put: Put, change: Callable[[Any, Any, int], None]) -> None:
    """Change something each time that an owner has read a record. change: a function of (job, st, source)."""
    real = arrivals.read_record

    def read_record(job: Any, st: Any, source: int) -> bool:
        read = real(job, st, source)
        change(job, st, source)
        return read

    put(arrivals, "read_record", read_record)


@mutation("levels-credit-of-the-fastest", transport="levels", ranks=3, fixed=SMALL)
def credit_of_the_fastest(put: Put) -> None:
    """A source takes the greatest credit of a stream's readers."""
    credit_of(put, max)


@mutation("levels-credit-of-the-rail", transport="levels", ranks=3, fixed=SMALL)
def credit_of_the_rail(put: Put) -> None:
    """A source takes the credit of the first reader alone."""
    credit_of(put, lambda credits: credits[0])


@mutation("levels-local-ring-as-long-as-a-stream", transport="levels", ranks=3, fixed=(*SIZES, ("local_rows", 1)))
def local_ring_as_long_as_a_stream(put: Put) -> None:
    """A source puts as many rows into the ring of a local peer as into that of a stream."""
    put(dispatch, "ring_of", lambda job, st, peer: job[words.RING_ROWS])


@mutation("levels-credit-is-a-sum", transport="levels", ranks=3, fixed=(*SMALL, ("start", 0)))
def credit_is_a_sum(put: Put) -> None:
    """Every reader gives credit for its own rows alone, and a source adds the credits up."""
    real = arrivals.read_record

    def read_record(job: Any, st: Any, source: int) -> bool:
        tile = st[words.read_tiles(job, source)]
        read = real(job, st, source)
        r = words.landed(job, source, tile)
        if st[words.landed_left(r)] == 0:
            st[words.landed_rows(r)] = 0
        return read

    put(arrivals, "read_record", read_record)
    credit_of(put, sum)


@mutation("levels-tiles-of-others-not-freed", transport="levels", ranks=3, fixed=SMALL)
def tiles_of_others_not_freed(put: Put) -> None:
    """An owner frees rows only when a tile of its own is done, so an owner without rows never gives credit."""
    put(arrivals, "free_rows", lambda job, st, source: None)


@mutation("levels-tiles-of-others-freed-at-once", transport="levels", ranks=3, fixed=SMALL)
def tiles_of_others_freed_at_once(put: Put) -> None:
    """An owner that reads a tile of another owner frees all rows read so far, also its own that it still reads."""

    def free_rows(job: Any, st: Any, source: int) -> None:
        st[words.free_tiles(job, source)] = st[words.read_tiles(job, source)]
        st[words.freed_rows(job, source)] = st[words.read_rows(job, source)]
        memory.notify(layout.word_to(job, st, source, words.CREDIT), st[words.freed_rows(job, source)], 8)

    put(arrivals, "free_rows", free_rows)


@mutation("levels-ends-before-the-last-record", transport="levels", ranks=3, fixed=SIZES)
def ends_before_the_last_record(put: Put) -> None:
    """A call ends on an owner when its own rows are done, although it has not read all records of the stream."""
    real = arrivals.read_announcement

    def read_announcement(job: Any, st: Any, source: int) -> bool:
        owed = st[words.OWED]
        read = real(job, st, source)
        if read:
            st[words.OWED] = owed + st[words.rows_from(job, source)]
        return read

    def give_back(job: Any, st: Any, source: int) -> None:
        tile = st[words.read_tiles(job, source)] - 1
        r = words.landed(job, source, tile)
        if st[words.landed_left(r)] == 0:
            st[words.OWED] += st[words.landed_rows(r)]

    put(arrivals, "read_announcement", read_announcement)
    read_otherwise(put, give_back)


@mutation("levels-own-rows-alone-are-awaited", transport="levels", ranks=3, fixed=SIZES)
def own_rows_alone_are_awaited(put: Put) -> None:
    """An owner reads as many rows of a stream as are for itself, also if the records are for others."""
    real = arrivals.read_announcement

    def read_announcement(job: Any, st: Any, source: int) -> bool:
        left = st[words.OWED]
        read = real(job, st, source)
        if read:
            st[words.rows_left(job, source)] = st[words.rows_from(job, source)]
            st[words.OWED] = left + st[words.rows_from(job, source)]
        return read

    put(arrivals, "read_announcement", read_announcement)


@mutation("levels-reads-records-of-the-next-call", transport="levels", ranks=3, fixed=(*SMALL, ("top_k", 1)), calls=4)
def reads_records_of_the_next_call(put: Put) -> None:
    """An owner reads one row more of a stream than is announced, if it has landed: a row of the next call."""
    real = arrivals.read_announcement

    def read_announcement(job: Any, st: Any, source: int) -> bool:
        read = real(job, st, source)
        if read and st[words.remote(job, source)]:
            st[words.rows_left(job, source)] += 1
        return read

    put(arrivals, "read_announcement", read_announcement)


@mutation("levels-takes-tiles-of-others", transport="levels", ranks=3, fixed=SIZES)
def takes_tiles_of_others(put: Put) -> None:
    """An owner takes every tile of a stream as its own."""
    real = arrivals.read_record

    def read_record(job: Any, st: Any, source: int) -> bool:
        theirs = list(job)
        a = layout.record_from(job, st, source, st[words.read_tiles(job, source)])
        theirs[words.RANK] = memory.load(words.record_owner(a))
        return real(theirs, st, source)

    put(arrivals, "read_record", read_record)


@mutation("levels-counts-of-the-first-owner", transport="levels", ranks=3, fixed=SIZES)
def counts_of_the_first_owner(put: Put) -> None:
    """Every owner reads the counts of its node's first owner in an announcement."""
    put(arrivals, "first_reader", lambda job, st, source: job[words.RANK])


@mutation("levels-announced-to-the-rail-alone", transport="levels", ranks=3, fixed=SIZES)
def announced_to_the_rail_alone(put: Put) -> None:
    """An announcement has only the rows of the rail's experts, zeros for the other owners."""
    real = packing.write_announcement

    def write_announcement(job: Any, st: Any, p: int) -> None:
        real(job, st, p)
        a = layout.announcement_to(job, st, p, job[words.EPOCH])
        start = streams.first_slot(job, st, p)
        for slot in range(start, streams.end_slot(job, st, p)):
            if not job[words.slot_start(job, p)] <= slot < job[words.slot_start(job, p + 1)]:
                memory.store(words.announced_count(a, slot - start), 0)

    put(packing, "write_announcement", write_announcement)


@mutation("levels-words-at-the-own-region", transport="levels", ranks=3, fixed=SIZES)
def words_at_the_own_region(put: Put) -> None:
    """A rank looks for the words of a stream in its own window, also if they are put at another rank of its node."""
    put(outbox, "words", Instead(words, stream_from=words.region_from))


@mutation("levels-all-words-at-the-rail", transport="levels", ranks=3, fixed=SIZES)
def all_words_at_the_rail(put: Put) -> None:
    """A rank reads all words of a source at the rail, also credit and returns, which concern the rail alone."""
    put(outbox, "words", Instead(words, region_from=words.stream_from))


@mutation("levels-sync-skipped", transport="levels", ranks=3, fixed=SIZES)
def sync_skipped(put: Put) -> None:
    """A word of a stream that has arrived at another rank of the node is passed on without a sync."""
    put(outbox, "mpi", Instead(outbox.mpi, sync=lambda address: None))


@mutation("levels-returns-are-due-at-the-rail", transport="levels", ranks=3, fixed=SIZES)
def returns_are_due_at_the_rail(put: Put) -> None:
    """A source expects all return records of a node from its rail."""
    real = bundles.publish

    def publish(job: Any, st: Any, worker: int) -> None:
        peer = st[words.command_owner(words.command(job, worker))]
        before = {p: st[words.due_tiles(job, p)] for p in readers_of(st, job, peer)}
        real(job, st, worker)
        new = sum(st[words.due_tiles(job, p)] - due for p, due in before.items())
        for p, due in before.items():
            st[words.due_tiles(job, p)] = due + (new if p == peer else 0)

    put(bundles, "publish", publish)


@mutation("levels-skipped-tiles-of-others-return", transport="levels", ranks=3, fixed=SIZES, plain=False, kind="layer")
def skipped_tiles_of_others_return(put: Put) -> None:
    """An owner that skips a source returns every tile of the stream, also those for others."""

    def free_rows(job: Any, st: Any, source: int) -> None:
        tile = st[words.read_tiles(job, source)] - 1
        if st[words.verdict(job, source)] == arrivals.codes.SKIP:
            r = words.landed(job, source, tile)
            st[words.landed_left(r)] = st[words.landed_rows(r)]
            st[words.OWED] += st[words.landed_rows(r)]
            returns.finish_record(job, st, source, tile, st[words.landed_rows(r)])
        else:
            returns.free_rows(job, st, source)

    put(arrivals, "free_rows", free_rows)


@mutation("levels-staged-rows-of-two-sources", transport="levels", ranks=4, fixed=(("node_of", (0, 0, 1, 1)),))
def staged_rows_of_two_sources(put: Put) -> None:
    """Outputs for all remote sources are staged beside the ring of the first one."""
    real = places.fill

    def fill(shape: Any, nodes: Nodes, me: int, state: Any, starts: dict[int, int], wire: int = 1) -> list[int]:
        made = real(shape, nodes, me, state, starts, wire)
        for p in nodes.remote(me):
            state[words.staged(starts, p)] = state[words.staged(starts, nodes.remote(me)[0])]
        return made

    put(places, "fill", fill)


@mutation("levels-half-rows-to-all", transport="levels", ranks=3, fixed=BACKWARD, calls=4)
def half_rows_to_all(put: Put) -> None:
    """In a backward call a row crosses without x if one owner of the node keeps x."""

    def bytes_to(job: Any, st: Any, peer: int) -> int:
        if job[words.MODE] != arrivals.codes.MODE_BACKWARD or job[words.TAPED] == 0:
            return int(job[words.ROW_BYTES])
        half = any(tape.keeps_x(job, p) for p in readers_of(st, job, peer))
        return int(job[words.ROW_BYTES]) // (2 if half else 1)

    for module in (packing, bundles, dispatch):
        put(module, "tape", Instead(tape, bytes_to=bytes_to))


@mutation("levels-kept-in-the-order-of-the-node", transport="levels", ranks=3, fixed=BACKWARD, calls=4)
def kept_in_the_order_of_the_node(put: Put) -> None:
    """An owner counts its rows from the first row of the stream, not from its own first row."""
    real = arrivals.own_part

    def own_part(job: Any, st: Any, source: int, a: int, rows: int) -> tuple[int, int, bool]:
        mine, before, possible = real(job, st, source, a, rows)
        return mine, min(before, 0), possible

    put(arrivals, "own_part", own_part)


@mutation("levels-rows-from-the-own-ring", transport="levels", ranks=3, fixed=SIZES)
def rows_from_the_own_ring(put: Put) -> None:
    """An owner reads rows in its own window, also if they lie at another rank of its node."""

    def ring_row_from(job: Any, st: Any, source: int, row: int) -> int:
        at = layout.ring_row_from(job, st, source, row)
        return int(at) - st[words.stream_from(job, source)] + st[words.region_from(job, source)]

    put(experts, "ring_row_from", ring_row_from)


@mutation("levels-return-records-at-the-rail", transport="levels", ranks=3, fixed=SIZES)
def return_records_at_the_rail(put: Put) -> None:
    """A source reads return records at its rail, where MPI promises it nothing of them."""

    def return_record_from(job: Any, st: Any, owner: int, tile: int) -> int:
        at = layout.return_record_from(job, st, owner, tile)
        return int(at) - st[words.region_from(job, owner)] + st[words.stream_from(job, owner)]

    put(arrivals, "return_record_from", return_record_from)


# ---- sums of a node's outputs

SUMS = (*SIZES, ("sums", True), ("top_k", 2), ("scalars", False), ("backward", False))


@mutation("sums-before-all-are-staged", transport="levels", ranks=3, fixed=SUMS)
def sums_before_all_are_staged(put: Put) -> None:
    """An owner adds up when its own outputs are there, although those of other owners may not be."""
    put(sums, "all_staged", lambda job, st, source, pair: True)


@mutation("sums-staged-when-read", transport="levels", ranks=3, fixed=SUMS)
def sums_staged_when_read(put: Put) -> None:
    """An owner says that its outputs are staged as soon as it has read the records."""

    def note_staged(job: Any, st: Any, source: int) -> None:
        if st[words.remote(job, source)]:
            for p in range(job[words.NODE_FIRST], job[words.NODE_END]):
                if p != job[words.RANK]:
                    memory.notify(layout.mark_to(job, st, p, source), st[words.read_rows(job, source)], 8)

    put(arrivals, "note_staged", note_staged)
    put(returns, "note_staged", note_staged)


@mutation("sums-by-every-owner", transport="levels", ranks=3, fixed=SUMS)
def sums_by_every_owner(put: Put) -> None:
    """Every pair counts as its token's last, so each owner returns a sum, and a token gets several."""
    put(scalars, "adds", lambda entry: True)


@mutation("sums-and-outputs", transport="levels", ranks=3, fixed=SUMS)
def sums_and_outputs(put: Put) -> None:
    """A source combines a node's sum, and also the outputs that are in it."""
    put(combine, "in_a_sum", lambda job, st, packed: False)


@mutation("sums-in-reverse-order", transport="levels", ranks=3, fixed=SUMS)
def sums_in_reverse_order(put: Put) -> None:
    """Outputs are added from the last pair to the first, so bits depend on who adds up."""
    real = sums.staged_row

    def add_up(job: Any, st: Any, worker: int, source: int, last: int) -> None:
        c = words.command(job, worker)
        first = st[words.landed_row(words.landed(job, source, st[words.command_tile(c)]))]
        place = scalars.place_of(memory.load(layout.index_from(job, st, source, last)))
        scratch, rows, n = job[words.SCRATCH] + job[words.SCRATCH_STEP] * worker, words.row_list(c), 0
        for pair in range(last, first - 1, -1):
            entry = memory.load(layout.index_from(job, st, source, pair))
            if scalars.place_of(entry) == place:
                st[rows + n] = real(job, st, source, pair)
                scalars.set_weight(scratch, n, scalars.scalar_of(entry))
                n += 1
        y, listed = scratch + 1024, layout.state_word(job, rows)
        made = call_records.combine_token(job, y=y, k=n, weights=scratch, rows=listed, scratch=scratch + 2048)
        arithmetic.combine_token(job[words.KERNELS], made)
        memory.copy_row(real(job, st, source, last), y, job[words.RETURN_BYTES])

    put(sums, "add_up", add_up)


@mutation("sums-credit-before-they-are-made", transport="levels", ranks=3, fixed=(*SUMS, ("rows", 2), ("tile", 1)))
def credit_before_sums(put: Put) -> None:
    """An owner gives credit when its outputs are staged, before it has added up."""
    real = returns.finish_record

    def finish_record(job: Any, st: Any, source: int, tile: int, rows: int) -> None:
        real(job, st, source, tile, rows)
        if st[words.unsummed(job, source)]:
            st[words.freed_rows(job, source)] = st[words.staged_rows(job, source)]
            memory.notify(layout.word_to(job, st, source, words.CREDIT), st[words.freed_rows(job, source)], 8)

    put(arrivals, "finish_record", finish_record)
    put(experts, "finish_record", finish_record)


@mutation("sums-not-owed", transport="levels", ranks=3, fixed=SUMS)
def sums_not_owed(put: Put) -> None:
    """A call ends on an owner when its outputs are computed, although their sums are not."""
    real, publish = returns.finish_record, sums.publish

    def finish_record(job: Any, st: Any, source: int, tile: int, rows: int) -> None:
        before = st[words.UNSUMMED]
        real(job, st, source, tile, rows)
        if st[words.UNSUMMED] != before:
            st[words.OWED] -= st[words.landed_rows(words.landed(job, source, tile))]

    def publish_sums(job: Any, st: Any, worker: int) -> None:
        before = st[words.OWED]
        publish(job, st, worker)
        st[words.OWED] = before

    put(arrivals, "finish_record", finish_record)
    put(experts, "finish_record", finish_record)
    put(sums, "publish", publish_sums)


@mutation("sums-weights-of-the-first", transport="levels", ranks=3, fixed=SUMS)
def weights_of_the_first(put: Put) -> None:
    """All outputs of a token are weighted by the weight of its first choice."""
    real = scalars.weight_at

    def weight_at(weights: int, i: int) -> int:
        return int(real(weights, i - i % 2))

    put(bundles, "scalars", SimpleNamespace(**{**vars(scalars), "weight_at": weight_at}))


@mutation("sums-skipped-rows-not-staged", transport="levels", ranks=3, fixed=SUMS, kind="layer")
def skipped_rows_not_staged(put: Put) -> None:
    """An owner that skips a source never says that it will stage no more, so others wait for it."""
    real = streams.note_staged

    def note_staged(job: Any, st: Any, source: int) -> None:
        if st[words.verdict(job, source)] != codes.SKIP:
            real(job, st, source)

    put(arrivals, "note_staged", note_staged)
    put(returns, "note_staged", note_staged)
