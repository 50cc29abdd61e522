"""The memory layout: regions never overlap, every byte has one writer, and a stated formula gives the bytes.

The tests have one node and several: local peers store into one window, remote peers put into another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import SKEWS, MoE, rings_of, routing, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from mpi import ranks_each

import aristos
from aristos import reference
from aristos.engine import layout, schema, words
from aristos.engine.layout import (
    LINE,
    EngineShape,
    PairLayout,
    StateLayout,
    lines,
    local_bytes,
    local_region,
    most_announced,
    outbox_bytes,
    rank_bytes,
    remote_bytes,
    remote_region,
    shared_returns,
)
from aristos.explore.places import LOCAL, OUTBOX, REMOTE, fill, put_target, where
from aristos.host.nodes import Nodes
from aristos.layer.collective import shape_of, widths
from aristos.placement import Placement

ROOT = Path(__file__).parents[2]


@st.composite
def shapes(draw: st.DrawFn, most_ranks: int = 8, least_ranks: int = 1) -> EngineShape:
    top_k = draw(st.integers(1, 4))
    most = draw(st.integers(1, 40))
    return EngineShape(
        world=draw(st.integers(least_ranks, most_ranks)),
        ring_rows=draw(st.integers(1, 9)),
        stride=LINE * draw(st.integers(1, 5)),
        return_rows=most * top_k,
        max_held=draw(st.integers(1, 20)),
        top_k=top_k,
        experts=draw(st.integers(1, 40)),
        max_tokens=most,
    )


@st.composite
def clusters(draw: st.DrawFn, most_ranks: int = 8, least_ranks: int = 1) -> tuple[EngineShape, Nodes]:
    """A shape, and nodes of random sizes. With one level their ranks need not be neighbours."""
    shape = draw(shapes(most_ranks, least_ranks))
    numbers = draw(st.lists(st.integers(0, 3), min_size=shape.world, max_size=shape.world))
    if draw(st.booleans()):
        return shape, Nodes(tuple(numbers))
    nodes = Nodes(tuple(sorted(numbers)), levels=2)
    announced = most_announced([shape.max_held] * shape.world, nodes)
    local = {"local_rows": draw(st.integers(0, shape.ring_rows)), "local_peers": layout.local_peers(nodes)}
    return replace(shape, announced=announced, places=layout.places(nodes), **local), nodes


def test_nodes():
    assert Nodes.split(5).node_of == (0,) * 5
    assert Nodes.split(5, 2).node_of == (0, 0, 1, 1, 2)
    assert Nodes.split(3, 7).single
    assert not Nodes.split(3, 1).single
    mixed = Nodes((4, 9, 4))
    assert (mixed.local(0), mixed.remote(0), mixed.local(1), mixed.remote(1)) == ([2], [1], [], [0, 2])


@given(shapes())
def test_parts_of_a_region_follow_each_other(shape):
    """The order is as documented, and each part starts a cache line. Parts of streams are last."""
    w = PairLayout.from_shape(shape)
    starts = [w.return_records, w.announce, w.announce + w.announce_step, w.records, w.index, w.links, w.ring, w.staged]
    assert starts == sorted(starts)
    assert all(at % LINE == 0 for at in [*starts, w.nbytes, w.staged_bytes])
    assert starts[0] >= max(8 * (words.ENDED + 1), 16 * words.LINE_WORDS)
    assert w.announce_step >= 8 * (words.ANNOUNCED_WORDS + shape.max_held)
    assert w.nbytes == w.staged
    assert w.staged == w.ring + shape.ring_rows * shape.stride
    assert w.marks == w.ring + shape.local_ring * shape.stride
    assert w.local_bytes - w.marks >= 8 * shape.world * (shape.local_peers > 0)
    assert w.links - w.index >= 8 * shape.ring_rows
    assert w.ring - w.links >= 8 * shape.ring_rows * (shape.places > 0)


@given(clusters())
def test_return_rows_and_regions_fill_the_windows(cluster):
    """Nothing overlaps, and no byte is left over. A window without peers has only return rows."""
    shape, nodes = cluster
    w = PairLayout.from_shape(shape)
    for rank in range(shape.world):
        local, remote = nodes.local(rank), nodes.remote(rank)
        assert sorted([rank, *local, *remote]) == list(range(shape.world))
        of_remote = {p: w.remote_bytes(nodes, rank, p) for p in remote}
        for region, peers, size, nbytes in (
            (local_region, local, dict.fromkeys(local, w.local_bytes), local_bytes),
            (remote_region, remote, of_remote, remote_bytes),
        ):
            if region is remote_region and not remote:
                assert remote_bytes(shape, nodes, rank) == 0
                continue
            apart = region is remote_region or not shared_returns(nodes)
            spans = [(0, lines(shape.returns) * apart)]
            spans += sorted((at, at + size[p]) for p, at in ((p, region(shape, nodes, rank, p)) for p in peers))
            if region is remote_region:  # bells come last
                spans.append((spans[-1][1], spans[-1][1] + layout.bell_bytes(nodes, rank)))
            assert all(end == start for (_, end), (start, _) in pairwise(spans))
            assert spans[-1][1] == nbytes(shape, nodes, rank)


@given(shapes(), st.integers(1, 4))
def test_tables_of_the_state_do_not_overlap(shape, workers):
    s = StateLayout(shape, workers, batch=192)
    taken = sorted((start, start + s.sizes[name], name) for name, start in s.starts.items())
    assert taken[0][0] >= words.STATE_WORDS
    for (_, end, _), (start, _, _) in pairwise(taken):
        assert end <= start
    assert taken[-1][1] <= s.words
    assert set(s.starts) == set(range(words.T_REGION_TO, words.SLOT_OF)) - {words.T_COMMAND_STEP}, (
        "a table of the job without a place"
    )
    assert s.command_words >= words.COMMAND_LISTS + 192 * (words.LISTS + words.PART_WORDS)


def plain(function: Any) -> Any:
    """The Python body of a compiled function."""
    return getattr(function, "py_func", function)


class Addresses:
    """A job and the state of rank `me` as the package fills them. Windows are made-up addresses (explore/places.py)."""

    def __init__(self, shape: EngineShape, nodes: Nodes, me: int) -> None:
        self.shape, self.nodes, self.me = shape, nodes, me
        self.tables = StateLayout(shape, 1, 8)
        self.job = np.zeros(words.JOB_WORDS + shape.world + 1, np.int64)
        self.st = np.zeros(self.tables.words, np.int64)
        PairLayout.from_shape(shape).fill(self.job)
        self.tables.fill(self.job)
        self.job[words.RANK], self.job[words.WORLD], self.job[words.REMOTE] = me, shape.world, len(nodes.remote(me))
        for name in ("stride", "ring_rows", "ring_records"):
            self.job[getattr(words, name.upper())] = getattr(shape, name)
        self.job[words.LOCAL_ROWS] = shape.local_ring
        self.job[words.RETURN_STRIDE], self.job[words.SLOT_START] = shape.stride, words.JOB_WORDS
        self.asked = fill(shape, nodes, me, self.st, self.tables.starts)

    def at(self, name: str, *args: int) -> int:
        """The address that one of the layout's functions returns."""
        return int(plain(getattr(layout, name))(self.job, self.st, *args))

    def of(self, name: str, *args: int) -> tuple[int, int, int]:
        """The same as (rank, part, offset there)."""
        return where(self.at(name, *args))

    def table(self, name: int, peer: int) -> int:
        return int(self.st[self.tables.starts[name] + peer])

    def put_to(self, peer: int, local: int) -> int:
        """Where MPI puts a byte of the outbox for `peer`."""
        return put_target(peer, self.table(words.T_PUT_REGION, peer) + local - self.table(words.T_REGION_TO, peer))

    def coded(self, peer: int, word: int) -> int:
        """Where MPI puts a word for `peer`."""
        return put_target(peer, self.table(words.T_PUT_REGION, peer) + 16 * word)


