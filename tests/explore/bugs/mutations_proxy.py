"""Deliberate bugs of a rank on a GPU: in its proxy, in the copies to its mirror, in its blocks' addresses."""

from __future__ import annotations

from typing import Any

from greenlet import getcurrent

from aristos.engine import layout, outbox, proxy, words
from aristos.explore import places
from aristos.explore.cases import RankFault
from aristos.explore.mutation import Instead, Put, mutation
from aristos.primitives import memory, wire

from .mutations_between import accept_any_complement


def fails(how: str, **fixed: Any) -> dict[str, Any]:
    """Options for a case in which rank 0 fails as its first call begins; how: see cases.HOW."""
    return {"transport": "proxy", "fixed": (("fault", RankFault(0, 1, 0, how=how)), *fixed.items())}


# ---- from the GPU to remote peers


@mutation("tail-read-plainly", transport="proxy")
def tail_read_plainly(put: Put) -> None:
    """The proxy reads the number of written tiles without an acquire: their records may not be visible."""
    real, counting = proxy.count, set()  # the actors that are in `count`

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
    """For a tile that wraps around the ring the proxy counts only the rows before the wrap."""

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
    """A remote source gets credit for rows as soon as their copy to the GPU has begun."""
    sides: dict[int, Any] = {}  # id of a job -> (the job, its state). The job stays alive, so its id is unique
    fetch, refresh = proxy.fetch, proxy.refresh

    def noted(gpu: Any, cs: Any, peer: int) -> bool:
        sides[id(gpu)] = gpu, cs
        return fetch(gpu, cs, peer)

    def early(job: Any, st: Any, gpu: Any) -> None:
        refresh(job, st, gpu)
        _, cs = sides.get(id(gpu), (gpu, st))
        for p in range(job[words.WORLD]):
            if cs is not st and st[words.remote(job, p)]:
                st[words.freed_rows(job, p)] = cs[words.sent_rows(gpu, p)]

    put(proxy, "fetch", noted)
    put(proxy, "refresh", early)


@mutation("posted-before-flush", transport="proxy")
def posted_before_flush(put: Put) -> None:
    """The GPU's POSTED word is set when the proxy has read what to put, not when it is put."""
    real = proxy.serve_both

    def serve_both(job: Any, st: Any, gpu: Any, cs: Any) -> int:
        proxy.refresh(job, st, gpu)
        for p in range(job[words.WORLD]):
            if st[words.remote(job, p)]:
                seen = st[words.sent_tiles(job, p)] + st[words.returned(job, p)] + job[words.EPOCH]
                memory.store_release(proxy.gpu_word(gpu, cs, p, words.POSTED), seen)
        return int(real(job, st, gpu, cs))

    put(proxy, "serve_both", serve_both)


@mutation("proxy-words-before-flush", transport="proxy")
def words_before_flush(put: Put) -> None:
    """The proxy puts a batch's words before it flushes their data."""
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


# ---- from remote peers to the GPU


@mutation("words-before-copies", transport="proxy")
def words_before_copies(put: Put) -> None:
    """Words are passed on to the GPU before the copies of their data are complete."""
    real = proxy.hand_on

    def hand_on(gpu: Any, cs: Any, peer: int) -> bool:
        for word in range(words.POISON + 1, words.LINE_WORDS + 1):
            value = memory.load(layout.word_from(gpu, cs, peer, word))
            memory.store_release(proxy.gpu_word(gpu, cs, peer, word), value)
        return bool(real(gpu, cs, peer))

    put(proxy, "hand_on", hand_on)


@mutation("returns-tail-first", transport="proxy")
def returns_tail_first(put: Put) -> None:
    """The return tail reaches the GPU before the returned rows and records do."""
    real = proxy.fetch

    def fetch(gpu: Any, cs: Any, peer: int) -> bool:
        value = memory.load(layout.word_from(gpu, cs, peer, words.RETURN_TAIL))
        new = bool(real(gpu, cs, peer))
        memory.store_release(proxy.gpu_word(gpu, cs, peer, words.RETURN_TAIL), value)
        return new

    put(proxy, "fetch", fetch)


@mutation("copied-by-half-a-word", transport="proxy")
def copied_by_half_a_word(put: Put) -> None:
    """A word's data is copied to the GPU once its value has arrived, whatever its complement is."""
    put(outbox, "read_words", accept_any_complement)


@mutation("return-rows-not-copied", transport="proxy")
def return_rows_not_copied(put: Put) -> None:
    """Return records are copied to the GPU, and the returned rows are not."""
    put(
        proxy,
        "put_return_rows",
        lambda gpu, cs, peer, tiles: outbox.put_ring(
            gpu,
            cs,
            peer,
            gpu[words.P_RETURN_RECORDS],
            cs[words.put_returned(gpu, peer)],
            tiles,
            gpu[words.RING_RECORDS],
            layout.RETURN_RECORD_BYTES,
        ),
    )


