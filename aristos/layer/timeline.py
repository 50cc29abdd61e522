"""Events of a call, and their file for ui.perfetto.dev or chrome://tracing.

In the trace event format a rank is a process and a worker is a thread. Each step is a complete event ("X"). An instant
("i") marks the return of an expert's outputs. At this moment the outputs for tokens of this node have returned, and
those for tokens of other nodes can be put. Times are microseconds since the first event on any rank. "wire" is time in
MPI between nodes. It is drawn inside a "wait" if the worker had nothing else to do.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import whole
from ..errors import InputError, ResultsError
from ..primitives.aside import write_text
from .backend import Backend, Event
from .collective import Membership
from .pending import OpenCalls

# the beginning of an event's title; the event's field `which` follows
_TITLE = {"dispatch": "dispatch to rank", "expert": "expert", "wait": "wait for rank"}
Ranks = Sequence[tuple[int, Sequence[Event]]]  # (workers, events) of every rank


class Timeline:
    """Events of the workers of a layer object, recorded in its calls."""

    def __init__(self, backend: Backend, member: Membership, calls: OpenCalls) -> None:
        self._backend, self._member, self._calls = backend, member, calls

    def timeline(self, on: bool, events: int = 100_000) -> None:
        """Record the events of every worker in later calls.

        With backend="cuda" no events are kept. Instead the stats of later calls contain all of the workers' seconds and
        idle polls, and the calls take a little longer.

        Parameters
        ----------
        on : bool
            Whether to record; False ends recording.
        events : int, default 100000
            The most events that a worker records in a call; later ones are dropped.

        Raises
        ------
        InputError
            `events` is no positive int.
        OpenCallError
            A call that `start` began has not been waited for.
        EnvironmentProblem
            The GPU cannot hold all blocks of the kernels that count seconds and idle polls.
        ClosedError
            The layer is closed.
        """
        events = whole("events", events, 10**8, "an int in 1..10**8")
        self._calls.settled()
        self._backend.timeline(on, events)

    def events(self) -> list[Event]:
        """Events of the last call. Times are seconds on CLOCK_MONOTONIC.

        An event is (worker, kind, start, end, which, rows). In events of experts, `which` is the expert's id, also if
        a local peer's expert is computed in place. For the shared expert it is the last id plus one. In events that
        route or combine, `which` is a token; in other events it is a rank. A worker's events do not overlap, except
        that a "wire" event lies within a "wait" if the worker serves the wire while it waits.

        Returns
        -------
        list of tuple
            The events of this rank.

        Raises
        ------
        ClosedError
            The layer is closed.
        """
        return self._backend.events()

    def write_timeline(self, path: str | os.PathLike[str], facts: Mapping[str, Any] | None = None) -> None:
        """Write the events of the last call on all ranks to one file for ui.perfetto.dev. Collective.

        Rank 0 writes it; `aristos plot FILE.json` draws it.

        Parameters
        ----------
        path : path
            The file.
        facts : mapping or None, default None
            JSON values about the call, which are written as `otherData` of the file.

        Raises
        ------
        InputError
            No rank has events: call `timeline(True)` before the call of the layer.
        ResultsError
            Rank 0 cannot write the file.
        PeerInputError
            Another rank raised one of these.
        MismatchError
            Another rank makes another collective call.
        OpenCallError
            A call on the communicator is open.
        ClosedError
            The layer is closed.
        """
        runtime = self._calls.settled()
        runtime.refuse_open()
        mine = (self._member.threads, self.events(), socket.gethostname())
        gathered = runtime.group.allgather(mine, "the events of a timeline")
        if not any(events for _, events, _ in gathered):
            raise InputError("no events are recorded: call timeline(True) before the call of the layer")
        problem: Exception | None = None
        if self._member.rank == 0:
            known = {"schedule": self._backend.settings.schedule, "moves": self._backend.moves} | dict(facts or {})
            try:
                _write(path, [each[:2] for each in gathered], [host for *_, host in gathered], known)
            except (OSError, TypeError, ValueError) as error:
                problem = ResultsError(f"the timeline {os.fspath(path)} cannot be written: {error}")
        self._member.agree(problem, "the file of a timeline")


def _write(path: str | os.PathLike[str], ranks: Ranks, hosts: Sequence[str], facts: Mapping[str, Any]) -> None:
    """Write the file, or replace it. hosts: the name of each rank's host. facts: JSON values for `otherData`."""
    document = {"traceEvents": trace_events(ranks, hosts), "displayTimeUnit": "ns", "otherData": dict(facts)}
    write_text(Path(path), json.dumps(document))


def trace_events(ranks: Ranks, hosts: Sequence[str]) -> list[dict[str, Any]]:
    """The list of trace events. Events that name processes and threads come first."""
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
                # experts write outputs directly into return rows, so the outputs return when the event ends
                found.append({"name": "return", "ph": "i", "s": "t", "ts": stop, **place, "cat": "return"})
    return found


def _title(kind: str, which: int, rank: int) -> str:
    if kind == "wait" and which == rank:
        return "wait for another worker"
    return f"{_TITLE[kind]} {which}" if kind in _TITLE and which >= 0 else kind


def _name(key: str, rank: int, worker: int, text: str) -> dict[str, Any]:
    return {"name": key, "ph": "M", "pid": rank, "tid": worker, "args": {"name": text}}
