"""Where everything lies in a window: regions that never overlap, one writer for every byte, bytes by a stated
formula.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from cases import SKEWS, MoE, rings_of, routing, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from mpi import ranks_each

import aristos
from aristos import reference
from aristos.collective import shape_of
from aristos.engine import fields as f
from aristos.engine import layout
from aristos.engine.layout import LINE, PairLayout, Shape, StateLayout, lines, region, window_bytes
from aristos.placement import Placement


@st.composite
def shapes(draw: st.DrawFn, most_ranks: int = 8) -> Shape:
    top_k = draw(st.integers(1, 4))
    most = draw(st.integers(1, 40))
    return Shape(
        world=draw(st.integers(1, most_ranks)),
        ring_rows=draw(st.integers(1, 9)),
        stride=LINE * draw(st.integers(1, 5)),
        return_rows=most * top_k,
        max_local=draw(st.integers(1, 20)),
        top_k=top_k,
        experts=draw(st.integers(1, 40)),
        max_tokens=most,
    )


@given(shapes())
def test_parts_of_a_region_follow_each_other(shape):
    """In the documented order, each on a line of its own; the regions and the return rows fill the window."""
    w = PairLayout.of(shape)
    starts = [w.announce, w.announce + w.announce_step, w.records, w.return_records, w.ring, w.nbytes]
    assert starts == sorted(starts)
    assert all(at % LINE == 0 for at in starts)
    assert starts[0] >= 8 * (f.RETURN_TAIL + 1)
    assert w.nbytes - w.ring == shape.ring_rows * shape.stride
    assert w.announce_step >= 8 * (f.ANNOUNCE_WORDS + shape.max_local)
    assert f.A_FIRST < f.ANNOUNCE_WORDS
    ends = [
        region(shape, rank, source) + w.nbytes
        for rank in range(shape.world)
        for source in range(shape.world)
        if source != rank
    ]
    assert max(ends, default=lines(shape.returns)) == window_bytes(shape)


@given(shapes(), st.integers(1, 4))
def test_tables_of_the_state_do_not_overlap(shape, workers):
    s = StateLayout(shape, workers, batch=192)
    taken = sorted((start, start + s.sizes[name], name) for name, start in s.starts.items())
    assert taken[0][0] >= f.STATE_WORDS
    for (_, end, _), (start, _, _) in pairwise(taken):
        assert end <= start
    assert taken[-1][1] <= s.words
    assert set(s.starts) == set(range(f.T_TO, f.SLOT_OF)) - {f.T_COMMAND_STEP}, "a table of the job without a place"
    assert s.command_words >= f.C_LISTS + 192 * (2 + f.PART_WORDS)


def plain(function: Any) -> Any:
    """The Python body of a compiled function."""
    return getattr(function, "py_func", function)


class Addresses:
    """A job and the state of rank `me`, with windows at numbers far apart: rank r's begins at (r + 1) * 2^40."""

    def __init__(self, shape: Shape, me: int) -> None:
        self.shape = shape
        tables = StateLayout(shape, 1, 8)
        self.job, self.st = np.zeros(f.JOB_WORDS, np.int64), np.zeros(tables.words, np.int64)
        PairLayout.of(shape).fill(self.job)
        tables.fill(self.job)
        self.job[f.STRIDE], self.job[f.RING_ROWS], self.job[f.SLOTS] = shape.stride, shape.ring_rows, shape.slots
        self.job[f.RETURN_STRIDE] = shape.stride
        for p in range(shape.world):
            self.st[tables.starts[f.T_RETURNS] + p] = (p + 1) << 40
            if p != me:
                self.st[tables.starts[f.T_TO] + p] = ((p + 1) << 40) + region(shape, p, me)
                self.st[tables.starts[f.T_FROM] + p] = ((me + 1) << 40) + region(shape, me, p)
        self.st[tables.starts[f.T_WORDS] :][: shape.world] = self.st[tables.starts[f.T_FROM] :][: shape.world]

    def of(self, name: str, *where: int) -> tuple[int, int]:
        """(rank whose window it is, offset there)."""
        address = int(plain(getattr(layout, name))(self.job, self.st, *where))
        return (address >> 40) - 1, address & ((1 << 40) - 1)