Written = tuple[str, int, int, int]  # what, whose memory it must be, address, bytes


def region_sizes(s: EngineShape) -> dict[str, int]:
    """The number for each text that the schema gives as `entries`, or as `entry` (bytes), of a region's part."""
    return {
        "line words": len(schema.LINE_WORDS),
        "2": 2,
        "records": s.ring_rows + 1,
        "ring rows": s.ring_rows,
        "links": s.ring_rows if s.places else 0,
        "sources": s.world if s.local_peers else 0,
        "8 bytes": 8,
        "announcement": 8 * (schema.ANNOUNCE_WORDS + max(s.max_held, s.announced)),
        "record": 8 * schema.record("record").words,
        "returned": 8 * schema.record("returned").words,
        "stride": s.stride,
    }


def region_parts(a: Addresses, peer: int, remote: bool) -> Iterator[tuple[str, int, int]]:
    """(what, address, bytes) of every entry of every part that rank `a.me` writes for a peer, by the schema."""
    s = a.shape
    sizes = region_sizes(s)
    if not remote:
        yield "ended", a.at("word_to", peer, words.ENDED), 8
    for part in schema.REGION:
        if part.address not in ("word", "return_record") and not a.nodes.stream(a.me, peer):
            continue
        if part.address == "mark":
            for source in range(0 if remote else sizes[part.entries]):
                yield "mark", a.at("mark_to", peer, source), 8
            continue
        entries = s.local_ring if part.address == "ring_row" and not remote else sizes[part.entries]
        first = 0 if part.address == "word" else 3 * entries  # indices of other parts grow without end
        for number in range(first, first + entries):
            yield part.address, a.at(f"{part.address}_to", peer, number), sizes[part.entry]


