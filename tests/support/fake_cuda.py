"""A stand-in for the CUDA driver and its GPUs. It is called like cuda.bindings, and checks CUDA's rules.

fake_streams.py has streams, events, captures and graphs. fake_kernels.py has kernels, which are resident on the PTX
machine. The stand-in is stricter than a driver: work is done only when a thread waits for it, calls need a current
context, and behaviour that CUDA leaves undefined is a violation. On a computer without a driver, every call first goes
to cuda.bindings' own function, which checks the arguments and then finds no library. fake_streams.py explains DA and
PG.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import itertools
import random
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import fake_kernels
import numpy as np
from fake_kernels import Arena, Resident, Sms, address, kernel_of
from fake_streams import Event, Failure, Graph, Op, SharedLock, Stream, Streams, at_once

from kernel_cache import sm_limits as limits
from kernel_cache.offline import capability

REAL: Any = importlib.import_module("cuda.bindings.driver")
KERNEL_REGISTERS, KERNEL_STATIC = 32, 1024  # facts of images that are not made from a catalogue.Kernel
FOREIGN = 1 << 50  # a GPU's address for registered host memory; kernels of the stand-in cannot use it


@functools.cache
def no_driver() -> bool:
    """Whether there is no driver on this computer."""
    try:
        REAL.cuInit(0)
    except RuntimeError:
        return True
    return False


@dataclass
class Gpu:
    """A GPU. reaches: numbers of the GPUs whose memory it can load and store."""

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
    start: int
    nbytes: int
    open: int = 0  # number of mappings in other processes
    freed: bool = False
    arena: Any = None

    @property
    def data(self) -> np.ndarray:
        return self.arena.bytes[self.start : self.start + self.nbytes]


class Machine:
    """GPUs that all reach each other. log: (process, function) of successful calls. violations: undefined behaviour.

    eager: the probability that a turn also advances work that no thread waits for. seconds: a longer wait has failed.
    """

    def __init__(self, gpus: int = 2, eager: float = 0.0, seed: int = 0, seconds: float = 60.0, **of_each: Any) -> None:
        self.gpus = [Gpu(bytes([0xA0 + n] * 16), reaches=set(range(gpus)) - {n}, **of_each) for n in range(gpus)]
        self.lock = SharedLock()
        self.arena = Arena()
        self.sms = [Sms(gpu.sms, limits.limits_of(gpu.capability)) for gpu in self.gpus]
        self.allocations: dict[bytes, Allocation] = {}
        self.log: list[tuple[int, str]] = []
        self.violations: list[str] = []
        self.numbers = itertools.count(3)  # numbers of streams; 1 and 2 have special meanings
        self.work: list[Op] = []
        self.resident: dict[tuple[int, str], int] = {}  # (process, kernel) -> launches that reside on GPUs now
        self.most: dict[tuple[int, str], int] = {}  # (process, kernel) -> the most launches that resided at once
        self.eager, self.random, self.seconds = eager, random.Random(seed), seconds

    def resides(self, process: int, kernel: str, change: int) -> None:
        """Count a launch that starts (1) or ends (-1)."""
        key = process, kernel
        self.resident[key] = self.resident.get(key, 0) + change
        self.most[key] = max(self.most.get(key, 0), self.resident[key])

    def used(self, gpu: int) -> int:
        return sum(a.nbytes for a in self.allocations.values() if a.gpu == gpu and not a.freed)


class Process:
    """One process's state. visible: the machine's numbers of its GPUs, in the order of CUDA_VISIBLE_DEVICES.

    permitted: the GPUs that the system lets it use, for example by a cgroup. namespace: its namespace of process ids.
    """

    def __init__(
        self, machine: Machine, visible: list[int] | None = None, permitted: list[int] | None = None, namespace: int = 0
    ) -> None:
        self.machine, self.namespace = machine, namespace
        self.visible = list(range(len(machine.gpus))) if visible is None else visible
        self.permitted = list(range(len(machine.gpus))) if permitted is None else permitted
        self.number = next(machine.numbers)
        self.lock = threading.RLock()  # the driver's lock
        self.started = False
        self.of_thread = threading.local()
        self.maps: dict[int, tuple[Allocation, int]] = {}  # a GPU's address here -> (allocation, place in the arena)
        self.streams: dict[int, Stream] = {}
        self.legacy: dict[int, Stream] = {}  # GPU -> its default stream
        self.own: dict[tuple[int, int], Stream] = {}  # (GPU, thread) -> the thread's default stream
        self.graphs: dict[int, Graph] = {}
        self.bodies: set[int] = set()  # numbers of graphs that are bodies of conditional nodes
        self.events: dict[int, Event] = {}
        self.pinned: dict[int, int] = {}  # host address -> bytes
        self.modules: dict[int, bytes] = {}
        self.kernels: dict[int, Any] = {}  # function -> catalogue.Kernel
        self.allowed: dict[int, int] = {}  # function -> dynamic shared bytes
        self.launches: list[SimpleNamespace] = []
        self.now = 0.0

    def stack(self) -> list[int]:
        if not hasattr(self.of_thread, "contexts"):
            self.of_thread.contexts = []
        return self.of_thread.contexts

    def mode(self, new: int | None = None) -> Any:
        """The capture mode of this thread."""
        before = getattr(self.of_thread, "mode", 0)
        if new is None:
            return before
        self.of_thread.mode = new
        return REAL.CUstreamCaptureMode(before)


class Driver(Streams):
    """Stands in for the driver's module. process: the calling thread's, or the first one.

    fail: function -> the error of all its calls.
    """

    real = REAL
    # These may hold the driver's lock while they wait for all work of the context: PG, "Implicit Synchronization" and
    # "Lazy Loading" ("might require context synchronization"); DA "API synchronization behavior".
    HOLDS = frozenset(
        {
            "cuMemAlloc",
            "cuMemFree",
            "cuMemHostAlloc",
            "cuMemFreeHost",
            "cuMemHostRegister",
            "cuMemHostUnregister",
            "cuModuleLoadData",
        }
    )
    # calls that wait without the lock
    WAITS = frozenset({"cuStreamSynchronize", "cuEventSynchronize", "cuCtxSynchronize"})

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
            p = self.process
            if self.check:
                with contextlib.suppress(RuntimeError):  # raised because there is no library
                    getattr(REAL, name)(*arguments)
            try:
                if name in self.fail:
                    raise Failure(self.fail[name])
                with p.machine.lock:
                    self.refuse_unsafe(p, name)
                with contextlib.nullcontext() if name in self.WAITS else self.locked(p, name):
                    if name in self.HOLDS:
                        self.wait(p, self.unfinished(p, self.gpu(p)), f"{name}, which holds the driver's lock,")
                    with contextlib.nullcontext() if name in self.WAITS else p.machine.lock:
                        value = answer(self, p, *arguments)
            except Failure as error:
                return (getattr(REAL.CUresult, str(error)), None)
            p.machine.log.append((p.number, name))
            return (REAL.CUresult.CUDA_SUCCESS,) if value is None else (REAL.CUresult.CUDA_SUCCESS, value)

        return call

    @contextlib.contextmanager
    def locked(self, p: Process, name: str) -> Any:
        """Hold the driver's lock. Every call but a wait takes it."""
        if not p.lock.acquire(timeout=2 * p.machine.seconds):
            p.machine.violations.append(f"process {p.number}: {name} waits for the driver's lock for ever")
            raise Failure("CUDA_ERROR_UNKNOWN")
        try:
            yield
        finally:
            p.lock.release()

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
        limit = limits.limits_of(gpu.capability)
        return {
            "COMPUTE_CAPABILITY_MAJOR": gpu.capability[0],
            "COMPUTE_CAPABILITY_MINOR": gpu.capability[1],
            "MULTIPROCESSOR_COUNT": gpu.sms,
            "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": gpu.shared,
            "MAX_THREADS_PER_MULTIPROCESSOR": limit.threads,
            "MAX_BLOCKS_PER_MULTIPROCESSOR": limit.blocks,
            "MAX_SHARED_MEMORY_PER_MULTIPROCESSOR": limit.shared,
            "MAX_REGISTERS_PER_MULTIPROCESSOR": limit.registers,
            "MAX_THREADS_PER_BLOCK": limit.block_threads,
        }[name.name.removeprefix("CU_DEVICE_ATTRIBUTE_")]

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
        """Return several results, which `do_` methods cannot do.

        The functions for captures in fake_streams.py do so too.
        """
        p = self.process
        whole = p.machine.gpus[self.gpu(p)].memory
        return REAL.CUresult.CUDA_SUCCESS, whole - p.machine.used(self.gpu(p)), whole

    def do_cuMemAlloc(self, p: Process, nbytes: int) -> int:
        gpu = self.gpu(p)
        if p.machine.used(gpu) + nbytes > p.machine.gpus[gpu].memory:
            raise Failure("CUDA_ERROR_OUT_OF_MEMORY")
        start = p.machine.arena.take(nbytes)
        made = Allocation(p, gpu, start, nbytes, arena=p.machine.arena)
        p.machine.allocations[next(p.machine.numbers).to_bytes(8, "little").ljust(64, b"\xab")] = made
        p.maps[address(start)] = made, start
        return address(start)

    def do_cuMemFree(self, p: Process, at: int) -> None:
        made, start = p.maps.get(int(at), (None, 0))
        if made is None or made.owner is not p or made.start != start:
            raise Failure("CUDA_ERROR_INVALID_VALUE")
        if made.open:
            p.machine.violations.append(f"process {p.number} freed memory that {made.open} other processes have open")
        made.freed = True
        del p.maps[int(at)]

    def do_cuMemHostAlloc(self, p: Process, nbytes: int, flags: int) -> int:
        self.gpu(p)
        at = p.machine.arena.base + p.machine.arena.take(nbytes)
        p.pinned[at] = nbytes
        return at

    def do_cuMemHostGetDevicePointer(self, p: Process, at: int, flags: int) -> int:
        if not any(start <= at < start + nbytes for start, nbytes in p.pinned.items()):
            raise Failure("CUDA_ERROR_INVALID_VALUE")
        place = at - p.machine.arena.base
        return address(place) if 0 <= place < len(p.machine.arena.bytes) else at + FOREIGN

    def do_cuMemFreeHost(self, p: Process, at: int) -> None:
        p.machine.arena.give(at - p.machine.arena.base, p.pinned.pop(at))

    def do_cuMemHostRegister(self, p: Process, at: int, nbytes: int, flags: int) -> None:
        self.gpu(p)
        if at in p.pinned:
            raise Failure("CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED")
        p.pinned[at] = nbytes

    def do_cuMemHostUnregister(self, p: Process, at: int) -> None:
        if at not in p.pinned:
            raise Failure("CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED")
        del p.pinned[at]

    def view(self, p: Process, at: int, nbytes: int) -> np.ndarray:
        for start, (made, place) in p.maps.items():
            if start <= at and at + nbytes <= start + made.nbytes and not made.freed:
                return p.machine.arena.bytes[place + at - start : place + at - start + nbytes]
        raise Failure("CUDA_ERROR_INVALID_VALUE")

    def do_cuMemcpyHtoDAsync(self, p: Process, to: int, source: int, nbytes: int, stream: int) -> None:
        view = self.view(p, to, nbytes)
        self.enqueue(p, stream, at_once(lambda: ctypes.memmove(view.ctypes.data, source, nbytes)), "a copy in")

    def do_cuMemcpyDtoHAsync(self, p: Process, to: int, source: int, nbytes: int, stream: int) -> None:
        view = self.view(p, source, nbytes)
        self.enqueue(p, stream, at_once(lambda: ctypes.memmove(to, view.ctypes.data, nbytes)), "a copy out")

    def do_cuMemcpyDtoDAsync(self, p: Process, to: int, source: int, nbytes: int, stream: int) -> None:
        target, view = self.view(p, to, nbytes), self.view(p, source, nbytes)
        self.enqueue(p, stream, at_once(lambda: ctypes.memmove(target.ctypes.data, view.ctypes.data, nbytes)), "a copy")

    def do_cuMemsetD8Async(self, p: Process, to: int, value: int, nbytes: int, stream: int) -> None:
        view = self.view(p, to, nbytes)
        self.enqueue(p, stream, at_once(lambda: view.fill(value)), "a memset")

    # ---- kernels ----
    def do_cuModuleLoadData(self, p: Process, image: bytes) -> int:
        self.gpu(p)
        if image[:4] != fake_kernels.ELF:
            raise Failure("CUDA_ERROR_INVALID_IMAGE")
        p.modules[number := next(p.machine.numbers)] = image
        return number

    def do_cuModuleGetFunction(self, p: Process, module: int, name: bytes) -> int:
        if name not in p.modules[module]:
            raise Failure("CUDA_ERROR_NOT_FOUND")
        p.kernels[number := next(p.machine.numbers)] = kernel_of(p.modules[module])
        p.allowed[number] = (48 << 10) - self.facts(p, number)[1]
        return number

    def facts(self, p: Process, function: int) -> tuple[int, int]:
        """(registers of a thread, bytes of static shared memory)."""
        kernel = p.kernels[function]
        return (KERNEL_REGISTERS, KERNEL_STATIC) if kernel is None else fake_kernels.facts(kernel, self.cc(p))

    def cc(self, p: Process) -> tuple[int, ...]:
        return capability("sm_{}{}".format(*p.machine.gpus[self.gpu(p)].capability))

    def do_cuFuncGetAttribute(self, p: Process, name: Any, function: int) -> int:
        registers, static = self.facts(p, function)
        known = {"NUM_REGS": registers, "SHARED_SIZE_BYTES": static}
        return known[name.name.removeprefix("CU_FUNC_ATTRIBUTE_")]

    def do_cuFuncSetAttribute(self, p: Process, function: int, name: Any, value: int) -> None:
        assert name.name == "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"
        if value + self.facts(p, function)[1] > p.machine.gpus[self.gpu(p)].shared:
            raise Failure("CUDA_ERROR_INVALID_VALUE")
        p.allowed[function] = value

    def do_cuOccupancyMaxActiveBlocksPerMultiprocessor(
        self, p: Process, function: int, threads: int, shared: int
    ) -> int:
        registers, static = self.facts(p, function)
        if shared > p.allowed[function]:
            return 0
        return limits.resident(
            limits.limits_of(p.machine.gpus[self.gpu(p)].capability), threads, shared + static, registers
        )

    def do_cuLaunchKernel(self, p: Process, function: int, *rest: Any) -> None:
        x, y, z, bx, by, bz, shared, stream, parameters, _ = rest
        gpu, kernel = self.gpu(p), p.kernels[function]
        if shared > p.allowed[function]:
            raise Failure("CUDA_ERROR_INVALID_VALUE")
        made = SimpleNamespace(
            function=function,
            grid=(x, y, z),
            block=(bx, by, bz),
            shared=shared,
            stream=stream,
            values=parameters[0],
            types=parameters[1],
            kernel=kernel,
        )
        if kernel is None:
            self.enqueue(p, stream, at_once(lambda: p.launches.append(made)), "a kernel")
            return
        machine, cc = p.machine, self.cc(p)

        def make() -> Any:
            return Resident(machine, machine.sms[gpu], p.number, kernel, made.grid, shared, made.values, cc).turn

        self.enqueue(p, stream, make, f"kernel {kernel.name}")

    # ---- memory of other processes ----
    # DA "Memory Management", cuIpcGetMemHandle, cuIpcOpenMemHandle, cuIpcCloseMemHandle
    def do_cuIpcGetMemHandle(self, p: Process, at: int) -> Any:
        for code, made in p.machine.allocations.items():
            if address(made.start) == at and made.owner is p and not made.freed:
                handle = REAL.CUipcMemHandle()
                ctypes.memmove(handle.getPtr(), code, 64)
                return handle
        raise Failure("CUDA_ERROR_INVALID_VALUE")

    def do_cuIpcOpenMemHandle(self, p: Process, handle: Any, flags: int) -> int:
        """Map another process's memory. Since CUDA 10.1 it may lie on a GPU that CUDA_VISIBLE_DEVICES hides. NCCL uses
        that (p2p.cc, p2pCanConnect). It may not lie on a GPU that the system withholds."""
        made = p.machine.allocations.get(ctypes.string_at(handle.getPtr(), 64))
        if made is None or made.freed:
            raise Failure("CUDA_ERROR_INVALID_HANDLE")
        if made.owner is p or made.owner.namespace != p.namespace:
            raise Failure("CUDA_ERROR_INVALID_CONTEXT")
        gpu = self.gpu(p)
        if made.gpu not in p.permitted:
            raise Failure("CUDA_ERROR_INVALID_VALUE")
        if made.gpu != gpu and (flags != 1 or made.gpu not in p.machine.gpus[gpu].reaches):
            raise Failure("CUDA_ERROR_PEER_ACCESS_UNSUPPORTED")
        made.open += 1
        place = p.machine.arena.alias(made.start, made.nbytes)
        p.maps[address(place)] = made, place
        return address(place)

    def do_cuIpcCloseMemHandle(self, p: Process, at: int) -> None:
        made, _ = p.maps.get(int(at), (None, 0))
        if made is None or made.owner is p:
            raise Failure("CUDA_ERROR_INVALID_VALUE")
        made.open -= 1
        del p.maps[int(at)]
