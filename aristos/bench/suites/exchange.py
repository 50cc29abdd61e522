"""Suite `exchange`: all-to-all by one-sided puts against MPI's Alltoall and Alltoallv, by size.

    equal     every rank sends equal blocks to all ranks, itself included: one-sided, Alltoall, Alltoallv
    uneven    block sizes by Zipf: rank r receives 1 / (r + 1) of rank 0's bytes; one-sided, Alltoallv

A size is the number of bytes that a rank sends in all. algbw = size / time of the slowest rank; busbw = algbw (W - 1) /
W, the rate on the links. Within a node a put is a store; between nodes it is an MPI put, a flush and a word. Data of
one-sided puts arrives in the window, data of MPI in the receive buffer. Methods take turns. Every block is compared
with the bytes that its sender computed; a size with a wrong byte fails.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import WaitTimeout
from ...results import Table
from ..context import CHECK, VERDICTS, Column, Context, Result, Sheet
from ..disturbance import CORE_SHARE
from ..measure import Statistics, Times, in_turns, padded
from ..pairs import TIMEOUT, Pairs, bytes_text, deadline, read_bytes, slot_bytes
from ..registry import suite

BLOCKS = tuple(8 << i for i in range(0, 20, 2))  # bytes that a pair of ranks exchanges: 8 B to 2 MiB
MOST = 1000
Measured = tuple[str, int, Times, dict[str, bool]]  # pattern, block, times, whether each method's bytes were right
METHODS = {"equal": ("one-sided", "Alltoall", "Alltoallv"), "uneven": ("one-sided", "Alltoallv")}

COLUMNS = (
    Column("pattern", "blocks"),
    Column("size_text", "bytes\na rank"),
    Column("one_sided_median_us", "one-sided\nus", ".2f"),
    Column("one_sided_p95_us", "p95\nus", ".1f"),
    Column("alltoall_median_us", "Alltoall\nus", ".2f"),
    Column("alltoallv_median_us", "Alltoallv\nus", ".2f"),
    Column("one_sided_algbw_gbs", "one-sided\nalgbw GB/s", ".3f"),
    Column("one_sided_busbw_gbs", "one-sided\nbusbw GB/s", ".3f"),
    Column("alltoallv_busbw_gbs", "Alltoallv\nbusbw GB/s", ".3f"),
    Column("speedup_over_mpi", "against\nMPI", ".2f"),
    CHECK,
)


class ExchangeCalls:
    """One pattern at one size: buffers and a call for each method. counts: [W, W] bytes from rank to rank.

    half: bytes of either half of a window's slots; epochs use the two halves in turn.
    """

    def __init__(self, pairs: Pairs, counts: NDArray[np.int64], half: int) -> None:
        self.world, self.counts, self._half = pairs.world, counts, half
        world = pairs.world
        self._rma, self._wire = pairs.rma, pairs.wire
        self._base = np.array([pairs.base.get(rank, 0) for rank in range(world.size)], np.int64)
        self._shift = np.array(pairs.rma.shift if pairs.rma else [], np.int64)
        self._coded = np.zeros((world.size, 2), np.int64)
        self.sends, self.gets = counts[world.rank], counts[:, world.rank]
        self.source = self._bytes_of(world.rank)
        self.received = np.zeros(int(self.gets.sum()), np.uint8)
        self._send_at, self._get_at = _starts(self.sends), _starts(self.gets)
        # Offset of this rank's block at each target, where it follows the blocks of lower ranks.
        self._land_at = np.ascontiguousarray(_starts(counts, axis=0)[world.rank])
        self._head = pairs.head
        self.epoch = 0

    def _bytes_of(self, sender: int) -> NDArray[np.uint8]:
        """All bytes that `sender` sends, in rank order. Every rank can compute them."""
        total = int(self.counts[sender].sum())
        return np.random.default_rng([sender, total]).integers(0, 256, max(8, total), np.uint8)

    def calls(self, pattern: str) -> dict[str, Callable[[], None]]:
        all_methods = {"one-sided": self.one_sided, "Alltoall": self.alltoall, "Alltoallv": self.alltoallv}
        return {method: all_methods[method] for method in METHODS[pattern]}

    def one_sided(self) -> None:
        """Put and signal to every rank, then wait for all signals. Collective."""
        from .. import oneside, oneside_rma

        self.epoch += 1
        data = self._head + self._half * (self.epoch % 2)
        source = self.source.ctypes.data
        places = self._send_at, self.sends, self._land_at
        rank, last = self.world.rank, (self.epoch, deadline())
        if self._rma is None:
            done = oneside.all_to_all(rank, self._base, 0, data, source, *places, *last)
        else:
            wire = self._wire, rank, self._base, self._shift, self._rma.base, self._coded.ctypes.data
            done = oneside_rma.all_to_all(*wire, 0, data, source, *places, *last)
        if not done:
            raise WaitTimeout(
                f"rank {self.world.rank} waited {TIMEOUT} s for a signal of another rank in a one-sided all-to-all"
            )

    def alltoall(self) -> None:
        self.world.comm.Alltoall(self.source[: int(self.sends.sum())], self.received)

    def alltoallv(self) -> None:
        from mpi4py import MPI

        sends = [self.source, (self.sends, self._send_at), MPI.BYTE]
        self.world.comm.Alltoallv(sends, [self.received, (self.gets, self._get_at), MPI.BYTE])

    def right(self, method: str) -> bool:
        """Run a method once. Returns whether every block has its sender's bytes, on every rank. Collective."""
        self.received[:] = 0
        with self.world.bounded(method):
            self.calls("equal")[method]()
        got = self.received
        fine = True
        for sender in range(self.world.size):
            first, size = int(_starts(self.counts[sender])[self.world.rank]), int(self.gets[sender])
            at = int(self._get_at[sender])
            block = self._landed(sender, at, size) if method == "one-sided" else got[at : at + size]
            fine &= np.array_equal(block, self._bytes_of(sender)[first : first + size])
        return self.world.every(fine)

    def _landed(self, sender: int, at: int, size: int) -> NDArray[np.uint8]:
        """The `size` bytes at offset `at` in this epoch's half of this rank's window.

        The window is the shared one for a local `sender`, and MPI's for a remote one.
        """
        window = int(self._base[self.world.rank if self._base[sender] else sender])
        start = window or (self._rma.base if self._rma else 0)
        return read_bytes(start + self._head + self._half * (self.epoch % 2) + at, size)


