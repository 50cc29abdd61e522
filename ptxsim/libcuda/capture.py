"""Capture of streams: what a program queues in a captured stream becomes nodes of a graph.

A stream joins a capture when it waits for one of the capture's events. A capture knows for each of its streams the
nodes that come before what the stream queues next.
"""

from __future__ import annotations

import ctypes
import itertools
from dataclasses import dataclass, field
from typing import Any

from ..streams import Stream
from .calls import HANDLE, INT, LONG, POINTER, SIZE, UINT, call, put
from .results import Refused
from .state import ProgramEvent, State
from .work import Graph, Node, Work, ancestors

NONE, ACTIVE, INVALIDATED = 0, 1, 2  # CUstreamCaptureStatus
GLOBAL, OF_THREAD, RELAXED = 0, 1, 2  # CUstreamCaptureMode
UNSAFE = {  # functions that a capture forbids, unless its mode is relaxed
    "cuCtxSynchronize", "cuCtxSynchronize_v2", "cuEventQuery", "cuMemAlloc_v2", "cuMemAllocHost_v2",
    "cuMemAllocManaged", "cuMemAllocPitch_v2", "cuMemFree_v2", "cuMemFreeHost", "cuMemHostAlloc", "cuMemHostRegister",
    "cuMemHostRegister_v2", "cuMemHostUnregister", "cuMemcpy", "cuMemcpy2D_v2", "cuMemcpy2DUnaligned_v2",
    "cuMemcpyDtoD_v2", "cuMemcpyDtoH_v2", "cuMemcpyHtoD_v2", "cuMemcpyPeer",
}  # fmt: skip
_numbers = itertools.count(1)


@dataclass(eq=False)
class Capture:
    """A capture that was begun in the stream `origin` by a thread. branches: its streams, each with its last nodes."""

    graph: Graph
    origin: Stream
    mode: int
    thread: int
    branches: dict[Stream, list[Node]]
    invalid: bool = False
    number: int = field(default_factory=_numbers.__next__)
    listed: Any = None  # the array of handles that the program was given last

    def refuse(self, name: str, why: str = "") -> Refused:
        """The exception for a call that makes the capture invalid."""
        self.invalid = True
        return Refused(name, why)

    def refuse_default(self, device: int, use: bool) -> None:
        """Raise Refused for a device's default stream, for which a captured stream would have to wait.

        use: whether the stream is used, which makes the capture invalid; False if only its state is asked for.
        """
        if any(stream.blocking and stream.device == device for stream in self.branches):
            self.invalid = self.invalid or use
            raise Refused("ERROR_STREAM_CAPTURE_IMPLICIT")


def capture_of(now: State, stream: Stream) -> Capture | None:
    """The capture that a stream is part of, if any."""
    return next((one for one in now.captures if stream in one.branches), None)


def active(now: State, stream: Stream) -> Capture | None:
    """The capture that a stream is part of, if any. Raises Refused if it is invalid."""
    found = capture_of(now, stream)
    if found is not None and found.invalid:
        raise Refused("ERROR_STREAM_CAPTURE_INVALIDATED")
    return found


def submit(now: State, stream: Stream, work: Work, child: Graph | None = None) -> None:
    """Queue a work in a stream, or make it a node of the stream's capture. child: the work's graph, if it has one."""
    found = active(now, stream)
    if found is None:
        work.queue(now, stream)
    else:
        found.branches[stream] = [found.graph.add(now, work, stream.device, found.branches[stream], child)]


def refuse_captured(now: State, stream: Stream) -> None:
    """Raise Refused for a call that a captured stream does not permit, such as one that waits for it."""
    found = capture_of(now, stream)
    if found is not None:
        raise found.refuse("ERROR_STREAM_CAPTURE_UNSUPPORTED")


def check(now: State, name: str) -> None:
    """Raise Refused for a function that a capture of this or another thread forbids here."""
    if name not in UNSAFE or not now.captures:
        return
    thread = now.thread_number()
    mode = now.modes.get(thread, GLOBAL)
    for one in now.captures:
        mine = one.thread == thread and one.mode != RELAXED and mode != RELAXED
        others = one.mode == GLOBAL and mode == GLOBAL
        if mine or others or name.startswith("cuCtxSynchronize"):
            raise one.refuse("ERROR_STREAM_CAPTURE_UNSUPPORTED", f"{name} is not permitted while a stream is captured")


