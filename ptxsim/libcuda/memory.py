"""Memory: allocations and copies. Copies are actions of a stream (actions.py), and so are fills (fills.py)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .. import isa
from ..address_space import Allocation
from ..errors import MemoryProblem
from ..launches import Launch
from ..streams import Stream
from . import actions, work
from .calls import ADDRESS, HANDLE, INT, POINTER, SIZE, UINT, call, put
from .capture import active, submit
from .devices import TOTAL_BYTES
from .results import Refused
from .state import State, bytes_at

HOST, DEVICE, ARRAY = 1, 2, 3  # CUmemorytype
SIZES = {1: 8, 2: 4, 3: 8, 4: 8, 7: 8, 8: 1, 9: 4, 11: 8, 12: 8, 13: 1}  # bytes of the attributes of pointers


# ---- allocations ----
def allocate(now: State, size: int, device: int) -> Allocation:
    """Allocate memory on a device, or for device -1 memory of the host, which counts as initialised.

    If there is not enough, what is queued runs first, since memory may be freed after it.
    """
    if not size:
        raise Refused("ERROR_INVALID_VALUE")

    def take() -> Allocation:
        with now.machine.lock:
            return now.machine.memory.allocate(size, device, 1, "", device < 0)

    try:
        return take()
    except MemoryProblem:
        now.finish()
    try:
        return take()
    except MemoryProblem as error:
        raise Refused("ERROR_OUT_OF_MEMORY", f"{error} (ptxsim run --no-check)") from error


def release(now: State, address: int, what: str) -> None:
    """Free the allocation that begins at an address."""
    found = now.place(address, 0, what)
    if found is None or found[0].start != found[1]:
        raise Refused("ERROR_INVALID_VALUE", f"{what}: no allocation begins at {address:#x}")
    now.finish()
    if found[0].freed:  # by cuMemFreeAsync before
        raise Refused("ERROR_INVALID_VALUE", f"{what}: {address:#x} is freed already")
    with now.machine.lock:
        now.machine.memory.free(found[0])


def refuse_in_graph(now: State, stream: Stream) -> None:
    """Raise Refused if a stream is captured: graphs have no nodes that allocate or free memory."""
    found = active(now, stream)
    if found is not None:
        raise found.refuse("ERROR_NOT_SUPPORTED", "graphs of the stand-in libcuda cannot allocate or free memory")


def host_address(now: State, allocation: Allocation) -> int:
    return int(now.machine.memory.data.ctypes.data) + allocation.start


@call(POINTER, SIZE)
def cuMemAlloc_v2(now: State, pointer: int, size: int) -> None:
    put(pointer, ADDRESS, isa.GLOBAL_START + allocate(now, size, now.context().device).start)


@call(POINTER, SIZE, HANDLE)
def cuMemAllocAsync(now: State, pointer: int, size: int, stream: int) -> None:
    queue = now.stream(stream)
    refuse_in_graph(now, queue)
    put(pointer, ADDRESS, isa.GLOBAL_START + allocate(now, size, queue.device).start)


@call(POINTER, POINTER, SIZE, SIZE, UINT)
def cuMemAllocPitch_v2(now: State, pointer: int, pitch: int, width: int, height: int, element: int) -> None:
    row = -(-width // 512) * 512
    put(pitch, SIZE, row)
    put(pointer, ADDRESS, isa.GLOBAL_START + allocate(now, row * height, now.context().device).start)


@call(POINTER, SIZE, UINT)
def cuMemAllocManaged(now: State, pointer: int, size: int, flags: int) -> None:
    if not now.machine.unified:
        raise Refused("ERROR_NOT_SUPPORTED", "managed memory has no place in this process: run the program again")
    put(pointer, ADDRESS, isa.GLOBAL_START + allocate(now, size, -1).start)


@call(ADDRESS)
def cuMemFree_v2(now: State, pointer: int) -> None:
    if pointer:
        release(now, pointer, "cuMemFree")


@call(ADDRESS, HANDLE)
def cuMemFreeAsync(now: State, pointer: int, stream: int) -> None:
    """Free memory when what is queued in the stream has run."""
    refuse_in_graph(now, now.stream(stream))
    found = now.place(pointer, 0, "cuMemFreeAsync")
    if found is None or found[0].start != found[1] or any(found[0] is one for one, _ in now.late):
        raise Refused("ERROR_INVALID_VALUE", f"cuMemFreeAsync: no allocation begins at {pointer:#x}")
    now.late.append((found[0], now.machine.needs_of(now.stream(stream))))
    now.tidy()


@call(POINTER, SIZE, UINT)
def cuMemHostAlloc(now: State, pointer: int, size: int, flags: int) -> None:
    put(pointer, POINTER, host_address(now, allocate(now, size, -1)))


@call(POINTER, SIZE)
def cuMemAllocHost_v2(now: State, pointer: int, size: int) -> None:
    put(pointer, POINTER, host_address(now, allocate(now, size, -1)))


@call(POINTER)
def cuMemFreeHost(now: State, pointer: int) -> None:
    if pointer:
        release(now, pointer, "cuMemFreeHost")


@call(POINTER, POINTER, UINT)
def cuMemHostGetDevicePointer_v2(now: State, pointer: int, host: int, flags: int) -> None:
    if host in now.registered:
        put(pointer, ADDRESS, isa.GLOBAL_START + now.registered[host][0].start)
        return
    found = now.place(host, 0, "cuMemHostGetDevicePointer")
    if found is None:
        raise Refused("ERROR_INVALID_VALUE", "cuMemHostGetDevicePointer: the memory is not the device's")
    put(pointer, ADDRESS, isa.GLOBAL_START + found[1])


@call(POINTER, SIZE, UINT, also=("cuMemHostRegister",))
def cuMemHostRegister_v2(now: State, pointer: int, size: int, flags: int) -> None:
    """Give the memory a place in the machine. It is copied there before kernels run, and back afterwards."""
    if not pointer:
        raise Refused("ERROR_INVALID_VALUE")
    if pointer in now.registered:
        raise Refused("ERROR_HOST_MEMORY_ALREADY_REGISTERED")
    now.registered[pointer] = allocate(now, size, -1), size


@call(POINTER)
def cuMemHostUnregister(now: State, pointer: int) -> None:
    if pointer not in now.registered:
        raise Refused("ERROR_HOST_MEMORY_NOT_REGISTERED")
    now.finish()
    with now.machine.lock:
        now.machine.memory.free(now.registered.pop(pointer)[0])


@call(POINTER, POINTER)
def cuMemGetInfo_v2(now: State, free: int, total: int) -> None:
    put(free, SIZE, TOTAL_BYTES // 2)
    put(total, SIZE, TOTAL_BYTES)


@call(POINTER, POINTER, ADDRESS)
def cuMemGetAddressRange_v2(now: State, start: int, size: int, pointer: int) -> None:
    found = now.place(pointer, 0, "cuMemGetAddressRange")
    if found is None:
        raise Refused("ERROR_INVALID_VALUE")
    if start:
        put(start, ADDRESS, isa.GLOBAL_START + found[0].start)
    if size:
        put(size, SIZE, found[0].size)


@call(POINTER, INT, ADDRESS)
def cuPointerGetAttribute(now: State, data: int, attribute: int, pointer: int) -> None:
    found = now.place(pointer, 0, "cuPointerGetAttribute")
    if found is None:
        raise Refused("ERROR_INVALID_VALUE")
    put_attribute(now, data, attribute, *found)


@call(UINT, POINTER, POINTER, ADDRESS)
def cuPointerGetAttributes(now: State, count: int, attributes: int, data: int, pointer: int) -> None:
    """Write several attributes. Of memory that is not the machine's, nothing is written but zeros."""
    found = now.place(pointer, 0, "cuPointerGetAttributes")
    for number in range(count):
        attribute = INT.from_address(attributes + 4 * number).value
        target = POINTER.from_address(data + 8 * number).value
        if found is None or attribute not in SIZES:
            ctypes.memset(target, 0, SIZES.get(attribute, 4))
        else:
            put_attribute(now, target, attribute, *found)


