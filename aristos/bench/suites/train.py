"""Suite `train`: a training step of the layer in float32 (forward, backward, Adam), with each `save` of tapes in turns.

The columns, medians of the slowest rank over steps:

    forward, backward    one call each
    optimizer            reduce_grads, clip, AdamW on the float32 masters, packing the weights again
    step                 all three, and zero_grads
    tokens/s             tokens of all ranks / step
    of peak              GFLOP/s per rank over multiply-adds in registers, on all workers at once. Each matrix product
                         of a row counts 2 H F FLOPs: 2 products forward and 5 backward, or 3 and 8 if gated

The first step is checked against float64: dx, and the gradient of each expert's up projection between two random
vectors. Layers of other dtypes are trained in float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ... import _reference_backward, reference
from ...results import Table
from .. import bounds
from ..context import ERROR_AND_CHECK, Column, Context, Result, Sheet, counted
from ..disturbance import CORE_SHARE, mark
from ..measure import Statistics, gathered, in_turns, padded, placed
from ..ran import Ran, of_layer
from ..registry import suite
from ..workload import Call, Workload

PARTS = ("forward", "backward", "optimizer")
STEP = "step"
SAVES = ("nothing", "rows", "hidden")
COLUMNS = (
    Column("tokens", "tokens\n/rank", "d"),
    Column("save", "save", "s"),
    *(Column(f"{part}_ms", f"{part}\nms", ".3f") for part in (*PARTS, STEP)),
    Column("backward_over_forward", "backward\n/forward", ".2f"),
    Column("tokens_per_s", "tokens/s", ",.0f"),
    Column("gflops_per_rank", "GFLOP/s\n/rank", ".1f"),
    Column("share_of_peak", "of FMA\npeak", ".0%"),
    Column("iterations", "steps", "d"),
    *ERROR_AND_CHECK,
)


@dataclass
class Steps:
    """Training steps of one token count and one `save` on this rank. A call makes one step.

    seconds: part -> its seconds in each step.
    """

    moe: Any
    optimizer: Any
    call: Call
    dy: np.ndarray
    save: str
    seconds: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})

    def gradients(self) -> np.ndarray:
        """dx [S, H] of a forward and a backward call.

        The gradients of the layer's arrays are then those of this call.
        """
        self.moe.zero_grads()
        start = time.perf_counter()
        _, tape = self.moe.forward(self.call.x, self.call.ids, self.call.weights, save=self.save)
        middle = time.perf_counter()
        found = self.moe.backward(self.dy, tape)
        end = time.perf_counter()
        self.seconds["forward"].append(middle - start)
        self.seconds["backward"].append(end - middle)
        return np.asarray(found[0] if isinstance(found, tuple) else found)

    def note(self, i: int) -> None:
        """Keep one entry for step i in `seconds`. If the step was repeated, the last entry is kept."""
        for each in self.seconds.values():
            placed(each, i)

    def __call__(self) -> None:
        self.gradients()
        start = time.perf_counter()
        self.optimizer.step()
        self.seconds["optimizer"].append(time.perf_counter() - start)


def noted(steps: dict[str, Steps]) -> Callable[[str, int, float], None]:
    """The function that `in_turns` calls after each step."""
    return lambda save, i, elapsed: steps[save].note(i)


@suite(
    "train", "a training step in float32: forward, backward, Adam; tokens/s, share of the peak", order=65, default=False
)
def run(ctx: Context) -> Result:
    from ...layer.tapes import place_bytes
    from ...train import Adam

    shape = ctx.shape()
    work = Workload(ctx.world, replace(shape.cfg, dtype="float32", precision="highest"), ctx.options.seed)
    stacked: dict[str, Any] = work.weights()
    tape_bytes = ctx.world.size * max(shape.tokens) * work.cfg.top_k * place_bytes(work.cfg, "hidden")
    moe = work.layer("fused", ctx.options.threads, stacked, train=True, tape_bytes=tape_bytes)
    sheet = Sheet(f"training: {shape}, {counted(ctx.world.size, 'rank')}", COLUMNS)
    raw: list[list[dict[str, np.ndarray]]] = []
    peaks, core = [], []
    ran: list[Ran] = []
    try:
        for i, tokens in enumerate(shape.tokens):
            ctx.report(f"{tokens} tokens", i / len(shape.tokens))
            moe.load(router=work.router, local=True, **stacked)
            call = work.call(tokens, "uniform" if ctx.trace else ctx.options.routing or "router", tokens)
            optimizer, dy = Adam(moe, 1e-6, clip=1.0), work.tokens(tokens, 7)
            steps = {save: Steps(moe, optimizer, call, dy, save) for save in SAVES}
            errors = {save: _error(work, each) for save, each in steps.items()}
            ran = [of_layer(moe, (call.x, steps[SAVES[0]].gradients()), work.cfg)]
            before = bounds.peak(ctx.world, moe.threads)
            calls: dict[str, Any] = dict(steps)
            count = ctx.iterations(calls, 0.8 * ctx.left() / (len(shape.tokens) - i))
            for each in steps.values():
                each.seconds = {part: [] for part in PARTS}
            taken = in_turns(ctx.world, calls, count, noted(steps))
            peaks.append(ctx.world.allgather((before + bounds.peak(ctx.world, moe.threads)) / 2))
            rows = float(work.rows(work.routed(call)[0]).sum())
            raw.append([])
            for save, each in steps.items():
                times = {part: gathered(ctx.world, np.array(found)) for part, found in each.seconds.items()}
                raw[-1].append(times | {STEP: taken[save]})
                record = _record(work, tokens, raw[-1][-1], float(np.mean(peaks[-1])), rows, errors[save])
                sheet.records.append(record | {"save": save} | mark(taken.core[save], raw[-1][-1][STEP]))
            core.append([taken.core[save] for save in SAVES])
    finally:
        moe.close()
    return Result(sheet.ok, [sheet], [_table(ctx, shape, raw, core, peaks)], ran)


def products(work: Workload) -> int:
    """Matrix products of one row in a step."""
    return 3 + 8 if work.cfg.gated else 2 + 5


def _record(
    work: Workload, tokens: int, times: dict[str, np.ndarray], peak: float, rows: float, error: float
) -> dict[str, Any]:
    median = {part: Statistics.from_times(each).median for part, each in times.items()}
    flops = 2.0 * work.cfg.hidden * work.cfg.ffn * products(work) * rows / work.world.size
    rate = flops / median[STEP] / 1e9
    return {
        "tokens": tokens,
        **{f"{part}_ms": value * 1e3 for part, value in median.items()},
        "backward_over_forward": median["backward"] / median["forward"],
        "tokens_per_s": tokens * work.world.size / median[STEP],
        "gflops_per_rank": rate,
        "share_of_peak": rate / peak,
        "iterations": times[STEP].shape[-1],
        **work.verdict(error),
    }


def _error(work: Workload, steps: Steps) -> float:
    """The largest relative error of dx, and of the projected gradients of up projections. Collective."""
    cfg, x, dy = work.cfg, steps.call.x.astype(np.float64), steps.dy.astype(np.float64)
    got = steps.gradients()
    ids, weights = work.routed(steps.call)
    rng = np.random.default_rng(work.seed)
    left, right = rng.standard_normal(cfg.hidden), rng.standard_normal(cfg.ffn)
    dx, dw = np.zeros_like(x), np.zeros(ids.shape)
    projected = np.zeros((2, cfg.experts))  # sums of terms, and sums of their absolute values
    for e in np.unique(ids[ids >= 0]):
        token, choice = np.nonzero(ids == e)
        one = {name: array[0].astype(np.float64) for name, array in work.expert(int(e)).items()}
        factor = weights[token, choice, None]
        part = _reference_backward.expert(work.single, x[token], factor * dy[token], one)
        dx[token] += part.dx
        dw[token, choice] = (part.y * dy[token]).sum(axis=1)
        gradient = part.arrays["up"]
        projected[:, e] = left @ gradient @ right, np.abs(left) @ np.abs(gradient) @ np.abs(right)
    if steps.call.ids is None:
        router = work.router.astype(np.float64)
        dx += _reference_backward.by_logits(cfg, x @ router, ids, dw) @ router.T
    sums, sizes = np.sum(work.world.allgather(projected), axis=0)
    ours = [left @ gradient @ right for gradient in steps.moe.grads()["up"].astype(np.float64)]
    off = np.abs(np.array(ours) - sums[work.local]) / np.maximum(sizes[work.local], 1e-300)
    return work.world.largest(max(reference.error(got, dx), float(off.max(initial=0.0))))


def _table(
    ctx: Context, shape: Any, raw: list[list[dict[str, np.ndarray]]], core: list[Any], peaks: list[list[float]]
) -> Table:
    """Raw times."""
    parts = (*PARTS, STEP)
    seconds = padded([[[times[part] for part in parts] for times in saves] for saves in raw])
    table = Table("train", attributes={"shape": str(shape)})
    table.dim("tokens", list(shape.tokens), "1", "tokens per rank and step")
    table.dim("save", list(SAVES)).dim("part", list(parts))
    table.dim("rank", np.arange(ctx.world.size)).dim("iteration", np.arange(seconds.shape[-1]))
    table.add("time", ("tokens", "save", "part", "rank", "iteration"), seconds, "s", "a part of a step on one rank")
    table.add("core_share", ("tokens", "save", "rank", "iteration"), padded(core), "1", CORE_SHARE)
    return table.add("peak", ("tokens", "rank"), peaks, "GFLOP/s", "multiply-adds in registers")
