"""Memory pools. A pool is a device and its attributes: the machine gives memory back when the stream's free has run."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

from .. import isa
from .calls import ADDRESS, HANDLE, INT, LONG, POINTER, SIZE, call, put
from .memory import allocate, refuse_in_graph
from .results import Refused
from .state import State

DEVICE = 1  # CUmemLocationType
WORDS = {1: INT, 2: INT, 3: INT, 4: LONG}  # CUmemPool_attribute -> its type: three rules of reuse, the threshold
COUNTERS = {5, 6, 7, 8}  # bytes that are reserved and used now, and at most


@dataclass(eq=False)
class Pool:
    """A memory pool of a device."""

    device: int
    handle: int = 0
    attributes: dict[int, int] = field(default_factory=lambda: {1: 1, 2: 1, 3: 1, 4: 0})


class Properties(ctypes.Structure):
    """CUmemPoolProps, of which only the place is read."""

    _fields_ = [("type", INT), ("handles", INT), ("place", INT), ("device", INT), ("rest", ctypes.c_uint8 * 72)]


def pool_of(now: State, device: int) -> Pool:
    """A device's pool: that which the program has set, or the default one."""
    return now.pools.get(device) or default_pool(now, device)


def default_pool(now: State, device: int) -> Pool:
    """A device's default pool."""
    if device not in now.default_pools:
        now.default_pools[device] = Pool(now.device(device))
        now.keep(now.default_pools[device])
    found: Pool = now.default_pools[device]
    return found


@call(POINTER, INT)
def cuDeviceGetDefaultMemPool(now: State, pool: int, device: int) -> None:
    put(pool, HANDLE, default_pool(now, now.device(device)).handle)


@call(POINTER, INT)
def cuDeviceGetMemPool(now: State, pool: int, device: int) -> None:
    put(pool, HANDLE, pool_of(now, now.device(device)).handle)


@call(INT, HANDLE)
def cuDeviceSetMemPool(now: State, device: int, pool: int) -> None:
    now.pools[now.device(device)] = now.get(pool, Pool)


@call(POINTER, POINTER)
def cuMemPoolCreate(now: State, pool: int, properties: int) -> None:
    if not properties:
        raise Refused("ERROR_INVALID_VALUE")
    asked = Properties.from_address(properties)
    if asked.place != DEVICE:
        raise Refused("ERROR_NOT_SUPPORTED", "cuMemPoolCreate: the stand-in libcuda has pools of devices only")
    put(pool, HANDLE, now.keep(Pool(now.device(asked.device))))


@call(HANDLE)
def cuMemPoolDestroy(now: State, pool: int) -> None:
    """Forget the handle. Memory of the pool can still be used and freed."""
    found = now.get(pool, Pool)
    if any(found is one for one in now.default_pools.values()):
        raise Refused("ERROR_INVALID_VALUE")
    now.pools = {device: one for device, one in now.pools.items() if one is not found}
    del now.objects[pool]


@call(HANDLE, SIZE)
def cuMemPoolTrimTo(now: State, pool: int, size: int) -> None:
    """Do nothing: pools keep no memory."""
    now.get(pool, Pool)


@call(HANDLE, INT, POINTER)
def cuMemPoolSetAttribute(now: State, pool: int, attribute: int, value: int) -> None:
    found = now.get(pool, Pool)
    if not value or attribute not in {*WORDS, *COUNTERS}:
        raise Refused("ERROR_INVALID_VALUE")
    if attribute in WORDS:
        found.attributes[attribute] = WORDS[attribute].from_address(value).value


@call(HANDLE, INT, POINTER)
def cuMemPoolGetAttribute(now: State, pool: int, attribute: int, value: int) -> None:
    """Write an attribute. The counters of bytes are 0."""
    found = now.get(pool, Pool)
    if attribute not in {*WORDS, *COUNTERS}:
        raise Refused("ERROR_INVALID_VALUE")
    put(value, WORDS.get(attribute, LONG), found.attributes.get(attribute, 0))


@call(HANDLE, POINTER, SIZE)
def cuMemPoolSetAccess(now: State, pool: int, places: int, count: int) -> None:
    """Do nothing: devices of a machine always see each other's memory."""
    now.get(pool, Pool)


@call(POINTER, SIZE, HANDLE, HANDLE)
def cuMemAllocFromPoolAsync(now: State, pointer: int, size: int, pool: int, stream: int) -> None:
    refuse_in_graph(now, now.stream(stream))
    put(pointer, ADDRESS, isa.GLOBAL_START + allocate(now, size, now.get(pool, Pool).device).start)