def _starts(counts: NDArray[np.int64], axis: int = -1) -> NDArray[np.int64]:
    """The start of each block, if blocks follow each other."""
    return np.cumsum(counts, axis=axis) - counts


def _counts(pattern: str, world: int, block: int) -> NDArray[np.int64]:
    """[W, W] bytes from rank to rank: multiples of 8, `block` on average."""
    if pattern == "equal":
        return np.full((world, world), block, np.int64)
    share = 1 / np.arange(1, world + 1)
    words = np.maximum(1, np.rint(share / share.sum() * world * block / 8)).astype(np.int64)
    return np.tile(8 * words, (world, 1))


@suite(
    "exchange",
    "one-sided all-to-all against Alltoall and Alltoallv by size: algbw, busbw",
    order=30,
    ranks=2,
    share=1.5,
    kernels=False,
)
def run(ctx: Context) -> Result:
    world = ctx.world
    most = 2 * int(_counts("uneven", world.size, BLOCKS[-1])[:, 0].sum())
    half = slot_bytes(world, most) // 2
    with Pairs(world, 2 * half) as pairs:
        pairs.compile("all_to_all")
        done = _measure(ctx, pairs, half)
    return _result(ctx, done)


def _measure(ctx: Context, pairs: Pairs, half: int) -> list[Measured]:
    world = ctx.world
    epoch, done = 0, []
    plan = [(p, b) for b in BLOCKS for p in METHODS if _counts(p, world.size, b).sum(axis=0).max() <= half]
    for i, (pattern, block) in enumerate(plan):
        ctx.report(f"{pattern}, {bytes_text(block)} a pair", i / len(plan))
        if i > 1 and ctx.left() == 0:
            break
        one = ExchangeCalls(pairs, _counts(pattern, world.size, block), half)
        one.epoch = epoch
        fine = {method: one.right(method) for method in METHODS[pattern]}
        calls: dict[str, Any] = dict(one.calls(pattern))
        count = min(MOST, ctx.iterations(calls, 0.8 * ctx.left() / (len(plan) - i)))
        done.append((pattern, block, in_turns(world, calls, count), fine))
        epoch = one.epoch
    return done


def _result(ctx: Context, done: list[Measured]) -> Result:
    world = ctx.world.size
    sheet = Sheet(f"exchange by {ctx.world.transports}: {world} ranks, slowest rank", COLUMNS)
    if len(done) < 2 * len(BLOCKS):
        sheet.notes.append("larger blocks were left out, for lack of time or of shared memory")
    for pattern, block, times, fine in sorted(done, key=lambda one: (one[0], one[1])):
        size = int(_counts(pattern, world, block)[0].sum())
        record: dict[str, Any] = {"pattern": pattern, "size_bytes": size, "size_text": bytes_text(size)}
        medians = {}
        for method, t in times.items():
            summary = Statistics.from_times(t)
            medians[method] = summary.median
            algbw = size / summary.median / 1e9
            name = method.lower().replace("-", "_")
            record |= {
                f"{name}_median_us": summary.median * 1e6,
                f"{name}_p95_us": summary.p95 * 1e6,
                f"{name}_p99_us": summary.p99 * 1e6,
                f"{name}_algbw_gbs": algbw,
                f"{name}_busbw_gbs": algbw * (world - 1) / world,
                f"{name}_check": VERDICTS[fine[method]],
            }
        ours = medians.pop("one-sided")
        record |= {"speedup_over_mpi": min(medians.values()) / ours, "check": VERDICTS[all(fine.values())]}
        sheet.records.append(record | times.mark())
    return Result(sheet.ok, [sheet], [_table(ctx, done)])


def _table(ctx: Context, done: list[Measured]) -> Table:
    world = ctx.world.size
    patterns, methods = list(METHODS), list(METHODS["equal"])
    blocks = sorted({block for _, block, *_ in done})
    found = {(pattern, method, block): t for pattern, block, times, *_ in done for method, t in times.items()}
    seconds = padded([[[found.get((p, m, b)) for b in blocks] for m in methods] for p in patterns])
    nbytes = np.zeros((len(patterns), len(blocks)), np.int64)
    for pattern, block, *_ in done:
        nbytes[patterns.index(pattern), blocks.index(block)] = _counts(pattern, world, block)[0].sum()
    table = Table("exchange")
    table.dim("pattern", patterns).dim("method", methods)
    table.dim("block", blocks, "B", "bytes that a pair of ranks exchanges, on average")
    table.dim("rank", np.arange(world)).dim("iteration", np.arange(seconds.shape[-1]))
    table.add("size", ("pattern", "block"), nbytes, "B", "bytes that a rank sends in all")
    over = ("pattern", "method", "block", "rank", "iteration")
    table.add("call_time", over, seconds, "s", "one all-to-all on one rank")
    had = {(pattern, method, block): c for pattern, block, times, _ in done for method, c in times.core.items()}
    shares = padded([[[had.get((p, m, b)) for b in blocks] for m in methods] for p in patterns])
    return table.add("core_share", over, shares, "1", CORE_SHARE)
