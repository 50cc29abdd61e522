"""Deliberate bugs of a rank on a card: of its proxy, of the copies to its mirror, of what its blocks see."""

from __future__ import annotations

from typing import Any

from greenlet import getcurrent

from ..engine import layout, outbox, proxy, words
from ..primitives import memory, wire
from . import places
from .cases import Fault
from .mutation import Instead, Put, mutation
from .mutations_between import believe_value


def fails(how: str, **fixed: Any) -> dict[str, Any]:
    """What is asked of a case in which rank 0 fails as its first call begins: see cases.HOW."""
    return {"transport": "proxy", "fixed": (("fault", Fault(0, 1, 0, how=how)), *fixed.items())}


# ---- from the card to far peers


@mutation("tail-read-plainly", transport="proxy")
def tail_read_plainly(put: Put) -> None:
    """The proxy reads without an acquire how many tiles blocks have written: their records may not be there."""
    real, counting = proxy.count, set()  # actors

    def count(job: Any, st: Any, peer: int, line: int) -> None:
        counting.add(getcurrent())
        try:
            real(job, st, peer, line)
        finally:
            counting.discard(getcurrent())

    def load_acquire(at: int) -> int:
        return memory.load(at) if getcurrent() in counting else memory.load_acquire(at)

    put(proxy, "count", count)
    put(proxy, "mem", Instead(load_acquire=load_acquire))


@mutation("rows-of-a-wrap-not-counted", transport="proxy", fixed=(("rows", 3), ("tile", 2), ("max_tokens", 6)))
def rows_of_a_wrap(put: Put) -> None:
    """Of a tile whose rows wrap in the ring the proxy counts those before the wrap."""

    def count(job: Any, st: Any, peer: int, line: int) -> None:
        tail, ring = memory.load_acquire(line + 8 * words.TAIL), job[words.RING_ROWS]
        for tile in range(st[words.sent_tiles(job, peer)], tail):
            rows = memory.load(layout.record_to(job, st, peer, tile) + 8)
            st[words.sent_rows(job, peer)] += min(rows, ring - st[words.sent_rows(job, peer)] % ring)
        st[words.sent_tiles(job, peer)] = tail
        st[words.returned(job, peer)] = memory.load_acquire(line + 8 * words.RETURN_TAIL)

    put(proxy, "count", count)


@mutation("credit-when-copies-begin", transport="proxy", fixed=(("rows", 2), ("max_tokens", 6)))
def credit_when_copies_begin(put: Put) -> None:
    """A far source is given credit for rows as soon as their copy to the card has begun."""
    sides: dict[int, Any] = {}  # by the number of a job, which is kept so that no other gets it
    fetch, refresh = proxy.fetch, proxy.refresh

    def noted(card: Any, cs: Any, peer: int) -> bool:
        sides[id(card)] = card, cs
        return fetch(card, cs, peer)

    def early(job: Any, st: Any, card: Any) -> None:
        refresh(job, st, card)
        _, cs = sides.get(id(card), (card, st))
        for p in range(job[words.WORLD]):
            if cs is not st and st[words.remote(job, p)]:
                st[words.freed_rows(job, p)] = cs[words.sent_rows(card, p)]

    put(proxy, "fetch", noted)
    put(proxy, "refresh", early)


@mutation("posted-before-flush", transport="proxy")
def posted_before_flush(put: Put) -> None:
    """The card is told that all is put when its proxy has seen what there is to put."""
    real = proxy.turn

    def turn(job: Any, st: Any, card: Any, cs: Any) -> int:
        proxy.refresh(job, st, card)
        for p in range(job[words.WORLD]):
            if st[words.remote(job, p)]:
                seen = st[words.sent_tiles(job, p)] + st[words.returned(job, p)] + job[words.EPOCH]
                memory.store_release(proxy.card_word(card, cs, p, words.POSTED), seen)
        return int(real(job, st, card, cs))

    put(proxy, "turn", turn)


@mutation("proxy-words-before-flush", transport="proxy")
def words_before_flush(put: Put) -> None:
    """The proxy puts a batch's words, and only then flushes what they tell of."""
    real = outbox.put_words

    def put_words(job: Any, st: Any, peer: int, first: int, end: int) -> None:
        real(job, st, peer, first, end)
        wire.flush(job[words.WIRE], peer)

    put(outbox, "put_words", put_words)
    put(outbox, "mpi", Instead(wire, flush=lambda address, peer: None))


@mutation("words-alone-not-flushed", transport="proxy")
def words_alone_not_flushed(put: Put) -> None:
    """A batch of words alone is not flushed before they are put again."""
    real, batch = outbox.close_batch, [0]

    def close_batch(job: Any, st: Any, peer: int) -> None:
        batch[0] = st[words.open_bytes(job, peer)]
        real(job, st, peer)

    def flush(address: int, peer: int) -> None:
        if batch[0]:
            wire.flush(address, peer)

    put(outbox, "close_batch", close_batch)
    put(outbox, "mpi", Instead(wire, flush=flush))


# ---- from far peers to the card


@mutation("words-before-copies", transport="proxy")
def words_before_copies(put: Put) -> None:
    """Words are handed on to the card, and only then what they tell of is waited for."""
    real = proxy.hand_on

    def hand_on(card: Any, cs: Any, peer: int) -> bool:
        for word in range(words.POISON + 1, words.LINE_WORDS + 1):
            value = memory.load(layout.word_from(card, cs, peer, word))
            memory.store_release(proxy.card_word(card, cs, peer, word), value)
        return bool(real(card, cs, peer))

    put(proxy, "hand_on", hand_on)


