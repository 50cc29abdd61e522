"""Deliberate bugs where tokens cross once to ranks of the node. The explorer must find each."""

from __future__ import annotations

from typing import Any

from aristos.engine import arrivals, bundles, dispatch, experts, layout, packing, words
from aristos.explore.mutation import Instead, Put, mutation
from aristos.primitives import memory

ONCE = (("once", 1), ("once_share", 0), ("stay", 0), ("top_k", 2), ("placement", (0, 0, 1, 1)), ("max_tokens", 6))
MIXED = (*ONCE[2:], ("once", 3), ("once_share", 0))  # calls with fewer than 3 rows send a row for each pair


def announces(put: Put, say: Any) -> None:
    """Write `say(job, st, p)` into announcements, instead of whether tokens cross once."""
    real = packing.write_announcement

    def write_announcement(job: Any, st: Any, p: int) -> None:
        real(job, st, p)
        once = say(job, st, p)
        memory.store(words.announced_once(layout.announcement_to(job, st, p, job[words.EPOCH])), once)

    put(packing, "write_announcement", write_announcement)


@mutation("once-not-announced", fixed=ONCE)
def once_not_announced(put: Put) -> None:
    """Tokens cross once within a node, but their owner is not notified and reads a row for each pair."""
    announces(put, lambda job, st, p: st[words.remote(job, p)])


@mutation("once-announced-to-all", ranks=3, fixed=(*MIXED, ("placement", (0, 0, 1, 1, 2, 2))))
def once_announced_to_all(put: Put) -> None:
    """If tokens cross once to one owner, the source announces to every owner that they do."""
    announces(put, lambda job, st, p: max(st[words.once_to(job, q)] for q in range(job[words.WORLD])))


@mutation("once-of-the-call-before", calls=4, fixed=MIXED)
def once_of_the_call_before(put: Put) -> None:
    """An owner reads whether tokens cross once from the announcement of a source's previous call."""
    real = arrivals.read_announcement
    before: dict[tuple[int, int], int] = {}

    def read_announcement(job: Any, st: Any, source: int) -> bool:
        read = real(job, st, source)
        if read:
            key, now = (job[words.RANK], source), st[words.once_from(job, source)]
            st[words.once_from(job, source)] = before.get(key, now) if job[words.EPOCH] > 1 else now
            before[key] = now
        return read

    put(arrivals, "read_announcement", read_announcement)


@mutation("once-decided-visit-by-visit", fixed=(*ONCE, ("rows", 3), ("once", 3), ("tile", 1), ("bundle", 3)))
def once_decided_visit_by_visit(put: Put) -> None:
    """Before every bundle a source decides again whether tokens cross once, by the rows that are left."""
    real = dispatch.claim

    def claim(job: Any, st: Any, worker: int) -> int:
        kept = [st[words.once_to(job, p)] for p in range(job[words.WORLD])]
        for p in range(job[words.WORLD]):
            left = st[words.offset(job, job[words.slot_start(job, p + 1)])] - st[words.cursor(job, p)]
            st[words.once_to(job, p)] &= left >= job[words.ONCE_ROWS]
        kind = real(job, st, worker)
        for p, once in enumerate(kept):
            st[words.once_to(job, p)] = once
        return kind

    put(dispatch, "claim", claim)


@mutation("bundle-in-crossing-rows", fixed=(*ONCE, ("rows", 3)))
def bundle_in_crossing_rows(put: Put) -> None:
    """The next bundle's ring rows and index begin behind the rows that crossed, not behind the pairs."""
    real = bundles.publish

    def publish(job: Any, st: Any, worker: int) -> None:
        c = words.command(job, worker)
        owner, pairs = st[words.command_owner(c)], st[words.command_rows(c)]
        real(job, st, worker)
        st[words.sent_rows(job, owner)] -= pairs - st[words.command_crossing(c)]

    put(bundles, "publish", publish)


@mutation("bundle-freed-tile-by-tile", fixed=(*ONCE, ("tile", 1)))
def bundle_freed_tile_by_tile(put: Put) -> None:
    """Every tile of a bundle is marked as its end, so that ring rows are freed that other tiles still read."""
    real = bundles.write_records

    def write_records(job: Any, st: Any, owner: int, rows: int) -> int:
        tiles, first = real(job, st, owner, rows), st[words.sent_tiles(job, owner)]
        for tile in range(first, first + tiles):
            a = layout.record_to(job, st, owner, tile)
            memory.store(words.record_bundle(a), memory.load(words.record_rows(a)))
        return tiles

    put(bundles, "write_records", write_records)


@mutation("index-after-the-tail", fixed=ONCE)
def index_after_the_tail(put: Put) -> None:
    """Within a node a bundle's index is written after its tail has been released."""
    late: dict[int, list[tuple[int, int]]] = {}
    real = bundles.publish

    def store(at: int, value: int) -> None:
        regions = memory.store.__self__.regions  # type: ignore[attr-defined]  # a Memory's method
        if regions.place(at).region == "index":
            late.setdefault(memory.store.__self__.me, []).append((at, value))  # type: ignore[attr-defined]
        else:
            memory.store(at, value)

    def publish(job: Any, st: Any, worker: int) -> None:
        real(job, st, worker)
        mine = late.get(memory.store.__self__.me, [])  # type: ignore[attr-defined]
        while mine:
            memory.store(*mine.pop())

    put(bundles, "mem", Instead(store=store))
    put(bundles, "publish", publish)


@mutation("output-staged-within-a-node", fixed=ONCE)
def output_staged_within_a_node(put: Put) -> None:
    """Outputs for a local source whose tokens cross once are staged, as if MPI had to put them."""
    real = experts.list_rows

    def list_rows(job: Any, st: Any, c: int) -> None:
        kept = [st[words.remote(job, p)] for p in range(job[words.WORLD])]
        for p in range(job[words.WORLD]):
            st[words.remote(job, p)] |= st[words.once_from(job, p)]
        real(job, st, c)
        for p, remote in enumerate(kept):
            st[words.remote(job, p)] = remote

    put(experts, "list_rows", list_rows)
