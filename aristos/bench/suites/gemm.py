"""Suite `gemm`: the expert kernel alone, by rows, against BLAS and against the roofline.

A call is one expert on M rows: every GEMM of its FFN with the activation fused. Experts take turns, and their weights
together exceed a last-level cache, because a layer reads an expert's weights once per call. All ranks run at once with
one worker each. Times are those of the slowest rank.

    BLAS       NumPy's matmul of the same GEMMs on plain weights, without activation, which favours BLAS; in float32
               always, as NumPy has no BLAS for 16-bit types
    roofline   min(peak, intensity x bandwidth). peak: float32 multiply-adds in registers; bandwidth: one core's read
               rate from memory; intensity: FLOPs over the bytes of weights, rows in and rows out. All measured here

Every output is checked against the float64 oracle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ... import reference
from ...errors import InputError
from ...results import Table
from ...row_types import ROW_TYPES
from .. import bounds
from ..context import ERROR_AND_CHECK, VERDICTS, Column, Context, Result, Sheet, counted
from ..disturbance import CORE_SHARE
from ..measure import Statistics, Times, in_turns, padded
from ..ran import Ran, of_kernels
from ..registry import suite
from ..workload import Workload

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
COLD = 64 << 20  # the least bytes of the weights of all experts that take turns
OURS, BLAS = "aristos", "BLAS"

COLUMNS = (
    Column("rows", "rows", "d"),
    Column("median_us", "median\nus", ".1f"),
    Column("gflops", "GFLOP/s", ".1f"),
    Column("share_of_peak", "of\npeak", ".0%"),
    Column("blas_gflops", "BLAS\nGFLOP/s", ".1f"),
    Column("speedup_over_blas", "against\nBLAS", ".2f"),
    Column("intensity", "FLOP\n/byte", ".1f"),
    Column("roofline_gflops", "roofline\nGFLOP/s", ".1f"),
    Column("share_of_roofline", "of\nroofline", ".0%"),
    *ERROR_AND_CHECK,
)


class Experts:
    """Some experts, packed for the kernel and plain for BLAS. Calls use them in turn.

    nbytes: bytes of one expert's weights in the type of its rows.
    """

    def __init__(self, work: Workload) -> None:
        from ...kernels import Packed
        from ...kernels.cpu.elements import ELEMENTS

        self.work, self.cfg = work, work.cfg
        if self.cfg.dtype not in ELEMENTS:
            raise InputError(f"suite gemm on CPUs measures {', '.join(ELEMENTS)}, got --dtype {self.cfg.dtype}")
        options = {name: getattr(self.cfg, name) for name in ("activation", "limit", "precision")}
        first = self._typed({name: w[0] for name, w in work.expert(0).items()})
        self.nbytes = sum(w.nbytes for w in first.values())
        count = max(1, min(work.cfg.experts, -(-COLD // self.nbytes)))
        self.plain = [{name: w[0] for name, w in work.expert(e).items()} for e in range(count)]
        self.packed = [Packed(**self._typed(weights), **options) for weights in self.plain]
        self._next = 0

    def _typed(self, weights: dict[str, Any]) -> dict[str, Any]:
        """An expert's weights in the layer's dtype; biases stay float32."""
        dtype = ROW_TYPES[self.cfg.dtype].array
        return {name: w if "bias" in name else w.astype(dtype) for name, w in weights.items()}

    def rows(self, m: int) -> np.ndarray:
        """m rows in the layer's dtype."""
        return self.work.tokens(m, m).astype(ROW_TYPES[self.cfg.dtype].array)

    def ran(self) -> Ran:
        """The facts of a call's kernel and rows."""
        from ...kernels.cpu.target import ISA

        x, one = self.rows(1), self.packed[0]
        return of_kernels(one._element, (x, one(x)), ISA, self.cfg)

    def turn(self) -> int:
        """The index of the next expert."""
        self._next = (self._next + 1) % len(self.plain)
        return self._next

    def calls(self, m: int) -> dict[str, Callable[[], None]]:
        """The calls of the kernel and of BLAS on m rows."""
        x = self.rows(m)
        out, plain, wide = np.empty_like(x), x.astype(np.float32), np.empty(x.shape, np.float32)
        h, g = (np.empty((m, self.cfg.ffn), np.float32) for _ in range(2))

        def ours() -> None:
            self.packed[self.turn()](x, out=out)

        def blas() -> None:
            weights = self.plain[self.turn()]
            np.matmul(plain, weights["up"], out=h)
            if self.cfg.gated:
                np.matmul(plain, weights["gate"], out=g)
            np.matmul(h, weights["down"], out=wide)

        return {OURS: ours, BLAS: blas}

    def errors(self, m: int) -> dict[str, float]:
        """Relative errors against float64 on m rows. BLAS is checked without the activation, as it is timed.

        Collective.
        """
        x, e = self.rows(m), self.turn()
        plain = x.astype(np.float32)
        truth = reference.expert(
            self.work.single,
            plain,
            0,
            **{name: w[None] for name, w in self.plain[e].items()},
        )
        weights = {name: w.astype(np.float64) for name, w in self.plain[e].items()}
        product = np.matmul(np.matmul(plain, self.plain[e]["up"]), self.plain[e]["down"])
        return {
            OURS: self.work.error(self.packed[e](x), truth),
            BLAS: self.work.error(product, plain @ weights["up"] @ weights["down"]),
        }

    def right(self, errors: dict[str, float]) -> bool:
        """Whether both errors are within the tolerance of their element types."""
        return self.work.passes(errors[OURS]) and errors[BLAS] <= ROW_TYPES["float32"].error


