"""Streams and events. Launches run at the next call that waits for them."""

from __future__ import annotations

import ctypes
import time

from ..launches import Launch
from ..streams import Event
from .calls import HANDLE, INT, LONG, POINTER, UINT, call, put
from .results import Refused
from .state import PER_THREAD, ProgramEvent, QueueStream, State

NON_BLOCKING, NO_TIMING = 1, 2  # flags of streams, of events
CALLBACK = ctypes.CFUNCTYPE(None, HANDLE, INT, POINTER)
HOST_FUNCTION = ctypes.CFUNCTYPE(None, POINTER)


def in_stream(now: State, handle: int) -> list[Launch]:
    """What must have ended when a stream is empty. The legacy stream waits for the blocking ones."""
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
    now.wait(in_stream(now, stream))


@call(HANDLE)
def cuStreamQuery(now: State, stream: int) -> None:
    """Run what is queued in the stream, so that a program that asks again and again goes on."""
    now.wait(in_stream(now, stream))


@call(HANDLE, HANDLE, UINT)
def cuStreamWaitEvent(now: State, stream: int, event: int, flags: int) -> None:
    found = now.get(event, ProgramEvent)
    if found.recorded is not None:
        now.stream(stream).wait(found.recorded)


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


@call(HANDLE, POINTER)
def cuStreamIsCapturing(now: State, stream: int, status: int) -> None:
    put(status, INT, 0)


@call(POINTER)
def cuThreadExchangeStreamCaptureMode(now: State, mode: int) -> None:
    """Do nothing: streams cannot be captured."""


@call(HANDLE, POINTER, POINTER, UINT)
def cuStreamAddCallback(now: State, stream: int, function: int, data: int, flags: int) -> None:
    """Run what is queued in the stream, then call the program's function."""
    now.wait(now.machine.needs_of(now.stream(stream)), known=False)
    with now.unlocked():
        CALLBACK(function)(stream, 0, data)


@call(HANDLE, POINTER, POINTER)
def cuLaunchHostFunc(now: State, stream: int, function: int, data: int) -> None:
    """Run what is queued in the stream, then call the program's function."""
    now.wait(now.machine.needs_of(now.stream(stream)), known=False)
    with now.unlocked():
        HOST_FUNCTION(function)(data)


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
    found = now.get(event, ProgramEvent)
    queue = now.stream(stream)
    found.recorded = Event(now.machine.needs_of(queue))  # as of an action in the stream
    if queue is now.machine.devices[queue.device].default:  # for which blocking streams wait
        queue.waits = list(found.recorded.launches)
    found.begun, found.over = time.perf_counter(), None
    if not any(one is found for one in now.pending):
        now.pending.append(found)


@call(HANDLE, HANDLE, UINT)
def cuEventRecordWithFlags(now: State, event: int, stream: int, flags: int) -> None:
    cuEventRecord(now, event, stream)


@call(HANDLE)
def cuEventSynchronize(now: State, event: int) -> None:
    found = now.get(event, ProgramEvent)
    now.wait(found.recorded.launches if found.recorded is not None else [])


@call(HANDLE)
def cuEventQuery(now: State, event: int) -> None:
    """Run what was queued before the event, so that a program that asks again and again goes on."""
    cuEventSynchronize(now, event)


@call(POINTER, HANDLE, HANDLE, also=("cuEventElapsedTime_v2",))
def cuEventElapsedTime(now: State, milliseconds: int, start: int, end: int) -> None:
    """The time that passed on this computer. It is no estimate of a GPU's time."""
    first, last = now.get(start, ProgramEvent), now.get(end, ProgramEvent)
    if first.recorded is None or last.recorded is None or (first.flags | last.flags) & NO_TIMING:
        raise Refused("ERROR_INVALID_HANDLE")
    if first.over is None or last.over is None:
        raise Refused("ERROR_NOT_READY")
    put(milliseconds, ctypes.c_float, max(last.over - first.begun, 1e-6) * 1e3)
