"""Events of a call as a file for ui.perfetto.dev or chrome://tracing.

In the trace event format a rank is a process and a worker a thread. Each step is a complete event ("X"); an instant
("i") marks the return of an expert's rows (to another node: that they are ready to be put). Times are microseconds
since the first event on any rank. "wire" is time in MPI between nodes, drawn inside a "wait" if the worker had nothing
else to do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..primitives.aside import write_text
from .backend import Event

_TITLE = {"dispatch": "dispatch to rank", "expert": "expert", "wait": "wait for rank"}  # before an event's fifth field


Ranks = Sequence[tuple[int, Sequence[Event]]]  # (workers, events) of every rank


def write(path: str | os.PathLike[str], ranks: Ranks, hosts: Sequence[str], facts: Mapping[str, Any]) -> None:
    """Replace the file. hosts: of every rank. facts: plain values about the call, `otherData` of the file."""
    document = {"traceEvents": trace_events(ranks, hosts), "displayTimeUnit": "ns", "otherData": dict(facts)}
    write_text(Path(path), json.dumps(document))


def trace_events(ranks: Ranks, hosts: Sequence[str]) -> list[dict[str, Any]]:
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
