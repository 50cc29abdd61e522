"""Deliberate bugs between nodes: the explorer must find each."""

from __future__ import annotations

from typing import Any

from aristos.engine import bundles, layout, outbox, words
from aristos.explore import network, places
from aristos.explore.mutation import Put, mutation
from aristos.primitives import memory, wire


@mutation("flush-skipped", transport="rma")
def flush_skipped(put: Put) -> None:
    """Words are put right after their data, without a flush."""
    put(network.SimulatedNetwork, "flush", lambda self, address, peer: 0)


@mutation("words-before-flush", transport="rma")
def words_before_flush(put: Put) -> None:
    """Words are put before their data is flushed."""
    flush, put_words = network.SimulatedNetwork.flush, outbox.put_words

    def hasty(job: Any, st: Any, peer: int, first: int, end: int) -> None:
        put_words(job, st, peer, first, end)
        wire.flush(job[words.WIRE], peer, late=True)

    def later(self: Any, address: int, peer: int, late: bool = False) -> None:
        if late:
            flush(self, address, peer)

    put(outbox, "put_words", hasty)
    put(network.SimulatedNetwork, "flush", later)


@mutation("sync-skipped", transport="rma")
def sync_skipped(put: Put) -> None:
    """An arrived word is passed on without a sync: its data may not be visible."""
    put(network.SimulatedNetwork, "sync", lambda self, address: None)


def accept_any_complement(job: Any, st: Any, peer: int, end: int) -> bool:
    """An `outbox.read_words` that ignores the complement."""
    anything = False
    for word in range(end):
        at = words.coded_word(st[words.region_from(job, peer)], word)
        value, _ = memory.load(words.coded_value(at)), memory.load(words.coded_complement(at))
        here = layout.word_from(job, st, peer, word)
        if value != memory.load(here):
            wire.sync(job[words.WIRE])
            memory.store_release(here, value)
            anything = True
    return anything


@mutation("no-complement-check", transport="rma")
def no_complement_check(put: Put) -> None:
    """An arriving word is accepted whatever its complement is."""
    put(outbox, "read_words", accept_any_complement)


@mutation("two-mpi-callers", transport="rma", fixed=(("workers", 2),))
def two_mpi_callers(put: Put) -> None:
    """Workers call MPI with or without the wire's lock."""

    def try_lock(address: int) -> bool:
        memory.compare_exchange(address + 8 * wire.LOCK, 0, 1)
        return True

    put(wire, "try_lock", try_lock)


@mutation("staging-before-credit", transport="rma", fixed=(("rows", 2),))
def staging_before_credit(put: Put) -> None:
    """A bundle is written into the outbox before there is credit for it."""
    put(bundles, "freed", lambda job, st, peer: st[words.sent_rows(job, peer)])


@mutation("credit-not-put", transport="rma", fixed=(("rows", 2),))
def credit_not_put(put: Put) -> None:
    """Freed rows are not reported to a remote source."""
    real = outbox.encode

    def encode(job: Any, st: Any, peer: int, word: int, value: int) -> None:
        real(job, st, peer, word, 0 if word == words.CREDIT else value)

    put(outbox, "encode", encode)


@mutation("shared-staging-pool", transport="rma", ranks=3)
def shared_staging_pool(put: Put) -> None:
    """Outputs for all remote sources share the same staging rows."""
    real = places.fill

    def fill(shape: Any, nodes: Any, me: int, state: Any, starts: dict[int, int], wire: int = 1) -> list[int]:
        made = real(shape, nodes, me, state, starts, wire)
        for p in nodes.remote(me):
            state[words.staged(starts, p)] = state[words.staged(starts, nodes.remote(me)[0])]
        return made

    put(places, "fill", fill)


@mutation("ends-before-its-words-are-put", transport="rma")
def ends_before_put(put: Put) -> None:
    """A call ends before everything that remote peers must get has been put."""
    put(outbox, "all_posted", lambda job, st: True)


@mutation("first-phase-unput", transport="rma", plain=False, kind="object", fixed=(("max_tokens", 6),))
def first_phase_unput(put: Put) -> None:
    """An exchange's first phase ends before bundles for remote owners are put.

    In that phase no outputs are returned, so none are missed.
    """

    def all_posted(job: Any, st: Any) -> bool:
        remote = [p for p in range(job[words.WORLD]) if st[words.remote(job, p)]]
        returned = all(st[words.put_returned(job, p)] == st[words.returned(job, p)] for p in remote)
        return returned and all(
            st[words.open_epoch(job, p)] == job[words.EPOCH] and not st[words.open(job, p)] for p in remote
        )

    put(outbox, "all_posted", all_posted)


@mutation("announced-before-it-is-put", transport="rma")
def announced_before_put(put: Put) -> None:
    """A batch opened in one call and closed in the next announces the later call."""
    real = outbox.encode

    def encode(job: Any, st: Any, peer: int, word: int, value: int) -> None:
        real(job, st, peer, word, job[words.EPOCH] if word == words.ANNOUNCED else value)

    put(outbox, "encode", encode)


@mutation("no-progress-thread", transport="rma", ranks=3, fixed=(("attention", True), ("max_tokens", 6), ("rows", 2)))
def no_progress_thread(put: Put) -> None:
    """No thread calls into MPI for a rank between the rank's calls."""
    put(wire, "run_progress_thread", lambda address: None)
