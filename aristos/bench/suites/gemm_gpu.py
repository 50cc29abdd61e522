"""Suite `gemm` on GPUs: the experts' tile product, by rows, against cuBLAS on the same rows.

A call is the first product of every expert of the shape, [rows, H] times [H, F], one launch per expert on either side;
F doubles if the layer is gated. There is no activation and no bias, because either would favour the fused kernel. A
call reads the weights of all experts, which follow each other in memory. Both sides write rows in the type of x.

Some outputs of the first and of the last expert are checked against float64. Each expert reads rows of its
own in memory. At most DISTINCT rows are drawn, and the other rows are copies of these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ... import reference
from ...results import Table
from ...row_types import KINDS, ROW_TYPES
from ..context import TURNS_TO_CHECK, VERDICTS, WRONG_RIVAL, Column, Context, Result, Sheet, ratio_columns
from ..gpu.clock import BenchGpu, GpuArray, ratio_values
from ..gpu.cublas import Cublas
from ..gpu.libraries import or_why
from ..measure import Statistics, padded
from ..ran import of_gpu
from ..registry import gpu_suite

ROWS = (16, 64, 256, 1024, 4096, 8192)
MOST_EXPERTS = 8
OURS, BLAS = "aristos", "cuBLAS"
CHECKED = 16  # how many rows of the first and of the last expert are checked
DISTINCT = 4096  # rows of x that are drawn; further rows repeat these

COLUMNS = (
    Column("rows", "rows an\nexpert", "d"),
    Column("tile", "tile"),
    Column("median_us", "median\nus", ".1f"),
    Column("tflops", "TFLOP/s", ".1f"),
    Column("blas_tflops", "cuBLAS\nTFLOP/s", ".1f"),
    *ratio_columns("share", "of\ncuBLAS", ".0%"),
    *TURNS_TO_CHECK,
)


class Products:
    """Weights of some experts and rows on the GPU, and the calls that multiply them."""

    def __init__(
        self, gpu: BenchGpu, kind: str, experts: int, hidden: int, columns: int, blas: Cublas | None, most_rows: int
    ) -> None:
        from ...kernels.cuda.pack import narrow, outputs, pack, pack_bias, unpacked, widen
        from ...kernels.cuda.tile import BYTES

        self.gpu, self.kind, self.experts, self.blas = gpu, kind, experts, blas
        self.hidden, self.columns, self.size = hidden, columns, BYTES[kind]
        rng = np.random.default_rng(0)
        weight = rng.standard_normal((hidden, columns), np.float32) * np.float32(hidden**-0.5)
        packed = pack(weight, kind)  # equal weights for all experts, at different addresses
        rows = unpacked(packed)
        self.step, self.pitch, self.padded = packed.nbytes, rows.strides[0], outputs(packed)
        self.weights = gpu.allocate(experts * packed.nbytes)
        self.plain = gpu.allocate(experts * packed.nbytes) if blas is not None else 0
        for e in range(experts):
            gpu.device.copy_in(self.weights + e * packed.nbytes, packed, gpu.stream)
            if blas is not None:
                gpu.device.copy_in(self.plain + e * packed.nbytes, rows, gpu.stream)
        self.bias = gpu.array(pack_bias(None, self.padded))
        self.truth = widen(rows[:columns, :hidden], kind).astype(np.float64).T
        most = most_rows * experts
        few = narrow(rng.standard_normal((min(most, DISTINCT), hidden), np.float32), kind)
        self.sample = widen(few, kind)
        # bytes between rows of x and of y: multiples of 16
        self.x, self.y = GpuArray(gpu, (most, hidden), kind), GpuArray(gpu, (most, columns), kind)
        for first in range(0, most, DISTINCT):
            gpu.device.copy_in(self.x.at + self.size * hidden * first, few[: most - first], gpu.stream)

    def calls(self, rows: int, tile: Any) -> dict[str, Callable[[], None]]:
        """The calls of both sides on `rows` rows per expert."""
        from ...kernels.cuda.catalogue import product_kernel
        from ...kernels.cuda.epilogue import NONE

        gpu, count = self.gpu, rows * self.experts
        kernel = product_kernel(tile)
        at = np.arange(count, dtype=np.int64)
        a_rows = gpu.array(self.x.at + self.size * self.hidden * at)
        c_rows = gpu.array(self.y.at + self.size * self.columns * at)
        grid = -(-rows // tile.m), self.padded // tile.n

        def ours() -> None:
            for e in range(self.experts):
                places = a_rows.at + 8 * rows * e, c_rows.at + 8 * rows * e
                weights = self.weights + self.step * e, self.pitch, self.bias.at, self.columns
                width = self.size * self.hidden
                gpu.launch(kernel, grid, tile.shared_bytes, *places, rows, *weights, width, NONE, 0)

        def blas() -> None:
            assert self.blas is not None
            for e in range(self.experts):
                x = self.x.at + self.size * self.hidden * rows * e, self.hidden
                weights = self.plain + self.step * e, self.pitch // self.size
                y = self.y.at + self.size * self.columns * rows * e, self.columns
                self.blas.product(self.kind, rows, self.columns, self.hidden, *x, *weights, *y)

        return {OURS: ours} | ({BLAS: blas} if self.blas is not None else {})

    def error(self, call: Callable[[], None], rows: int) -> float:
        """The error of some rows after a call (see `reference.error`). The outputs are cleared before the call."""
        from ...kernels.cuda.pack import widen

        gpu, count, last = self.gpu, min(rows, CHECKED), rows * (self.experts - 1)
        gpu.device.clear(self.y.at, self.y.nbytes, gpu.stream)
        call()
        gpu.device.synchronize(gpu.stream)
        got = np.empty((2, count, self.columns), self.y.dtype)
        for part, first in zip(got, (0, last)):
            gpu.device.copy_out(part, self.y.at + self.size * self.columns * first, gpu.stream)
        some = np.r_[0:count, last : last + count] % DISTINCT
        want = self.sample[some].astype(np.float64) @ self.truth
        return reference.error(widen(got, self.kind).reshape(want.shape), want)


@gpu_suite("gemm", "the tile product against cuBLAS", order=50)
def run(ctx: Context, gpu: BenchGpu) -> Result:
    from ...kernels.cuda.gemm import tile_for

    shape = ctx.shape()
    kind, experts = KINDS[shape.cfg.dtype], min(shape.cfg.experts, MOST_EXPERTS)
    columns = shape.cfg.ffn * (2 if shape.cfg.gated else 1)
    blas, rival = or_why(Cublas, gpu)
    work = Products(gpu, kind, experts, shape.cfg.hidden, columns, blas, max(ROWS))
    most_error = ROW_TYPES[shape.cfg.dtype].error
    flops = 2.0 * shape.cfg.hidden * columns * experts
    size = f"[rows, {shape.cfg.hidden}] x [{shape.cfg.hidden}, {columns}]"
    title = f"gemm on {gpu.device.name}: {experts} experts, {size}"
    sheet, times = Sheet(title, COLUMNS), []
    for i, rows in enumerate(ROWS):
        ctx.report(f"{rows} rows", i / len(ROWS))
        tile = tile_for(kind, rows, gpu.device.target)
        calls: dict[str, Any] = dict(work.calls(rows, tile))
        errors = {name: ctx.world.largest(work.error(call, rows)) for name, call in calls.items()}
        found = gpu.in_turns(calls, ctx.left() / (len(ROWS) - i), ctx.options.warmup, ctx.options.iters)
        times.append(found)
        median = {name: Statistics.from_times(t).median for name, t in found.items()}
        record = {
            "rows": rows,
            "tile": tile.name,
            "median_us": median[OURS] * 1e6,
            "turns": len(found[OURS]),
            "tflops": flops * rows / median[OURS] / 1e12,
            "error": errors[OURS],
            "check": VERDICTS[errors[OURS] <= most_error],
        }
        if BLAS in found and errors[BLAS] > most_error:
            sheet.notes.append(f"{WRONG_RIVAL}: cuBLAS's outputs for {rows} rows have an error of {errors[BLAS]:.1e}")
            found[BLAS] = np.full_like(found[BLAS], np.nan)
        elif BLAS in found:
            record |= {
                "blas_tflops": flops * rows / median[BLAS] / 1e12,
                **ratio_values("share", found[OURS], found[BLAS]),
                "blas_error": errors[BLAS],
            }
        sheet.records.append(record)
    sheet.notes.append(rival)
    ran = of_gpu(gpu, tile.kind, (work.x, work.y), shape.cfg)
    return Result(sheet.ok, [sheet], [_table(ctx, times, flops, rival)], [ran])


def _table(ctx: Context, times: list[dict[str, np.ndarray]], flops: float, rival: str) -> Table:
    """The table for the file: the time of every turn."""
    names = list(times[0])
    seconds = padded([[found[name] for found in times] for name in names])
    about = {"shape": str(ctx.shape()), "flops_a_row_of_every_expert": flops, "rival": rival}
    table = Table("gemm", "gemm_cuda", attributes=about)
    table.dim("kernel", names).dim("rows", ROWS, "1", "rows of each expert").dim("turn", np.arange(seconds.shape[-1]))
    return table.add("time", ("kernel", "rows", "turn"), seconds, "s", "the product of every expert")
