"""`--timeline OUT.json`: the steps of every worker of every rank during one call, for ui.perfetto.dev or
chrome://tracing.

In the trace event format a rank is a process and a worker a thread. Each step is a complete event ("X"); an instant
("i") marks the return of an expert's rows (to another node: that they are ready to be put). Times are microseconds
since the first event on any rank. "wire" is time in MPI between nodes, drawn inside a "wait" if the worker had nothing
else to do. One call after warm-up is recorded.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import ResultsError
from ..results.atomic import try_writing
from .context import Context
from .workload import Workload, execute

WARMUP = 5
_TITLE = {"dispatch": "dispatch to rank", "expert": "expert", "wait": "wait for rank"}  # before an event's fifth field


def check(path: str) -> None:
    """Raise ResultsError before anything is measured if `write` could not work."""
    target = Path(path).absolute()
    if target.is_dir():
        raise ResultsError(f"{target} is a folder; --timeline needs the name of a file")
    try_writing(target, target.parent)


def record(ctx: Context, path: str) -> None:
    """Record a call of the layer that the options describe, and write it on rank 0. Collective."""
    shape = ctx.shape()
    tokens = shape.tokens[-1]
    work = Workload(ctx.world, shape.cfg, ctx.options.seed)
    if ctx.trace is not None:
        where = ctx.trace.prefill(ctx.world.rank, ctx.world.size, tokens, 0)
        call = work.recorded(ctx.trace, where, ctx.trace.layers // 2)
    else:
        call = work.call(tokens, ctx.options.routing or "router", tokens)
    call = work.typed(call)
    schedule = "fused" if ctx.options.schedule == "both" else ctx.options.schedule
    layer = work.layer(schedule, ctx.options.threads)
    for _ in range(WARMUP):
        execute(layer, call)
    layer.timeline(True)
    ctx.world.barrier()
    execute(layer, call)
    events = ctx.world.gather((layer.threads, [tuple(e) for e in layer.events()]))
    layer.close()
    if ctx.world.lead:
        title = {"layer": str(shape), "tokens_per_rank": tokens, "schedule": schedule}
        write(path, events, ctx.world.hosts, title)


def write(path: str, ranks: list[tuple[int, list[tuple]]], hosts: list[str], title: dict[str, Any]) -> None:
    """ranks: (workers, events) of every rank; an event is (worker, kind, start_s, end_s, peer or expert, rows)."""
    document = {"traceEvents": trace_events(ranks, hosts), "displayTimeUnit": "ns", "otherData": title}
    aside = Path(f"{path}.{os.getpid()}.tmp")
    aside.write_text(json.dumps(document))
    os.replace(aside, path)


def trace_events(ranks: list[tuple[int, list[tuple]]], hosts: list[str]) -> list[dict[str, Any]]:
    """The list of trace events, names of processes and threads first."""
    found: list[dict[str, Any]] = []
    for rank, (workers, _) in enumerate(ranks):
        found.append(_name("process_name", rank, 0, f"rank {rank} on {hosts[rank]}"))
        found.append({"name": "process_sort_index", "ph": "M", "pid": rank, "args": {"sort_index": rank}})
        found += [_name("thread_name", rank, w, f"worker {w}") for w in range(workers)]
    origin = min((event[2] for _, events in ranks for event in events), default=0.0)
    for rank, (_, events) in enumerate(ranks):
        for worker, kind, start, end, which, rows in events:
            place = {"cat": kind, "pid": rank, "tid": int(worker), "args": {"rows": int(rows)}}
            begin, stop = (start - origin) * 1e6, (end - origin) * 1e6
            found.append({"name": _title(kind, which, rank), "ph": "X", "ts": begin, "dur": stop - begin, **place})
            if kind == "expert":
                # Output rows are written directly to their return rows.
                found.append({"name": "return", "ph": "i", "s": "t", "ts": stop, **place, "cat": "return"})
    return found


def _title(kind: str, which: int, rank: int) -> str:
    if kind == "wait" and which == rank:
        return "wait for another worker"
    return f"{_TITLE[kind]} {which}" if kind in _TITLE and which >= 0 else kind


def _name(key: str, rank: int, worker: int, text: str) -> dict[str, Any]:
    return {"name": key, "ph": "M", "pid": rank, "tid": worker, "args": {"name": text}}
