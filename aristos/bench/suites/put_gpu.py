"""Suite `put` on GPUs: rows and signals from one half of a grid to the other, against the driver's own copy.

    one way     the first half of the blocks puts its rows to the second half, which waits for the signals
    both ways   both halves put and wait
    copy        cuMemcpyDtoDAsync of as many bytes, in turns with them

Each byte is counted once; all memory is that of one GPU. A launch with a wrong byte or a wait that ran out fails.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ...results import Table
from ..context import CHECK, VERDICTS, Column, Context, Result, Sheet
from ..gpu.clock import BenchGpu, ratios
from ..measure import Statistics, padded
from ..registry import gpu_suite

ROW_BYTES = (4096, 8192, 16384, 65536)
BLOCK_BYTES = 1 << 20  # per block
BATCH_BYTES = 1 << 16  # from signal to signal
LIMIT_NS = 2_000_000_000
WAYS = {"one way": 1, "both ways": 2}

COLUMNS = (
    Column("row_bytes", "bytes\na row", "d"),
    Column("way", "way"),
    Column("gbs", "GB/s", ".1f"),
    Column("copy_gbs", "copy\nGB/s", ".1f"),
    Column("share", "of the\ncopy", ".0%"),
    Column("share_low", "5 %", ".0%"),
    Column("share_high", "95 %", ".0%"),
    Column("turns", "turns", "d"),
    CHECK,
)


class Puts:
    """Memory and launches for one size of rows."""

    def __init__(self, gpu: BenchGpu, row_bytes: int, grid: int) -> None:
        from ...kernels.cuda.catalogue import PUT_ROWS
        from ...kernels.cuda.put_signal import LINE

        self.gpu, self.kernel, self.row_bytes, self.grid = gpu, PUT_ROWS, row_bytes, grid
        self.rows = max(1, BLOCK_BYTES // row_bytes)
        self.nbytes = grid * self.rows * row_bytes
        rng = np.random.default_rng(row_bytes)
        self.values = rng.integers(0, 1 << 62, self.nbytes // 8)
        self.source, self.target = gpu.array(self.values), gpu.array(np.zeros_like(self.values))
        self.words, self.late = gpu.array(np.zeros(grid * LINE // 8, np.int64)), gpu.array(np.zeros(1, np.int64))
        self._base = 0

    def put(self, halves: int) -> None:
        """Queue a launch in which one half of the grid puts, or both."""
        batch = max(1, BATCH_BYTES // self.row_bytes)
        self.gpu.launch(
            self.kernel, self.grid, 0, self.source.at, self.target.at, self.words.at, self.rows, self.row_bytes, batch,
            halves, self._base, LIMIT_NS, self.late.at,
        )  # fmt: skip
        self._base += self.rows

    def copy(self, halves: int) -> None:
        """Queue a copy of as many bytes as `put` moves."""
        self.gpu.device.copy(self.target.at, self.source.at, self.nbytes * halves // 2, self.gpu.stream)

    def right(self, halves: int) -> bool:
        """Launch once more; whether every row has arrived, and no wait has run out so far."""
        self.target.put(np.zeros_like(self.values))
        self.put(halves)
        want = np.roll(self.values.reshape(2, -1), 1, axis=0)
        if halves == 1:
            want[0] = 0
        return bool(np.array_equal(self.target.get().reshape(2, -1), want)) and int(self.late.get()[0]) == 0


@gpu_suite("put", "blocks of one grid put rows to others; against the driver's copy", order=10, share=1.5)
def run(ctx: Context, gpu: BenchGpu) -> Result:
    from ...kernels.cuda.catalogue import PUT_ROWS

    grid = gpu.device.resident(gpu.device.load(PUT_ROWS), 0) * gpu.device.sms // 2 * 2
    sheet = Sheet(f"put on {gpu.device.name}: {grid} blocks, {BLOCK_BYTES >> 10} KiB a block", COLUMNS)
    times: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    for i, row_bytes in enumerate(ROW_BYTES):
        ctx.report(f"rows of {row_bytes} bytes", i / len(ROW_BYTES))
        puts = Puts(gpu, row_bytes, grid)
        for way, halves in WAYS.items():
            calls: dict[str, Any] = {"put": partial(puts.put, halves), "copy": partial(puts.copy, halves)}
            right = ctx.world.every(puts.right(halves))
            found = gpu.in_turns(
                calls, ctx.left() / (2 * len(ROW_BYTES) - 2 * i - halves + 1), ctx.options.warmup, ctx.options.iters
            )
            times[way, row_bytes] = found
            sheet.records.append(_record(puts, way, found, right and puts.right(halves)))
    return Result(sheet.ok, [sheet], [_table(times, grid)])


def _record(puts: Puts, way: str, found: dict[str, np.ndarray], right: bool) -> dict[str, Any]:
    nbytes = puts.nbytes * WAYS[way] // 2
    share, low, high = ratios(found["put"], found["copy"])
    return {
        "row_bytes": puts.row_bytes, "way": way, "gbs": nbytes / Statistics.of(found["put"]).median / 1e9,
        "copy_gbs": nbytes / Statistics.of(found["copy"]).median / 1e9, "share": share, "share_low": low,
        "share_high": high, "turns": len(found["put"]), "check": VERDICTS[right],
    }  # fmt: skip


def _table(times: dict[tuple[str, int], dict[str, np.ndarray]], grid: int) -> Table:
    """Raw times."""
    names = ["put", "copy"]
    seconds = padded([[[times[way, size][name] for name in names] for size in ROW_BYTES] for way in WAYS])
    table = Table("put", "put_cuda", attributes={"block_bytes": BLOCK_BYTES})
    table.dim("way", list(WAYS)).dim("row_bytes", ROW_BYTES, "B").dim("what", names)
    table.dim("turn", np.arange(seconds.shape[-1]))
    table.add("bytes", ("way",), [BLOCK_BYTES * grid * halves // 2 for halves in WAYS.values()], "B", "of a launch")
    return table.add("time", ("way", "row_bytes", "what", "turn"), seconds, "s", "one launch, or one copy")
