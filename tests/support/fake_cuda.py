"""A fake of the CUDA driver and its GPUs, called like cuda.bindings.

Stricter than a driver: work on a stream is done only when the stream is waited for, calls need a current context, and
freeing memory that another process has open is a violation. On a computer without a driver, every call first goes to
cuda.bindings' own function, which checks the arguments and then finds no library.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

REAL: Any = importlib.import_module("cuda.bindings.driver")
KERNEL_REGISTERS, KERNEL_STATIC = 40, 1024
GRAIN = 2 << 20


@functools.cache
def no_driver() -> bool:
    """Is there no driver on this computer?"""
    try:
        REAL.cuInit(0)
    except RuntimeError:
        return True
    return False


@dataclass
class Gpu:
    """reaches: numbers of the GPUs whose memory it can load and store."""

    uuid: bytes
    name: str = "NVIDIA Made-up"
    capability: tuple[int, int] = (9, 0)
    sms: int = 132
    memory: int = 1 << 30
    shared: int = 227 << 10
    reaches: set[int] = field(default_factory=set)


@dataclass
class Allocation:
    owner: Process
    gpu: int
    data: np.ndarray
    start: int
    open: int = 0  # mappings in other processes
    freed: bool = False


class Machine:
    """GPUs that all reach each other. log: (process, function) of successful calls. violations: undefined behaviour."""

    def __init__(self, gpus: int = 2, **of_each: Any) -> None:
        self.gpus = [Gpu(bytes([0xA0 + n] * 16), reaches=set(range(gpus)) - {n}, **of_each) for n in range(gpus)]
        self.lock = threading.RLock()
        self.allocations: dict[bytes, Allocation] = {}
        self.log: list[tuple[int, str]] = []
        self.violations: list[str] = []
        self.numbers = itertools.count(1)

    def used(self, gpu: int) -> int:
        return sum(a.data.size for a in self.allocations.values() if a.gpu == gpu and not a.freed)


class Process:
    """One process's state; visible: numbers of the machine's GPUs, in the order of its ordinals."""

    def __init__(self, machine: Machine, visible: list[int] | None = None) -> None:
        self.machine = machine
        self.visible = list(range(len(machine.gpus))) if visible is None else visible
        self.number = next(machine.numbers)
        self.started = False
        self.contexts = threading.local()
        self.maps: dict[int, Allocation] = {}  # address here -> allocation
        self.streams: dict[int, list[Callable[[], None]]] = {0: []}
        self.captures: dict[int, int] = {}  # stream -> its length when its capture began
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.events: dict[int, float] = {}
        self.pinned: dict[int, Any] = {}
        self.modules: dict[int, bytes] = {}
        self.allowed: dict[int, int] = {}  # function -> dynamic shared bytes
        self.launches: list[SimpleNamespace] = []
        self.now = 0.0

    def stack(self) -> list[int]:
        if not hasattr(self.contexts, "of"):
            self.contexts.of = []
        return self.contexts.of


class Failure(Exception):
    """A function's error; its text is the driver's name of it."""


class Driver:
    """The module. process: of the calling thread, or the first one. fail: function -> the error of all its calls."""

    def __init__(self, process: Process) -> None:
        self.first = process
        self.here = threading.local()
        self.fail: dict[str, str] = {}
        self.check = no_driver()

    @property
    def process(self) -> Process:
        return getattr(self.here, "process", self.first)

    def __getattr__(self, name: str) -> Any:
        answer = getattr(type(self), f"do_{name}", None)
        if answer is None:
            value = getattr(REAL, name)  # a type or a constant
            if name.startswith("cu") and not isinstance(value, type):
                raise NotImplementedError(f"the fake driver has no {name}")
            return value

        def call(*arguments: Any) -> tuple[Any, ...]:
            if self.check:
                with contextlib.suppress(RuntimeError):  # no library
                    getattr(REAL, name)(*arguments)
            try:
                if name in self.fail:
                    raise Failure(self.fail[name])
                with self.process.machine.lock:
                    value = answer(self, self.process, *arguments)
            except Failure as error:
                return (getattr(REAL.CUresult, str(error)), None)
            self.process.machine.log.append((self.process.number, name))
            return (REAL.CUresult.CUDA_SUCCESS,) if value is None else (REAL.CUresult.CUDA_SUCCESS, value)

        return call

    # ---- devices and contexts ----
    def do_cuInit(self, p: Process, flags: int) -> None:
        if not p.visible:
            raise Failure("CUDA_ERROR_NO_DEVICE")
        p.started = True

    def do_cuDriverGetVersion(self, p: Process) -> int:
        return 12090

    def do_cuDeviceGetCount(self, p: Process) -> int:
        if not p.started:
            raise Failure("CUDA_ERROR_NOT_INITIALIZED")
        return len(p.visible)

    def do_cuDeviceGet(self, p: Process, ordinal: int) -> int:
        if not 0 <= ordinal < len(p.visible):
            raise Failure("CUDA_ERROR_INVALID_DEVICE")
        return ordinal

    def do_cuDeviceGetName(self, p: Process, length: int, device: int) -> bytes:
        return p.machine.gpus[p.visible[device]].name.encode().ljust(length, b"\0")

    def do_cuDeviceGetUuid_v2(self, p: Process, device: int) -> Any:
        return SimpleNamespace(bytes=p.machine.gpus[p.visible[device]].uuid)

    def do_cuDeviceGetAttribute(self, p: Process, name: Any, device: int) -> int:
        gpu = p.machine.gpus[p.visible[device]]
        return {
            "COMPUTE_CAPABILITY_MAJOR": gpu.capability[0], "COMPUTE_CAPABILITY_MINOR": gpu.capability[1],
            "MULTIPROCESSOR_COUNT": gpu.sms, "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": gpu.shared,
        }[name.name.removeprefix("CU_DEVICE_ATTRIBUTE_")]  # fmt: skip

    def do_cuDeviceCanAccessPeer(self, p: Process, device: int, peer: int) -> int:
        return int(p.visible[peer] in p.machine.gpus[p.visible[device]].reaches)

    def do_cuDevicePrimaryCtxRetain(self, p: Process, device: int) -> int:
        return 100 + device

    def do_cuCtxPushCurrent(self, p: Process, context: int) -> None:
        p.stack().append(context)

    def do_cuCtxPopCurrent(self, p: Process) -> int:
        return p.stack().pop()

    def gpu(self, p: Process) -> int:
        """The machine's number of the GPU whose context is current."""
        if not p.stack():
            raise Failure("CUDA_ERROR_INVALID_CONTEXT")
        return p.visible[p.stack()[-1] - 100]

    # ---- memory ----
    def cuMemGetInfo(self) -> tuple[Any, ...]:
        """The only function with two results."""
        p = self.process
        whole = p.machine.gpus[self.gpu(p)].memory
        return REAL.CUresult.CUDA_SUCCESS, whole - p.machine.used(self.gpu(p)), whole

    def do_cuMemAlloc(self, p: Process, nbytes: int) -> int:
        gpu = self.gpu(p)
        if p.machine.used(gpu) + nbytes > p.machine.gpus[gpu].memory:
            raise Failure("CUDA_ERROR_OUT_OF_MEMORY")
        data = np.full(nbytes, 0xEE, np.uint8)  # fresh memory is not zero
        start = self.place(p, nbytes)
        made = Allocation(p, gpu, data, start)
        p.machine.allocations[start.to_bytes(8, "little").ljust(64, b"\xab")] = made
        p.maps[start] = made
        return start

    def place(self, p: Process, nbytes: int) -> int:
        """A range of addresses of its own, with a gap behind."""
        first, *_ = [next(p.machine.numbers) for _ in range(nbytes // GRAIN + 2)]
        return (1 << 40) + GRAIN * first

    def do_cuMemFree(self, p: Process, address: int) -> None:
        made = p.maps.get(address)
        if made is None or made.owner is not p or made.start != address:
            raise Failure("CUDA_ERROR_INVALID_VALUE")
        if made.open:
            p.machine.violations.append(f"process {p.number} freed memory that {made.open} other processes have open")
        made.freed = True
        del p.maps[address]

    def do_cuMemHostAlloc(self, p: Process, nbytes: int, flags: int) -> int:
        self.gpu(p)
        memory = np.full(nbytes, 0xEE, np.uint8)
        p.pinned[memory.ctypes.data] = memory
        return memory.ctypes.data

    def do_cuMemHostGetDevicePointer(self, p: Process, address: int, flags: int) -> int:
        return address + (1 << 50)

    def do_cuMemFreeHost(self, p: Process, address: int) -> None:
        del p.pinned[address]

    def do_cuMemHostRegister(self, p: Process, address: int, nbytes: int, flags: int) -> None:
        self.gpu(p)
        if address in p.pinned:
            raise Failure("CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED")
        p.pinned[address] = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

    def do_cuMemHostUnregister(self, p: Process, address: int) -> None:
        if address not in p.pinned:
            raise Failure("CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED")
        del p.pinned[address]

    def view(self, p: Process, address: int, nbytes: int) -> np.ndarray:
        for start, made in p.maps.items():
            if start <= address and address + nbytes <= start + made.data.size and not made.freed:
                return made.data[address - start : address - start + nbytes]
        raise Failure("CUDA_ERROR_INVALID_VALUE")

    def do_cuMemcpyHtoDAsync(self, p: Process, to: int, source: int, nbytes: int, stream: int) -> None:
        self.gpu(p)
        view = self.view(p, to, nbytes)
        p.streams[stream].append(lambda: ctypes.memmove(view.ctypes.data, source, nbytes))

    def do_cuMemcpyDtoHAsync(self, p: Process, to: int, source: int, nbytes: int, stream: int) -> None:
        self.gpu(p)
        view = self.view(p, source, nbytes)
        p.streams[stream].append(lambda: ctypes.memmove(to, view.ctypes.data, nbytes))

    def do_cuMemcpyDtoDAsync(self, p: Process, to: int, source: int, nbytes: int, stream: int) -> None:
        self.gpu(p)
        target, view = self.view(p, to, nbytes), self.view(p, source, nbytes)
        p.streams[stream].append(lambda: ctypes.memmove(target.ctypes.data, view.ctypes.data, nbytes))

    # ---- graphs: the work that a stream got after its capture began ----
    def do_cuStreamBeginCapture(self, p: Process, stream: int, mode: Any) -> None:
        self.gpu(p)
        p.captures[stream] = len(p.streams[stream])

    def do_cuStreamEndCapture(self, p: Process, stream: int) -> int:
        start, number = p.captures.pop(stream), next(p.machine.numbers)
        p.graphs[number] = p.streams[stream][start:]
        del p.streams[stream][start:]
        return number

    def do_cuGraphInstantiate(self, p: Process, graph: int, flags: int) -> int:
        return graph

    def do_cuGraphLaunch(self, p: Process, graph: int, stream: int) -> None:
        self.gpu(p)
        p.streams[stream].extend(p.graphs[graph])

    def do_cuMemsetD8Async(self, p: Process, to: int, value: int, nbytes: int, stream: int) -> None:
        self.gpu(p)
        p.streams[stream].append(lambda: self.view(p, to, nbytes).fill(value))

    # ---- kernels ----
    def do_cuModuleLoadData(self, p: Process, image: bytes) -> int:
        self.gpu(p)
        if image[:4] != b"\x7fELF":
            raise Failure("CUDA_ERROR_INVALID_IMAGE")
        p.modules[number := next(p.machine.numbers)] = image
        return number

    def do_cuModuleGetFunction(self, p: Process, module: int, name: bytes) -> int:
        if name not in p.modules[module]:
            raise Failure("CUDA_ERROR_NOT_FOUND")
        p.allowed[number := next(p.machine.numbers)] = (48 << 10) - KERNEL_STATIC
        return number

    def do_cuFuncGetAttribute(self, p: Process, name: Any, function: int) -> int:
        known = {"NUM_REGS": KERNEL_REGISTERS, "SHARED_SIZE_BYTES": KERNEL_STATIC}
        return known[name.name.removeprefix("CU_FUNC_ATTRIBUTE_")]

    def do_cuFuncSetAttribute(self, p: Process, function: int, name: Any, value: int) -> None:
        assert name.name == "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"
        if value + KERNEL_STATIC > p.machine.gpus[self.gpu(p)].shared:
            raise Failure("CUDA_ERROR_INVALID_VALUE")
        p.allowed[function] = value

    def do_cuOccupancyMaxActiveBlocksPerMultiprocessor(
        self, p: Process, function: int, threads: int, shared: int
    ) -> int:
        if shared > p.allowed[function]:
            return 0
        return min(2048 // threads, (228 << 10) // (shared + KERNEL_STATIC + 1024))

    def do_cuLaunchKernel(self, p: Process, function: int, *rest: Any) -> None:
        x, y, z, bx, by, bz, shared, stream, parameters, _ = rest
        self.gpu(p)
        if shared > p.allowed[function]:
            raise Failure("CUDA_ERROR_INVALID_VALUE")
        made = SimpleNamespace(
            function=function, grid=(x, y, z), block=(bx, by, bz), shared=shared, stream=stream, values=parameters[0],
            types=parameters[1],
        )  # fmt: skip
        p.streams[stream].append(lambda: p.launches.append(made))

    # ---- order and time ----
    def do_cuStreamCreate(self, p: Process, flags: int) -> int:
        assert flags == 1, "a stream that waits for the default one"
        p.streams[number := next(p.machine.numbers)] = []
        return number

    def do_cuStreamSynchronize(self, p: Process, stream: int) -> None:
        self.gpu(p)
        queue, p.streams[stream] = p.streams[stream], []
        for work in queue:
            work()

    def do_cuStreamQuery(self, p: Process, stream: int) -> None:
        """Each query completes one more piece of work."""
        self.gpu(p)
        if p.streams[stream]:
            p.streams[stream].pop(0)()
        if p.streams[stream]:
            raise Failure("CUDA_ERROR_NOT_READY")

    def do_cuEventCreate(self, p: Process, flags: int) -> int:
        assert flags == 0, "an event without time"
        return next(p.machine.numbers)

    def do_cuEventRecord(self, p: Process, event: int, stream: int) -> None:
        def happen() -> None:
            p.now += 2.5  # milliseconds
            p.events[event] = p.now

        p.streams[stream].append(happen)

    def do_cuEventSynchronize(self, p: Process, event: int) -> None:
        for stream in p.streams:
            self.do_cuStreamSynchronize(p, stream)

    def do_cuEventElapsedTime(self, p: Process, a: int, b: int) -> float:
        if not {a, b} <= set(p.events):
            raise Failure("CUDA_ERROR_NOT_READY")
        return p.events[b] - p.events[a]

    # ---- memory of other processes ----
    def do_cuIpcGetMemHandle(self, p: Process, address: int) -> Any:
        for code, made in p.machine.allocations.items():
            if made.start == address and made.owner is p and not made.freed:
                handle = REAL.CUipcMemHandle()
                ctypes.memmove(handle.getPtr(), code, 64)
                return handle
        raise Failure("CUDA_ERROR_INVALID_VALUE")

    def do_cuIpcOpenMemHandle(self, p: Process, handle: Any, flags: int) -> int:
        made = p.machine.allocations.get(ctypes.string_at(handle.getPtr(), 64))
        if made is None or made.freed:
            raise Failure("CUDA_ERROR_INVALID_HANDLE")
        if made.owner is p:
            raise Failure("CUDA_ERROR_INVALID_CONTEXT")
        gpu = self.gpu(p)
        if made.gpu not in p.visible:
            raise Failure("CUDA_ERROR_INVALID_VALUE")
        if made.gpu != gpu and (flags != 1 or made.gpu not in p.machine.gpus[gpu].reaches):
            raise Failure("CUDA_ERROR_PEER_ACCESS_UNSUPPORTED")
        made.open += 1
        address = self.place(p, made.data.size)
        p.maps[address] = made
        return address

    def do_cuIpcCloseMemHandle(self, p: Process, address: int) -> None:
        made = p.maps.get(address)
        if made is None or made.owner is p:
            raise Failure("CUDA_ERROR_INVALID_VALUE")
        made.open -= 1
        del p.maps[address]
