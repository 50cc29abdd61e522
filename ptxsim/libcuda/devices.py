"""Devices, their attributes, and contexts."""

from __future__ import annotations

import ctypes

from kernel_cache import sm_limits

from .calls import HANDLE, INT, POINTER, SIZE, UINT, call, put, put_text, text_at
from .results import Refused
from .state import Context, State

VERSION = 12090  # version of the driver that this library stands for: CUDA 12.9
TOTAL_BYTES = 1 << 35
NAME = "PTX machine, {arch}"
CONTEXT_LIMITS = {0: 1024, 1: 1 << 20, 2: 8 << 20, 3: 2, 4: 2048, 5: 128, 6: 0, 7: 0, 8: 0}


def attributes(now: State, device: int) -> dict[int, int]:
    """A device's attributes, by the numbers of CUdevice_attribute. An attribute that is missing here is 0."""
    machine = now.machine
    limit, cc = machine.limits, machine.cc
    return {
        1: limit.block_threads, 2: 1024, 3: 1024, 4: 64, 5: 2147483647, 6: 65535, 7: 65535, 8: 49152, 9: 65536,
        10: sm_limits.WARP, 11: 2147483647, 12: limit.registers, 13: 1000000, 14: 512, 15: 1, 16: machine.sm_count,
        18: 0, 19: 1, 20: 0, 21: 131072, 22: 131072, 23: 65536, 24: 16384, 25: 16384, 26: 16384, 30: 512, 31: 1,
        32: 0, 33: device, 34: 0, 35: 0, 36: 1000000, 37: 256, 38: 50 << 20, 39: limit.threads, 40: 1,
        41: int(machine.unified), 50: 0, 75: cc[0], 76: cc[1], 78: 1, 79: 1, 80: 1, 81: limit.shared,
        82: limit.registers, 83: int(machine.unified), 86: 1, 87: 2, 89: int(machine.unified), 90: 1, 95: 1,
        97: limit.shared_block, 99: 1, 106: limit.blocks, 111: sm_limits.RESERVED_SHARED, 115: 1, 120: int(cc[0] >= 9),
    }  # fmt: skip


@call(UINT)
def cuInit(now: State, flags: int) -> None:
    if flags:
        raise Refused("ERROR_INVALID_VALUE")
    now.initialised = True


@call(POINTER)
def cuDriverGetVersion(now: State, version: int) -> None:
    put(version, INT, VERSION)


@call(POINTER)
def cuDeviceGetCount(now: State, count: int) -> None:
    put(count, INT, len(now.machine.devices))


@call(POINTER, INT)
def cuDeviceGet(now: State, device: int, number: int) -> None:
    put(device, INT, now.device(number))


@call(POINTER, INT, INT)
def cuDeviceGetName(now: State, name: int, size: int, device: int) -> None:
    now.device(device)
    put_text(name, size, NAME.format(arch=now.machine.arch))


@call(POINTER, INT, also=("cuDeviceGetUuid_v2",))
def cuDeviceGetUuid(now: State, uuid: int, device: int) -> None:
    if not uuid:
        raise Refused("ERROR_INVALID_VALUE")
    ctypes.memmove(uuid, b"ptxsim-device" + now.device(device).to_bytes(3, "big"), 16)


@call(POINTER, INT)
def cuDeviceTotalMem_v2(now: State, size: int, device: int) -> None:
    now.device(device)
    put(size, SIZE, TOTAL_BYTES)


@call(POINTER, INT, INT)
def cuDeviceGetAttribute(now: State, value: int, attribute: int, device: int) -> None:
    put(value, INT, attributes(now, now.device(device)).get(attribute, 0))


@call(POINTER, POINTER, INT)
def cuDeviceComputeCapability(now: State, major: int, minor: int, device: int) -> None:
    now.device(device)
    put(major, INT, now.machine.cc[0])
    put(minor, INT, now.machine.cc[1])


@call(POINTER, INT, INT)
def cuDeviceGetPCIBusId(now: State, text: int, size: int, device: int) -> None:
    put_text(text, size, f"0000:{now.device(device):02x}:00.0")


@call(POINTER, POINTER)
def cuDeviceGetByPCIBusId(now: State, device: int, text: int) -> None:
    words = text_at(text).split(":")
    try:
        put(device, INT, now.device(int(words[-2], 16)))
    except (ValueError, IndexError):
        raise Refused("ERROR_INVALID_VALUE") from None


@call(POINTER, INT, INT)
def cuDeviceCanAccessPeer(now: State, can: int, device: int, peer: int) -> None:
    put(can, INT, int(now.device(device) != now.device(peer)))


@call(POINTER, INT, INT, INT)
def cuDeviceGetP2PAttribute(now: State, value: int, attribute: int, device: int, peer: int) -> None:
    put(value, INT, int(attribute in (2, 3)))  # access and native atomics are supported


@call(HANDLE, UINT)
def cuCtxEnablePeerAccess(now: State, context: int, flags: int) -> None:
    """Only note the pair of devices: the devices of a machine always see each other's memory."""
    pair = now.context().device, now.get(context, Context).device
    if pair in now.peers:
        raise Refused("ERROR_PEER_ACCESS_ALREADY_ENABLED")
    now.peers.add(pair)


@call(HANDLE)
def cuCtxDisablePeerAccess(now: State, context: int) -> None:
    pair = now.context().device, now.get(context, Context).device
    if pair not in now.peers:
        raise Refused("ERROR_PEER_ACCESS_NOT_ENABLED")
    now.peers.remove(pair)