# ---- events ----
def record(now: State, event: ProgramEvent, stream: Stream) -> bool:
    """Note the place of an event in a captured stream. Returns whether the stream is captured."""
    found = active(now, stream)
    event.captured = (found, list(found.branches[stream])) if found is not None else None
    return found is not None


def wait(now: State, stream: Stream, event: ProgramEvent) -> bool:
    """Let a stream wait for a capture's event, and so join the capture. Returns False if no capture is concerned."""
    mine = active(now, stream)
    theirs, nodes = event.captured or (None, [])
    if theirs is None:
        if mine is not None and event.recorded is not None:
            raise mine.refuse("ERROR_STREAM_CAPTURE_ISOLATION", "a captured stream waits for work of no capture")
        return mine is not None
    if theirs not in now.captures:
        raise Refused("ERROR_STREAM_CAPTURE_ISOLATION", "a stream waits for an event of a capture that has ended")
    if theirs.invalid:
        raise Refused("ERROR_STREAM_CAPTURE_INVALIDATED")
    if mine is not None and mine is not theirs:
        theirs.invalid = True
        raise mine.refuse("ERROR_STREAM_CAPTURE_MERGE")
    if stream is now.machine.devices[stream.device].default:
        raise theirs.refuse("ERROR_STREAM_CAPTURE_IMPLICIT")
    theirs.branches[stream] = list(dict.fromkeys([*theirs.branches.get(stream, []), *nodes]))
    return True


def refuse_captured_event(event: ProgramEvent) -> None:
    """Raise Refused for a call that waits for an event of a capture, or asks for its state."""
    if event.captured is not None:
        event.captured[0].invalid = True
        raise Refused("ERROR_CAPTURED_EVENT")


# ---- begin and end ----
def nodes_at(now: State, address: int, count: int) -> list[Node]:
    """The nodes of an array of handles in the program's memory."""
    if count and not address:
        raise Refused("ERROR_INVALID_VALUE")
    return [now.get(HANDLE.from_address(address + 8 * at).value, Node) for at in range(count)]


def begin(now: State, handle: int, graph: Graph, nodes: list[Node], mode: int) -> None:
    """Begin a capture in a stream, after nodes of a graph."""
    stream = now.stream(handle)
    if mode not in (GLOBAL, OF_THREAD, RELAXED):
        raise Refused("ERROR_INVALID_VALUE")
    if stream is now.machine.devices[stream.device].default:
        raise Refused("ERROR_STREAM_CAPTURE_UNSUPPORTED", "the legacy default stream cannot be captured")
    if capture_of(now, stream) is not None:
        raise Refused("ERROR_ILLEGAL_STATE")
    now.captures.append(Capture(graph, stream, mode, now.thread_number(), {stream: nodes}))


@call(HANDLE, INT)
def cuStreamBeginCapture_v2(now: State, stream: int, mode: int) -> None:
    graph = Graph()
    begin(now, stream, graph, [], mode)
    now.keep(graph)


@call(HANDLE)
def cuStreamBeginCapture(now: State, stream: int) -> None:
    cuStreamBeginCapture_v2(now, stream, GLOBAL)


@call(HANDLE, HANDLE, POINTER, POINTER, SIZE, INT)
def cuStreamBeginCaptureToGraph(
    now: State, stream: int, graph: int, nodes: int, edges: int, count: int, mode: int
) -> None:
    begin(now, stream, now.get(graph, Graph), nodes_at(now, nodes, count), mode)


