"""Deliberate bugs of bells, by which an idle look finds out whose words are new. The explorer must find each.

The explorer's ranks read only poison in turn, so a rank waits for ever if a bell does not ring.
"""

from __future__ import annotations

from typing import Any

from aristos.engine import bells, outbox, words
from aristos.engine.layout import WORD
from aristos.explore.mutation import Instead, Put, mutation
from aristos.primitives import memory
from aristos.primitives import wire as mpi

# two nodes of two ranks
SIZES: tuple[tuple[str, Any], ...] = (
    ("node_of", (0, 0, 1, 1)),
    ("placement", (0, 1, 2, 3)),
    ("max_tokens", 2),
    ("workers", 1),
)
NODES: dict[str, Any] = {"transport": "levels", "ranks": 4, "fixed": SIZES}


@mutation("bells-of-streams-not-put", **NODES)
def bells_of_streams_not_put(put: Put) -> None:
    """A rank rings for credit and returns only, not for its streams."""

    def some(wire: int, peer: int, at: int, source: int, nbytes: int) -> None:
        if source // WORD % 2 == 0:  # the bell of a stream is put from the second half of a coded word
            mpi.put(wire, peer, at, source, nbytes)

    put(bells, "mpi", Instead(mpi, put=some))


@mutation("bells-answered-without-words", **NODES)
def bells_answered_without_words(put: Put) -> None:
    """A reader notes a bell as answered, although words that it is for have not landed."""

    def note_answered(job: Any, st: Any, peer: int) -> None:
        bells.set_byte(st[words.ANSWERED] + peer, bells.byte_at(st[words.BELLS] + peer))
        bells.set_byte(st[words.stream_answered(job, peer)], bells.byte_at(st[words.stream_bell(job, peer)]))

    put(bells, "note_answered", note_answered)


@mutation("bells-before-words-change", **NODES)
def bells_before_words_change(put: Put) -> None:
    """A bell is computed from the words of the batch before."""
    real = bells.digest
    last: dict[tuple[int, int], int] = {}

    def digest(a: int, step: int, first: int, end: int) -> int:
        now = real(a, step, first, end)
        if step == WORD:  # of the words that a reader has accepted
            return now
        before, last[a, first] = last.get((a, first), 0), now
        return before

    put(bells, "digest", digest)


@mutation("bells-of-epochs", **NODES)
def bells_of_epochs(put: Put) -> None:
    """The digest of a rank's words has the epoch alone, so a rank does not ring for credit and returns."""
    real = bells.digest

    def digest(a: int, step: int, first: int, end: int) -> int:
        return real(a, step, first, words.AT_EPOCH + 1 if first < words.ANNOUNCED else end)

    put(bells, "digest", digest)


@mutation("bells-of-own-rail-only", **NODES)
def bells_of_own_rail_only(put: Put) -> None:
    """A reader looks only at the bells of those streams that lie at itself."""

    def any_rings(job: Any, st: Any) -> bool:
        me, remote = job[words.RANK], [p for p in range(job[words.WORLD]) if st[words.remote(job, p)]]
        own = range(st[words.stream_bells(job, me)], st[words.stream_bells(job, me)] + 8)
        at = words.BELLS, words.ANSWERED
        return any(
            bells.byte_at(st[at[0]] + p) != bells.byte_at(st[at[1]] + p)
            or (st[words.stream_bell(job, p)] in own and bells.rings(job, st, p))
            for p in remote
        )

    put(bells, "any_rings", any_rings)


@mutation("bells-of-a-neighbour", **NODES)
def bells_of_a_neighbour(put: Put) -> None:
    """A reader looks at a neighbour's bells for words that only the neighbour may read."""
    real = bells.any_rings

    def any_rings(job: Any, st: Any) -> bool:
        first = st[words.stream_bells(job, job[words.NODE_FIRST])]
        memory.load(first - st[words.stream_bells(job, job[words.RANK])] + st[words.BELLS])
        return real(job, st)

    put(bells, "any_rings", any_rings)


@mutation("bells-put-with-their-neighbours", **NODES)
def bells_put_with_their_neighbours(put: Put) -> None:
    """A rank puts a whole word, and so overwrites bells of other ranks."""
    put(bells, "mpi", Instead(mpi, put=lambda wire, p, at, source, nbytes: mpi.put(wire, p, at - at % 8, source, 8)))


@mutation("bells-at-the-next-place", **NODES)
def bells_at_the_next_place(put: Put) -> None:
    """A rank puts its bell at the place of the next rank."""
    put(bells, "mpi", Instead(mpi, put=lambda wire, p, at, source, nbytes: mpi.put(wire, p, at + 1, source, nbytes)))


@mutation("bells-before-the-flush", **NODES)
def bells_before_the_flush(put: Put) -> None:
    """A rank rings when it opens a batch, although the bells of the batch before are not flushed."""
    real = outbox.open_batch

    def open_batch(job: Any, st: Any, peer: int) -> None:
        real(job, st, peer)
        bells.ring(job, st, peer)

    put(outbox, "open_batch", open_batch)


@mutation("bells-read-without-the-wire", **NODES)
def bells_read_without_the_wire(put: Put) -> None:
    """A worker looks at bells before it holds the wire's lock."""
    real = outbox.serve_wire

    def serve_wire(job: Any, st: Any, worker: int, idle: bool) -> bool:
        if st[words.BELLS] != 0 and idle and not bells.any_rings(job, st):
            return False
        return real(job, st, worker, idle)

    put(outbox, "serve_wire", serve_wire)
