"""NVML, the library below nvidia-smi: GPUs, memory, MIG, NVLinks and link classes, without parsing text.

NVML lists all GPUs that the cgroup allows, in PCI order, independently of CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from .model import Gpu, Link, Mig, Wires

LIBRARY = "libnvidia-ml.so.1"
OK = 0
MOST_LINKS = 36  # NVML_NVLINK_MAX_LINKS
NO_NUMA = 2**32 - 1  # -1 as an unsigned number
SM_CLOCK, MEMORY_CLOCK = 1, 2  # nvmlClockType_t
GPU_SENSOR = 0  # NVML_TEMPERATURE_GPU
SWITCH = 2  # NVML_NVLINK_DEVICE_TYPE_SWITCH
LEVELS = {0: "PIX", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}  # nvmlGpuTopologyLevel_t; 0: same board


class PciInfo(ctypes.Structure):
    _fields_ = (
        ("legacy", ctypes.c_char * 16),
        ("domain", ctypes.c_uint),
        ("bus", ctypes.c_uint),
        ("device", ctypes.c_uint),
        ("id", ctypes.c_uint),
        ("subsystem", ctypes.c_uint),
        ("text", ctypes.c_char * 32),
    )


class NvmlMemory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class Fabric(ctypes.Structure):
    _fields_ = (
        ("cluster", ctypes.c_ubyte * 16),
        ("status", ctypes.c_int),
        ("clique", ctypes.c_uint),
        ("state", ctypes.c_ubyte),
    )


_BUS = re.compile(r"(?:([0-9A-Fa-f]{1,8}):)?([0-9A-Fa-f]{2}):([0-9A-Fa-f]{2})\.([0-7])")
STATES = ("N/A", "Not Started", "In Progress", "Completed")  # nvidia-smi's words for nvmlGpuFabricState_t
Ends = list[tuple[int | None, str | None]]
Found = tuple[tuple[Gpu, ...], dict[tuple[str, str], Link], tuple[Wires, ...], dict[str, tuple[str, str]]]


def load() -> Any | None:
    """Load the library. Returns None if it cannot be loaded."""
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError:
        return None


def read(library: Any) -> Found | None:
    """(GPUs, class of each pair in both orders, NVLinks of each GPU, (state, status) of each GPU's fabric).

    Returns None if the driver does not answer.
    """
    with _started(library) as started:
        if not started:
            return None
        handles = list(_handles(library))
        devices = tuple(_device(library, at, handle) for at, handle in handles)
        wires, ends = [], []
        for (at, handle), device in zip(handles, devices):
            up, remote = _wires(library, handle)
            wires.append(Wires(at, device.name, tuple(up)))
            ends.append(remote)
        devices = tuple(replace(d, nvlinks=w.active) if w.up else d for d, w in zip(devices, wires))
        links = {}
        for (one, a, its_ends), (other, b, other_ends) in itertools.combinations(zip(handles, devices, ends), 2):
            found = _nvlinks(its_ends, other_ends, a.pci, b.pci) or _class(library, one[1], other[1])
            if found is not None:
                links[a.label, b.label] = links[b.label, a.label] = found
        fabric = {f"GPU{at}": state for at, handle in handles if (state := _fabric(library, handle)) is not None}
        return devices, links, tuple(each for each in wires if each.up), fabric


def state(library: Any, uuid: str) -> dict[str, Any]:
    """Facts on which a GPU's times depend, as far as known: driver version, clocks in MHz, power limit in W.

    uuid: 'GPU-...', as in CUDA.
    """
    found: dict[str, Any] = {}
    with _started(library) as started:
        handle, version = ctypes.c_void_p(), ctypes.create_string_buffer(96)
        if not started or not _ask(library, "nvmlDeviceGetHandleByUUID", uuid.encode(), ctypes.byref(handle)):
            return found
        if _ask(library, "nvmlSystemGetDriverVersion", version, ctypes.c_uint(96)):
            found["driver_version"] = version.value.decode(errors="replace")
        for name, kind in (("sm", SM_CLOCK), ("memory", MEMORY_CLOCK)):
            for word, ask in (("", "nvmlDeviceGetClockInfo"), ("_most", "nvmlDeviceGetMaxClockInfo")):
                if (value := _number(library, ask, handle, ctypes.c_uint(kind))) is not None:
                    found[f"{name}_clock{word}_mhz"] = value
        if (limit := _number(library, "nvmlDeviceGetEnforcedPowerLimit", handle)) is not None:
            found["power_limit_w"] = limit / 1000
    return found


def samples(library: Any, uuid: str) -> Iterator[dict[str, Any]]:
    """Samples of a GPU's state: MHz, W, degrees, reasons for throttling. A sample is read when the next item is taken.

    A sample has only the known facts. throttled: the bits nvmlClocksEventReason*. uuid: such as 'GPU-...', as in CUDA.
    There are no samples if the driver knows no such GPU.
    """
    with _started(library) as started:
        handle = ctypes.c_void_p()
        if not started or not _ask(library, "nvmlDeviceGetHandleByUUID", uuid.encode(), ctypes.byref(handle)):
            return
        while True:
            found: dict[str, Any] = {}
            for name, kind in (("sm", SM_CLOCK), ("memory", MEMORY_CLOCK)):
                if (clock := _number(library, "nvmlDeviceGetClockInfo", handle, ctypes.c_uint(kind))) is not None:
                    found[f"{name}_clock_mhz"] = clock
            if (power := _number(library, "nvmlDeviceGetPowerUsage", handle)) is not None:
                found["power_w"] = power / 1000
            if (heat := _number(library, "nvmlDeviceGetTemperature", handle, ctypes.c_uint(GPU_SENSOR))) is not None:
                found["celsius"] = heat
            bits = ctypes.c_ulonglong()
            if _ask(library, "nvmlDeviceGetCurrentClocksThrottleReasons", handle, ctypes.byref(bits)):
                found["throttled"] = bits.value
            yield found


@contextlib.contextmanager
def _started(library: Any) -> Iterator[bool]:
    try:
        yes = library.nvmlInit_v2() == OK
    except AttributeError:
        yes = False
    try:
        yield yes
    finally:
        if yes:
            library.nvmlShutdown()


def _ask(library: Any, name: str, *arguments: Any) -> bool:
    """Call a function that older drivers may lack. Returns whether it succeeded."""
    try:
        return getattr(library, name)(*arguments) == OK
    except AttributeError:
        return False


def _number(library: Any, name: str, *arguments: Any) -> int | None:
    value = ctypes.c_uint()
    return value.value if _ask(library, name, *arguments, ctypes.byref(value)) else None


def _text(library: Any, name: str, handle: ctypes.c_void_p) -> str | None:
    buffer = ctypes.create_string_buffer(96)
    return buffer.value.decode(errors="replace") if _ask(library, name, handle, buffer, ctypes.c_uint(96)) else None


def _handles(library: Any) -> Iterator[tuple[int, ctypes.c_void_p]]:
    """(number, handle) of each GPU. A GPU that has fallen off the bus has no handle, but keeps its number."""
    for at in range(_number(library, "nvmlDeviceGetCount_v2") or 0):
        handle = ctypes.c_void_p()
        if _ask(library, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(at), ctypes.byref(handle)):
            yield at, handle


def bus_id(text: str) -> str | None:
    """'00000000:41:00.0' -> '0000:41:00.0', the device's name in sysfs. Other texts give None."""
    found = _BUS.fullmatch(text.strip())
    return f"{int(found[1] or '0', 16):04x}:{found[2]}:{found[3]}.{found[4]}".lower() if found else None


def _pci(library: Any, name: str, *arguments: Any) -> str | None:
    info = PciInfo()
    return bus_id(info.text.decode()) if _ask(library, name, *arguments, ctypes.byref(info)) else None


def _device(library: Any, at: int, handle: ctypes.c_void_p) -> Gpu:
    memory = NvmlMemory()
    device = Gpu(
        at,
        name=_text(library, "nvmlDeviceGetName", handle),
        uuid=_text(library, "nvmlDeviceGetUUID", handle),
        pci=_pci(library, "nvmlDeviceGetPciInfo_v3", handle),
        gpu_numa=domain if (domain := _number(library, "nvmlDeviceGetNumaNodeId", handle)) != NO_NUMA else None,
    )
    if _ask(library, "nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory)):
        device = replace(device, memory=memory.total)
    return replace(device, mig=tuple(_slices(library, handle)))


def _slices(library: Any, handle: ctypes.c_void_p) -> Iterator[Mig]:
    current, pending = ctypes.c_uint(), ctypes.c_uint()
    if not _ask(library, "nvmlDeviceGetMigMode", handle, ctypes.byref(current), ctypes.byref(pending)):
        return
    for at in range(_number(library, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0 if current.value else 0):
        mig = ctypes.c_void_p()
        if _ask(library, "nvmlDeviceGetMigDeviceHandleByIndex", handle, ctypes.c_uint(at), ctypes.byref(mig)):
            name = _text(library, "nvmlDeviceGetName", mig) or ""
            yield Mig(at, _text(library, "nvmlDeviceGetUUID", mig) or "", name.rpartition("MIG ")[2])


def _wires(library: Any, handle: ctypes.c_void_p) -> tuple[list[bool], Ends]:
    """(whether each link is active, (kind, address) of the remote end of each active link)."""
    states: list[bool] = []
    ends = []
    for link in range(MOST_LINKS):
        active = _number(library, "nvmlDeviceGetNvLinkState", handle, ctypes.c_uint(link))
        if active is None:
            break  # the GPU has no link of this number
        states.append(active != 0)
        if active:
            kind = _number(library, "nvmlDeviceGetNvLinkRemoteDeviceType", handle, ctypes.c_uint(link))
            ends.append((kind, _pci(library, "nvmlDeviceGetNvLinkRemotePciInfo_v2", handle, ctypes.c_uint(link))))
    return states, ends


def _nvlinks(one: Ends, other: Ends, a: str | None, b: str | None) -> Link | None:
    """The number of NVLinks between two GPUs: direct links, or with switches the smaller number of the two GPUs'
    links."""
    switched = min(sum(kind == SWITCH for kind, _ in ends) for ends in (one, other))
    direct = min(sum(end == b and b is not None for _, end in one), sum(end == a and a is not None for _, end in other))
    return Link("NV", switched or direct) if switched or direct else None


def _fabric(library: Any, handle: ctypes.c_void_p) -> tuple[str, str] | None:
    info = Fabric()
    if not _ask(library, "nvmlDeviceGetGpuFabricInfo", handle, ctypes.byref(info)) or info.state >= len(STATES):
        return None
    return STATES[info.state], "Success" if info.status == OK else f"NVML error {info.status}"


def _class(library: Any, one: ctypes.c_void_p, other: ctypes.c_void_p) -> Link | None:
    level = _number(library, "nvmlDeviceGetTopologyCommonAncestor", one, other)
    return Link(LEVELS[level]) if level in LEVELS else None