@call(HANDLE, POINTER)
def cuStreamEndCapture(now: State, stream: int, graph: int) -> None:
    """End a capture. The nodes of all its streams must come before the last nodes of the stream that began it."""
    queue = now.stream(stream)
    found = capture_of(now, queue)
    if found is None:
        raise Refused("ERROR_ILLEGAL_STATE")
    if found.mode != RELAXED and found.thread != now.thread_number():
        raise Refused("ERROR_STREAM_CAPTURE_WRONG_THREAD")
    if found.origin is not queue:
        raise found.refuse("ERROR_STREAM_CAPTURE_UNMATCHED")
    now.captures.remove(found)
    put(graph, HANDLE, 0)
    if found.invalid:
        raise Refused("ERROR_STREAM_CAPTURE_INVALIDATED")
    joined = ancestors(found.branches[queue])
    if not all(joined.issuperset(nodes) for nodes in found.branches.values()):
        raise Refused("ERROR_STREAM_CAPTURE_UNJOINED")
    put(graph, HANDLE, found.graph.handle)


# ---- state of a capture ----
def status_of(now: State, handle: int) -> tuple[int, Capture | None]:
    """A stream's status of capture, and the capture."""
    found = capture_of(now, now.stream(handle, use=False))
    return (NONE if found is None else INVALIDATED if found.invalid else ACTIVE), found


@call(HANDLE, POINTER)
def cuStreamIsCapturing(now: State, stream: int, status: int) -> None:
    put(status, INT, status_of(now, stream)[0])


@call(HANDLE, POINTER, POINTER)
def cuStreamGetCaptureInfo(now: State, stream: int, status: int, number: int) -> None:
    cuStreamGetCaptureInfo_v2(now, stream, status, number, 0, 0, 0)


@call(HANDLE, POINTER, POINTER, POINTER, POINTER, POINTER)
def cuStreamGetCaptureInfo_v2(
    now: State, stream: int, status: int, number: int, graph: int, nodes: int, count: int
) -> None:
    """Write a stream's status. Of an active capture also its number, its graph and the stream's last nodes."""
    state, found = status_of(now, stream)
    put(status, INT, state)
    if state != ACTIVE or found is None:
        return
    last = found.branches[now.stream(stream)]
    found.listed = (ctypes.c_uint64 * max(len(last), 1))(*(node.handle for node in last))
    for address, kind, value in (
        (number, LONG, found.number),
        (graph, HANDLE, found.graph.handle),
        (nodes, POINTER, ctypes.addressof(found.listed)),
        (count, SIZE, len(last)),
    ):
        if address:
            put(address, kind, value)


@call(HANDLE, POINTER, POINTER, POINTER, POINTER, POINTER, POINTER)
def cuStreamGetCaptureInfo_v3(
    now: State, stream: int, status: int, number: int, graph: int, nodes: int, edges: int, count: int
) -> None:
    cuStreamGetCaptureInfo_v2(now, stream, status, number, graph, nodes, count)
    if edges:
        put(edges, POINTER, 0)  # all edges are ordinary ones


@call(HANDLE, POINTER, SIZE, UINT)
def cuStreamUpdateCaptureDependencies(now: State, stream: int, nodes: int, count: int, flags: int) -> None:
    """Add nodes to those that come before what is queued next in a captured stream, or replace them (flag 1)."""
    queue = now.stream(stream)
    found = active(now, queue)
    if found is None:
        raise Refused("ERROR_ILLEGAL_STATE")
    given = nodes_at(now, nodes, count)
    before = [] if flags & 1 else found.branches[queue]
    found.branches[queue] = list(dict.fromkeys([*before, *given]))


@call(HANDLE, POINTER, POINTER, SIZE, UINT)
def cuStreamUpdateCaptureDependencies_v2(
    now: State, stream: int, nodes: int, edges: int, count: int, flags: int
) -> None:
    cuStreamUpdateCaptureDependencies(now, stream, nodes, count, flags)


@call(POINTER)
def cuThreadExchangeStreamCaptureMode(now: State, mode: int) -> None:
    """Exchange this thread's mode for captures with the given one."""
    if not mode or INT.from_address(mode).value not in (GLOBAL, OF_THREAD, RELAXED):
        raise Refused("ERROR_INVALID_VALUE")
    thread = now.thread_number()
    before = now.modes.get(thread, GLOBAL)
    now.modes[thread] = INT.from_address(mode).value
    put(mode, INT, before)