@mutation("returns-tail-first", transport="proxy")
def returns_tail_first(put: Put) -> None:
    """The card learns that tiles have come back before their rows and records are copied to it."""
    real = proxy.fetch

    def fetch(card: Any, cs: Any, peer: int) -> bool:
        value = memory.load(layout.word_from(card, cs, peer, words.RETURN_TAIL))
        new = bool(real(card, cs, peer))
        memory.store_release(proxy.card_word(card, cs, peer, words.RETURN_TAIL), value)
        return new

    put(proxy, "fetch", fetch)


@mutation("copied-by-half-a-word", transport="proxy")
def copied_by_half_a_word(put: Put) -> None:
    """What a word tells of is copied to the card when its value has come, whatever its complement says."""
    put(outbox, "read_words", believe_value)


@mutation("return-rows-not-copied", transport="proxy")
def return_rows_not_copied(put: Put) -> None:
    """Records of what comes back are copied to the card, and not its rows."""
    put(proxy, "put_return_rows", lambda card, cs, peer, tiles: outbox.put_ring(
        card, cs, peer, card[words.P_RETURN_RECORDS], cs[words.put_returned(card, peer)], tiles, card[words.SLOTS],
        layout.RETURN_RECORD_BYTES,
    ))  # fmt: skip


@mutation("copied-again", transport="proxy")
def copied_again(put: Put) -> None:
    """The proxy copies the last tile of a peer to the card once more, which may read it."""
    real = proxy.fetch

    def fetch(card: Any, cs: Any, peer: int) -> bool:
        new = bool(real(card, cs, peer))
        if new and cs[words.put_tiles(card, peer)] > 0:
            last = layout.record_to(card, cs, peer, cs[words.put_tiles(card, peer)] - 1)
            cs[words.put_tiles(card, peer)] -= 1
            cs[words.put_rows(card, peer)] -= memory.load(last + 8)
        return new

    put(proxy, "fetch", fetch)


@mutation("latest-announcement-alone", transport="proxy", fixed=(("max_tokens", 1),))
def latest_announcement_alone(put: Put) -> None:
    """Of a peer that is a call ahead the proxy copies the latest announcement, and not the one before."""
    real = proxy.fetch
    before: dict[int, int] = {}  # where a proxy looks what the card knows -> the epoch before the latest

    def fetch(card: Any, cs: Any, peer: int) -> bool:
        told = proxy.card_word(card, cs, peer, words.ANNOUNCED)
        before[told] = memory.load(layout.word_from(card, cs, peer, words.ANNOUNCED)) - 1
        try:
            return bool(real(card, cs, peer))
        finally:
            del before[told]

    def load(at: int) -> int:
        value = memory.load(at)
        return max(value, before[at]) if at in before else value

    put(proxy, "fetch", fetch)
    put(proxy, "mem", Instead(load=load))


@mutation("window-read-by-blocks", transport="proxy")
def window_read_by_blocks(put: Put) -> None:
    """The card is given the addresses of the MPI window, which lies in the host's memory, and not of its mirror."""
    real = places.fill_card

    def fill_card(shape: Any, nodes: Any, rank: int, state: Any, starts: dict[int, int]) -> Any:
        sides = real(shape, nodes, rank, state, starts)
        for p in nodes.remote(rank):
            state[words.region_from(starts, p)] += places.address(0, places.FAR) - places.address(0, places.MIRROR)
        return sides

    put(places, "fill_card", fill_card)


# ---- failures


@mutation("poison-not-put", **fails("card"))
def poison_not_put(put: Put) -> None:
    """The proxy ends when its rank's engine has failed, and tells no far peer."""
    put(proxy, "put_poison", lambda job, st: True)


@mutation("poison-put-in-part", **fails("card", node_of=(0, 1, 2)), ranks=3)
def poison_put_in_part(put: Put) -> None:
    """The proxy puts poison, and ends, when one of the card's words for far peers is there."""

    def failed(job: Any, st: Any) -> bool:
        far = [p for p in range(job[words.WORLD]) if st[words.remote(job, p)]]
        return any(memory.load_acquire(layout.word_to(job, st, p, words.POISON)) for p in far)

    put(proxy, "failed", failed)


@mutation("poison-taken-back", **fails("host"))
def poison_taken_back(put: Put) -> None:
    """What the host has told its kernel is written over by what far peers say, who have no poison."""

    def unpoisoned(card: Any, cs: Any, peer: int) -> bool:
        theirs = memory.load(layout.word_from(card, cs, peer, words.POISON))
        return theirs != memory.load_acquire(proxy.card_word(card, cs, peer, words.POISON))

    put(proxy, "unpoisoned", unpoisoned)


@mutation("failed-copy-not-told", **fails("copy"))
def failed_copy_not_told(put: Put) -> None:
    """When a copy to the card fails, far peers are told, and the card's own blocks are not."""

    def poison(job: Any, st: Any, card: Any, cs: Any, told: int) -> None:
        for p in range(job[words.WORLD]):
            if st[words.remote(job, p)]:
                memory.store_release(layout.word_to(job, st, p, words.POISON), told)

    put(proxy, "poison", poison)


@mutation("failed-copy-handed-on", **fails("copy"))
def failed_copy_handed_on(put: Put) -> None:
    """Words of what a copy that failed was to bring are handed on."""
    real = proxy.hand_on

    def hand_on(card: Any, cs: Any, peer: int) -> bool:
        done = bool(real(card, cs, peer))
        if not done:
            for word in range(words.POISON + 1, words.LINE_WORDS + 1):
                value = memory.load(layout.word_from(card, cs, peer, word))
                memory.store_release(proxy.card_word(card, cs, peer, word), value)
        return done

    put(proxy, "hand_on", hand_on)
