"""A fake of NVML and its GPUs, called through ctypes like the library."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

UNSUPPORTED = 3
SWITCH, PEER = 2, 0


@dataclass
class FakeGpu:
    """A GPU's facts. nvlinks: for each link (kind, PCI address) of the remote end, or None if the link is inactive."""

    name: str
    uuid: str
    pci: str
    memory: int = 80 << 30
    nvlinks: list[tuple[int, str] | None] = field(default_factory=list)
    mig: list[tuple[str, str]] = field(default_factory=list)  # (name, UUID)
    numa: int | None = None
    fabric: tuple[int, int] | None = None  # nvmlGpuFabricState_t, nvmlReturn_t


class Library:
    """NVML's functions. levels: two GPUs' numbers, the lower one first -> nvmlGpuTopologyLevel_t."""

    def __init__(self, gpus: list[FakeGpu], levels: dict[tuple[int, int], int], works: bool = True) -> None:
        self.gpus, self.levels, self.works, self.open = gpus, levels, works, 0

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("nvml"):
            raise AttributeError(name)
        answer = getattr(type(self), f"do_{name}", None)
        if answer is None:  # an older driver lacks this function
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            return answer(self, *(getattr(each, "_obj", each) for each in arguments))

        return call

    def do_nvmlInit_v2(self) -> int:
        self.open += self.works
        return 0 if self.works else 9  # NVML_ERROR_DRIVER_NOT_LOADED

    def do_nvmlShutdown(self) -> int:
        self.open -= 1
        return 0

    def do_nvmlSystemGetDriverVersion(self, buffer: Any, size: ctypes.c_uint) -> int:
        buffer.value = b"580.95.05"
        return 0

    def do_nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: ctypes.c_void_p) -> int:
        found = [at for at, gpu in enumerate(self.gpus) if gpu.uuid == uuid.decode()]
        handle.value = 1000 * (found[0] + 1) if found else 0
        return 0 if found else 6  # NVML_ERROR_NOT_FOUND

    def do_nvmlDeviceGetClockInfo(self, handle: ctypes.c_void_p, kind: ctypes.c_uint, clock: ctypes.c_uint) -> int:
        clock.value = 100 * handle.value + kind.value
        return 0

    def do_nvmlDeviceGetMaxClockInfo(self, handle: ctypes.c_void_p, kind: ctypes.c_uint, clock: ctypes.c_uint) -> int:
        return UNSUPPORTED

    def do_nvmlDeviceGetEnforcedPowerLimit(self, handle: ctypes.c_void_p, limit: ctypes.c_uint) -> int:
        limit.value = 700_000
        return 0

    def do_nvmlDeviceGetPowerUsage(self, handle: ctypes.c_void_p, power: ctypes.c_uint) -> int:
        power.value = 350_000
        return 0

    def do_nvmlDeviceGetTemperature(self, handle: ctypes.c_void_p, sensor: ctypes.c_uint, heat: ctypes.c_uint) -> int:
        heat.value = 61
        return 0

    def do_nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: ctypes.c_void_p, bits: ctypes.c_ulonglong) -> int:
        bits.value = 0x44
        return 0

    def do_nvmlDeviceGetCount_v2(self, count: ctypes.c_uint) -> int:
        count.value = len(self.gpus)
        return 0

    def do_nvmlDeviceGetHandleByIndex_v2(self, at: ctypes.c_uint, handle: ctypes.c_void_p) -> int:
        handle.value = 1000 * (at.value + 1)
        return 0

    def _gpu(self, handle: ctypes.c_void_p) -> FakeGpu:
        return self.gpus[handle.value // 1000 - 1]

    def _text(self, handle: ctypes.c_void_p, buffer: Any, whole: str, part: int) -> int:
        slice_ = handle.value % 1000
        buffer.value = (self._gpu(handle).mig[slice_ - 1][part] if slice_ else whole).encode()
        return 0

    def do_nvmlDeviceGetName(self, handle: ctypes.c_void_p, buffer: Any, size: ctypes.c_uint) -> int:
        return self._text(handle, buffer, self._gpu(handle).name, 0)

    def do_nvmlDeviceGetUUID(self, handle: ctypes.c_void_p, buffer: Any, size: ctypes.c_uint) -> int:
        return self._text(handle, buffer, self._gpu(handle).uuid, 1)

    def do_nvmlDeviceGetPciInfo_v3(self, handle: ctypes.c_void_p, info: Any) -> int:
        info.text = f"0000{self._gpu(handle).pci}".upper().encode()
        return 0

    def do_nvmlDeviceGetMemoryInfo(self, handle: ctypes.c_void_p, memory: Any) -> int:
        memory.total = self._gpu(handle).memory
        return 0

    def do_nvmlDeviceGetNumaNodeId(self, handle: ctypes.c_void_p, node: ctypes.c_uint) -> int:
        numa = self._gpu(handle).numa
        node.value = numa or 0
        return UNSUPPORTED if numa is None else 0

    def do_nvmlDeviceGetMigMode(self, handle: ctypes.c_void_p, current: Any, pending: Any) -> int:
        current.value = bool(self._gpu(handle).mig)
        return 0

    def do_nvmlDeviceGetMaxMigDeviceCount(self, handle: ctypes.c_void_p, count: Any) -> int:
        count.value = 7
        return 0

    def do_nvmlDeviceGetMigDeviceHandleByIndex(self, handle: ctypes.c_void_p, at: Any, mig: Any) -> int:
        mig.value = handle.value + at.value + 1
        return 0 if at.value < len(self._gpu(handle).mig) else 6

    def _link(self, handle: ctypes.c_void_p, link: ctypes.c_uint) -> Any:
        links = self._gpu(handle).nvlinks
        return links[link.value] if link.value < len(links) else UNSUPPORTED

    def do_nvmlDeviceGetNvLinkState(self, handle: ctypes.c_void_p, link: Any, state: Any) -> int:
        found = self._link(handle, link)
        state.value = found not in (None, UNSUPPORTED)
        return UNSUPPORTED if found == UNSUPPORTED else 0

    def do_nvmlDeviceGetNvLinkRemoteDeviceType(self, handle: ctypes.c_void_p, link: Any, kind: Any) -> int:
        kind.value = self._link(handle, link)[0]
        return 0

    def do_nvmlDeviceGetNvLinkRemotePciInfo_v2(self, handle: ctypes.c_void_p, link: Any, info: Any) -> int:
        info.text = f"0000{self._link(handle, link)[1]}".encode()
        return 0

    def do_nvmlDeviceGetTopologyCommonAncestor(self, one: Any, other: Any, level: Any) -> int:
        pair = sorted((one.value // 1000 - 1, other.value // 1000 - 1))
        level.value = self.levels.get((pair[0], pair[1]), 50)
        return 0

    def do_nvmlDeviceGetGpuFabricInfo(self, handle: ctypes.c_void_p, info: Any) -> int:
        fabric = self._gpu(handle).fabric
        info.state, info.status = fabric or (0, 0)
        return UNSUPPORTED if fabric is None else 0