def written(a: Addresses, row_writers: np.ndarray) -> Iterator[Written]:
    """Everything that rank `a.me` ever writes: by stores, by puts, or into its own outboxes.

    row_writers: [world, return rows] the rank that computes each packed row of each source.
    """
    s, me = a.shape, a.me
    for p in range(s.world):
        packed_rows = np.flatnonzero(row_writers[p] == me).tolist()
        if p not in a.nodes.remote(me):
            yield from (("return_row", p, a.at("return_row", p, packed), s.stride) for packed in packed_rows)
            if p != me:
                yield from ((what, p, at, nbytes) for what, at, nbytes in region_parts(a, p, False))
            continue
        for packed in packed_rows:
            yield "return_row", p, put_target(p, a.table(words.T_PUT_RETURN_ROWS, p) + s.stride * packed), s.stride
        for what, at, nbytes in region_parts(a, p, True):
            yield f"{what} to put", me, at, nbytes
            if what != "word":  # MPI puts words in coded form
                yield what, p, a.put_to(p, at), nbytes
        for word in range(words.LINE_WORDS + 1):
            yield "word that came", me, a.at("word_from", p, word), 8
        for word in range(words.LINE_WORDS):
            yield "word to put, coded", me, a.table(words.T_CODED, p) + 16 * word, 16
            if word < words.ANNOUNCED or a.nodes.stream(me, p):
                yield "word", p, a.coded(p, word), 16
        if layout.has_bells(a.nodes, p):
            yield "bell", p, put_target(p, a.table(words.T_PUT_BELL, p)), 1
            if a.nodes.stream(me, p):
                yield "bell", p, put_target(p, a.table(words.T_PUT_STREAM_BELL, p)), 1
        if layout.has_bells(a.nodes, me):
            yield "what this rank has answered", me, int(a.st[words.ANSWERED]) + p, 1
            yield "what this rank has answered", me, a.table(words.T_STREAM_ANSWERED, p), 1
        rail = a.nodes.rail(p, me)
        for pair in range(s.ring_rows):
            if rail == me:  # with two levels the ranks of a node share these rows: each pair has one owner
                yield "staged row", me, a.at("staged_row", p, 2 * s.ring_rows + pair), s.stride
            else:
                assert where(a.at("staged_row", p, pair))[:2] == (rail, REMOTE)