def put_attribute(now: State, data: int, attribute: int, allocation: Allocation, offset: int) -> None:
    """Write an attribute of a place in the machine's memory, by its number in CUpointer_attribute."""
    device = max(allocation.device, 0)
    known: dict[int, tuple[Any, int]] = {
        1: (HANDLE, now.primary_of(device).handle),
        2: (UINT, HOST if allocation.device < 0 else DEVICE),
        3: (ADDRESS, isa.GLOBAL_START + offset),
        4: (POINTER, int(now.machine.memory.data.ctypes.data) + offset),
        7: (ctypes.c_uint64, allocation.number),
        8: (ctypes.c_bool, 0),
        9: (INT, device),
        11: (ADDRESS, isa.GLOBAL_START + allocation.start),
        12: (SIZE, allocation.size),
        13: (ctypes.c_bool, 1),
    }
    if attribute not in known:
        raise Refused("ERROR_NOT_SUPPORTED", f"cuPointerGetAttribute has no attribute {attribute}")
    put(data, *known[attribute])


# ---- copies ----
@dataclass
class Side:
    """Where a copy reads or writes. address: in the process.

    device: the device address, 0 for memory that only the host can use. allocation: of the machine, or None. step:
    bytes between rows.
    """

    address: int
    device: int
    allocation: Allocation | None
    step: int

    @property
    def on_device(self) -> bool:
        """Whether it is memory of a device, and not pinned, managed or registered memory."""
        return self.allocation is not None and self.allocation.device >= 0


