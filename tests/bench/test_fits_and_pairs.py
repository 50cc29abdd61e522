"""Fits of times over sizes, and pairs of ranks that are measured together."""

from __future__ import annotations

import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aristos.bench import (
    fit,
    pairs,
)
from aristos.bench.world import World
from aristos.errors import WaitTimeout

pytestmark = pytest.mark.parallel

SIZES = [8 << i for i in range(20)]


def test_a_fit_finds_two_exact_segments():
    small, large = (2e-8, 1e-11), (3e-6, 5e-11)
    times = [a + b * n for n, (a, b) in ((n, small if n <= 16384 else large) for n in SIZES)]
    got = fit.alpha_beta(SIZES, times)
    assert [s.last for s in got.segments] == [16384, SIZES[-1]]
    for segment, (alpha, beta) in zip(got.segments, (small, large)):
        assert segment.alpha == pytest.approx(alpha, rel=1e-6)
        assert segment.beta == pytest.approx(beta, rel=1e-6)
    assert got.residual < 1e-9
    assert got(SIZES) == pytest.approx(times)


@given(st.lists(st.floats(1e-8, 1e-2), min_size=1, max_size=20))
def test_a_fit_of_any_times_has_no_negative_terms(times):
    got = fit.alpha_beta(SIZES[: len(times)], times)
    assert all(s.alpha >= 0 and s.beta >= 0 and s.bandwidth > 0 for s in got.segments)
    assert np.isfinite(got.residual)
    assert (got(SIZES) >= 0).all()


def test_the_residual_is_relative():
    times = np.array([1e-6] * 20) * np.where(np.arange(20) % 2, 1.1, 0.9)
    assert 0.05 < fit.alpha_beta(SIZES, times).residual < 0.15


def test_an_unresolved_bandwidth_is_not_printed():
    flat, noise = fit.Segment(2e-8, 0.0, 8, 4 << 20), fit.Segment(1e-6, 2.5e-7, 8, 32)  # inf and 0.004 GB/s
    start_up = fit.Segment(7.7e-6, 3.8e-10, 8, 2048)  # at 2048 bytes beta is 0.8 of 8.5 us
    for segment in (flat, noise, start_up):
        assert str(segment) == f"alpha {segment.alpha * 1e6:.3f} us, bandwidth not resolved"
    assert str(fit.Segment(3e-6, 2.5e-11, 256 << 10, 4 << 20)) == "alpha 3.000 us, beta 0.0250 ns/B (40.00 GB/s)"
    assert str(fit.Segment(2e-8, 4e-11, 8, 2048)) == "alpha 0.020 us, beta 0.0400 ns/B (25.00 GB/s)"
    assert fit.Fit((flat,), 0.31).trust == "relative residual 31.0% (poor fit)"
    assert fit.Fit((flat,), 0.29).trust == "relative residual 29.0%"


@given(st.integers(2, 12), st.integers(1, 6))
def test_every_ordered_pair_is_measured_once(ranks, lanes):
    rounds = pairs.schedule(ranks, lanes)
    flat = [pair for one in rounds for pair in one]
    assert sorted(flat) == [(a, b) for a in range(ranks) for b in range(ranks) if a != b]
    for one in rounds:
        assert 1 <= len(one) <= lanes
        assert len({rank for pair in one for rank in pair}) == 2 * len(one)


class Silent:
    """A communicator whose other ranks neither send nor receive."""

    def isend(self, value: object, dest: int) -> Silent:
        return self

    def Test(self) -> bool:
        return False

    def improbe(self, source: int) -> None:
        return None


@pytest.mark.parametrize(
    ("first", "wait", "message"),
    [
        (True, lambda side: side.agree(3), "rank 0 waited 0.01 s for rank 1 to receive what to measure next"),
        (False, lambda side: side.agree(3), "rank 0 waited 0.01 s for rank 1 to send what to measure next"),
        (True, lambda side: side.verdict(lambda: True), "for rank 1 to send whether the bytes of a put were right"),
        (False, lambda side: side.verdict(lambda: True), "for rank 1 to receive whether the bytes of a put were right"),
    ],
)
def test_a_peer_that_is_gone_ends_the_wait_for_it(first, wait, message):
    alone = World(limit=0.01)
    alone.comm = Silent()
    with pytest.raises(WaitTimeout, match=message):
        wait(pairs.Side(types.SimpleNamespace(world=alone), 0, 1, first))


def test_a_wire_in_use_ends_the_wait_for_it():
    words = np.zeros(64, np.int64)
    pairs.take_wire(words.ctypes.data, 1.0)
    with pytest.raises(WaitTimeout, match=r"waited 0.01 s for another thread to leave MPI"):
        pairs.take_wire(words.ctypes.data, 0.01)


@pytest.mark.ranks(2)
def test_both_sides_of_a_pair_have_the_same_values(comm):
    together, peer = World(comm), 1 - comm.rank
    for origin in (0, 1):
        side = pairs.Side(types.SimpleNamespace(world=together), comm.rank, peer, comm.rank == origin)
        assert side.agree([comm.rank, "x"]) == [origin, "x"]
        for right in (True, False):
            assert side.verdict(lambda right=right: right) is right


def test_sizes_as_text():
    assert [pairs.bytes_text(n) for n in (0, 8, 1024, 1536, 4 << 20, 2 << 30)] == [
        "0 B",
        "8 B",
        "1 KiB",
        "1.5 KiB",
        "4 MiB",
        "2 GiB",
    ]