@settings(max_examples=60)
@given(clusters(most_ranks=6), st.randoms(use_true_random=False))
def test_every_byte_has_one_writer(cluster, random):
    """Enumerate (source, target, offset) for random nodes and random owners of the packed rows.

    No byte is written by two ranks or for two purposes. Local peers write into one window, remote peers into another.
    """
    shape, nodes = cluster
    owners = np.array([[random.randrange(shape.world) for _ in range(shape.return_rows)] for _ in range(shape.world)])
    everybody = [Addresses(shape, nodes, me) for me in range(shape.world)]
    room = [dict(zip((LOCAL, REMOTE, OUTBOX), a.asked)) for a in everybody]
    spans: dict[tuple[int, int], list[tuple[int, int, int, str]]] = {}
    lines_of: dict[tuple[int, int, int], set[int]] = {}
    for a in everybody:
        for what, target, at, nbytes in written(a, owners):
            rank, part, offset = where(at)
            assert rank == target, f"{what} of rank {a.me} lies with rank {rank}, not {target}"
            staged = REMOTE if what == "staged row" and nodes.levels == 2 else OUTBOX
            stored = REMOTE if what == "return_row" and shared_returns(nodes) else LOCAL
            assert part == (REMOTE if target in nodes.remote(a.me) else staged if " " in what else stored), what
            assert 0 <= offset <= room[rank][part] - nbytes, f"{what} leaves its memory"
            spans.setdefault((rank, part), []).append((offset, offset + nbytes, a.me, what))
            if what == "bell":  # bells of several ranks share a line, so that a reader reads few lines
                continue
            for line in range(offset // LINE, -(-(offset + nbytes) // LINE)):
                lines_of.setdefault((rank, part, line), set()).add(a.me)
    for taken in spans.values():
        taken.sort()
        for (_, end, a_writer, a_what), (start, _, b_writer, b_what) in pairwise(taken):
            assert end <= start, f"{a_what} of rank {a_writer} and {b_what} of rank {b_writer} overlap"
    assert all(len(writers) == 1 for writers in lines_of.values()), "two writers share a line"


@given(clusters(least_ranks=2), st.integers(0, 1000))
def test_what_one_writes_is_where_the_other_reads(cluster, number):
    shape, nodes = cluster
    writer, reader = Addresses(shape, nodes, 1), Addresses(shape, nodes, 0)
    remote, rail = 1 in nodes.remote(0), nodes.rail(1, 0)
    for name in ("announcement", "record", "return_record", "ring_row", "index"):
        peer = 0 if name == "return_record" else rail
        at = writer.at(f"{name}_to", peer, number)
        assert (writer.put_to(peer, at) if remote else at) == reader.at(f"{name}_from", 1, number), name
    if not remote and shape.local_peers:
        assert writer.at("mark_to", 0, 1) == reader.at("mark_from", 1, 1)
    if shape.places:
        at = writer.at("link_to", rail, number)
        assert (writer.put_to(rail, at) if remote else at) == reader.at("link_from", 1, number)
    word = number % words.LINE_WORDS
    if remote and layout.has_bells(nodes, 0):
        assert put_target(0, writer.table(words.T_PUT_BELL, 0)) == int(reader.st[words.BELLS]) + 1
        assert put_target(rail, writer.table(words.T_PUT_STREAM_BELL, rail)) == reader.table(words.T_STREAM_BELL, 1)
    if remote:
        peer, region = (0, words.T_REGION_FROM) if word < words.ANNOUNCED else (rail, words.T_STREAM_FROM)
        assert writer.coded(peer, word) == reader.table(region, 1) + 16 * word
    else:
        assert writer.at("word_to", 0, word) == reader.at("word_from", 1, word)


@given(clusters(), st.data())
def test_rows_come_back_where_they_are_combined_from(cluster, data):
    """The owners of the packed rows are random. Ranks may have no experts, and rows may have no owner."""
    shape, nodes = cluster
    me = data.draw(st.integers(0, shape.world - 1))
    a = Addresses(shape, nodes, me)
    held = data.draw(st.lists(st.integers(0, 3), min_size=shape.world, max_size=shape.world).filter(sum))
    held[-1] += max(0, shape.experts - sum(held))
    start = np.concatenate([[0], np.cumsum(held)]).clip(max=shape.experts)
    start[-1] = shape.experts
    a.job[words.JOB_WORDS :] = start
    cuts = st.lists(st.integers(0, shape.return_rows), min_size=shape.experts - 1, max_size=shape.experts - 1)
    offset = np.array([0, *sorted(data.draw(cuts)), shape.return_rows])
    a.st[a.tables.starts[words.T_OFFSET] :][: shape.experts + 1] = offset
    for owner in range(shape.world):
        theirs = Addresses(shape, nodes, owner)
        for packed in range(offset[start[owner]], offset[start[owner + 1]]):
            if owner in nodes.remote(me):
                wanted = put_target(me, theirs.table(words.T_PUT_RETURN_ROWS, me) + shape.stride * packed)
            else:
                wanted = theirs.at("return_row", me, packed)
            assert a.at("row_back", packed) == wanted, (owner, packed)


@given(clusters(least_ranks=2), st.integers(0, 1000))
def test_rings_and_records_use_all_their_places_in_turn(cluster, first):
    """A place is written again only after a whole ring, as credit assumes."""
    shape, nodes = cluster
    a = Addresses(shape, nodes, 0)
    remote = 1 in nodes.remote(0)
    rows = ("index_to", *(("staged_row",) if remote else ()))
    for name, places in (
        ("ring_row_to", shape.ring_rows if remote else shape.local_ring),
        ("bundle_row_to", shape.ring_rows if remote else shape.local_ring),
        *((name, shape.ring_rows) for name in rows),
        ("record_to", shape.ring_records),
        ("return_record_to", shape.ring_records),
    ):
        found = [a.of(name, 1, first + i) for i in range(2 * places)]
        assert len(set(found)) == places
        assert found[:places] == found[places:]
    even, odd, next_even = (a.of("announcement_to", 1, 10 + e) for e in range(3))
    assert even != odd
    assert even == next_even


@given(clusters(), shapes())
def test_the_union_of_two_shapes_is_large_enough_for_both(cluster, b):
    a, nodes = cluster
    b = replace(b, world=a.world)
    both = a.union(b)
    assert both == b.union(a)
    assert both.union(a) == both
    for name in ("ring_rows", "stride", "return_rows", "max_held", "top_k", "experts", "max_tokens", "returns"):
        assert getattr(both, name) == max(getattr(a, name), getattr(b, name))
    for nbytes in (local_bytes, remote_bytes, rank_bytes):
        assert nbytes(both, nodes, 0) >= max(nbytes(a, nodes, 0), nbytes(b, nodes, 0))
    assert a.union(a) == a
    assert both.union(b) == both


@pytest.mark.parametrize("sizes", [(4,), (2, 2), (1, 3), (3, 1, 2), (4, 2, 3, 1)])
@pytest.mark.parametrize("levels", [1, 2])
def test_places_for_rows_are_those_of_the_rank_that_has_most(sizes, levels):
    """With one level, or on one node, they are counted as if all peers were remote."""
    nodes = Nodes(tuple(node for node, size in enumerate(sizes) for _ in range(size)), levels)
    world = len(nodes.node_of)

    def of(rank: int) -> int:
        here = sum(len(nodes.stream(p, rank)) > 0 for p in nodes.remote(rank))  # a ring, and staged outputs
        own = sum(len(nodes.stream(rank, p)) > 0 for p in nodes.remote(rank))
        return 2 * here + own

    most = 3 * (world - 1) if levels == 1 or nodes.single else max(map(of, range(world)))
    assert layout.places(nodes) == most
    local, stride = layout.local_rows(nodes, 1 << 14, 1 << 30), 1 << 14
    assert local == (0 if levels == 1 or nodes.single else layout.ring_rows(3 * (world - 1), stride, 1 << 30))
    others = layout.local_peers(nodes) * local
    assert (layout.ring_rows(most, stride, 1 << 30, others) * most + others) * stride <= layout.RING_BUDGET


def test_a_union_has_rings_for_all_choices_of_a_token():
    """A bundle to a remote rank must hold all rows of a token, although the budget has space for fewer wide rows."""
    placement = Placement(None, 200, 2)
    many = shape_of(2, placement, hidden=64, experts=200, top_k=100, max_tokens=4)
    wide = shape_of(2, placement, hidden=1 << 18, experts=200, top_k=1, max_tokens=64)
    assert many.union(wide).ring_rows >= 100 > wide.ring_rows


def test_a_union_keeps_rings_within_the_budget():
    """The many rows of one object and the wide rows of another are not multiplied."""
    narrow = EngineShape(world=2, ring_rows=500_000, stride=64, return_rows=10, max_held=1)
    wide = EngineShape(world=2, ring_rows=64, stride=64 << 10, return_rows=10, max_held=1)
    both = narrow.union(wide)
    assert 3 * both.ring_rows * both.stride <= layout.RING_BUDGET
    assert both.ring_rows >= 64


# ---- how much memory ----------------------------------------------------------------------------------------------


def windows(
    cfg: aristos.MoEConfig, world: int, placement: list[int] | None = None, ranks_per_node: int | None = None
) -> int:
    """The bytes of windows and outboxes in `MoE.memory`. The rest are packed weights."""
    shape = shape_of(world, Placement(placement, cfg.experts, world), **widths(cfg))
    return rank_bytes(shape, Nodes.split(world, ranks_per_node), world - 1)


BIG = aristos.MoEConfig(hidden=1024, ffn=4096, experts=8, top_k=2, max_tokens=4096)


def stated_bytes(
    cfg: aristos.MoEConfig, world: int, placement: list[int] | None = None, ranks_per_node: int | None = None
) -> int:
    """The formula of the docs: rings + return rows + words for local peers, and the same for remote peers.

    Each remote peer also needs an outbox and a ring of staged outputs. The last node may be the smallest, and then its
    ranks need most.
    """
    held = max(Placement(placement, cfg.experts, world).held)
    stride = lines((2 if cfg.dtype == "bfloat16" else 4) * cfg.hidden)
    local = (world - 1) % min(world, ranks_per_node or world)
    remote = world - 1 - local
    most = cfg.max_tokens * min(cfg.top_k, max(1, held))
    ring = max(1, min(most, max(64, (64 << 20) // (max(1, world - 1) * stride))))
    ring = max(ring, min(cfg.top_k, most)) if world > 1 else 1
    words = 2 * LINE + 2 * lines(8 * (14 + max(1, held)))
    records = lines((ring + 1) * 40) + lines((ring + 1) * 40)
    region = words + records + ring * stride + lines(8 * ring)
    returns = cfg.max_tokens * cfg.top_k * stride
    outbox = region + LINE + 128 + ring * stride
    return returns + local * region + (returns + remote * region if remote else 0) + remote * outbox


def test_the_windows_of_the_page_on_two_levels():
    """DeepSeek-V3's layer on nodes of 8 ranks: the table has what each rank needs, and it stays within the limits."""
    page = (ROOT / "docs" / "two_levels.md").read_text()
    cfg = aristos.MoEConfig(hidden=7168, ffn=2048, experts=256, top_k=8, max_tokens=4096, dtype="bfloat16")
    for world, most in ((16, 0.65), (64, 0.65), (256, 0.70), (1024, 1.00)):
        cells = []
        for nodes in (Nodes.split(world, 8), Nodes.split(world, 8).with_streams()):
            shape = shape_of(world, Placement(None, 256, world), nodes=nodes, **widths(cfg))
            needed = rank_bytes(shape, nodes) / 2**30
            cells.append(f"{needed:.2f} GiB, rings of {shape.ring_rows:,} rows")
        assert needed < most
        assert f"| {world:,} | {cells[0]} | {cells[1]} |" in page


@pytest.mark.parametrize("world", [1, 2, 3, 8, 64])
def test_memory_is_the_stated_formula(world):
    half = replace(BIG, hidden=100, dtype="bfloat16")
    for cfg in (BIG, replace(BIG, hidden=7, max_tokens=1), half, replace(BIG, top_k=8), replace(BIG, experts=300)):
        for placement in (None, [0] * cfg.experts, [e % world for e in range(cfg.experts)]):
            for ranks_per_node in (None, 1, 2, 5, world):
                stated = stated_bytes(cfg, world, placement, ranks_per_node)
                assert windows(cfg, world, placement, ranks_per_node) == stated


@settings(max_examples=40)
@given(clusters())
def test_memory_is_what_an_engine_asks_for(cluster):
    """For nodes of any size `rank_bytes` is the sum of local window, remote window and outboxes, as allocated."""
    shape, nodes = cluster
    for rank in range(shape.world):
        local, remote, outboxes = Addresses(shape, nodes, rank).asked
        assert local == local_bytes(shape, nodes, rank)
        assert remote == remote_bytes(shape, nodes, rank)
        assert outboxes == outbox_bytes(shape, nodes, rank)
        assert local + remote + outboxes == rank_bytes(shape, nodes, rank)


def test_memory_does_not_run_away():
    """Rings take at most 64 MiB, or 64 rows for each source. The rest are a call's own rows.

    Between nodes rings take at most four times as much, and a call's own rows are stored twice.
    """
    own = BIG.max_tokens * BIG.top_k * 4096
    for world in (2, 8, 64, 256):
        rings = windows(BIG, world) - own
        assert rings <= (64 << 20) * 1.02 + world * 70_000, world
        over_nodes = windows(BIG, world, ranks_per_node=1) - 2 * own
        assert over_nodes <= 4 * ((64 << 20) * 1.02 + world * 70_000), world
    assert windows(BIG, 2) == windows(replace(BIG, ffn=1, activation="silu", gated=True), 2)


def allocated(runtime: Any) -> int:
    """Bytes of windows and outboxes that this rank has allocated."""
    return int(runtime._memory.nbytes)


def checked_sizes(comm: Any, ranks_per_node: int | None) -> None:
    """32 layers need windows as large as one does. No routing makes them grow. A second such object needs no more."""
    world = comm.size
    cfg = aristos.MoEConfig(hidden=40, ffn=72, experts=5, top_k=2, max_tokens=60)
    w = reference.weights(cfg)
    nodes = Nodes.split(world, ranks_per_node)
    for placement in (None, [world - 1] * 5):
        options: dict[str, Any] = {"placement": placement, "ranks_per_node": ranks_per_node}

        with rings_of(None), MoE(cfg, comm, layers=32, **options) as moe:
            runtime = moe._member.runtime
            assert runtime.group.nodes.local(comm.rank) == nodes.local(comm.rank)
            assert allocated(runtime) == rank_bytes(runtime.shape, nodes, comm.rank)
            assert max(comm.allgather(allocated(runtime))) == windows(cfg, world, **options)
            memory, version = runtime._memory, runtime.version
            for layer in range(32):
                moe.load(layer, **w)
            for n in range(64):
                x = tokens(cfg, 60 * (n % 3 != comm.rank), seed=n)
                moe(x, layer=n % 32, **routing(cfg, len(x), SKEWS[n % len(SKEWS)], seed=n))
            with MoE(replace(cfg, max_tokens=30), comm, **options) as second:
                assert second._member.runtime is runtime
            assert (runtime._memory, runtime.version) == (memory, version)
            wide = replace(cfg, hidden=400)
            with MoE(wide, comm, **options):
                assert runtime.version > version
                assert allocated(runtime) == rank_bytes(runtime.shape, nodes, comm.rank)
                assert max(comm.allgather(allocated(runtime))) == windows(wide, world, **options)


@ranks_each(1, 3)
def test_windows_are_as_large_as_stated_whatever_the_skew_and_the_layers(comm, world):
    checked_sizes(comm, None)


@pytest.mark.slow
@ranks_each(2, 3)
def test_windows_over_nodes_are_as_large_as_stated(comm, world):
    for ranks_per_node in (1, 2)[: world - 1]:
        checked_sizes(comm, ranks_per_node)


@pytest.mark.ranks(2)
def test_closing_gives_the_shared_memory_back(comm):
    from aristos.transport.capacity import free_shared_memory

    cfg = aristos.MoEConfig(hidden=1024, ffn=8, experts=2, top_k=1, max_tokens=8192)
    need = 2 * windows(cfg, 2)
    assert need > 100 << 20
    comm.Barrier()
    before = free_shared_memory()
    if before is None:
        pytest.skip("the amount of free shared memory is unknown")
    for _ in range(5):
        MoE(cfg, comm).close()
    comm.Barrier()
    after = free_shared_memory()
    assert after is not None
    assert before - after < 4 * need  # other programs of this machine use shared memory too


def test_rows_of_two_bytes_take_half_the_bytes():
    wide, narrow = (windows(replace(BIG, dtype=dtype), 2) for dtype in ("float32", "bfloat16"))
    assert 0.45 < narrow / wide < 0.56
