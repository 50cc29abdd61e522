"""Streams, events, captures and graphs of the fake driver, by the rules of CUDA.

DA means CUDA Driver API reference, PG means CUDA C++ programming guide. Each rule names the section that states it.
Work is a graph of operations, and nothing runs before a host function waits or queries. A wait runs the work that it
waits for. Random numbers decide whether other work that is ready runs too, so operations run in any order that the
rules allow.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2  # CUstreamCaptureMode
LEGACY, PER_THREAD = 1, 2  # CU_STREAM_LEGACY, CU_STREAM_PER_THREAD
NON_BLOCKING = 1
EXTERNAL = 1  # CU_EVENT_WAIT_EXTERNAL, CU_EVENT_RECORD_EXTERNAL


class Failure(Exception):
    """The error of a driver's function. Its text is the driver's name for it."""


@dataclass(eq=False)
class Op:
    """A piece of work on a GPU. turn: called until it returns True. needs: work that must be done before it starts."""

    turn: Callable[[], bool]
    needs: list[Op]
    gpu: int
    process: Any
    what: str
    done: bool = False

    def ready(self) -> bool:
        self.needs = [need for need in self.needs if not need.done]
        return not self.needs


@dataclass(eq=False)
class Node:
    """A piece of captured work.

    make: returns a `turn` for a launch of the graph. event: the event that it records or awaits.
    """

    make: Callable[[], Callable[[], bool]]
    needs: list[Node]
    gpu: int
    what: str
    event: Event | None = None
    records: bool = False


@dataclass(eq=False)
class Event:
    """An event. op: the work that it recorded outside a capture. nodes, capture: what it recorded inside one. time: in
    milliseconds."""

    op: Op | None = None
    nodes: list[Node] = field(default_factory=list)
    capture: Capture | None = None
    timed: bool = True
    time: float | None = None


@dataclass(eq=False)
class Capture:
    """A capture sequence. origin: the stream where it began; mode, thread: of cuStreamBeginCapture; number: unique."""

    origin: Stream
    mode: int
    thread: int
    number: int
    nodes: list[Node] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    invalid: str = ""  # why it was invalidated
    body: bool = False  # whether its graph is the body of a conditional node


@dataclass(eq=False)
class Stream:
    """A stream. gpu: that of its context. last: the work queued last. tail: the same while it captures."""

    gpu: int
    blocking: bool
    last: Op | None = None
    capture: Capture | None = None
    tail: list[Node] = field(default_factory=list)


@dataclass(eq=False)
class Graph:
    nodes: list[Node]
    last: Op | None = None


class SharedLock:
    """A re-entrant lock. `Streams.wait` takes it again and again, which could keep other threads out for seconds on a
    busy computer. So it calls `let_in` between two turns."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._waiting: set[int] = set()  # threads

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            me = threading.get_ident()
            self._waiting.add(me)
            try:
                self._lock.acquire()
            finally:
                self._waiting.discard(me)

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def let_in(self) -> None:
        """Wait, without the lock, until the threads that now wait for the lock have got it."""
        waiting = set(self._waiting)
        while waiting & self._waiting:
            time.sleep(0.0002)


def at_once(action: Callable[[], None]) -> Callable[[], Callable[[], bool]]:
    """Work that is done in one turn."""

    def turn() -> bool:
        action()
        return True

    return lambda: turn