def side(now: State, address: int, width: int, what: str, device: bool, height: int = 1, step: int = 0) -> Side:
    """The memory at an address. device: whether it must be memory that kernels can use.

    Raises Refused if it is not, or if the rows there are not in one allocation.
    """
    size = width + step * (height - 1)
    found = now.place(address, size, what)
    for start, (allocation, length) in now.registered.items():
        if found is not None and found[0] is allocation:
            address = start + found[1] - allocation.start
        if start <= address <= start + length - size:
            return Side(address, isa.GLOBAL_START + allocation.start + address - start, allocation, step)
    if found is not None:
        return Side(int(now.machine.memory.data.ctypes.data) + found[1], isa.GLOBAL_START + found[1], found[0], step)
    if device:
        raise Refused("ERROR_INVALID_VALUE", f"{what}: {address:#x} is not memory of a device")
    if not address:
        raise Refused("ERROR_INVALID_VALUE")
    return Side(address, 0, None, step)


def rows_of(at: Side, width: int, height: int) -> np.ndarray:
    """[height, width] uint8: a view of rows in the process's memory."""
    flat = bytes_at(at.address, at.step * (height - 1) + width)
    return np.lib.stride_tricks.as_strided(flat, (height, width), (at.step, 1))


def note_written(now: State, at: Side, width: int, height: int) -> None:
    """Let rows count as written."""
    if at.device and now.machine.check:
        for row in range(height):
            start = at.device - isa.GLOBAL_START + row * at.step
            now.machine.memory.init[start : start + width] = 1


def copy(now: State, stream: Stream | None, to: Side, source: Side, width: int, height: int, what: str) -> None:
    """Copy rows. stream: None for a copy by a function without a stream: it is in the default stream.

    In a captured stream the copy becomes a node. A pageable source is then read at each launch of the graph.

    The host waits for each copy to pageable memory, and without a stream for each copy that is not within devices. Any
    other copy is queued, with the present content of a pageable source. A copy for which the host waits is made at once
    if both sides are pageable, or if nothing else is queued or unknown to the host.
    """
    if not width or not height:
        return
    machine, place = now.machine, actions.caller()
    if stream is not None and active(now, stream) is not None:
        if to.device or source.device:
            queue = partial(queue_copy, to=to, source=source, width=width, height=height, what=what, place=place)
            submit(now, stream, work.Work(work.COPY, queue))
            return
        raise Refused("ERROR_NOT_SUPPORTED", f"{what} between memory of the host cannot be captured")
    waits = not to.device or (stream is None and not (to.on_device and source.on_device))
    stream = stream or now.stream(0)
    if waits:
        now.wait(machine.needs_of(stream))
    if not (to.device or source.device) or (waits and not machine.queue and not machine.past):
        note_written(now, to, width, height)
        rows_of(to, width, height)[:] = rows_of(source, width, height).copy()
        return
    made = queue_copy(now, stream, to, source, width, height, what, place)
    if waits:
        now.wait([made])


def queue_copy(
    now: State, stream: Stream, to: Side, source: Side, width: int, height: int, what: str, place: tuple[str, int]
) -> Launch:
    """Queue a copy in a stream. place: file and line of the call."""
    machine = now.machine
    after: list[Callable[[], None]] = []
    rows = actions.Rows(to.device, source.device, width, height, to.step, source.step)
    staged = None
    if not (to.device and source.device):
        staged = allocate(now, width * height, -1)
        there = machine.memory.bytes_of(staged).reshape(height, width)
        after.append(partial(machine.memory.free, staged))
        if not source.device:
            there[:] = rows_of(source, width, height)
            rows.source, rows.step, rows.private = isa.GLOBAL_START + staged.start, width, True
        else:
            after.insert(0, partial(np.copyto, rows_of(to, width, height), there))
            rows.to, rows.stride = isa.GLOBAL_START + staged.start, width
    return actions.enqueue(machine, stream, what, rows, after, place)


