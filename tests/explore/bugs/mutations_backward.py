"""Deliberate bugs in backward calls: rows of wrong calls, and rows in wrong places. The explorer must find each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aristos.engine import arrivals, codes, combine, experts, packing, scalars, store, words
from aristos.engine.layout import LINE
from aristos.explore.mutation import Instead, Put, mutation
from aristos.primitives import memory

from .mutations_wire import not_compared

BACKWARD = (("backward", True),)
CUT = (*BACKWARD, ("group", 1), ("tile", 3), ("run", 2), ("max_tokens", 6))


def is_backward(job: Any) -> bool:
    return bool(job[words.MODE] == codes.MODE_BACKWARD)


@mutation("tape-not-compared", kind="tape", fixed=BACKWARD)
def tape_not_compared(put: Put) -> None:
    """Ranks with tapes of different forward calls serve each other's rows."""
    not_compared(put, words.TAPE, words.announced_tape)


@mutation("backward-taken-for-an-exchange", fixed=BACKWARD)
def backward_taken_for_an_exchange(put: Put) -> None:
    """For experts a backward call counts as an exchange: own rows are not counted as returned."""
    put(experts, "store", Instead(store, computes=lambda job: job[words.MODE] == codes.MODE_LAYER))


@mutation("store-by-arrival", fixed=(*BACKWARD, ("max_tokens", 6)))
def store_by_arrival(put: Put) -> None:
    """Rows lie in the store in the order in which they are computed."""
    kept: dict[int, tuple[int, int]] = {}  # by rank: the call, rows so far

    def list_places(job: Any, st: Any, c: int) -> None:
        epoch, have = kept.get(job[words.RANK], (0, 0))
        have = have if epoch == job[words.EPOCH] else 0
        rows = st[words.command_rows(c)]
        for i in range(rows):
            st[words.place_list(job, c) + i] = job[words.STORE] + job[words.STORE_STEP] * (have + i)
        kept[job[words.RANK]] = job[words.EPOCH], have + rows

    put(store, "list_places", list_places)


def moved(put: Put, by: Callable[[Any, Any, int], int]) -> None:
    """Shift the places of the rows in each part of a run by `by` rows."""
    real = store.list_places

    def list_places(job: Any, st: Any, c: int) -> None:
        real(job, st, c)
        at = words.place_list(job, c)
        for i in range(st[words.command_parts(c)]):
            part = words.part(job, c, i)
            end = at + st[words.part_rows(part)]
            for place in range(at, end):
                st[place] += job[words.STORE_STEP] * by(job, st, part)
            at = end

    put(store, "list_places", list_places)


@mutation("store-by-packed-row", fixed=BACKWARD)
def store_by_packed_row(put: Put) -> None:
    """A row's place is counted from its source's first packed row for any rank, not from the first for this rank."""
    moved(put, lambda job, st, part: st[words.first_packed(job, st[words.part_source(part)])])


@mutation("tile-kept-from-its-start", fixed=CUT)
def tile_kept_from_its_start(put: Put) -> None:
    """Rows of a tile's second run are kept in the places of those of its first run."""

    def back(job: Any, st: Any, part: int) -> int:
        source = st[words.part_source(part)]
        if source == job[words.RANK]:
            return 0
        row: int = st[words.landed_row(words.landed(job, source, st[words.part_where(part)]))]
        return row - int(st[words.part_first(part)])

    moved(put, back)


@mutation("sources-share-places", ranks=3, fixed=BACKWARD)
def sources_share_places(put: Put) -> None:
    """Every source's rows are kept from the first place on."""

    def admit(job: Any, st: Any, source: int, rows: int) -> bool:
        able = store.admit(job, st, source, rows)
        if is_backward(job):
            st[words.STORE_NEXT] = 0
        return able

    put(arrivals, "store", Instead(store, admit=admit))
    put(packing, "store", Instead(store, admit=admit))


@mutation("own-rows-have-no-places", fixed=BACKWARD)
def own_rows_have_no_places(put: Put) -> None:
    """A rank gives places to the rows of its peers, but not to its own rows."""
    put(packing, "store", Instead(store, admit=lambda job, st, source, rows: True))


@mutation("store-never-emptied", fixed=BACKWARD, calls=4)
def store_never_emptied(put: Put) -> None:
    """A call's rows are kept behind those of the previous backward call."""
    used: dict[int, int] = {}

    def admit_own(job: Any, st: Any, source: int, rows: int) -> bool:
        if is_backward(job):
            st[words.STORE_NEXT] = used.get(source, 0)
            used[source] = rows
        return store.admit(job, st, source, rows)

    put(packing, "store", Instead(store, admit=admit_own))


@mutation("refused-tape-is-served", kind="refused", fixed=BACKWARD)
def refused_tape_is_served(put: Put) -> None:
    """A rank that has refused its tape, and so has no store, computes the rows of the others."""

    def admit(job: Any, st: Any, source: int, rows: int) -> bool:
        wide = list(job)
        wide[words.STORE_ROWS] += 1000
        return store.admit(wide, st, source, rows)

    put(arrivals, "store", Instead(store, admit=admit))


@mutation("row-copied-after-its-credit", fixed=(*BACKWARD, ("workers", 1), ("runs", 1)))
def row_copied_after_its_credit(put: Put) -> None:
    """A row is copied to the store after its ring row has been freed."""
    publish = experts.publish

    def copy_late(job: Any, st: Any, worker: int) -> None:
        publish(job, st, worker)
        c = words.command(job, worker)
        if is_backward(job):
            for i in range(st[words.command_rows(c)]):
                word = memory.load(st[words.row_list(c) + i])
                memory.store(st[words.place_list(job, c) + i], word)

    put(experts, "publish", copy_late)


@mutation("scalars-not-listed-backward", fixed=BACKWARD)
def scalars_not_listed_backward(put: Put) -> None:
    """The kernel of a backward call gets the scalars of the previous command."""

    def list_out(job: Any, st: Any, c: int) -> None:
        if not is_backward(job):
            scalars.list_out(job, st, c)

    put(experts, "scalars", Instead(scalars, list_out=list_out))


@mutation("places-in-the-scalars", fixed=BACKWARD)
def places_in_the_scalars(put: Put) -> None:
    """Places in the store are listed where the scalars are."""
    put(store, "words", Instead(words, place_list=words.scalar_list))


@mutation("returns-as-wide-as-rows", fixed=(*BACKWARD, ("words", LINE // 8)))
def returns_as_wide_as_rows(put: Put) -> None:
    """An owner assumes that return rows are as wide as the rows that travel."""
    real = experts.return_row

    def return_row(job: Any, st: Any, source: int, packed: int) -> int:
        wide = list(job)
        wide[words.RETURN_STRIDE] += job[words.ROW_BYTES] - job[words.RETURN_BYTES]
        return real(wide, st, source, packed)

    put(experts, "return_row", return_row)


@mutation("dx-as-wide-as-rows", fixed=(*BACKWARD, ("max_tokens", 6)))
def dx_as_wide_as_rows(put: Put) -> None:
    """Combined tokens of a backward call are as far apart as the rows that travel."""
    real = combine.execute

    def execute(job: Any, st: Any, worker: int) -> None:
        wide = list(job)
        wide[words.RETURN_BYTES] = job[words.ROW_BYTES]
        real(wide, st, worker)

    put(combine, "execute", execute)
