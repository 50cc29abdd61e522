"""Deliberate bugs between nodes: the explorer must find each."""

from __future__ import annotations

from typing import Any

from ..engine import blocks, layout, outbox, words
from ..primitives import memory, wire
from . import network, places
from .mutation import LOTS, Instead, Put, mutation


@mutation("flush-skipped", transport="rma")
def flush_skipped(put: Put) -> None:
    """Words are put right after the data that they tell of."""
    put(network.Network, "flush", lambda self, address, peer: 0)


@mutation("words-before-flush", transport="rma")
def words_before_flush(put: Put) -> None:
    """Words are put, and only then what they tell of is flushed."""
    flush, put_words = network.Network.flush, outbox.put_words

    def hasty(job: Any, st: Any, peer: int, first: int, end: int) -> None:
        put_words(job, st, peer, first, end)
        wire.flush(job[words.WIRE], peer, late=True)

    def later(self: Any, address: int, peer: int, late: bool = False) -> None:
        if late:
            flush(self, address, peer)

    put(outbox, "put_words", hasty)
    put(network.Network, "flush", later)


@mutation("sync-skipped", transport="rma")
def sync_skipped(put: Put) -> None:
    """A word that has arrived is handed on without a sync: what it tells of may not be visible."""
    put(network.Network, "sync", lambda self, address: None)


def believe_value(job: Any, st: Any, peer: int) -> bool:
    """`outbox.read_words` that looks at no complement."""
    anything = False
    for word in range(words.LINE_WORDS):
        at = words.coded_word(st[words.region_from(job, peer)] + job[words.P_CODED], word)
        value, _ = memory.load(at), memory.load(at + 8)
        here = layout.word_from(job, st, peer, word)
        if value != memory.load(here):
            wire.sync(job[words.WIRE])
            memory.store_release(here, value)
            anything = True
    return anything


@mutation("no-complement-check", transport="rma")
def no_complement_check(put: Put) -> None:
    """A word that arrives is believed whatever its complement says."""
    put(outbox, "read_words", believe_value)


@mutation("two-mpi-callers", transport="rma", fixed=(("workers", 2),))
def two_mpi_callers(put: Put) -> None:
    """Workers call MPI whether they have got the wire's lock or not."""

    def take(address: int) -> bool:
        memory.compare_exchange(address + 8 * wire.LOCK, 0, 1)
        return True

    put(wire, "take", take)


@mutation("staging-before-credit", transport="rma", fixed=(("rows", 2),))
def staging_before_credit(put: Put) -> None:
    """A block is written into the outbox before there is credit for it."""
    put(blocks, "mem", Instead(load_acquire=lambda at: memory.load_acquire(at) + LOTS))


@mutation("credit-not-put", transport="rma", fixed=(("rows", 2),))
def credit_not_put(put: Put) -> None:
    """A far source is not told what has been freed."""
    real = outbox.encode

    def encode(job: Any, st: Any, peer: int, word: int, value: int) -> None:
        real(job, st, peer, word, 0 if word == words.CREDIT else value)

    put(outbox, "encode", encode)


@mutation("shared-staging-pool", transport="rma", ranks=3)
def shared_staging_pool(put: Put) -> None:
    """Outputs for all far sources wait in the same rows."""
    real = places.fill

    def fill(shape: Any, nodes: Any, me: int, state: Any, starts: dict[int, int], wire: int = 1) -> list[int]:
        made = real(shape, nodes, me, state, starts, wire)
        for p in nodes.remote(me):
            state[words.staged(starts, p)] = state[words.staged(starts, nodes.remote(me)[0])]
        return made

    put(places, "fill", fill)


@mutation("ends-before-its-words-are-put", transport="rma")
def ends_before_put(put: Put) -> None:
    """A call ends though far peers have not been put all that they are owed."""
    put(outbox, "all_posted", lambda job, st: True)


@mutation("half-exchange-unput", transport="rma", plain=False, kind="object", fixed=(("max_tokens", 6),))
def half_exchange_unput(put: Put) -> None:
    """An exchange's first half ends though blocks for far owners are not put: nothing comes back that would tell."""

    def all_posted(job: Any, st: Any) -> bool:
        far = [p for p in range(job[words.WORLD]) if st[words.remote(job, p)]]
        returned = all(st[words.put_returned(job, p)] == st[words.returned(job, p)] for p in far)
        return returned and all(
            st[words.open_epoch(job, p)] == job[words.EPOCH] and not st[words.open(job, p)] for p in far
        )

    put(outbox, "all_posted", all_posted)


@mutation("announced-before-it-is-put", transport="rma")
def announced_before_put(put: Put) -> None:
    """A batch that is closed in the next call says that this one is announced, though it was opened before."""
    real = outbox.encode

    def encode(job: Any, st: Any, peer: int, word: int, value: int) -> None:
        real(job, st, peer, word, job[words.EPOCH] if word == words.ANNOUNCED else value)

    put(outbox, "encode", encode)


@mutation("nobody-paces", transport="rma", ranks=3, fixed=(("attention", True), ("max_tokens", 6), ("rows", 2)))
def nobody_paces(put: Put) -> None:
    """Nobody calls into MPI for a rank between its calls."""
    put(wire, "pace", lambda address: None)
