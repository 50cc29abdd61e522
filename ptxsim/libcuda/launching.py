"""Launches, and how many blocks of a kernel are resident at once."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from typing import Any

from kernel_cache import errors as cache_errors
from kernel_cache import sm_limits

from .. import isa
from ..errors import InputError
from ..launches import cluster_size
from ..machine import How
from ..streams import Stream
from ..syntax import PTXError
from . import work
from .calls import HANDLE, INT, POINTER, SIZE, UINT, call, put
from .capture import submit
from .results import Refused
from .state import Function, State

BUFFER, BUFFER_SIZE = 1, 2  # the names of `extra`
COOPERATIVE, CLUSTER, PROGRAMMATIC = 2, 4, 6  # CUlaunchAttributeID
REFUSED = {7: "a programmatic event", 12: "a launch completion event"}


class Value(ctypes.Structure):
    """CUlaunchAttribute, of whose value only the first three words are read."""

    _fields_ = [("id", UINT), ("pad", UINT), ("x", UINT), ("y", UINT), ("z", UINT), ("rest", ctypes.c_uint8 * 52)]


class Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = [
        ("grid", UINT * 3),
        ("block", UINT * 3),
        ("shared", UINT),
        ("stream", HANDLE),
        ("attributes", POINTER),
        ("count", UINT),
    ]


def arguments(function: Function, values: int, extra: int) -> list[bytes]:
    """The bytes of each parameter, from the table of pointers `values` or the packed buffer in `extra`."""
    params = function.info.params
    if values:
        places: Any = (ctypes.c_uint64 * len(params)).from_address(values) if params else []
        if not all(places):
            raise Refused("ERROR_INVALID_VALUE", f"a pointer to a parameter of {function.name} is NULL")
        return [ctypes.string_at(place, param.size) for place, param in zip(places, params)]
    if not params:
        return []
    if not extra:
        raise Refused("ERROR_INVALID_VALUE", f"{function.name} has {len(params)} parameters, and none is given")
    words, at = {}, extra
    while key := POINTER.from_address(at).value:
        words[key] = POINTER.from_address(at + 8).value
        at += 16
    if not (words.get(BUFFER) and words.get(BUFFER_SIZE)):
        raise Refused("ERROR_INVALID_VALUE", f"the packed parameters of {function.name} lack the buffer or its size")
    size = SIZE.from_address(words[BUFFER_SIZE]).value
    data, at, found = ctypes.string_at(words[BUFFER], size), 0, []
    for param in params:
        at = -(-at // param.align) * param.align
        found.append(data[at : at + param.size])
        at += param.size
    if at > size:
        raise Refused("ERROR_INVALID_VALUE", f"{function.name} has {at} bytes of parameters, got {size}")
    return found


def name_arrays(now: State, function: Function, data: list[bytes]) -> None:
    """Name the allocations whose addresses a launch passes, after the kernel and the argument's number."""
    for number, value in enumerate(data):
        address = int.from_bytes(value, "little") if len(value) == 8 else 0
        found = now.machine.memory.at(address) if address >= isa.GLOBAL_START else None
        if found is not None and not found.name and isa.GLOBAL_START + found.start == address:
            found.name = f"argument {number + 1} of {function.name}"


def launch(
    now: State, handle: int, grid: Any, block: Any, how: dict[str, Any], stream: int, values: int, extra: int
) -> None:
    """Queue a kernel, or capture it. how: the options of `How` without the stream."""
    made = kernel(now, now.get(handle, Function), tuple(grid), tuple(block), how, values, extra)
    submit(now, now.stream(stream), made)


@dataclass(eq=False)
class Kernel:
    """A launch of a kernel as the program asked for it. data: the bytes of each parameter. how: see `launch`."""

    function: Function
    grid: tuple[int, ...]
    block: tuple[int, ...]
    how: dict[str, Any]
    data: list[bytes]

    def pointers(self) -> int:
        """The address of a table of pointers to the values of the parameters, which lives as long as this object."""
        return ctypes.addressof(self.table)

    @cached_property
    def table(self) -> Any:
        """The table of pointers to `values`."""
        return (POINTER * max(len(self.values), 1))(*(ctypes.addressof(one) for one in self.values))

    @cached_property
    def values(self) -> list[Any]:
        """The bytes of each parameter, in memory of their own."""
        return [ctypes.create_string_buffer(one, max(len(one), 1)) for one in self.data]


def kernel(
    now: State, function: Function, grid: tuple[int, ...], block: tuple[int, ...], how: dict[str, Any], *given: int
) -> work.Work:
    """The work of a kernel. given: the addresses of the table of pointers to parameters and of the packed buffer."""
    if how["shared"] > function.most_dynamic:
        raise Refused(
            "ERROR_INVALID_VALUE",
            f"{function.name} asks for {how['shared']} bytes of dynamic shared memory: more than 48 KiB in all need "
            "cuFuncSetAttribute with CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES",
        )
    asked = Kernel(function, grid, block, how, arguments(function, *given))
    name_arrays(now, function, asked.data)
    return work.Work(work.KERNEL, partial(queue_kernel, asked=asked), asked)


def queue_kernel(now: State, stream: Stream, asked: Kernel) -> None:
    """Queue a kernel in a stream."""
    function = asked.function
    try:
        now.machine.enqueue(
            stream.device,
            function.module.program,
            function.name,
            function.name,
            asked.grid,
            asked.block,
            asked.data,
            How(stream=stream, **asked.how),
            [],
        )
    except PTXError as error:
        raise Refused("ERROR_NOT_SUPPORTED", f"{function.name} cannot run: {error}") from error
    except InputError as error:
        cooperative = "ERROR_COOPERATIVE_LAUNCH_TOO_LARGE" if "cooperative launch" in str(error) else ""
        raise Refused(cooperative or "ERROR_INVALID_VALUE", f"launch of {function.name}: {error}") from error


