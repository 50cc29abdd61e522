"""Parts of a call on a GPU by themselves: the router's kernels, and what the workers of the persistent kernel did."""

from __future__ import annotations

from typing import Any

import numpy as np

PHASES = {"route": "N_ROUTE", "dispatch": "N_DISPATCH", "experts": "N_EXPERT", "combine": "N_COMBINE",
          "idle": "N_IDLE", "rest": "N_PACK"}  # fmt: skip


def _played(context: Any, gpu: Any, work: Any, moe: Any, tokens: int) -> Any:
    from aristos.bench.gpu.calls import Played, routed_call

    return Played(gpu, work, moe, routed_call(context, work, tokens))


def _made(context: Any) -> tuple[Any, Any]:
    from aristos.bench.workload import Workload

    work = Workload(context.world, context.shape().cfg, context.options.seed)
    return work, work.layer("fused", None, backend="cuda")


def router(context: Any, gpu: Any, counts: list[int]) -> dict[str, Any]:
    """Microseconds of the kernels `route` and `place`, each alone and both, on the jobs of a layer's own calls."""
    from aristos.bench.measure import Statistics
    from aristos.kernels.cuda import router as kernels
    from aristos.kernels.cuda.catalogue import route_kernels

    work, moe = _made(context)
    rows = []
    for i, tokens in enumerate(counts):
        played = _played(context, gpu, work, moe, tokens)
        error = played.error()
        backend = moe._backend
        _, job = backend._jobs._jobs[backend._last]  # the router's job of the call that has ended
        cfg, blocks = work.cfg, kernels.blocks(tokens)
        kind = played.kind if played.kind in kernels.KINDS else "f32"
        route, place = route_kernels()[kernels.route(kind).__name__], route_kernels()["place"]
        shares = kernels.route_shared(cfg.experts, kind), kernels.place_shared(cfg.experts, cfg.top_k)

        def launch_route(route: Any = route, blocks: int = blocks, shared: int = shares[0], job: int = job) -> None:
            gpu.launch(route, blocks, shared, job)

        def launch_place(place: Any = place, blocks: int = blocks, shared: int = shares[1], job: int = job) -> None:
            gpu.launch(place, blocks, shared, job)

        def both(first: Any = launch_route, second: Any = launch_place) -> None:
            first()
            second()

        calls = {"route": launch_route, "place": launch_place, "both": both}
        each = context.left() / (len(counts) - i)
        found = gpu.in_turns(calls, each, context.options.warmup, context.options.iters)
        error = max(error, played.error())
        for name, times in found.items():
            median = Statistics.of(times).median
            rows.append({"tokens": tokens, "what": name, "median_us": median * 1e6, "blocks": blocks,
                         "turns": len(times), "error": error, "check": _verdict(work, error)})  # fmt: skip
    moe.close()
    return {"title": f"router alone on {gpu.device.name}: {context.shape()}", "rows": rows, "notes": []}


def phases(context: Any, gpu: Any, counts: list[int]) -> dict[str, Any]:
    """The share of the workers' time that each phase took, by the counters that the kernels keep."""
    from aristos.engine import words

    work, moe = _made(context)
    rows, missing = [], set(PHASES)
    for tokens in counts:
        played = _played(context, gpu, work, moe, tokens)
        errors = [played.error()]
        call = played.graph()
        taken = [gpu.seconds(call) for _ in range(3)][-1]
        moe.synchronize()
        errors.append(played.now())
        runtime = moe.runtime
        runtime.read_all()
        counted = runtime.counted.counters(runtime.state[runtime.counted.first :])
        blocks = int(runtime.counted.workers)
        row: dict[str, Any] = {"tokens": tokens, "call_us": taken * 1e6, "blocks": blocks}
        for phase, name in PHASES.items():
            spent = float(counted[getattr(words, name)]) * 1e-9
            if spent:
                missing.discard(phase)
                row[f"{phase}_share"] = spent / (blocks * taken)
        rows.append(row | {"error": max(errors), "check": _verdict(work, max(errors))})
    moe.close()
    notes = ["shares of blocks x the time of the last of three calls; launches and the router's kernels are no part"]
    if missing:
        notes.append(
            f"not measured, since the kernels count none: {', '.join(name for name in PHASES if name in missing)}"
        )
    return {"title": f"time per phase on {gpu.device.name}: {context.shape()}", "rows": rows, "notes": notes}


def _verdict(work: Any, error: float) -> str:
    from aristos.bench.context import VERDICTS

    return str(VERDICTS[bool(work.passes(np.float64(error)))])