@dataclass
class Measured:
    """What the suite measured. errors, times, core: for each of ROWS, by side.

    times: [world, iterations] seconds. core: the share of its core that each rank had, arranged like times. kernel,
    peak, bandwidth: [world] of a core, GFLOP/s of the micro-kernel and of multiply-adds in registers, and bytes/s read.
    """

    kernel: np.ndarray
    peak: np.ndarray
    bandwidth: np.ndarray
    errors: list[dict[str, float]] = field(default_factory=list)
    times: list[Times] = field(default_factory=list)


@suite("gemm", "expert kernel GFLOP/s by rows against BLAS, and the roofline", order=50, share=1.0)
def run(ctx: Context) -> Result:
    shape = ctx.shape()
    work = Workload(ctx.world, shape.cfg, ctx.options.seed)
    experts = Experts(work)
    ctx.report("peak and bandwidth", 0.0)
    kernel = np.array(ctx.world.allgather(bounds.micro_kernel(ctx.world, 1)))
    peak = np.array(ctx.world.allgather(bounds.peak(ctx.world, 1)))
    ctx.world.barrier()
    found = Measured(kernel, peak, np.array(ctx.world.allgather(bounds.read_bandwidth())))
    for i, m in enumerate(ROWS):
        ctx.report(f"{m} rows", i / len(ROWS))
        found.errors.append(experts.errors(m))
        calls: dict[str, Any] = dict(experts.calls(m))
        count = ctx.iterations(calls, 0.8 * ctx.left() / (len(ROWS) - i))
        found.times.append(in_turns(ctx.world, calls, count))
    found.peak = np.maximum(peak, np.array(ctx.world.allgather(bounds.peak(ctx.world, 1))))
    return _result(ctx, work, experts, found)


def _result(ctx: Context, work: Workload, experts: Experts, found: Measured) -> Result:
    sheet = Sheet(f"gemm: one expert of {ctx.shape()}, {len(experts.plain)} experts in turn", COLUMNS)
    ran, intensity = experts.ran(), []
    peak, bandwidth = float(found.peak.mean()), float(found.bandwidth.mean())
    itemsize = experts.rows(0).itemsize
    for m, error, t in zip(ROWS, found.errors, found.times):
        median = {name: Statistics.from_times(values).median for name, values in t.items()}
        flops = m * work.flops_per_row
        intensity.append(flops / (experts.nbytes + 2 * itemsize * m * work.cfg.hidden))
        roof = min(peak, intensity[-1] * bandwidth / 1e9)
        rate = flops / median[OURS] / 1e9
        sheet.records.append(
            {
                "rows": m,
                "median_us": median[OURS] * 1e6,
                "gflops": rate,
                "share_of_peak": rate / peak,
                "blas_gflops": flops / median[BLAS] / 1e9,
                "speedup_over_blas": median[BLAS] / median[OURS],
                "intensity": intensity[-1],
                "roofline_gflops": roof,
                "share_of_roofline": rate / roof,
                "error": error[OURS],
                "blas_error": error[BLAS],
                "check": VERDICTS[experts.right(error)],
                **t.mark(),
            }
        )
    sheet.notes.append(
        f"per core, {counted(ctx.world.size, 'rank')} at once: float32 peak {peak:.1f} GFLOP/s, "
        f"float32 micro-kernel {found.kernel.mean():.1f} GFLOP/s, read bandwidth {bandwidth / 1e9:.1f} GB/s; "
        f"{experts.nbytes / 2**20:.2f} MiB of weights per expert"
    )
    if ran.dtype != "float32":
        sheet.notes.append("BLAS computes in float32: NumPy has no BLAS for 16-bit types")
    return Result(sheet.ok, [sheet], [_table(ctx, work, found, intensity)], [ran])


def _table(ctx: Context, work: Workload, found: Measured, intensity: list[float]) -> Table:
    kernels = [OURS, BLAS]
    seconds = padded([[row[name] for row in found.times] for name in kernels])
    table = Table("gemm", attributes={"shape": str(ctx.shape()), "flops_per_row": work.flops_per_row})
    table.dim("kernel", kernels).dim("rows", ROWS, "1", "rows of one expert")
    table.dim("rank", np.arange(ctx.world.size)).dim("iteration", np.arange(seconds.shape[-1]))
    table.add("call_time", ("kernel", "rows", "rank", "iteration"), seconds, "s", "one expert on one rank")
    shares = padded([[row.core[name] for row in found.times] for name in kernels])
    table.add("core_share", ("kernel", "rows", "rank", "iteration"), shares, "1", CORE_SHARE)
    table.add("error", ("kernel", "rows"), [[e[k] for e in found.errors] for k in kernels], "1", "against float64")
    table.add("intensity", "rows", intensity, "FLOP/B", "FLOPs over bytes of weights, rows in and rows out")
    table.add("peak", "rank", found.peak, "GFLOP/s", "multiply-adds in registers")
    table.add("micro_kernel", "rank", found.kernel, "GFLOP/s", "the micro-kernel alone, operands in L1 and L2")
    return table.add("read_bandwidth", "rank", found.bandwidth, "B/s", "one core reading memory")
