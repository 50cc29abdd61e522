"""Measures what the workers of the persistent kernel do in a call on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np

PHASES = ("dispatch", "compute", "combine", "publish", "lock", "idle")
CALLS = 3  # the statistics of the last one are shown


def _played(context: Any, gpu: Any, work: Any, moe: Any, tokens: int) -> Any:
    from aristos.bench.gpu.calls import Played
    from aristos.bench.workload import routed_call

    return Played(gpu, work, moe, routed_call(context, work, tokens))


def _made(context: Any) -> tuple[Any, Any]:
    from aristos.bench.workload import Workload

    work = Workload(context.world, context.shape().cfg, context.options.seed)
    return work, work.layer("fused", None, backend="cuda")


def phases(context: Any, gpu: Any, counts: list[int]) -> dict[str, Any]:
    """The share of the workers' time that each phase took. Kernels count it after `timeline(True)`."""
    work, moe = _made(context)
    moe.timeline(True)
    rows = []
    for tokens in counts:
        played = _played(context, gpu, work, moe, tokens)
        errors = [played.error()]
        for _ in range(CALLS):
            _, stats = moe(played.x, out=played.y, return_stats=True, **played.routing)
        took = gpu.seconds(played)  # the host's wait is not counted
        errors.append(played.now())
        row: dict[str, Any] = {"tokens": tokens, "blocks": stats.workers, "call_us": 1e6 * took}
        row["router_us"] = 1e6 * stats.route_seconds
        spent = stats.workers * took
        row |= {f"{name}_share": getattr(stats, f"{name}_seconds") / spent for name in PHASES}
        row["idle_polls"] = stats.polls
        rows.append(row | {"error": max(errors), "check": _verdict(work, max(errors))})
    moe.close()
    notes = [
        "a share is a part of (blocks x time of a call), by the clock of each block; the time of a call includes the"
        " router's kernels; lock: blocks wait for the rank's lock, to publish"
    ]
    return {"title": f"time per phase on {gpu.device.name}: {context.shape()}", "rows": rows, "notes": notes}


def _verdict(work: Any, error: float) -> str:
    from aristos.bench.context import VERDICTS

    return str(VERDICTS[bool(work.passes(np.float64(error)))])