class Streams:
    """The part of the fake driver for streams, events and graphs."""

    numbered: ClassVar[dict[int, Node]] = {}  # number, as programs have it -> node

    # DA "Stream Management", cuThreadExchangeStreamCaptureMode: a thread may not make potentially unsafe calls
    # while a capture of its own goes on that is not relaxed. A thread in mode GLOBAL may not make them either while any
    # GLOBAL capture goes on. DA names cudaMalloc as such a call. Loads and frees are of the same kind, since they are
    # not queued on a stream. The driver refuses cuEventQuery too: pytorch/pytorch#104555.
    UNSAFE = frozenset(
        {
            "cuMemAlloc",
            "cuMemFree",
            "cuMemHostAlloc",
            "cuMemFreeHost",
            "cuMemHostRegister",
            "cuMemHostUnregister",
            "cuModuleLoadData",
            "cuIpcOpenMemHandle",
            "cuIpcCloseMemHandle",
            "cuEventQuery",
            "cuEventSynchronize",
            "cuStreamQuery",
            "cuStreamSynchronize",
            "cuCtxSynchronize",
        }
    )

    # ---- running ----
    def advance(self, machine: Any, target: Iterable[Op] = ()) -> bool:
        """Give a turn to every ready operation that `target` needs, and to some others. True if anything went on."""
        wanted: set[int] = set()
        stack = list(target)
        while stack:
            op = stack.pop()
            if id(op) not in wanted and not op.done:
                wanted.add(id(op))
                stack += op.needs
        ready = [op for op in machine.work if op.ready()]
        moved = False
        for op in ready:
            if id(op) in wanted or machine.random.random() < machine.eager:
                moved = True
                if op.turn():
                    op.done = True
        machine.work = [op for op in machine.work if not op.done]
        return moved

    def wait(self, p: Any, ops: list[Op], why: str) -> None:
        """Run until the given work is done. Other threads may call the driver at the same time."""
        until = time.monotonic() + p.machine.seconds
        while True:
            with p.machine.lock:
                if all(op.done for op in ops):
                    return
                moved = self.advance(p.machine, ops)
            p.machine.lock.let_in()
            if not moved:
                time.sleep(0.0005)  # another thread may be about to queue what is waited for
            if time.monotonic() > until:
                left = next(op for op in ops if not op.done)
                p.machine.violations.append(f"process {p.number}: {why} waits for {left.what}, which does not end")
                raise Failure("CUDA_ERROR_LAUNCH_TIMEOUT")

    def unfinished(self, p: Any, gpu: int) -> list[Op]:
        return [op for op in p.machine.work if op.gpu == gpu and op.process is p]

    # ---- which stream, and what its work waits for ----
    def stream(self, p: Any, handle: int) -> Stream:
        gpu = self.gpu(p)
        if handle in (0, LEGACY):
            return p.legacy.setdefault(gpu, Stream(gpu, True))
        if handle == PER_THREAD:
            return p.own.setdefault((gpu, threading.get_ident()), Stream(gpu, True))
        found = p.streams.get(int(handle))
        if found is None or found.gpu != gpu:  # DA "Stream Management": the stream is of another context
            raise Failure("CUDA_ERROR_INVALID_HANDLE")
        return found

    def blocking(self, p: Any, gpu: int) -> list[Stream]:
        """The streams that wait for the legacy default stream, and for which it waits."""
        found = [stream for stream in (*p.streams.values(), *p.own.values()) if stream.blocking]
        return [stream for stream in found if stream.gpu == gpu]

    def use_legacy(self, p: Any, gpu: int) -> None:
        """PG, "Prohibited and Unhandled Operations": while a blocking stream captures, the legacy stream
        may not be used. The call fails, and the capture is invalid."""
        for stream in self.blocking(p, gpu):
            if stream.capture is not None:
                stream.capture.invalid = "the legacy default stream was used"
                raise Failure("CUDA_ERROR_STREAM_CAPTURE_IMPLICIT")

    def before(self, p: Any, stream: Stream) -> list[Op]:
        """What new work of a stream waits for. DA "Stream synchronization behavior": the stream's earlier work. The
        legacy stream also waits for the work of all blocking streams, and each of these for the legacy stream's."""
        found = [stream.last]
        if stream is p.legacy.get(stream.gpu):
            found += [other.last for other in self.blocking(p, stream.gpu)]
        elif stream.blocking and stream.gpu in p.legacy:
            found.append(p.legacy[stream.gpu].last)
        return [op for op in found if op is not None and not op.done]

    def enqueue(
        self,
        p: Any,
        handle: int,
        make: Callable[[], Callable[[], bool]],
        what: str,
        needs: Iterable[Op] = (),
        **of_node: Any,
    ) -> Op | None:
        """Queue work on a stream, or add it to the stream's capture."""
        stream = self.stream(p, handle)
        if stream is p.legacy.get(stream.gpu):
            self.use_legacy(p, stream.gpu)
        if stream.capture is not None:
            self.valid(stream)
            if stream.capture.body and "event" in of_node:
                # DA "CUDA_CONDITIONAL_NODE_PARAMS", allowed node types. It does not say when others are refused
                raise Failure("CUDA_ERROR_NOT_SUPPORTED")
            node = Node(make, list(stream.tail), stream.gpu, what, **of_node)
            stream.capture.nodes.append(node)
            stream.tail = [node]
            return None
        op = Op(make(), [*self.before(p, stream), *needs], stream.gpu, p, what)
        stream.last = op
        p.machine.work.append(op)
        return op

    def valid(self, stream: Stream) -> None:
        """PG, "Invalidation": further use of the streams of an invalid capture fails."""
        if stream.capture is not None and stream.capture.invalid:
            raise Failure("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")

    def refuse_unsafe(self, p: Any, name: str) -> None:
        mine, mode = threading.get_ident(), p.mode()
        for capture in self.captures(p):
            own = capture.thread == mine and capture.mode != RELAXED
            other = capture.mode == GLOBAL and mode == GLOBAL
            if name in self.UNSAFE and mode != RELAXED and (own or other):
                capture.invalid = f"{name} was called"
                raise Failure("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")

    def captures(self, p: Any) -> list[Capture]:
        streams = [*p.streams.values(), *p.own.values()]
        return [stream.capture for stream in streams if stream.capture and stream.capture.origin is stream]

    # ---- streams ----
    def do_cuThreadExchangeStreamCaptureMode(self, p: Any, mode: Any) -> Any:
        return p.mode(int(mode))

    def do_cuStreamCreate(self, p: Any, flags: int) -> int:
        p.streams[number := next(p.machine.numbers)] = Stream(self.gpu(p), not flags & NON_BLOCKING)
        return number

    def asked(self, p: Any, handle: int) -> list[Op]:
        """The work that a call waits for if it waits for a stream.

        PG, "Prohibited and Unhandled Operations": a stream that captures may not be waited for.
        """
        stream = self.stream(p, handle)
        if stream is p.legacy.get(stream.gpu):
            self.use_legacy(p, stream.gpu)
        if stream.capture is not None:
            stream.capture.invalid = "a stream was asked for its status or waited for while it captures"
            raise Failure("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")
        return [op for op in self.before(p, stream) if op.gpu == stream.gpu or op is stream.last]

    def do_cuStreamSynchronize(self, p: Any, handle: int) -> None:
        with p.machine.lock:
            ops = self.asked(p, handle)
        self.wait(p, ops, "cuStreamSynchronize")

    def do_cuStreamQuery(self, p: Any, handle: int) -> None:
        """Each query lets the GPUs go on for a turn."""
        with p.machine.lock:
            ops = self.asked(p, handle)
            self.advance(p.machine, ops)
            if not all(op.done for op in ops):
                raise Failure("CUDA_ERROR_NOT_READY")

    def do_cuStreamIsCapturing(self, p: Any, handle: int) -> Any:
        stream = self.stream(p, handle)
        if stream is p.legacy.get(stream.gpu):
            if any(
                other.capture for other in self.blocking(p, stream.gpu)
            ):  # DA "Stream Management": the capture stays valid
                raise Failure("CUDA_ERROR_STREAM_CAPTURE_IMPLICIT")
            return self.real.CUstreamCaptureStatus(0)
        status = 0 if stream.capture is None else 2 if stream.capture.invalid else 1
        return self.real.CUstreamCaptureStatus(status)

    def do_cuStreamWaitEvent(self, p: Any, handle: int, event: int, flags: int) -> None:
        """Wait for what the event had recorded last at the time of the call (DA "Stream Management").

        PG, "Cross-stream Dependencies and Events": a captured event brings the stream into its capture. In a capture an
        event from outside is an error, unless it is external.
        """
        stream, found = self.stream(p, handle), p.events[int(event)]
        if flags & EXTERNAL and stream.capture is None:
            raise Failure("CUDA_ERROR_INVALID_VALUE")  # DA "Stream Management": "invalid outside of stream capture"
        if flags & EXTERNAL:
            self.enqueue(p, handle, at_once(lambda: None), "an external event", event=found)
            return
        if found.capture is not None:
            if stream.capture is None and found.capture.origin.capture is found.capture:
                stream.capture, stream.tail = found.capture, []
                found.capture.streams.append(stream)
            if stream.capture is not found.capture:
                raise Failure("CUDA_ERROR_STREAM_CAPTURE_MERGE" if stream.capture else "CUDA_ERROR_CAPTURED_EVENT")
            stream.tail = list({id(node): node for node in (*stream.tail, *found.nodes)}.values())
            return
        if stream.capture is not None:
            stream.capture.invalid = "it waits for an event that was recorded outside"
            raise Failure("CUDA_ERROR_STREAM_CAPTURE_ISOLATION")
        if found.op is not None and not found.op.done:
            self.enqueue(p, handle, at_once(lambda: None), "an event", [found.op])

    # ---- events ----
    def do_cuEventCreate(self, p: Any, flags: int) -> int:
        p.events[number := next(p.machine.numbers)] = Event(timed=not int(flags) & 2)
        return number

    def do_cuEventRecord(self, p: Any, event: int, handle: int) -> None:
        self.do_cuEventRecordWithFlags(p, event, handle, 0)

    def do_cuEventRecordWithFlags(self, p: Any, event: int, handle: int, flags: int) -> None:
        stream, found = self.stream(p, handle), p.events[int(event)]
        if flags & EXTERNAL and stream.capture is None:
            raise Failure("CUDA_ERROR_INVALID_VALUE")  # DA "Event Management": "invalid outside of stream capture"
        if stream.capture is not None and not flags & EXTERNAL:
            self.valid(stream)
            found.op, found.nodes, found.capture = None, list(stream.tail), stream.capture
            return

        def stamp() -> None:
            p.now += 2.5  # milliseconds
            found.time = p.now

        op = self.enqueue(p, handle, at_once(stamp), "a record of an event", event=found, records=True)
        if op is not None:
            found.op, found.nodes, found.capture = op, [], None

    def recorded(self, p: Any, event: int) -> list[Op]:
        found = p.events[int(event)]
        if (
            found.capture is not None
        ):  # DA "Event Management", cuEventQuery: "an event last recorded inside a capture sequence"
            found.capture.invalid = "an event recorded in it was asked for its status"
            raise Failure("CUDA_ERROR_CAPTURED_EVENT")
        return [found.op] if found.op is not None and not found.op.done else []

    def do_cuEventQuery(self, p: Any, event: int) -> None:
        with p.machine.lock:
            ops = self.recorded(p, event)
            self.advance(p.machine, ops)
            if not all(op.done for op in ops):
                raise Failure("CUDA_ERROR_NOT_READY")

    def do_cuEventSynchronize(self, p: Any, event: int) -> None:
        with p.machine.lock:
            ops = self.recorded(p, event)
        self.wait(p, ops, "cuEventSynchronize")

    def do_cuEventElapsedTime(self, p: Any, a: int, b: int) -> float:
        first, second = p.events[a], p.events[b]
        if not first.timed or not second.timed or first.time is None or second.time is None:
            raise Failure("CUDA_ERROR_INVALID_HANDLE")
        if self.recorded(p, a) or self.recorded(p, b):
            raise Failure("CUDA_ERROR_NOT_READY")
        return second.time - first.time

    # ---- captures and graphs ----
    def cuStreamGetCaptureInfo(self, handle: int) -> tuple[Any, ...]:
        """DA "Stream Management": the status, the sequence's number, the graph, and what the next node depends on."""
        capture = self.stream(self.process, handle).capture
        if capture is None:
            return self.real.CUresult.CUDA_SUCCESS, self.real.CUstreamCaptureStatus(0), 0, None, None, 0
        nodes = self.stream(self.process, handle).tail
        found = [self.number_of(node) for node in nodes]
        return (
            self.real.CUresult.CUDA_SUCCESS,
            self.real.CUstreamCaptureStatus(1),
            capture.number,
            None,
            found,
            len(found),
        )

    def cuGraphNodeGetDependencies(self, number: int, count: int = 0) -> tuple[Any, ...]:
        """DA "Graph Management": without a count, only the number of dependencies is returned."""
        needs = [self.number_of(need) for need in self.numbered[int(number)].needs]
        return self.real.CUresult.CUDA_SUCCESS, needs[:count] if count else None, count or len(needs)

    def number_of(self, node: Node) -> int:
        self.numbered[id(node)] = node
        return id(node)

    def do_cuStreamBeginCapture(self, p: Any, handle: int, mode: Any) -> None:
        stream = self.stream(p, handle)
        if (
            stream is p.legacy.get(stream.gpu) or stream.capture is not None
        ):  # PG, "Stream Capture": the legacy stream may not capture
            raise Failure("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")
        stream.capture, stream.tail = Capture(stream, int(mode), threading.get_ident(), next(p.machine.numbers)), []
        stream.capture.streams.append(stream)

    def do_cuStreamBeginCaptureToGraph(
        self, p: Any, handle: int, graph: int, nodes: Any, edges: Any, count: int, mode: Any
    ) -> None:
        """The only graphs supported here are bodies of conditional nodes."""
        assert int(graph) in p.bodies
        self.do_cuStreamBeginCapture(p, handle, mode)
        self.stream(p, handle).capture.body = True

    def do_cuStreamEndCapture(self, p: Any, handle: int) -> int:
        stream = self.stream(p, handle)
        capture = stream.capture
        if capture is None or capture.origin is not stream:
            raise Failure("CUDA_ERROR_STREAM_CAPTURE_UNMATCHED")
        if capture.mode != RELAXED and capture.thread != threading.get_ident():
            raise Failure("CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD")
        joined = {id(node) for node in closure(stream.tail)}
        for member in capture.streams:
            member.capture = None
        if capture.invalid:
            raise Failure("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")
        if any(id(node) not in joined for member in capture.streams for node in member.tail):
            raise Failure("CUDA_ERROR_STREAM_CAPTURE_UNJOINED")
        p.graphs[number := next(p.machine.numbers)] = Graph(capture.nodes)
        return number

    def do_cuGraphInstantiate(self, p: Any, graph: int, flags: int) -> int:
        return graph

    def do_cuGraphLaunch(self, p: Any, number: int, handle: int) -> None:
        """DA "Graph Management", cuGraphLaunch: the launch is ordered behind earlier work of the stream and earlier
        launches of the same graph. Each launch records the graph's event nodes (cuGraphAddEventRecordNode)."""
        stream, graph = self.stream(p, handle), p.graphs[int(number)]
        if stream.capture is not None:
            raise NotImplementedError("a graph within a graph")
        if stream is p.legacy.get(stream.gpu):
            self.use_legacy(p, stream.gpu)
        behind = [*self.before(p, stream), *([graph.last] if graph.last is not None else [])]
        made: dict[int, Op] = {}
        for node in graph.nodes:
            needs = [made[id(need)] for need in node.needs] or list(behind)
            if node.event is not None and not node.records and node.event.op is not None:
                needs.append(node.event.op)
            op = made[id(node)] = Op(node.make(), needs, node.gpu, p, node.what)
            if node.event is not None and node.records:
                node.event.op, node.event.nodes, node.event.capture = op, [], None
            p.machine.work.append(op)
        end = Op(lambda: True, [*made.values(), *behind], stream.gpu, p, "a graph")
        p.machine.work.append(end)
        graph.last = stream.last = end


def closure(nodes: list[Node]) -> list[Node]:
    """The nodes and all that they need."""
    found, stack = {}, list(nodes)
    while stack:
        node = stack.pop()
        if id(node) not in found:
            found[id(node)] = node
            stack += node.needs
    return list(found.values())
