"""Deliberate bugs in tapes: what owners keep of a forward call's rows, where they keep it, and what sources know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aristos.engine import arrivals, column_runs, dispatch, experts, returns, tape, words
from aristos.explore.mutation import Instead, Put, mutation
from aristos.primitives import memory, taped

TAPES = (("backward", True), ("save", taped.X | taped.HIDDEN), ("max_tokens", 6))
LARGE = (*TAPES, ("reserve", 1000))
SMALL = (*TAPES, ("reserve", 7), ("workers", 1))


def changed(job: Any, **values: int) -> list[int]:
    """A copy of a job with other words."""
    wide = list(job)
    for name, value in values.items():
        wide[getattr(words, name)] = value
    return wide


@mutation("tape-of-a-source-without-rows", fixed=LARGE, calls=4)
def tape_of_a_source_without_rows(put: Put) -> None:
    """An owner notes that it keeps rows of a source that has none. No return record can say so."""

    def admit(job: Any, st: Any, source: int, rows: int) -> None:
        tape.admit(job, st, source, rows)
        if job[words.TAPED] != 0 and rows == 0 and job[words.TAPE] == 0:
            memory.store(words.taped_kept(words.taped(job, source)), job[words.SAVE])

    put(arrivals, "tape", Instead(tape, admit=admit))


@mutation("tape-not-in-return-records", fixed=LARGE)
def tape_not_in_return_records(put: Put) -> None:
    """An owner's return records do not say what it keeps."""
    put(returns, "tape", Instead(tape, kept_of=lambda job, source: 0))


@mutation("tape-said-as-asked", fixed=SMALL, calls=4)
def tape_said_as_asked(put: Put) -> None:
    """Return records say what was asked for, although the owner has kept less."""
    put(returns, "tape", Instead(tape, kept_of=lambda job, source: job[words.SAVE] if job[words.TAPED] else 0))


@mutation("x-left-out-though-not-kept", fixed=SMALL, calls=4)
def x_left_out_though_not_kept(put: Put) -> None:
    """A source leaves x out although the owner does not keep it, and announces rows with x."""

    def bytes_to_owner(job: Any, owner: int) -> int:
        return int(job[words.RETURN_BYTES if job[words.TAPED] else words.ROW_BYTES])

    put(dispatch, "tape", Instead(tape, bytes_to_owner=bytes_to_owner))


@mutation("tape-without-end", fixed=SMALL, calls=4)
def tape_without_end(put: Put) -> None:
    """An owner keeps rows behind the end of its reserve."""

    def admit(job: Any, st: Any, source: int, rows: int) -> None:
        tape.admit(changed(job, TAPE_END=1 << 62), st, source, rows)

    put(arrivals, "tape", Instead(tape, admit=admit))


@mutation("sources-share-the-tape", ranks=3, fixed=LARGE)
def sources_share_the_tape(put: Put) -> None:
    """Every source's rows are kept from the first place on."""

    def admit(job: Any, st: Any, source: int, rows: int) -> None:
        tape.admit(job, st, source, rows)
        st[words.TAPE_NEXT] = job[words.TAPE_AT]

    put(arrivals, "tape", Instead(tape, admit=admit))


def renumbered(put: Put, number: Callable[[Any, Any, int], int]) -> None:
    """In forward calls, change the number that a part's first row has among the rows of its source."""
    real = tape.number

    def other(job: Any, st: Any, part: int) -> int:
        return real(job, st, part) if job[words.TAPE] else number(job, st, part)

    put(tape, "number", other)


@mutation("tape-by-packed-row", fixed=LARGE)
def tape_by_packed_row(put: Put) -> None:
    """A row's place on the tape is counted from the first packed row of its source, for whichever owner that row is."""
    real = tape.number
    renumbered(
        put, lambda job, st, part: real(job, st, part) + st[words.first_packed(job, st[words.part_source(part)])]
    )


@mutation("tile-taped-from-its-start", fixed=(*LARGE, ("group", 1), ("tile", 3), ("run", 2)))
def tile_taped_from_its_start(put: Put) -> None:
    """Rows of a tile's second run are kept on the tape in the places of those of its first run."""
    real = tape.number

    def number(job: Any, st: Any, part: int) -> int:
        source, back = st[words.part_source(part)], 0
        if source != job[words.RANK]:
            r = words.landed(job, source, st[words.part_where(part)])
            back = st[words.part_first(part)] - st[words.landed_row(r)]
        return int(real(job, st, part)) - back

    renumbered(put, number)


@mutation("row-taped-after-its-credit", fixed=(*LARGE, ("workers", 1), ("runs", 1)))
def row_taped_after_its_credit(put: Put) -> None:
    """A row is copied to the tape after its ring row has been freed."""
    publish = experts.publish

    def copy_late(job: Any, st: Any, worker: int) -> None:
        publish(job, st, worker)
        if job[words.TAPED] and not job[words.TAPE]:
            tape.keep_rows(job, st, words.command(job, worker))

    put(experts, "tape", Instead(tape, keep_rows=lambda job, st, c: None))
    put(experts, "publish", copy_late)


@mutation("x-over-hidden", fixed=LARGE)
def x_over_hidden(put: Put) -> None:
    """A row is kept in the place of its hidden activations."""

    def keep_rows(job: Any, st: Any, c: int) -> None:
        tape.keep_rows(changed(job, TAPE_HIDDEN=0), st, c)

    put(experts, "tape", Instead(tape, keep_rows=keep_rows))


@mutation("shares-keep-nothing", fixed=(*LARGE, ("workers", 2), ("all_split", True)))
def shares_keep_nothing(put: Put) -> None:
    """Workers that compute columns of a run keep no hidden activations."""
    put(column_runs, "tape", Instead(tape, list_of=lambda job, st, c: 0))
