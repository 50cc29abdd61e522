"""The benchmark kernels on the PTX machine with its checker: data and order of puts, and bounded waits."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
import ptxsim
from aristos.kernels.cuda import put_signal

pytestmark = pytest.mark.slow

LIMIT = 10**9
LINE = put_signal.LINE


class Bench:
    """A PTX machine with the memory that launches use."""

    def __init__(self, seed=0, **sizes):
        self.machine = ptxsim.Machine(seed=seed)
        self.device = self.machine.device(0)
        self.late = self.device.array(np.zeros(1, np.int64))
        self.words = self.device.array(np.zeros(64 * LINE // 8, np.int64))

    def array(self, values):
        return self.device.array(np.ascontiguousarray(values))

    def run(self, kernel, grid, threads, *args):
        self.device.launch(kernel, grid, threads, *(getattr(a, "ptr", a) for a in args))
        reports = self.machine.run()
        assert not reports, [str(report) for report in reports]


def payload(*shape):
    return np.random.default_rng(len(shape)).integers(1, 1 << 62, shape)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("halves", "grid", "rows", "batch"), [(1, 2, 3, 2), (2, 2, 5, 5), (2, 4, 3, 1), (1, 4, 0, 4)])
def test_put_rows_arrive_before_their_signals(halves, grid, rows, batch, seed):
    b, words = Bench(seed), 64  # words of a row
    source = payload(grid, rows, words)
    given, target = b.array(source.reshape(-1)), b.array(np.zeros(max(1, source.size), np.int64))
    for base in (0, rows):
        b.run(
            put_signal.put_rows,
            grid,
            64,
            given,
            target,
            b.words,
            b.words,
            rows,
            8 * words,
            batch,
            halves,
            base,
            LIMIT,
            b.late,
        )
    want = np.roll(source, grid // 2, axis=0)
    if halves == 1:
        want[: grid // 2] = 0
    np.testing.assert_array_equal(target.copy_to_host()[: source.size].reshape(source.shape), want)
    assert b.late.copy_to_host()[0] == 0
    tails = b.words.copy_to_host()[:: LINE // 8][:grid]
    np.testing.assert_array_equal(tails, [0 if halves == 1 and i < grid // 2 else 2 * rows for i in range(grid)])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("row_bytes", [16, 528])
def test_ping_pong_returns_the_row(row_bytes, seed):
    b, rounds = Bench(seed), 4
    row = payload(row_bytes // 8)
    given, slots = b.array(row), b.array(np.zeros(2 * len(row), np.int64))
    for base in (0, rounds):
        b.run(
            put_signal.ping_pong,
            2,
            32,
            given,
            slots,
            b.words,
            slots,
            b.words,
            0,
            row_bytes,
            rounds,
            base,
            LIMIT,
            b.late,
        )
    np.testing.assert_array_equal(slots.copy_to_host().reshape(2, -1), [row, row])
    np.testing.assert_array_equal(b.words.copy_to_host()[:: LINE // 8][:2], [2 * rounds, 2 * rounds])
    assert b.late.copy_to_host()[0] == 0


def test_a_wait_for_a_missing_partner_ends():
    """A block without a partner counts its late waits and ends."""
    b = Bench()
    given, slots = b.array(payload(2)), b.array(np.zeros(4, np.int64))
    b.run(put_signal.ping_pong, 1, 32, given, slots, b.words, slots, b.words, 0, 16, 3, 0, 2000, b.late)
    assert b.late.copy_to_host()[0] == 3


@pytest.mark.parametrize("halves", [1, 2])
def test_every_receiving_block_waits(halves):
    """No block puts the awaited rows: each receiving block counts a late wait and ends."""
    b = Bench()
    given, target = b.array(payload(4)), b.array(payload(4))
    b.run(put_signal.put_rows, 4, 64, given, target, b.words, b.words, 0, 16, 1, halves, 5, 2000, b.late)
    assert b.late.copy_to_host()[0] == 2 * halves


def test_puts_are_fully_coalesced():
    """Rows of 4 KB move in whole sectors, 16 bytes per lane, each once."""
    b, source = Bench(), payload(2, 2, 512)
    given, target = b.array(source.reshape(-1)), b.array(np.zeros(source.size, np.int64))
    b.run(put_signal.put_rows, 2, 64, given, target, b.words, b.words, 2, 4096, 2, 2, 0, LIMIT, b.late)
    stores = b.machine.profile().opcodes["st"]
    assert stores["sectors"] == stores["ideal_sectors"] == source.nbytes // 32 + 2  # plus one tail per block


class Two:
    """Two GPUs of one machine. Each has the words and slots of its side, and can address those of the other side."""

    def __init__(self, nbytes, seed=0):
        self.machine = ptxsim.Machine(devices=2, seed=seed)
        self.made = [
            [self.machine.device(n).array(np.zeros(max(1, size // 8), np.int64)) for size in (nbytes, 64 * LINE, 8)]
            for n in range(2)
        ]

    def launch(self, n, kernel, grid, threads, *args):
        self.machine.device(n).launch(kernel, grid, threads, *(getattr(a, "ptr", a) for a in args))

    def run(self):
        reports = self.machine.run()
        assert not reports, [str(report) for report in reports]
        assert not any(late.copy_to_host()[0] for _, _, late in self.made)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("both", [True, False])
def test_rows_are_put_to_another_gpu(both, seed):
    grid, rows, words = 2, 3, 64
    two, sources = Two(8 * grid * rows * words, seed), [payload(grid, rows, words) + n for n in range(2)]
    given = [two.machine.device(n).array(source.reshape(-1)) for n, source in enumerate(sources)]
    ways = (put_signal.ALL, put_signal.ALL) if both else (put_signal.PUTS, put_signal.WAITS)
    for n, way in enumerate(ways):
        (_, own, late), (target, theirs, _) = two.made[n], two.made[1 - n]
        two.launch(
            n, put_signal.put_rows, grid, 64, given[n], target, theirs, own, rows, 8 * words, 2, way, 0, LIMIT, late
        )
    two.run()
    for n in range(2):
        want = np.roll(sources[1 - n], 1, axis=0) if both or n == 1 else 0
        np.testing.assert_array_equal(two.made[n][0].copy_to_host().reshape(grid, rows, words), want)


def test_ping_pong_between_two_gpus():
    two, row, rounds = Two(32, 1), payload(2), 4
    for n in range(2):
        given = two.machine.device(n).array(row)
        (slots, own, late), (theirs, words, _) = two.made[n], two.made[1 - n]
        two.launch(n, put_signal.ping_pong, 1, 32, given, slots, own, theirs, words, n, 16, rounds, 0, LIMIT, late)
    two.run()
    for n in range(2):
        np.testing.assert_array_equal(two.made[n][0].copy_to_host().reshape(2, 2)[n], row)
