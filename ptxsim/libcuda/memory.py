"""Memory: allocations, copies and fills. Copies and fills run what is queued first."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import isa
from ..address_space import Allocation
from ..errors import MemoryProblem
from .calls import ADDRESS, HANDLE, INT, POINTER, SIZE, UINT, call, put
from .devices import TOTAL_BYTES
from .results import Refused
from .state import State, bytes_at

HOST, DEVICE, ARRAY = 1, 2, 3  # CUmemorytype
SIZES = {1: 8, 2: 4, 3: 8, 4: 8, 7: 8, 8: 1, 9: 4, 11: 8, 12: 8, 13: 1}  # bytes of the attributes of pointers


# ---- allocations ----
def allocate(now: State, size: int, device: int) -> Allocation:
    """Allocate memory on a device, or for device -1 memory of the host, which counts as initialised."""
    if not size:
        raise Refused("ERROR_INVALID_VALUE")
    with now.machine.lock:
        try:
            return now.machine.memory.allocate(size, device, 1, "", device < 0)
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


def host_address(now: State, allocation: Allocation) -> int:
    return int(now.machine.memory.data.ctypes.data) + allocation.start


@call(POINTER, SIZE)
def cuMemAlloc_v2(now: State, pointer: int, size: int) -> None:
    put(pointer, ADDRESS, isa.GLOBAL_START + allocate(now, size, now.context().device).start)


@call(POINTER, SIZE, HANDLE)
def cuMemAllocAsync(now: State, pointer: int, size: int, stream: int) -> None:
    put(pointer, ADDRESS, isa.GLOBAL_START + allocate(now, size, now.stream(stream).device).start)


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
    """Free memory when what is queued has run."""
    found = now.place(pointer, 0, "cuMemFreeAsync")
    if found is None or found[0].start != found[1] or found[0] in now.late:
        raise Refused("ERROR_INVALID_VALUE", f"cuMemFreeAsync: no allocation begins at {pointer:#x}")
    now.late.append(found[0])
    if not now.machine.queue:
        now.finish()


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
def view(now: State, address: int, size: int, what: str, written: bool = False, on_device: bool = False) -> np.ndarray:
    """[size] uint8: a view of memory of the machine, or else of the process.

    on_device: the address must be one that kernels can use. Raises Refused if it is another one, or if `size` bytes
    there are not in one allocation.
    """
    found = now.place(address, size, what) if size else None
    if found is None:
        registered = any(start <= address <= start + n - size for start, (_, n) in now.registered.items())
        if size and on_device and not registered:
            raise Refused("ERROR_INVALID_VALUE", f"{what}: {address:#x} is not memory of a device")
        return bytes_at(address, size)
    if written and now.machine.check:
        now.machine.memory.init[found[1] : found[1] + size] = 1
    return now.machine.memory.data[found[1] : found[1] + size]


def copy(now: State, to: int, source: int, size: int, what: str, devices: str) -> None:
    """Run what is queued on all devices, then copy.

    devices: the sides whose addresses must be memory of a device: some of the letters t (to) and s (source).
    """
    now.context()
    now.finish()
    there = view(now, to, size, what, True, "t" in devices)
    there[:] = view(now, source, size, what, False, "s" in devices).copy()


def copies(name: str, devices: str, *types: Any) -> None:
    """Declare a copy of `size` bytes, and its form with a stream. devices: see `copy`."""

    def plain(now: State, to: int, source: int, size: int) -> None:
        copy(now, to, source, size, name, devices)

    def queued(now: State, to: int, source: int, size: int, stream: int) -> None:
        now.stream(stream)
        copy(now, to, source, size, name, devices)

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
    copy(now, to, source, size, "cuMemcpyPeer", "ts")


@call(ADDRESS, HANDLE, ADDRESS, HANDLE, SIZE, HANDLE)
def cuMemcpyPeerAsync(now: State, to: int, target: int, source: int, origin: int, size: int, stream: int) -> None:
    copy(now, to, source, size, "cuMemcpyPeerAsync", "ts")


class Copy2D(ctypes.Structure):
    """CUDA_MEMCPY2D."""

    _fields_ = [
        (f"{side}{name}", kind)
        for side in ("src", "dst")
        for name, kind in (
            ("XInBytes", SIZE),
            ("Y", SIZE),
            ("MemoryType", UINT),
            ("Host", POINTER),
            ("Device", ADDRESS),
            ("Array", HANDLE),
            ("Pitch", SIZE),
        )
    ] + [("WidthInBytes", SIZE), ("Height", SIZE)]


@call(POINTER, also=("cuMemcpy2DUnaligned_v2",))
def cuMemcpy2D_v2(now: State, how: int) -> None:
    now.context()
    now.finish()
    if not how:
        raise Refused("ERROR_INVALID_VALUE")
    asked = Copy2D.from_address(how)
    starts = []
    for side in ("src", "dst"):
        kind = getattr(asked, f"{side}MemoryType")
        if kind == ARRAY:
            raise Refused("ERROR_NOT_SUPPORTED", "cuMemcpy2D: the stand-in libcuda has no CUDA arrays")
        base = getattr(asked, f"{side}Host" if kind == HOST else f"{side}Device")
        pitch = getattr(asked, f"{side}Pitch") or asked.WidthInBytes
        starts.append((base + getattr(asked, f"{side}Y") * pitch + getattr(asked, f"{side}XInBytes"), pitch))
    (source, step), (to, stride) = starts
    for row in range(asked.Height):
        piece = view(now, source + row * step, asked.WidthInBytes, "cuMemcpy2D").copy()
        view(now, to + row * stride, asked.WidthInBytes, "cuMemcpy2D", True)[:] = piece


@call(POINTER, HANDLE)
def cuMemcpy2DAsync_v2(now: State, how: int, stream: int) -> None:
    now.stream(stream)
    cuMemcpy2D_v2(now, how)


# ---- fills ----
def fills(bits: int) -> None:
    """Declare the fills with items of 8, 16 or 32 bits."""
    size, kind = bits // 8, getattr(ctypes, f"c_uint{bits}")
    name = f"cuMemsetD{bits}"

    def fill(now: State, address: int, value: int, count: int) -> None:
        fill_rows(now, address, 0, value, count, 1)

    def fill_queued(now: State, address: int, value: int, count: int, stream: int) -> None:
        now.stream(stream)
        fill_rows(now, address, 0, value, count, 1)

    def fill_rows(now: State, address: int, pitch: int, value: int, width: int, height: int) -> None:
        now.context()
        now.finish()
        row = np.frombuffer(value.to_bytes(size, "little") * width, np.uint8)
        for number in range(height):
            view(now, address + number * pitch, width * size, name, True, True)[:] = row

    def fill_rows_queued(
        now: State, address: int, pitch: int, value: int, width: int, height: int, stream: int
    ) -> None:
        now.stream(stream)
        fill_rows(now, address, pitch, value, width, height)

    call(ADDRESS, kind, SIZE)(renamed(fill, f"{name}_v2"))
    call(ADDRESS, kind, SIZE, HANDLE)(renamed(fill_queued, f"{name}Async"))
    call(ADDRESS, SIZE, kind, SIZE, SIZE)(renamed(fill_rows, f"cuMemsetD2D{bits}_v2"))
    call(ADDRESS, SIZE, kind, SIZE, SIZE, HANDLE)(renamed(fill_rows_queued, f"cuMemsetD2D{bits}Async"))


for _bits in (8, 16, 32):
    fills(_bits)