def copy_bytes(now: State, stream: Stream | None, to: int, source: int, size: int, what: str, devices: str) -> None:
    """Copy `size` bytes between addresses of the program. stream: as of `copy`.

    devices: the sides whose addresses must be memory of a device: some of the letters t (to) and s (source).
    """
    now.context()
    if size:
        sides = side(now, to, size, what, "t" in devices), side(now, source, size, what, "s" in devices)
        copy(now, stream, *sides, size, 1, what)


def copies(name: str, devices: str, *types: Any) -> None:
    """Declare a copy of `size` bytes, and its form with a stream. devices: see `copy_bytes`."""

    def plain(now: State, to: int, source: int, size: int) -> None:
        copy_bytes(now, None, to, source, size, name, devices)

    def queued(now: State, to: int, source: int, size: int, stream: int) -> None:
        copy_bytes(now, now.stream(stream), to, source, size, f"{name}Async", devices)

    suffix = "" if name == "cuMemcpy" else "_v2"
    call(*types)(renamed(plain, f"{name}{suffix}"))
    call(*types, HANDLE)(renamed(queued, f"{name}Async{suffix}"))


def renamed(function: Callable[..., None], name: str) -> Callable[..., None]:
    function.__name__ = name
    return function


copies("cuMemcpy", "", ADDRESS, ADDRESS, SIZE)
copies("cuMemcpyHtoD", "t", ADDRESS, POINTER, SIZE)
copies("cuMemcpyDtoH", "s", POINTER, ADDRESS, SIZE)
copies("cuMemcpyDtoD", "ts", ADDRESS, ADDRESS, SIZE)


@call(ADDRESS, HANDLE, ADDRESS, HANDLE, SIZE)
def cuMemcpyPeer(now: State, to: int, target: int, source: int, origin: int, size: int) -> None:
    copy_bytes(now, None, to, source, size, "cuMemcpyPeer", "ts")


@call(ADDRESS, HANDLE, ADDRESS, HANDLE, SIZE, HANDLE)
def cuMemcpyPeerAsync(now: State, to: int, target: int, source: int, origin: int, size: int, stream: int) -> None:
    copy_bytes(now, now.stream(stream), to, source, size, "cuMemcpyPeerAsync", "ts")


PLACE = [("MemoryType", UINT), ("Host", POINTER), ("Device", ADDRESS), ("Array", HANDLE)]


def sides(fields: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The fields of a copy's source, then those of its target."""
    return [(f"{side}{name}", kind) for side in ("src", "dst") for name, kind in fields]


class Copy2D(ctypes.Structure):
    """CUDA_MEMCPY2D."""

    _fields_ = [
        *sides([("XInBytes", SIZE), ("Y", SIZE), *PLACE, ("Pitch", SIZE)]),
        *(("WidthInBytes", SIZE), ("Height", SIZE)),
    ]


def side_2d(now: State, asked: Any, name: str, what: str) -> Side:
    """The side "dst" or "src" of a CUDA_MEMCPY2D, or of a CUDA_MEMCPY3D of one layer."""
    width, kind = asked.WidthInBytes, getattr(asked, f"{name}MemoryType")
    if kind == ARRAY:
        raise Refused("ERROR_NOT_SUPPORTED", f"{what}: the stand-in libcuda has no CUDA arrays")
    pitch = getattr(asked, f"{name}Pitch") or width
    if pitch < width:
        raise Refused("ERROR_INVALID_VALUE", f"{what}: rows of {width} bytes are longer than their pitch {pitch}")
    start = getattr(asked, f"{name}Host" if kind == HOST else f"{name}Device") or 0
    start += getattr(asked, f"{name}Y") * pitch + getattr(asked, f"{name}XInBytes")
    return side(now, start, width, what, kind == DEVICE, asked.Height, pitch)


def copy_2d(now: State, stream: Stream | None, how: int, what: str) -> None:
    """Copy as a CUDA_MEMCPY2D in the program's memory says. stream: as of `copy`."""
    now.context()
    if not how:
        raise Refused("ERROR_INVALID_VALUE")
    asked = Copy2D.from_address(how)
    width, height = asked.WidthInBytes, asked.Height
    if not width or not height:
        return
    sides = [side_2d(now, asked, name, what) for name in ("dst", "src")]
    copy(now, stream, sides[0], sides[1], width, height, what)


@call(POINTER, also=("cuMemcpy2DUnaligned_v2",))
def cuMemcpy2D_v2(now: State, how: int) -> None:
    copy_2d(now, None, how, "cuMemcpy2D")


@call(POINTER, HANDLE)
def cuMemcpy2DAsync_v2(now: State, how: int, stream: int) -> None:
    copy_2d(now, now.stream(stream), how, "cuMemcpy2DAsync")
