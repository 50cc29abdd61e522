"""Host functions: functions of the program that a stream or a graph calls between its other work.

In the queue an empty kernel stands for a host function. It begins when the function has returned. Earlier work of the
stream has run before the function is called. A thread of the program that waits for later work makes the call. If the
program has called nothing for SILENCE seconds, a thread of the stand-in makes it.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from functools import partial

from ..streams import Stream
from . import actions, work
from .calls import HANDLE, INT, POINTER, UINT, call
from .capture import active, submit
from .results import Refused
from .state import State

CALLBACK = ctypes.CFUNCTYPE(None, HANDLE, INT, POINTER)
FUNCTION = ctypes.CFUNCTYPE(None, POINTER)
SILENCE = 1.0  # seconds without a call of the program, after which the stand-in's thread calls host functions
TEXT = """.version 8.0
.target sm_80
.address_size 64
.visible .entry host_function() { ret; }
"""


def queue(now: State, stream: Stream, function: Callable[[], None]) -> None:
    """Queue the call of a function in a stream."""
    machine = now.machine
    made = actions.queued(machine, stream, machine.load(TEXT), "host_function", 32, [], [])
    made.call = partial(now.call_host, made, function)
    now.host[id(made)] = made
    if now.caller is None:
        now.caller = threading.Thread(target=call_later, args=(now,), daemon=True)
        now.caller.start()


def call_later(now: State) -> None:
    """Let host functions be called if the program waits for them without a call of the driver API."""
    while True:
        time.sleep(SILENCE / 4)
        if not now.host or time.monotonic() - now.last_call < SILENCE:
            continue
        with now.lock:
            try:
                now.wait(list(now.host.values()), known=False)
            except Refused as refused:
                now.say(refused.why)


def host_work(function: int, data: int) -> work.Work:
    """The work of a host function with an argument, both addresses in the program."""
    if not function:
        raise Refused("ERROR_INVALID_VALUE")
    return work.Work(work.HOST, partial(queue, function=partial(FUNCTION(function), data)), (function, data))


@call(HANDLE, POINTER, POINTER)
def cuLaunchHostFunc(now: State, stream: int, function: int, data: int) -> None:
    submit(now, now.stream(stream), host_work(function, data))


@call(HANDLE, POINTER, POINTER, UINT)
def cuStreamAddCallback(now: State, stream: int, function: int, data: int, flags: int) -> None:
    found = now.stream(stream)
    captured = active(now, found)
    if captured is not None:
        raise captured.refuse("ERROR_STREAM_CAPTURE_UNSUPPORTED")
    if not function:
        raise Refused("ERROR_INVALID_VALUE")
    queue(now, found, partial(CALLBACK(function), stream, 0, data))
