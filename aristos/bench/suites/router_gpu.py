"""Suite `router` on GPUs: routing alone, from tokens to sorted choices, against PyTorch.

    route   the kernel `route`: scores, ids and weights; PyTorch's product with the router, top-k and weights
    both    `route` and `place`, which makes the packed order; PyTorch also sorts the choices by expert

Each side is captured in a CUDA graph, and both take turns on the same tokens. Ids and order must equal those of the
float64 reference. An error is the error of the combine weights against the reference. Every rank runs the suite alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ... import reference
from ...results import Table
from ...row_types import BY_KIND, KINDS, ROW_TYPES
from ..context import TURNS_TO_CHECK, VERDICTS, WRONG_RIVAL, Column, Context, Result, Sheet, ratio_columns, time_columns
from ..gpu.clock import BenchGpu, GpuArray, ratio_values
from ..gpu.libraries import or_why
from ..gpu.rival import FAILURES, TorchGpu, said
from ..measure import Statistics, padded
from ..ran import of_gpu
from ..registry import gpu_suite
from ..workload import Workload

STEPS = ROUTE, BOTH = "route", "both"
OURS, TORCH = "aristos", "PyTorch"

Call = Callable[[], object]
Found = dict[tuple[str, str], np.ndarray]  # seconds of the turns, by side and steps

COLUMNS = (
    Column("tokens", "tokens", "d"),
    Column("what", "what"),
    *time_columns("us", ".1f", "p95"),
    Column("torch_us", "PyTorch\nus", ".1f"),
    *ratio_columns("speedup", "against\nPyTorch", ".2f"),
    *TURNS_TO_CHECK,
)


class Ours:
    """The layer's own kernels on `x`, an array of the GPU. matrix: the router's, [H, E]."""

    def __init__(self, gpu: BenchGpu, cfg: Any, x: GpuArray, matrix: np.ndarray) -> None:
        from ...kernels.common.scores import job_words
        from ...kernels.cuda import router, router_job
        from ...kernels.cuda.catalogue import route_kernels

        tokens, self.gpu = x.shape[0], gpu
        self.outputs = [GpuArray(gpu, (tokens, cfg.top_k), kind) for kind in ("<i8", "<f4", "<i8")]
        ids, weights, position = (each.at for each in self.outputs)
        scratch = router.scratch_bytes(tokens, cfg.experts, cfg.experts)
        job = router_job.whole_job(
            x=x.at, x_stride=x.dtype.itemsize * cfg.hidden, tokens=tokens, hidden=cfg.hidden,
            router=gpu.array(router.pack_router(matrix)).at, experts=cfg.experts, top_k=cfg.top_k, choices=cfg.top_k,
            **job_words(cfg.router), ids=ids, weights=weights,
            slot_of=gpu.array(np.arange(cfg.experts)).at, slots=cfg.experts,
            offset=gpu.allocate(8 * (cfg.experts + 1)), token=gpu.allocate(8 * tokens * cfg.top_k), position=position,
            input=0, input_stride=0, status=gpu.allocate(8), scratch=gpu.allocate(scratch),
        )  # fmt: skip
        kind = router.kind_of_rows(x.kind)
        kernels, self._job, self._blocks = route_kernels(), gpu.array(job).at, router.blocks(tokens)
        self._route = kernels[router.route(kind).__name__], router.route_shared(cfg.experts, kind)
        self._place = kernels["place"], router.place_shared(cfg.experts, cfg.top_k)

    def graph(self, steps: str) -> Call:
        """The kernels in a CUDA graph, after one call that loads them."""
        return self.gpu.graph(partial(self._call, steps))

    def _call(self, steps: str) -> None:
        for kernel, shared in (self._route, self._place)[: 1 + STEPS.index(steps)]:
            self.gpu.launch(kernel, self._blocks, shared, self._job)

    def clear(self) -> None:
        """Clear the outputs."""
        for each in self.outputs:
            self.gpu.device.clear(each.at, each.nbytes, self.gpu.stream)

    def found(self) -> list[np.ndarray]:
        """ids [S, k], weights [S, k] and packed positions [S, k]."""
        return [each.get() for each in self.outputs]


class Theirs:
    """PyTorch on the same tokens."""

    def __init__(self, place: TorchGpu, cfg: Any, x: GpuArray, matrix: np.ndarray) -> None:
        from ..gpu import torch_layer

        self.place, self.torch, self.cfg, self._choose = place, place.torch, cfg, torch_layer.choose
        with place.here():
            self.x = place.tensor(x)
            self.gate = torch_layer.Gate(place.torch, cfg, matrix, place.device)
            self.order = torch_layer.Order(place.torch, cfg, len(self.x), place.device)

    def graph(self, steps: str) -> Call:
        """PyTorch's kernels in a CUDA graph, after one call."""
        call, gpu = partial(self._call, steps), self.place.gpu
        with self.place.here():
            call()
            gpu.device.synchronize(gpu.stream)
            return self.place.graph(call)

    def _call(self, steps: str) -> None:
        ids, weights = self._choose(self.torch, self.cfg.router, self.gate(self.x), self.cfg.top_k)
        self.outputs = [ids, weights]
        if steps == BOTH:
            self.outputs.append(self.order(ids)[-1])

    def clear(self) -> None:
        """Clear the outputs."""
        with self.place.here():
            for each in self.outputs:
                each.zero_()

    def found(self) -> list[np.ndarray]:
        """ids [S, k], weights [S, k] and packed positions [S, k], as `Ours.found`."""
        return [each.cpu().numpy() for each in self.outputs]


