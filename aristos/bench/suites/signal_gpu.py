"""Suite `signal` on GPUs: microseconds of a row and a signal from one block to another and back.

Two blocks of one warp each make `ROUNDS` round trips per launch. A time is the launch's time, by events, over its
rounds. On one rank both blocks are on one GPU. On several ranks of a node they are on rank 0's GPU and on the GPU of
each other rank, by CUDA IPC. `link` names the class of the link, and the time is that of the slower side. A launch with
a wrong row or a wait that ran out fails.
"""

from __future__ import annotations

import numpy as np

from ...results import Table
from ..context import CHECK, VERDICTS, Column, Context, Result, Sheet
from ..gpu.clock import BenchGpu
from ..gpu.pairs import Pair, pairs
from ..measure import Statistics, gathered, padded
from ..registry import gpu_suite

ROW_BYTES = (16, 512, 4096)
ROUNDS = 1000
LIMIT_NS = 2_000_000_000
WINDOW_BYTES = 2 * (max(ROW_BYTES) + 128)  # bytes of a rank's window: where both sides receive, and their words

COLUMNS = (
    Column("row_bytes", "bytes\na row", "d"),
    Column("link", "link"),
    Column("median_us", "there and back\nus", ".3f"),
    Column("p95_us", "p95\nus", ".3f"),
    Column("fastest_us", "fastest\nus", ".3f"),
    Column("turns", "turns", "d"),
    CHECK,
)


class PingPong:
    """One size of rows between two blocks of this GPU (pair None), or between the GPUs of a pair. Waits are bounded."""

    def __init__(self, gpu: BenchGpu, row_bytes: int, pair: Pair | None = None) -> None:
        from ...kernels.cuda.put_signal import LINE

        self.gpu, self.row_bytes, self.pair, self._base = gpu, row_bytes, pair, 0
        self.row = np.random.default_rng(row_bytes).integers(0, 1 << 62, row_bytes // 8)
        self.source, self.late = gpu.array(self.row), gpu.array(np.zeros(1, np.int64))
        if pair is None:
            own = gpu.allocate(2 * (row_bytes + LINE))
            self.slots, self.theirs, self.first, self.grid = own, own, 0, 2
        else:
            self.slots, self.theirs, self.first, self.grid = pair.own, pair.theirs, pair.side or 0, 1
        self.out = pair is not None and pair.side is None

    def play(self) -> None:
        """Queue this side's launch."""
        from ...kernels.cuda.catalogue import PING_PONG

        if self.out:
            return
        words = 2 * self.row_bytes
        sides = self.slots, self.slots + words, self.theirs, self.theirs + words
        rest = self.first, self.row_bytes, ROUNDS, self._base, LIMIT_NS, self.late.at
        self.gpu.launch(PING_PONG, self.grid, 0, self.source.at, *sides, *rest)
        self._base += ROUNDS

    def right(self) -> bool:
        """Whether every row has arrived, and no wait has run out."""
        if self.out:
            return True
        found = np.empty((2, len(self.row)), np.int64)
        self.gpu.device.copy_out(found, self.slots, self.gpu.stream)
        mine = found if self.pair is None else found[self.first]
        return bool((mine == self.row).all()) and int(self.late.get()[0]) == 0


@gpu_suite("signal", "a row and a signal there and back, between two blocks of one GPU or of two GPUs", order=20)
def run(ctx: Context, gpu: BenchGpu) -> Result:
    world = ctx.world
    several = world.size > 1 and world.nodes.single
    sheet = Sheet(f"put + signal there and back between two blocks on {gpu.device.name}", COLUMNS)
    seen: dict[str, list[np.ndarray]] = {}
    for pair in pairs(gpu, WINDOW_BYTES) if several else (None,):
        done = 0 if pair is None else pair.peer - 1
        whole = 1 if pair is None else world.size - 1
        for i, row_bytes in enumerate(ROW_BYTES):
            ctx.report(f"rows of {row_bytes} bytes", (done + i / len(ROW_BYTES)) / whole)
            if pair is not None and pair.side is not None:  # the words in a pair's memory must start at zero
                gpu.device.clear(pair.own, WINDOW_BYTES, gpu.stream)
                gpu.device.synchronize(gpu.stream)
            world.barrier()
            game = PingPong(gpu, row_bytes, pair)
            share = ctx.left() / ((whole - done) * len(ROW_BYTES) - i)
            found = gpu.in_turns({"play": game.play}, share, ctx.options.warmup, ctx.options.iters)["play"] / ROUNDS
            found = gathered(world, found).max(axis=0)
            right = world.every(game.right())
            summary, link = Statistics.from_times(found), "self" if pair is None else f"0-{pair.peer} {pair.link}"
            seen.setdefault("signal_cuda" if pair is None else f"signal_cuda_{pair.peer}", []).append(found)
            sheet.records.append(
                {
                    "row_bytes": row_bytes,
                    "link": link,
                    **summary.values_in("us"),
                    "fastest_us": summary.fastest * 1e6,
                    "turns": len(found),
                    "check": VERDICTS[right],
                }
            )
            world.barrier()
    return Result(sheet.ok, [sheet], [_table(name, times) for name, times in seen.items()])


def _table(name: str, times: list[np.ndarray]) -> Table:
    """Raw times of each size."""
    seconds = padded(times)
    table = Table("signal", name, attributes={"rounds": ROUNDS})
    table.dim("row_bytes", ROW_BYTES, "B").dim("turn", np.arange(seconds.shape[-1]))
    return table.add("round_trip", ("row_bytes", "turn"), seconds, "s", "a row and a signal there and back")