@mutation("copied-again", transport="proxy")
def copied_again(put: Put) -> None:
    """The proxy copies a peer's last tile to the GPU a second time, while blocks may read it."""
    real = proxy.fetch

    def fetch(gpu: Any, cs: Any, peer: int) -> bool:
        new = bool(real(gpu, cs, peer))
        if new and cs[words.put_tiles(gpu, peer)] > 0:
            last = layout.record_to(gpu, cs, peer, cs[words.put_tiles(gpu, peer)] - 1)
            cs[words.put_tiles(gpu, peer)] -= 1
            cs[words.put_rows(gpu, peer)] -= memory.load(words.record_rows(last))
        return new

    put(proxy, "fetch", fetch)


@mutation("latest-announcement-alone", transport="proxy", fixed=(("max_tokens", 1),))
def latest_announcement_alone(put: Put) -> None:
    """From a peer that is one call ahead the proxy copies only the latest announcement."""
    real = proxy.fetch
    before: dict[int, int] = {}  # address of the GPU's ANNOUNCED word -> the epoch before the latest

    def fetch(gpu: Any, cs: Any, peer: int) -> bool:
        at = proxy.gpu_word(gpu, cs, peer, words.ANNOUNCED)
        before[at] = memory.load(layout.word_from(gpu, cs, peer, words.ANNOUNCED)) - 1
        try:
            return bool(real(gpu, cs, peer))
        finally:
            del before[at]

    def load(at: int) -> int:
        value = memory.load(at)
        return max(value, before[at]) if at in before else value

    put(proxy, "fetch", fetch)
    put(proxy, "mem", Instead(load=load))


@mutation("window-read-by-blocks", transport="proxy")
def window_read_by_blocks(put: Put) -> None:
    """The GPU gets addresses in the MPI window, which is host memory, instead of its mirror."""
    real = places.fill_gpu

    def fill_gpu(shape: Any, nodes: Any, rank: int, state: Any, starts: dict[int, int]) -> Any:
        sides = real(shape, nodes, rank, state, starts)
        for p in nodes.remote(rank):
            state[words.region_from(starts, p)] += places.address(0, places.REMOTE) - places.address(0, places.MIRROR)
        return sides

    put(places, "fill_gpu", fill_gpu)


# ---- failures


@mutation("poison-not-put", **fails("gpu"))
def poison_not_put(put: Put) -> None:
    """The proxy ends when its rank's engine fails, and poisons no remote peer."""
    put(proxy, "put_poison", lambda job, st: True)


@mutation("poison-put-in-part", **fails("gpu", node_of=(0, 1, 2)), ranks=3)
def poison_put_in_part(put: Put) -> None:
    """The proxy ends when one of the GPU's poison words is written, not when all are."""

    def failed(job: Any, st: Any) -> bool:
        remote = [p for p in range(job[words.WORLD]) if st[words.remote(job, p)]]
        return any(memory.load_acquire(layout.word_to(job, st, p, words.POISON)) for p in remote)

    put(proxy, "failed", failed)


@mutation("poison-overwritten", **fails("host"))
def poison_overwritten(put: Put) -> None:
    """The host's poison for its own kernel is overwritten by the zero words of remote peers."""

    def new_poison(gpu: Any, cs: Any, peer: int) -> bool:
        theirs = memory.load(layout.word_from(gpu, cs, peer, words.POISON))
        return theirs != memory.load_acquire(proxy.gpu_word(gpu, cs, peer, words.POISON))

    put(proxy, "new_poison", new_poison)


@mutation("failed-copy-not-reported", **fails("copy"))
def failed_copy_not_reported(put: Put) -> None:
    """When a copy to the GPU fails, remote peers are poisoned and the GPU's own blocks are not."""

    def poison(job: Any, st: Any, gpu: Any, cs: Any, value: int) -> None:
        for p in range(job[words.WORLD]):
            if st[words.remote(job, p)]:
                memory.store_release(layout.word_to(job, st, p, words.POISON), value)

    put(proxy, "poison", poison)


@mutation("failed-copy-passed-on", **fails("copy"))
def failed_copy_passed_on(put: Put) -> None:
    """Words are passed on although the copy of their data failed."""
    real = proxy.hand_on

    def hand_on(gpu: Any, cs: Any, peer: int) -> bool:
        done = bool(real(gpu, cs, peer))
        if not done:
            for word in range(words.POISON + 1, words.LINE_WORDS + 1):
                value = memory.load(layout.word_from(gpu, cs, peer, word))
                memory.store_release(proxy.gpu_word(gpu, cs, peer, word), value)
        return done

    put(proxy, "hand_on", hand_on)
