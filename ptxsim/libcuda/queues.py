"""Streams and events. Launches run at the next call that waits for them."""

from __future__ import annotations

import ctypes
import time
from functools import partial

from ..launches import Launch
from ..streams import Event, Stream
from . import work
from .calls import HANDLE, INT, LONG, POINTER, UINT, call, put
from .capture import active, record, refuse_captured, refuse_captured_event, submit, wait
from .results import Refused
from .state import PER_THREAD, ProgramEvent, QueueStream, State

NON_BLOCKING, NO_TIMING = 1, 2  # flags of streams, of events
EXTERNAL = 1  # flag of records of events and of waits for them: in a capture they become nodes


def in_stream(now: State, handle: int) -> list[Launch]:
    """The launches that must end before a stream is empty. The legacy stream waits for the blocking streams."""
    found = now.stream(handle)
    if found is now.machine.devices[found.device].default:
        return now.machine.needs_of(found)
    return found.record().launches


@call(POINTER, UINT)
def cuStreamCreate(now: State, stream: int, flags: int) -> None:
    cuStreamCreateWithPriority(now, stream, flags, 0)


@call(POINTER, UINT, INT)
def cuStreamCreateWithPriority(now: State, stream: int, flags: int, priority: int) -> None:
    context = now.context()
    made = now.machine.devices[context.device].stream(not flags & NON_BLOCKING)
    put(stream, HANDLE, now.keep(QueueStream(made, context, flags=flags, priority=priority)))


@call(HANDLE, also=("cuStreamDestroy",))
def cuStreamDestroy_v2(now: State, stream: int) -> None:
    """Forget the handle. What is queued in the stream still runs."""
    now.get(stream, QueueStream)
    del now.objects[stream]


@call(HANDLE)
def cuStreamSynchronize(now: State, stream: int) -> None:
    refuse_captured(now, now.stream(stream))
    now.wait(in_stream(now, stream))


@call(HANDLE)
def cuStreamQuery(now: State, stream: int) -> None:
    """Run what is queued in the stream, so that a program that asks again and again goes on."""
    refuse_captured(now, now.stream(stream))
    now.wait(in_stream(now, stream))


@call(HANDLE, HANDLE, UINT)
def cuStreamWaitEvent(now: State, stream: int, event: int, flags: int) -> None:
    found, queue = now.get(event, ProgramEvent), now.stream(stream)
    if flags & EXTERNAL and active(now, queue) is not None:
        submit(now, queue, work.Work(work.WAIT, partial(wait_for, event=found), found))
    elif not wait(now, queue, found):
        wait_for(now, queue, found)


def wait_for(now: State, stream: Stream, event: ProgramEvent) -> None:
    """Let a stream wait for an event that was recorded in no capture."""
    if event.recorded is not None:
        stream.wait(event.recorded)


@call(HANDLE, POINTER)
def cuStreamGetPriority(now: State, stream: int, priority: int) -> None:
    put(priority, INT, now.get(stream, QueueStream).priority if stream > PER_THREAD else 0)


@call(HANDLE, POINTER)
def cuStreamGetFlags(now: State, stream: int, flags: int) -> None:
    put(flags, UINT, now.get(stream, QueueStream).flags if stream > PER_THREAD else 0)


@call(HANDLE, POINTER)
def cuStreamGetCtx(now: State, stream: int, context: int) -> None:
    put(context, HANDLE, (now.get(stream, QueueStream).context if stream > PER_THREAD else now.context()).handle)


@call(HANDLE, POINTER)
def cuStreamGetDevice(now: State, stream: int, device: int) -> None:
    put(device, INT, now.stream(stream).device)


@call(HANDLE, POINTER)
def cuStreamGetId(now: State, stream: int, number: int) -> None:
    put(number, LONG, stream)


# ---- events ----
@call(POINTER, UINT)
def cuEventCreate(now: State, event: int, flags: int) -> None:
    put(event, HANDLE, now.keep(ProgramEvent(flags, context=now.context())))


@call(HANDLE, also=("cuEventDestroy",))
def cuEventDestroy_v2(now: State, event: int) -> None:
    now.get(event, ProgramEvent)
    del now.objects[event]


@call(HANDLE, HANDLE)
def cuEventRecord(now: State, event: int, stream: int) -> None:
    found, queue = now.get(event, ProgramEvent), now.stream(stream)
    if not record(now, found, queue):
        record_in(now, queue, found)


def record_in(now: State, stream: Stream, event: ProgramEvent) -> None:
    """Record an event in a stream."""
    event.recorded = Event(now.machine.needs_of(stream))  # the event needs what an action in the stream would need
    if stream is now.machine.devices[stream.device].default:  # blocking streams wait for the default stream
        stream.waits = list(event.recorded.launches)
    event.begun, event.over, event.captured = time.perf_counter(), None, None
    if not any(one is event for one in now.pending):
        now.pending.append(event)


@call(HANDLE, HANDLE, UINT)
def cuEventRecordWithFlags(now: State, event: int, stream: int, flags: int) -> None:
    queue = now.stream(stream)
    if flags & EXTERNAL and active(now, queue) is not None:
        found = now.get(event, ProgramEvent)
        submit(now, queue, work.Work(work.RECORD, partial(record_in, event=found), found))
    else:
        cuEventRecord(now, event, stream)


@call(HANDLE)
def cuEventSynchronize(now: State, event: int) -> None:
    found = now.get(event, ProgramEvent)
    refuse_captured_event(found)
    now.wait(found.recorded.launches if found.recorded is not None else [])


@call(HANDLE)
def cuEventQuery(now: State, event: int) -> None:
    """Run what was queued before the event, so that a program that asks again and again goes on."""
    cuEventSynchronize(now, event)


@call(POINTER, HANDLE, HANDLE, also=("cuEventElapsedTime_v2",))
def cuEventElapsedTime(now: State, milliseconds: int, start: int, end: int) -> None:
    """The time that passed on this computer. It is no estimate of a GPU's time."""
    first, last = now.get(start, ProgramEvent), now.get(end, ProgramEvent)
    refuse_captured_event(first)
    refuse_captured_event(last)
    if first.recorded is None or last.recorded is None or (first.flags | last.flags) & NO_TIMING:
        raise Refused("ERROR_INVALID_HANDLE")
    if first.over is None or last.over is None:
        raise Refused("ERROR_NOT_READY")
    put(milliseconds, ctypes.c_float, max(last.over - first.begun, 1e-6) * 1e3)
