"""Suite `signal` on GPUs: microseconds of a row and a signal from one block to another and back.

Two blocks of one warp make `ROUNDS` round trips per launch; a time is that of the launch, by events, over its rounds. A
launch with a wrong row or a wait that ran out fails.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...results import Table
from ..context import CHECK, VERDICTS, Column, Context, Result, Sheet
from ..gpu.clock import BenchGpu
from ..measure import Statistics, padded
from ..registry import gpu_suite

ROW_BYTES = (16, 512, 4096)
ROUNDS = 1000
LIMIT_NS = 2_000_000_000

COLUMNS = (
    Column("row_bytes", "bytes\na row", "d"),
    Column("median_us", "there and back\nus", ".3f"),
    Column("p95_us", "p95\nus", ".3f"),
    Column("fastest_us", "fastest\nus", ".3f"),
    Column("turns", "turns", "d"),
    CHECK,
)


@gpu_suite("signal", "a row and a signal between two blocks, there and back", order=20)
def run(ctx: Context, gpu: BenchGpu) -> Result:
    from ...kernels.cuda.catalogue import PING_PONG
    from ...kernels.cuda.put_signal import LINE

    sheet = Sheet(f"put + signal there and back between two blocks on {gpu.device.name}", COLUMNS)
    times = []
    for i, row_bytes in enumerate(ROW_BYTES):
        ctx.report(f"rows of {row_bytes} bytes", i / len(ROW_BYTES))
        row = np.random.default_rng(row_bytes).integers(0, 1 << 62, row_bytes // 8)
        source, slots = gpu.array(row), gpu.array(np.zeros((2, len(row)), np.int64))
        words, late = gpu.array(np.zeros(2 * LINE // 8, np.int64)), gpu.array(np.zeros(1, np.int64))
        base = [0]

        def play(source: Any = source, slots: Any = slots, words: Any = words, late: Any = late,
                 base: list[int] = base, row_bytes: int = row_bytes) -> None:  # fmt: skip
            args = source.at, slots.at, words.at, row_bytes, ROUNDS, base[0], LIMIT_NS, late.at
            gpu.launch(PING_PONG, 2, 0, *args)
            base[0] += ROUNDS

        share = ctx.left() / (len(ROW_BYTES) - i)
        found = gpu.in_turns({"play": play}, share, ctx.options.warmup, ctx.options.iters)["play"] / ROUNDS
        right = bool(np.array_equal(slots.get(), [row, row])) and int(late.get()[0]) == 0
        summary = Statistics.of(found)
        times.append(found)
        sheet.records.append(
            {"row_bytes": row_bytes, "median_us": summary.median * 1e6, "p95_us": summary.p95 * 1e6,
             "fastest_us": summary.fastest * 1e6, "turns": len(found), "check": VERDICTS[right]}
        )  # fmt: skip
    seconds = padded(times)
    table = Table("signal", "signal_cuda", attributes={"rounds": ROUNDS})
    table.dim("row_bytes", ROW_BYTES, "B").dim("turn", np.arange(seconds.shape[-1]))
    table.add("round_trip", ("row_bytes", "turn"), seconds, "s", "a row and a signal there and back")
    return Result(sheet.ok, [sheet], [table])
