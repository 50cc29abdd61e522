"""Deliberate bugs in the contents of announcements, and in scalars beside rows. The explorer must find each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aristos.engine import arrivals, bundles, dispatch, experts, layout, outbox, proxy, scalars, words
from aristos.explore.mutation import NOWHERE, Instead, Put, mutation
from aristos.primitives import memory

SCALARS = (("scalars", True), ("workers", 1), ("runs", 1), ("all_split", False))


def not_compared(put: Put, word: int, field: Callable[[int], int]) -> None:
    """A reader replaces its own word of the job by the announced one, so that the two are not compared."""
    real = arrivals.read_announcement

    def read_announcement(job: Any, st: Any, source: int) -> bool:
        if memory.load_acquire(layout.word_from(job, st, source, words.ANNOUNCED)) < job[words.EPOCH]:
            return False
        theirs = list(job)
        theirs[word] = memory.load(field(layout.announcement_from(job, st, source, job[words.EPOCH])))
        return real(theirs, st, source)

    put(arrivals, "read_announcement", read_announcement)


@mutation("mode-not-compared", kind="object")
def mode_not_compared(put: Put) -> None:
    """A call of a layer and one of an exchange count as calls of the same kind."""
    not_compared(put, words.MODE, words.announced_mode)


@mutation("placement-not-compared", kind="placement")
def placement_not_compared(put: Put) -> None:
    """Ranks with different placements serve each other's rows."""
    not_compared(put, words.PLACEMENT, words.announced_placement)


@mutation("version-of-the-reader")
def version_of_the_reader(put: Put) -> None:
    """A rank uses the version of its own weights instead of the announced one."""
    real = arrivals.read_announcement

    def read_announcement(job: Any, st: Any, source: int) -> bool:
        read = real(job, st, source)
        if read:
            st[words.version_of(job, source)] = job[words.VERSION]
        return read

    put(arrivals, "read_announcement", read_announcement)


# ---- scalars beside rows


def without_scalars(job: Any) -> Any:
    """A copy of a job, without scalars."""
    other = list(job)
    other[words.SCALARS] = 0
    return other


@mutation("scalar-of-the-pair-before", fixed=SCALARS)
def scalar_of_the_pair_before(put: Put) -> None:
    """Within a node a scalar is written into the entry of the pair before its own."""
    put(dispatch, "index_to", lambda job, st, owner, pair: layout.index_to(job, st, owner, pair - 1))


@mutation("scalars-after-the-tail", fixed=SCALARS)
def scalars_after_the_tail(put: Put) -> None:
    """Within a node the scalars of a tile are written after its tail has been released."""
    real, publish = dispatch.execute, dispatch.publish

    def publish_first(job: Any, st: Any, worker: int) -> None:
        c = words.command(job, worker)
        owner, packed, rows = st[words.command_owner(c)], st[words.command_packed(c)], st[words.command_rows(c)]
        row = st[words.sent_rows(job, owner)]
        publish(job, st, worker)
        if job[words.SCALARS]:
            for i in range(rows):
                entry = scalars.entry((row + i) % job[words.RING_ROWS], scalars.of_packed(job, st, packed + i))
                memory.store(layout.index_to(job, st, owner, row + i), entry)

    put(dispatch, "execute", lambda job, st, worker: real(without_scalars(job), st, worker))
    put(dispatch, "publish", publish_first)


@mutation("scalar-of-the-first-choice", transport="rma", fixed=(*SCALARS, ("top_k", 2), ("placement", (0, 0, 1, 1))))
def scalar_of_the_first_choice(put: Put) -> None:
    """All pairs of a token that crosses once get the scalar of its first choice."""
    first = Instead(scalars, of_pair=lambda job, pair: scalars.of_pair(job, pair - pair % job[words.TOP_K]))
    put(bundles, "scalars", first)


@mutation("scalar-read-as-a-place", transport="rma", fixed=(*SCALARS, ("rows", 3)))
def scalar_read_as_a_place(put: Put) -> None:
    """An owner uses the whole index entry as the place of the row."""
    put(experts, "scalars", Instead(scalars, place_of=lambda entry: entry))


@mutation("index-not-put", transport="rma")
def index_not_put(put: Put) -> None:
    """A bundle's rows and records are put, and its index is not."""

    def put_ring(job: Any, st: Any, peer: int, part: int, *rest: int) -> int:
        return 0 if part == job[words.P_INDEX] else real(job, st, peer, part, *rest)

    real = outbox.put_ring
    put(outbox, "put_ring", put_ring)


@mutation("scalars-back-after-the-record", fixed=SCALARS)
def scalars_back_after_the_record(put: Put) -> None:
    """The record of a tile that returns is released before its scalars are written."""
    publish = experts.publish

    def put_late(job: Any, st: Any, worker: int) -> None:
        publish(job, st, worker)
        if job[words.SCALARS]:
            scalars.put_back(job, st, words.command(job, worker))

    put(experts, "scalars", Instead(scalars, put_back=lambda job, st, c: None))
    put(experts, "publish", put_late)


@mutation("scalar-in-the-next-slot", fixed=SCALARS)
def scalar_in_the_next_slot(put: Put) -> None:
    """A scalar goes back at the end of the slot after its row's."""
    real = scalars.put_back

    def put_back(job: Any, st: Any, c: int) -> None:
        wide = list(job)
        wide[words.RETURN_STRIDE] *= 2
        real(wide, st, c)

    put(scalars, "put_back", put_back)


@mutation("scalar-over-the-row", fixed=(*SCALARS, ("words", 8)))
def scalar_over_the_row(put: Put) -> None:
    """Slots of return rows are as wide as the rows alone: a scalar lies over the last word of a row that fills them."""
    put(scalars, "back_at", lambda job, row: row + job[words.ROW_BYTES] - layout.WORD)


@mutation("proxy-forgets-scalars", transport="proxy", fixed=(*SCALARS, ("words", 8)))
def proxy_forgets_scalars(put: Put) -> None:
    """The proxy assumes that slots of return rows are as wide as the rows alone."""
    put(proxy, "words", Instead(words, announced_scalars=lambda a: NOWHERE))