def error(found: list[np.ndarray], want: tuple[np.ndarray, np.ndarray]) -> float:
    """The error of the weights; infinite if a token's experts or the order are wrong. want: ids and weights [S, k]."""
    ids, weights, position = found
    by_id, wanted_by_id = np.argsort(ids, axis=1), np.argsort(want[0], axis=1)  # near ties may swap choices
    right = np.array_equal(np.take_along_axis(ids, by_id, 1), np.take_along_axis(want[0], wanted_by_id, 1))
    order = np.argsort(ids.reshape(-1), kind="stable")
    if not right or not np.array_equal(position.reshape(-1)[order], np.arange(order.size)):
        return np.inf
    return reference.error(np.take_along_axis(weights, by_id, 1), np.take_along_axis(want[1], wanted_by_id, 1))


@gpu_suite("router", "routing alone: scores, top-k and the packed order, against PyTorch", order=55)
def run(ctx: Context, gpu: BenchGpu) -> Result:
    shape = ctx.shape()
    cfg, kind = shape.cfg, KINDS[shape.cfg.dtype]
    work = Workload(ctx.world, cfg, ctx.options.seed)
    place, note = or_why(TorchGpu, gpu)
    place = place if ctx.world.every(place is not None) else None
    sheet = Sheet(f"router on {gpu.device.name}: H {cfg.hidden} E {cfg.experts} k {cfg.top_k}", COLUMNS, notes=[note])
    done, most = [], ROW_TYPES["float32"].error
    for i, tokens in enumerate(shape.tokens):
        ctx.report(f"{tokens} tokens", i / len(shape.tokens))
        values = work.tokens(tokens, tokens, settle=True)
        x, want = rows_on(gpu, values, kind), reference.route(cfg, values, work.router)
        sides, why = made(gpu, place, cfg, x, work.router)
        sheet.notes += [f"{tokens} tokens: {why}"] if why else []
        graphs = {(name, steps): side.graph(steps) for name, side in sides.items() for steps in STEPS}
        before = errors(gpu, sides, graphs, want)
        share = ctx.left() / (len(shape.tokens) - i)
        found = gpu.in_turns(graphs, share, ctx.options.warmup, ctx.options.iters)
        after = errors(gpu, sides, graphs, want)  # the timed graphs must still give right outputs
        worst = {name: ctx.world.largest(max(before[name], after[name])) for name in sides}
        if worst.get(TORCH, 0.0) > most:
            sheet.notes.append(f"{WRONG_RIVAL}: PyTorch's routing of {tokens} tokens, error {worst[TORCH]:.1e}")
            found = {key: times for key, times in found.items() if key[0] != TORCH}
        done.append((tokens, found))
        verdict = {"tokens": tokens, "error": worst[OURS], "check": VERDICTS[worst[OURS] <= most]}
        sheet.records += [_record(found, steps) | verdict for steps in STEPS]
    return Result(sheet.ok, [sheet], [_table(ctx, done, note)], [of_gpu(gpu, kind, (x,), cfg)])


def made(
    gpu: BenchGpu, place: TorchGpu | None, cfg: Any, x: GpuArray, matrix: np.ndarray
) -> tuple[dict[str, Any], str]:
    """(the sides by name, why PyTorch's side is missing). PyTorch's kernels have run once. Collective."""
    sides, why = {OURS: Ours(gpu, cfg, x, matrix)}, ""
    if place is None:
        return sides, why
    theirs: Any = None
    try:
        theirs = Theirs(place, cfg, x, matrix)
        theirs.graph(BOTH)
    except FAILURES as error:
        theirs, why = None, said(error)
    return sides | ({TORCH: theirs} if gpu.world.every(theirs is not None) else {}), why


def errors(gpu: BenchGpu, sides: dict[str, Any], graphs: dict[Any, Call], want: Any) -> dict[str, float]:
    """The error of each side after a call on cleared outputs."""
    found = {}
    for name, side in sides.items():
        side.clear()
        graphs[name, BOTH]()
        gpu.device.synchronize(gpu.stream)
        found[name] = error(side.found(), want)
    return found


def rows_on(gpu: BenchGpu, values: np.ndarray, kind: str) -> GpuArray:
    """Rows of a kind on the GPU. values: [S, H] float32."""
    from ...kernels.cuda.pack import narrow

    return gpu.array(narrow(values, kind) if BY_KIND[kind].rounds else values, kind)


def _record(found: Found, steps: str) -> dict[str, Any]:
    ours, theirs = found[OURS, steps], found.get((TORCH, steps))
    summary = Statistics.from_times(ours)
    record: dict[str, Any] = {
        "what": steps,
        **summary.values_in("us"),
        "turns": len(ours),
    }
    if theirs is not None:
        record["torch_us"] = Statistics.from_times(theirs).median * 1e6
        record |= ratio_values("speedup", ours, theirs)
    return record


def _table(ctx: Context, done: list[tuple[int, Found]], rival: str) -> Table:
    """Raw times of this rank."""
    keys = list(dict.fromkeys(key for _, found in done for key in found))
    seconds = padded([[found.get(key, np.full(1, np.nan)) for key in keys] for _, found in done])
    table = Table("router", "router_cuda", attributes={"shape": str(ctx.shape()), "rival": rival})
    table.dim("tokens", [tokens for tokens, _ in done], "1", "tokens of a call")
    table.dim("what", [", ".join(key) for key in keys]).dim("turn", np.arange(seconds.shape[-1]))
    return table.add("time", ("tokens", "what", "turn"), seconds, "s", "one call, by events")
