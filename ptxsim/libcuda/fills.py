"""Fills of memory with one value. A fill is an action of a stream (actions.py)."""

from __future__ import annotations

import ctypes

from ..launches import Launch
from ..streams import Stream
from . import actions, work
from .calls import ADDRESS, HANDLE, SIZE, call
from .capture import submit
from .memory import renamed, side
from .results import Refused
from .state import State


def fill(
    now: State,
    stream: Stream | None,
    address: int,
    pitch: int,
    value: int,
    width: int,
    height: int,
    size: int,
    what: str,
) -> None:
    """Queue a fill of rows with `width` items of `size` bytes.

    stream: None for a fill in the default stream. The host waits for such a fill only if the memory is the host's.
    """
    now.context()
    if not width or not height:
        return
    made = fill_work(now, address, pitch, value, width, height, size, what)
    if stream is not None:
        submit(now, stream, made)
        return
    launch = made.queue(now, now.stream(0))
    if not side(now, address, 1, what, True).on_device:
        now.wait([launch])


def fill_work(
    now: State, address: int, pitch: int, value: int, width: int, height: int, size: int, what: str
) -> work.Work:
    """The work of a fill. The arguments are as of `fill`."""
    if address % size or (height > 1 and (pitch % size or pitch < width * size)):
        raise Refused("ERROR_INVALID_VALUE", f"{what}: {address:#x} and the pitch must be multiples of {size}")
    to = side(now, address, width * size, what, True, height, pitch)
    word = int.from_bytes(value.to_bytes(size, "little") * (4 // size), "little")
    rows, place = actions.Rows(to.device, 0, width * size, height, pitch), actions.caller()

    def queue(now: State, stream: Stream) -> Launch:
        return actions.enqueue(now.machine, stream, what, rows, [], place, word, size)

    return work.Work(work.FILL, queue)


def fills(bits: int) -> None:
    """Declare the fills with items of 8, 16 or 32 bits."""
    size, kind = bits // 8, getattr(ctypes, f"c_uint{bits}")
    name = f"cuMemsetD{bits}"
    of_rows = f"cuMemsetD2D{bits}"

    def plain(now: State, address: int, value: int, count: int) -> None:
        fill(now, None, address, 0, value, count, 1, size, name)

    def queued(now: State, address: int, value: int, count: int, stream: int) -> None:
        fill(now, now.stream(stream), address, 0, value, count, 1, size, f"{name}Async")

    def plain_rows(now: State, address: int, pitch: int, value: int, width: int, height: int) -> None:
        fill(now, None, address, pitch, value, width, height, size, of_rows)

    def queued_rows(now: State, address: int, pitch: int, value: int, width: int, height: int, stream: int) -> None:
        fill(now, now.stream(stream), address, pitch, value, width, height, size, f"{of_rows}Async")

    call(ADDRESS, kind, SIZE)(renamed(plain, f"{name}_v2"))
    call(ADDRESS, kind, SIZE, HANDLE)(renamed(queued, f"{name}Async"))
    call(ADDRESS, SIZE, kind, SIZE, SIZE)(renamed(plain_rows, f"{of_rows}_v2"))
    call(ADDRESS, SIZE, kind, SIZE, SIZE, HANDLE)(renamed(queued_rows, f"{of_rows}Async"))


for _bits in (8, 16, 32):
    fills(_bits)