@call(HANDLE, UINT, UINT, UINT, UINT, UINT, UINT, UINT, HANDLE, POINTER, POINTER)
def cuLaunchKernel(
    now: State,
    function: int,
    gx: int,
    gy: int,
    gz: int,
    bx: int,
    by: int,
    bz: int,
    shared: int,
    stream: int,
    values: int,
    extra: int,
) -> None:
    launch(now, function, (gx, gy, gz), (bx, by, bz), {"shared": shared}, stream, values, extra)


@call(HANDLE, UINT, UINT, UINT, UINT, UINT, UINT, UINT, HANDLE, POINTER)
def cuLaunchCooperativeKernel(
    now: State,
    function: int,
    gx: int,
    gy: int,
    gz: int,
    bx: int,
    by: int,
    bz: int,
    shared: int,
    stream: int,
    values: int,
) -> None:
    launch(now, function, (gx, gy, gz), (bx, by, bz), {"shared": shared, "cooperative": True}, stream, values, 0)


@call(POINTER, HANDLE, POINTER, POINTER)
def cuLaunchKernelEx(now: State, config: int, function: int, values: int, extra: int) -> None:
    asked, how = configured(config)
    launch(now, function, asked.grid, asked.block, how, asked.stream, values, extra)


def configured(config: int) -> tuple[Config, dict[str, Any]]:
    """A CUlaunchConfig in the program's memory, and the options of `How` that it asks for. Raises Refused for NULL."""
    if not config:
        raise Refused("ERROR_INVALID_VALUE")
    asked = Config.from_address(config)
    how: dict[str, Any] = {"shared": asked.shared}
    for number in range(asked.count):
        one = Value.from_address(asked.attributes + number * ctypes.sizeof(Value))
        if one.id in REFUSED:
            raise Refused("ERROR_NOT_SUPPORTED", f"a launch with {REFUSED[one.id]} is not supported")
        if one.id == COOPERATIVE and one.x:
            how["cooperative"] = True
        elif one.id == CLUSTER:
            how["cluster"] = one.x, one.y, one.z
        elif one.id == PROGRAMMATIC and one.x:
            how["programmatic"] = True
    return asked, how


# ---- occupancy ----
def resident(now: State, handle: int, threads: int, dynamic: int) -> int:
    """How many blocks of a kernel an SM holds; 0 if one is too large."""
    function = now.get(handle, Function)
    shared = function.module.program.shared_bytes + dynamic
    try:
        return sm_limits.resident(now.machine.limits, threads, shared, function.info.registers)
    except cache_errors.InputError:
        return 0


@call(POINTER, HANDLE, POINTER)
def cuOccupancyMaxActiveClusters(now: State, count: int, function: int, config: int) -> None:
    asked, how = configured(config)
    found = now.get(function, Function)
    if how["shared"] > found.most_dynamic:
        raise Refused("ERROR_INVALID_VALUE")
    cluster, _ = cluster_size(found.info, how.get("cluster"), tuple(asked.grid))
    blocks = resident(now, function, prod(asked.block), asked.shared) * now.machine.sm_count
    put(count, INT, blocks // prod(cluster))


@call(POINTER, HANDLE, INT, SIZE)
def cuOccupancyMaxActiveBlocksPerMultiprocessor(
    now: State, count: int, function: int, threads: int, dynamic: int
) -> None:
    put(count, INT, resident(now, function, threads, dynamic))


@call(POINTER, HANDLE, INT, SIZE, UINT)
def cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    now: State, count: int, function: int, threads: int, dynamic: int, flags: int
) -> None:
    put(count, INT, resident(now, function, threads, dynamic))


@call(POINTER, HANDLE, INT, INT, SIZE)
def cuOccupancyAvailableDynamicSMemPerBlock(now: State, size: int, function: int, blocks: int, threads: int) -> None:
    found = now.get(function, Function)
    limit = now.machine.limits
    space = limit.shared // max(blocks, 1) - sm_limits.RESERVED_SHARED - found.module.program.shared_bytes
    put(size, SIZE, max(min(space, limit.shared_block), 0))


def best(now: State, blocks: int, threads: int, function: int, of_block: int, dynamic: int, most: int) -> None:
    """Write the block's size that keeps most threads resident, and the blocks of a grid that fills the device."""
    sizes = ctypes.CFUNCTYPE(SIZE, INT)(of_block) if of_block else lambda _: dynamic
    limit = min(most or now.machine.limits.block_threads, now.machine.limits.block_threads)
    found = [
        (resident(now, function, size, sizes(size)) * size, size) for size in range(limit // 32 * 32 or limit, 0, -32)
    ]
    active, size = max(found)
    put(threads, INT, size)
    put(blocks, INT, active // size * now.machine.sm_count)


@call(POINTER, POINTER, HANDLE, POINTER, SIZE, INT)
def cuOccupancyMaxPotentialBlockSize(
    now: State, blocks: int, threads: int, function: int, of_block: int, dynamic: int, most: int
) -> None:
    best(now, blocks, threads, function, of_block, dynamic, most)


@call(POINTER, POINTER, HANDLE, POINTER, SIZE, INT, UINT)
def cuOccupancyMaxPotentialBlockSizeWithFlags(
    now: State, blocks: int, threads: int, function: int, of_block: int, dynamic: int, most: int, flags: int
) -> None:
    best(now, blocks, threads, function, of_block, dynamic, most)
