"""Suite `put` on GPUs: rows and signals, against the driver's own copy.

    one way     the first half of the blocks puts its rows to the second half, which waits for the signals
    both ways   both halves put and wait
    copy        cuMemcpyDtoDAsync of as many bytes, in turns with the puts

Each byte is counted once. On one rank all memory is on one GPU. On several ranks of a node, rank 0's GPU and the GPU of
another rank take the place of the two halves, by CUDA IPC, one other rank after another. The time is then the slower
side's, and `link` names the class of the link between the two GPUs. A launch with a wrong byte or a wait that ran out
fails.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ...results import Table
from ..context import CHECK, VERDICTS, Column, Context, Result, Sheet, ratio_columns
from ..gpu.clock import BenchGpu, ratio_values
from ..gpu.pairs import Pair, pairs
from ..measure import Statistics, gathered, padded
from ..registry import gpu_suite

ROW_BYTES = (4096, 8192, 16384, 65536)
BLOCK_BYTES = 1 << 20  # bytes that each block puts
BATCH_BYTES = 1 << 16  # bytes from signal to signal
LIMIT_NS = 2_000_000_000
WAYS = {"one way": 1, "both ways": 2}

COLUMNS = (
    Column("row_bytes", "bytes\na row", "d"),
    Column("way", "way"),
    Column("link", "link"),
    Column("gbs", "GB/s", ".1f"),
    Column("copy_gbs", "copy\nGB/s", ".1f"),
    *ratio_columns("share", "of the\ncopy", ".0%"),
    Column("turns", "turns", "d"),
    CHECK,
)


class Puts:
    """Memory and launches for one size of rows within a GPU.

    blocks: the number of blocks that put or wait. nbytes: the bytes of the rows of all blocks.
    """

    link = "self"

    def __init__(self, gpu: BenchGpu, row_bytes: int, grid: int) -> None:
        self.gpu, self.row_bytes, self.grid, self.blocks = gpu, row_bytes, grid, grid
        self.rows = max(1, BLOCK_BYTES // row_bytes)
        self.nbytes = grid * self.rows * row_bytes
        self.late = gpu.array(np.zeros(1, np.int64))
        self._base = 0
        self._allocate()

    def _allocate(self) -> None:
        from ...kernels.cuda.put_signal import LINE

        gpu = self.gpu
        self.values = np.random.default_rng(self.row_bytes).integers(0, 1 << 62, self.nbytes // 8)
        self.source, self.target = gpu.array(self.values), gpu.array(np.zeros_like(self.values))
        self.words = gpu.array(np.zeros(self.grid * LINE // 8, np.int64))

    def put(self, halves: int) -> None:
        """Queue a launch in which one half of the blocks puts, or both halves."""
        from ...kernels.cuda.put_signal import ALL, BY_HALVES

        self._launch(self.target.at, self.words.at, self.words.at, ALL if halves == 2 else BY_HALVES)

    def _launch(self, target: int, words: int, awaited: int, way: int) -> None:
        """Queue a launch of `put_rows` on this rank."""
        from ...kernels.cuda.catalogue import PUT_ROWS

        rows = self.rows, self.row_bytes, max(1, BATCH_BYTES // self.row_bytes)
        rest = way, self._base, LIMIT_NS, self.late.at
        self.gpu.launch(PUT_ROWS, self.grid, 0, self.source.at, target, words, awaited, *rows, *rest)
        self._base += self.rows

    def copy(self, halves: int) -> None:
        """Queue a copy of as many bytes as `put` moves."""
        self.gpu.device.copy(self.target.at, self.source.at, self.nbytes * halves // 2, self.gpu.stream)

    def right(self, halves: int) -> bool:
        """Launch once more. Returns whether every row has arrived on this rank, and no wait has run out so far.

        Collective.
        """
        self.target.put(np.zeros_like(self.values))
        self.put(halves)
        want = np.roll(self.values.reshape(2, -1), 1, axis=0)
        if halves == 1:
            want[0] = 0
        return bool(np.array_equal(self.target.get().reshape(2, -1), want)) and int(self.late.get()[0]) == 0


class PairPuts(Puts):
    """Rows of one size between two GPUs. pair: one of `pairs.pairs`, whose windows have `size_of` bytes."""

    def __init__(self, gpu: BenchGpu, pair: Pair, row_bytes: int, grid: int) -> None:
        self.pair, self.link = pair, f"0-{pair.peer} {pair.link}"
        super().__init__(gpu, row_bytes, grid)
        self.blocks, self.nbytes = 2 * grid, 2 * self.nbytes

    def _allocate(self) -> None:
        sides = [np.random.default_rng([self.row_bytes, n]).integers(0, 1 << 62, self.nbytes // 8) for n in range(2)]
        if self.pair.side is not None:
            self.source, self.wanted = self.gpu.array(sides[self.pair.side]), sides[1 - self.pair.side]

    @staticmethod
    def size_of(grid: int) -> int:
        """Bytes of a rank's window, which has rows, then words."""
        from ...kernels.cuda.put_signal import LINE

        return grid * (max(BLOCK_BYTES, *ROW_BYTES) + LINE)

    def put(self, halves: int) -> None:
        """Queue this side's launch: both sides put, or side 0 puts and side 1 waits."""
        from ...kernels.cuda import put_signal

        pair = self.pair
        if pair.side is None:
            return
        way = put_signal.ALL if halves == 2 else (put_signal.PUTS, put_signal.WAITS)[pair.side]
        words = self.size_of(self.grid) - self.grid * put_signal.LINE
        self._launch(pair.theirs, pair.theirs + words, pair.own + words, way)

    def copy(self, halves: int) -> None:
        """Queue this side's copy of as many bytes as it puts."""
        if self.pair.side is not None and self.pair.side < halves:
            self.gpu.device.copy(self.pair.theirs, self.source.at, self.nbytes // 2, self.gpu.stream)

    def right(self, halves: int) -> bool:
        """Launch once more. Returns whether every row has arrived on this rank, and no wait has run out so far.

        Collective.
        """
        gpu, pair = self.gpu, self.pair
        if pair.side is not None:
            gpu.device.clear(pair.own, self.nbytes // 2, gpu.stream)
            gpu.device.synchronize(gpu.stream)
        gpu.world.barrier()
        self.put(halves)
        gpu.device.synchronize(gpu.stream)
        gpu.world.barrier()
        if pair.side is None:
            return True
        want = np.roll(self.wanted.reshape(2, -1), 1, axis=0)
        if halves == 1 and pair.side == 0:
            want[:] = 0
        found = np.empty(self.nbytes // 16, np.int64)
        gpu.device.copy_out(found, pair.own, gpu.stream)
        return bool(np.array_equal(found.reshape(2, -1), want)) and int(self.late.get()[0]) == 0


def grid_of(ctx: Context, gpu: BenchGpu, several: bool) -> int:
    """The blocks of a launch, which must all run at once: an even number. Collective if GPUs put to each other."""
    from ...kernels.cuda.catalogue import PUT_ROWS

    resident = gpu.device.resident(gpu.device.load(PUT_ROWS), 0) * gpu.device.sms
    if not several:
        return resident // 2 * 2
    sharing = ctx.world.allgather(gpu.device.uuid).count(gpu.device.uuid)
    return max(2, min(ctx.world.allgather(resident // sharing // 2 * 2)))


@gpu_suite(
    "put", "blocks put rows to blocks of the same GPU or of another one; against the driver's copy", order=10, share=1.5
)
def run(ctx: Context, gpu: BenchGpu) -> Result:
    world = ctx.world
    several = world.size > 1 and world.nodes.single
    grid = grid_of(ctx, gpu, several)
    title = f"put from rank 0 on {gpu.device.name}" if several else f"put on {gpu.device.name}"
    sheet = Sheet(f"{title}: {grid} blocks, {BLOCK_BYTES >> 10} KiB a block", COLUMNS)
    tables = []
    for pair in pairs(gpu, PairPuts.size_of(grid)) if several else (None,):
        done, whole = (0, 1) if pair is None else (pair.peer - 1, world.size - 1)
        times: dict[tuple[str, int], dict[str, np.ndarray]] = {}
        for i, row_bytes in enumerate(ROW_BYTES):
            where = "" if pair is None else f"rank {pair.peer}, "
            ctx.report(f"{where}rows of {row_bytes} bytes", (done + i / len(ROW_BYTES)) / whole)
            puts = Puts(gpu, row_bytes, grid) if pair is None else PairPuts(gpu, pair, row_bytes, grid)
            for way, halves in WAYS.items():
                calls: dict[str, Any] = {"put": partial(puts.put, halves), "copy": partial(puts.copy, halves)}
                right = world.every(puts.right(halves))
                left = (whole - done) * 2 * len(ROW_BYTES) - 2 * i - halves + 1
                found = gpu.in_turns(calls, ctx.left() / left, ctx.options.warmup, ctx.options.iters)
                found = {name: gathered(world, t).max(axis=0) for name, t in found.items()}
                times[way, row_bytes] = found
                right = world.every(right and puts.right(halves))
                record = _record(puts.nbytes * halves // 2, row_bytes, way, found, right)
                sheet.records.append(record | {"link": puts.link})
        tables.append(_table(times, puts.blocks, "put_cuda" if pair is None else f"put_cuda_{pair.peer}"))
    if several:
        sheet.notes.append("ranks that share a GPU are time-sliced, and their times mean little")
    return Result(sheet.ok, [sheet], tables)


def _record(nbytes: int, row_bytes: int, way: str, found: dict[str, np.ndarray], right: bool) -> dict[str, Any]:
    """A row of the sheet. nbytes: the bytes that a launch moves, over both sides."""
    return {
        "row_bytes": row_bytes,
        "way": way,
        "gbs": nbytes / Statistics.from_times(found["put"]).median / 1e9,
        "copy_gbs": nbytes / Statistics.from_times(found["copy"]).median / 1e9,
        **ratio_values("share", found["put"], found["copy"]),
        "turns": len(found["put"]),
        "check": VERDICTS[right],
    }


def _table(times: dict[tuple[str, int], dict[str, np.ndarray]], grid: int, name: str) -> Table:
    """Raw times."""
    names = ["put", "copy"]
    seconds = padded([[[times[way, size][name] for name in names] for size in ROW_BYTES] for way in WAYS])
    table = Table("put", name, attributes={"block_bytes": BLOCK_BYTES})
    table.dim("way", list(WAYS)).dim("row_bytes", ROW_BYTES, "B").dim("what", names)
    table.dim("turn", np.arange(seconds.shape[-1]))
    table.add(
        "bytes", ("way",), [BLOCK_BYTES * grid * halves // 2 for halves in WAYS.values()], "B", "bytes of a launch"
    )
    return table.add("time", ("way", "row_bytes", "what", "turn"), seconds, "s", "one launch, or one copy")
