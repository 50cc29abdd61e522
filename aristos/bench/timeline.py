"""`--timeline OUT.json`: the steps of every worker of every rank during one call after warm-up, for ui.perfetto.dev."""

from __future__ import annotations

from pathlib import Path

from kernel_cache import regular

from ..errors import ResultsError
from ..primitives.atomic_file import try_writing
from .context import Context
from .workload import Workload, execute, routed_call

WARMUP = 5


def check(path: str) -> None:
    """Raise ResultsError, before the measurements, if `record` could not write the file."""
    target = Path(path).absolute()
    if target.is_dir():
        raise ResultsError(f"{target} is a folder; --timeline needs the name of a file")
    if target.exists() and _begins(target) not in (b"", b"{"):
        raise ResultsError(f"--timeline would replace {target}, which is no timeline: give another name")
    try_writing(target, target.parent)


def _begins(target: Path) -> bytes:
    with regular.opened(target) as file:
        return file.read(1)


def record(ctx: Context, path: str) -> None:
    """Record a call of the layer that the options describe, and write it on rank 0. Collective."""
    shape = ctx.shape()
    tokens = shape.tokens[-1]
    work = Workload(ctx.world, shape.cfg, ctx.options.seed)
    call = work.typed(routed_call(ctx, work, tokens))
    schedule = "fused" if ctx.options.schedule == "both" else ctx.options.schedule
    layer = work.layer(schedule, ctx.options.threads, moves=ctx.options.moves)
    for _ in range(WARMUP):
        execute(layer, call)
    layer.timeline(True)
    ctx.world.barrier()
    execute(layer, call)
    layer.write_timeline(path, {"layer": str(shape), "tokens_per_rank": tokens})
    layer.close()