# ---- contexts ----
@call(POINTER, INT)
def cuDevicePrimaryCtxRetain(now: State, context: int, device: int) -> None:
    made = now.primary_of(now.device(device))
    now.retained[device] = now.retained.get(device, 0) + 1
    put(context, HANDLE, made.handle)


@call(INT, also=("cuDevicePrimaryCtxRelease",))
def cuDevicePrimaryCtxRelease_v2(now: State, device: int) -> None:
    """Run what is queued. The context's memory stays, so that reports about later accesses have names."""
    now.finish(now.device(device))
    now.retained[device] = max(now.retained.get(device, 0) - 1, 0)


@call(INT, also=("cuDevicePrimaryCtxReset",))
def cuDevicePrimaryCtxReset_v2(now: State, device: int) -> None:
    now.finish(now.device(device))


@call(INT, UINT, also=("cuDevicePrimaryCtxSetFlags",))
def cuDevicePrimaryCtxSetFlags_v2(now: State, device: int, flags: int) -> None:
    now.primary_of(now.device(device)).flags = flags


@call(INT, POINTER, POINTER)
def cuDevicePrimaryCtxGetState(now: State, device: int, flags: int, active: int) -> None:
    put(flags, UINT, now.primary_of(now.device(device)).flags)
    put(active, INT, int(now.retained.get(device, 0) > 0))


def create(now: State, context: int, flags: int, device: int) -> None:
    made = Context(now.device(device), False, flags=flags)
    put(context, HANDLE, now.keep(made))
    now.stack().append(made)


@call(POINTER, UINT, INT, also=("cuCtxCreate",))
def cuCtxCreate_v2(now: State, context: int, flags: int, device: int) -> None:
    create(now, context, flags, device)


@call(POINTER, POINTER, INT, UINT, INT)
def cuCtxCreate_v3(now: State, context: int, parameters: int, count: int, flags: int, device: int) -> None:
    create(now, context, flags, device)


@call(POINTER, POINTER, UINT, INT)
def cuCtxCreate_v4(now: State, context: int, parameters: int, flags: int, device: int) -> None:
    create(now, context, flags, device)


@call(HANDLE, also=("cuCtxDestroy",))
def cuCtxDestroy_v2(now: State, context: int) -> None:
    found = now.get(context, Context)
    now.finish(found.device)
    stack = now.stack()
    if stack and stack[-1] is found:
        stack.pop()
    if not found.primary:
        del now.objects[context]


@call(HANDLE, also=("cuCtxPushCurrent",))
def cuCtxPushCurrent_v2(now: State, context: int) -> None:
    now.stack().append(now.get(context, Context))


@call(POINTER, also=("cuCtxPopCurrent",))
def cuCtxPopCurrent_v2(now: State, context: int) -> None:
    found = now.context()
    now.stack().pop()
    if context:
        put(context, HANDLE, found.handle)


@call(HANDLE)
def cuCtxSetCurrent(now: State, context: int) -> None:
    stack = now.stack()
    found = now.get(context, Context) if context else None
    if stack:
        stack.pop()
    if found is not None:
        stack.append(found)


@call(POINTER)
def cuCtxGetCurrent(now: State, context: int) -> None:
    stack = now.stack()
    put(context, HANDLE, stack[-1].handle if stack else 0)


@call(POINTER)
def cuCtxGetDevice(now: State, device: int) -> None:
    put(device, INT, now.context().device)


@call(POINTER, HANDLE)
def cuCtxGetDevice_v2(now: State, device: int, context: int) -> None:
    put(device, INT, (now.get(context, Context) if context else now.context()).device)


@call(HANDLE, POINTER)
def cuCtxGetApiVersion(now: State, context: int, version: int) -> None:
    put(version, UINT, 3020)


@call(POINTER)
def cuCtxGetFlags(now: State, flags: int) -> None:
    put(flags, UINT, now.context().flags)


@call(HANDLE, POINTER)
def cuCtxGetId(now: State, context: int, number: int) -> None:
    put(number, HANDLE, (now.get(context, Context) if context else now.context()).handle)


@call()
def cuCtxSynchronize(now: State) -> None:
    now.finish(now.context().device)


@call(HANDLE)
def cuCtxSynchronize_v2(now: State, context: int) -> None:
    now.finish((now.get(context, Context) if context else now.context()).device)


@call(POINTER, POINTER)
def cuCtxGetStreamPriorityRange(now: State, least: int, greatest: int) -> None:
    for address, value in ((least, 0), (greatest, -5)):
        if address:
            put(address, INT, value)


@call(POINTER, INT)
def cuCtxGetLimit(now: State, value: int, limit: int) -> None:
    if limit not in CONTEXT_LIMITS:
        raise Refused("ERROR_INVALID_VALUE")
    put(value, SIZE, CONTEXT_LIMITS[limit])


@call(INT, SIZE)
def cuCtxSetLimit(now: State, limit: int, value: int) -> None:
    """Do nothing: stacks and printf have the space that they need, and the heap of a module has 8 MiB."""
    if limit not in CONTEXT_LIMITS:
        raise Refused("ERROR_INVALID_VALUE")


@call(POINTER)
def cuCtxGetCacheConfig(now: State, config: int) -> None:
    put(config, INT, 0)


@call(INT)
def cuCtxSetCacheConfig(now: State, config: int) -> None:
    """Do nothing: caches are not modelled."""


@call()
def cuProfilerStart(now: State) -> None:
    """Do nothing: the machine has counters of its own."""


@call()
def cuProfilerStop(now: State) -> None:
    """Do nothing: the machine has counters of its own."""
