"""When launches begin and end. A launch begins when the launches that its stream and its events name have ended.

A programmatic launch begins earlier: when every block of the launch before it in its stream has run
griddepcontrol.launch_dependents, or has ended. Its threads know nothing of the launch before it until they run
griddepcontrol.wait. This instruction waits only for the launch before it. If that launch was programmatic too and did
not wait, launches before that one may still run.
"""

from __future__ import annotations

import numpy as np

from kernel_cache.compile import inner as jit

from . import state as s
from .access import thread_of
from .barrier import wake
from .bits import get, put
from .clocks import LAUNCH, STREAM, join, single
from .units import unit


@jit
def launch_at(x, number):
    """The row of a launch."""
    return get(x, s.LAUNCHES) + number * s.L_FIELDS * 8


@jit
def stream_at(x, number):
    """The row of a stream."""
    return get(x, s.STREAMS) + number * s.ST_FIELDS * 8


@jit
def in_stream(x, stream, place):
    """The number of the launch at a place in a stream, counted from 1."""
    return get(get(stream_at(x, stream), s.ST_LIST), place - 1)


@unit
def begin_launches(x):
    """Begin every launch whose needs are met."""
    for number in range(get(x, s.LAUNCH_COUNT)):
        launch = launch_at(x, number)
        if get(launch, s.L_STATE) != s.QUEUED or get(launch, s.L_HELD) or not ready(x, launch):
            continue
        put(launch, s.L_STATE, s.ACTIVE)
        put(x, s.PROGRESS, get(x, s.STEP))
        if get(x, s.CHECK):
            put(launch, s.L_VC, known_at_start(x, launch))
    return 0


@jit
def ready(x, launch):
    """Whether a launch can begin: all launches that it needs have ended.

    If the launch is programmatic, the launch before it need not have ended, but all its blocks have triggered.
    """
    count = get(launch, s.L_NEED_COUNT)
    for i in range(count):
        stream, place = need(launch, i)
        if get(launch, s.L_PROGRAMMATIC) and i == count - 1:
            before = launch_at(x, in_stream(x, stream, place))
            if get(before, s.L_STATE) == s.QUEUED or get(before, s.L_TRIGGERED) < get(before, s.L_BLOCKS):
                return False
        elif get(stream_at(x, stream), s.ST_DONE) < place:
            return False
    return True


@jit
def need(launch, i):
    """A need of a launch, as (stream, place in it)."""
    return get(get(launch, s.L_NEEDS), 2 * i), get(get(launch, s.L_NEEDS), 2 * i + 1)


@jit
def known_at_start(x, launch):
    """The vector clock of all that happened before a launch begins."""
    vc = np.int64(0)
    count = get(launch, s.L_NEED_COUNT)
    for i in range(count):
        stream, place = need(launch, i)
        if get(launch, s.L_PROGRAMMATIC) and i == count - 1:
            vc = join(x, vc, get(launch_at(x, in_stream(x, stream, place)), s.L_VC))
        else:
            vc = join(x, vc, up_to(x, stream, place))
    return vc


@jit
def up_to(x, stream, place):
    """The vector clock of a stream's launches up to a place, which have all ended."""
    vc = single(x, STREAM | stream, place)
    while place > 0:
        launch = launch_at(x, in_stream(x, stream, place))
        vc = join(x, join(x, vc, get(launch, s.L_VC)), get(launch, s.L_VC_OUT))
        if not get(launch, s.L_PROGRAMMATIC):  # then the launch's clock contains the clocks of the launches before it
            break
        place -= 1
    return vc


@jit
def before_mine(x, launch):
    """The row of the launch that a launch's griddepcontrol.wait waits for, or 0."""
    if not get(launch, s.L_PROGRAMMATIC):
        return np.int64(0)
    stream, place = need(launch, get(launch, s.L_NEED_COUNT) - 1)
    return launch_at(x, in_stream(x, stream, place))


@jit
def learn(x, thread, before):
    """Let a thread know all that a launch did."""
    if get(x, s.CHECK):
        number = (before - get(x, s.LAUNCHES)) // (s.L_FIELDS * 8)
        vc = join(x, join(x, single(x, LAUNCH | number, 0), get(before, s.L_VC)), get(before, s.L_VC_OUT))
        put(thread, s.T_VC, join(x, get(thread, s.T_VC), vc))


@unit
def await_launch(x, warp, block, mask):
    """Run griddepcontrol.wait: let lanes wait until the launch before theirs has ended."""
    before = before_mine(x, launch_at(x, get(block, s.B_LAUNCH)))
    if before == 0:
        return 0
    over = get(before, s.L_STATE) == s.FINISHED
    for lane in range(32):
        if (mask >> lane) & 1:
            thread = thread_of(x, warp, lane)
            if over:
                learn(x, thread, before)
            else:
                put(thread, s.T_WAIT, s.AT_LAUNCH)
    if not over:
        put(warp, s.W_WAIT, get(warp, s.W_WAIT) | mask)
        put(warp, s.W_DIVERGED, 1)
    return 0


@unit
def trigger(x, block):
    """Note that a block has run griddepcontrol.launch_dependents, or has ended: it has triggered.

    Returns 1 if with this block all blocks of its launch have triggered, else 0.
    """
    if get(block, s.B_TRIGGERED):
        return 0
    put(block, s.B_TRIGGERED, 1)
    launch = launch_at(x, get(block, s.B_LAUNCH))
    put(launch, s.L_TRIGGERED, get(launch, s.L_TRIGGERED) + 1)
    return np.int64(get(launch, s.L_TRIGGERED) == get(launch, s.L_BLOCKS))


@unit
def end_launch(x, launch):
    """End a launch, and wake the threads that wait for it."""
    put(launch, s.L_STATE, s.FINISHED)
    put(x, s.OPEN, get(x, s.OPEN) - 1)
    put(x, s.PROGRESS, get(x, s.STEP))
    stream = stream_at(x, get(launch, s.L_STREAM))
    while get(stream, s.ST_DONE) < get(stream, s.ST_COUNT):
        following = launch_at(x, get(get(stream, s.ST_LIST), get(stream, s.ST_DONE)))
        if get(following, s.L_STATE) != s.FINISHED:
            break
        put(stream, s.ST_DONE, get(stream, s.ST_DONE) + 1)
    for i in range(get(x, s.BLOCK_SLOTS)):
        block = get(x, s.BLOCKS) + i * s.B_FIELDS * 8
        if get(block, s.B_LAUNCH) < 0 or before_mine(x, launch_at(x, get(block, s.B_LAUNCH))) != launch:
            continue
        for k in range(get(block, s.B_WARPS)):
            warp = get(x, s.WARPS) + (get(block, s.B_FIRST_WARP) + k) * s.W_FIELDS * 8
            for lane in range(32):
                thread = thread_of(x, warp, lane)
                if (get(warp, s.W_WAIT) >> lane) & 1 and get(thread, s.T_WAIT) == s.AT_LAUNCH:
                    learn(x, thread, launch)
                    put(thread, s.T_WAIT, s.RUNS)
                    put(warp, s.W_WAIT, get(warp, s.W_WAIT) & ~(1 << lane))
                    put(warp, s.W_DIVERGED, 1)
            wake(x, warp)
    return 0