def written(a: Addresses, me: int, row_writers: np.ndarray) -> Iterator[tuple[str, int, tuple[int, int], int]]:
    """All that rank `me` ever writes with one-sided puts: (what, rank it must lie with, (rank, offset), bytes).

    row_writers: [world, return rows] the rank that computes each packed row of each source.
    """
    s = a.shape
    for p in range(s.world):
        for packed in np.flatnonzero(row_writers[p] == me).tolist():
            yield "return_row", p, a.of("return_row", p, packed), s.stride
        if p == me:
            continue
        for word in range(f.RETURN_TAIL + 1):
            yield "word", p, a.of("word_to", p, word), 8
        for epoch in (6, 7):
            yield "announcement", p, a.of("announcement_to", p, epoch), 8 * (f.ANNOUNCE_WORDS + s.max_local)
        for tile in range(s.slots):
            yield "record", p, a.of("record_to", p, 5 * s.slots + tile), layout.RECORD_BYTES
            yield "return_record", p, a.of("return_record_to", p, tile), layout.RETURN_RECORD_BYTES
        for row in range(s.ring_rows):
            yield "ring", p, a.of("ring_row_to", p, 3 * s.ring_rows + row), s.stride


@settings(max_examples=60)
@given(shapes(most_ranks=6), st.randoms(use_true_random=False))
def test_every_byte_has_one_writer(shape, random):
    """Enumerate (source, target, offset) for random owners of the packed rows: no byte is written by two, or for two
    ends.
    """
    owners = np.array([[random.randrange(shape.world) for _ in range(shape.return_rows)] for _ in range(shape.world)])
    spans: dict[int, list[tuple[int, int, int, str]]] = {r: [] for r in range(shape.world)}
    lines_of: dict[tuple[int, int], set[int]] = {}
    for me in range(shape.world):
        for what, target, (rank, offset), nbytes in written(Addresses(shape, me), me, owners):
            assert rank == target, f"{what} of rank {me} lies with rank {rank}, not {target}"
            assert 0 <= offset <= window_bytes(shape) - nbytes, f"{what} leaves the window"
            spans[rank].append((offset, offset + nbytes, me, what))
            for line in range(offset // LINE, -(-(offset + nbytes) // LINE)):
                lines_of.setdefault((rank, line), set()).add(me)
    for taken in spans.values():
        taken.sort()
        for (_, end, a_writer, a_what), (start, _, b_writer, b_what) in pairwise(taken):
            assert end <= start, f"{a_what} of rank {a_writer} and {b_what} of rank {b_writer} overlap"
    assert all(len(writers) == 1 for writers in lines_of.values()), "two writers share a line"


@given(shapes(), st.integers(0, 1000))
def test_what_one_writes_is_where_the_other_reads(shape, number):
    if shape.world == 1:
        return
    writer, reader = Addresses(shape, 1), Addresses(shape, 0)
    for name in ("word", "announcement", "record", "return_record", "ring_row"):
        n = number % 7 if name == "word" else number
        assert writer.of(f"{name}_to", 0, n) == reader.of(f"{name}_from", 1, n), name


@given(shapes(), st.integers(0, 1000))
def test_rings_and_records_use_all_their_places_in_turn(shape, first):
    if shape.world == 1:
        return
    a = Addresses(shape, 0)
    for name, places in (
        ("ring_row_to", shape.ring_rows),
        ("record_to", shape.slots),
        ("return_record_to", shape.slots),
    ):
        found = [a.of(name, 1, first + i) for i in range(2 * places)]
        assert len(set(found)) == places
        assert found[:places] == found[places:]
    even, odd, next_even = (a.of("announcement_to", 1, 10 + e) for e in range(3))
    assert even != odd
    assert even == next_even


@given(shapes(), shapes())
def test_a_union_serves_both(a, b):
    b = replace(b, world=a.world)
    both = a.union(b)
    assert both == b.union(a)
    assert both.union(a) == both
    for name in ("ring_rows", "stride", "return_rows", "max_local", "experts", "max_tokens", "returns"):
        assert getattr(both, name) == max(getattr(a, name), getattr(b, name))
    assert window_bytes(both) >= max(window_bytes(a), window_bytes(b))
    assert a.union(a) == a
    assert both.union(b) == both


def test_a_union_keeps_rings_within_the_budget():
    """Many rows of one user and wide rows of another are not multiplied."""
    narrow = Shape(world=2, ring_rows=500_000, stride=64, return_rows=10, max_local=1)
    wide = Shape(world=2, ring_rows=64, stride=64 << 10, return_rows=10, max_local=1)
    both = narrow.union(wide)
    assert both.ring_rows * both.stride <= layout.RING_BUDGET
    assert both.ring_rows >= 64


# ---- how much memory ----------------------------------------------------------------------------------------------

BIG = aristos.MoEConfig(hidden=1024, ffn=4096, experts=8, top_k=2, max_tokens=4096)


def stated_bytes(cfg: aristos.MoEConfig, world: int, placement: list[int] | None = None) -> int:
    """The formula of the docs, written once more: rings + return rows + words."""
    held = max(Placement(placement, cfg.experts, world).held)
    stride = shape_of(
        world,
        Placement(placement, cfg.experts, world),
        hidden=cfg.hidden,
        experts=cfg.experts,
        top_k=cfg.top_k,
        max_tokens=cfg.max_tokens,
    ).stride
    sources = max(1, world - 1)
    ring = min(cfg.max_tokens * min(cfg.top_k, max(1, held)), max(64, (64 << 20) // (sources * stride)))
    ring = ring if world > 1 else 1
    words = LINE + 2 * lines(8 * (8 + max(1, held)))
    records = 2 * lines((ring + 1) * 32)
    return (world - 1) * (words + records + ring * stride) + cfg.max_tokens * cfg.top_k * stride


@pytest.mark.parametrize("world", [1, 2, 3, 8, 64])
def test_memory_is_the_stated_formula(world):
    for cfg in (BIG, replace(BIG, hidden=7, max_tokens=1), replace(BIG, top_k=8), replace(BIG, experts=300)):
        for placement in (None, [0] * cfg.experts, [e % world for e in range(cfg.experts)]):
            assert MoE.memory(cfg, world, placement) == stated_bytes(cfg, world, placement)


def test_memory_does_not_run_away():
    """Rings stay within 64 MiB or 64 rows a source; what remains is a call's own rows."""
    own = BIG.max_tokens * BIG.top_k * 4096
    for world in (2, 8, 64, 256):
        rings = MoE.memory(BIG, world) - own
        assert rings <= (64 << 20) * 1.02 + world * 70_000, world
    assert MoE.memory(BIG, 2) == MoE.memory(replace(BIG, ffn=1, activation="silu", gated=True), 2)


@ranks_each(1, 3)
def test_windows_are_as_large_as_stated_whatever_the_skew_and_the_layers(comm, world):
    """32 layers take one layer's windows; no routing makes them grow; a second object of that size takes none."""
    cfg = aristos.MoEConfig(hidden=40, ffn=72, experts=5, top_k=2, max_tokens=60)
    w = reference.weights(cfg)
    for placement in (None, [world - 1] * 5):
        with rings_of(None), MoE(cfg, comm, layers=32, placement=placement) as moe:
            runtime = moe._runtime
            assert runtime._window.nbytes == MoE.memory(cfg, world, placement)
            window, version = runtime._window, runtime.version
            for layer in range(32):
                moe.load(layer, **w)
            for n in range(64):
                x = tokens(cfg, 60 * (n % 3 != comm.rank), seed=n)
                moe(x, layer=n % 32, **routing(cfg, len(x), SKEWS[n % len(SKEWS)], seed=n))
            with MoE(replace(cfg, max_tokens=30), comm, placement=placement) as second:
                assert second._runtime is runtime
            assert (runtime._window, runtime.version) == (window, version)
            with MoE(replace(cfg, hidden=400), comm, placement=placement):
                assert runtime.version > version
                assert runtime._window.nbytes == MoE.memory(replace(cfg, hidden=400), world, placement)


@pytest.mark.ranks(2)
def test_closing_gives_the_shared_memory_back(comm):
    from aristos.transport.shm import free_shared_memory

    cfg = aristos.MoEConfig(hidden=1024, ffn=8, experts=2, top_k=1, max_tokens=8192)
    need = 2 * MoE.memory(cfg, 2)
    assert need > 100 << 20
    comm.Barrier()
    before = free_shared_memory()
    if before is None:
        pytest.skip("nobody says how much shared memory is free")
    for _ in range(8):
        MoE(cfg, comm).close()
    comm.Barrier()
    after = free_shared_memory()
    assert after is not None
    assert before - after < 4 * need  # others on this machine use it too
