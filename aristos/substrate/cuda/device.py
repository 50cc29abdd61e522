"""One GPU: memory, kernels, streams, events, graphs, and memory of other processes (CUDA IPC).

Addresses, streams and events are ints, which fit tables, kernel arguments and other libraries. The module uses only the
driver API (cuda.bindings), in the device's primary context, which CuPy and Numba use too. Every call leaves the
thread's current context and capture mode as they were. Nothing is started before a CudaDevice is made. Streams and
events live as long as the process. The legacy default stream is used only if a caller names it: all blocking streams
wait for it, and a capture on one of them forbids its use. This module knows no protocol.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernel_cache.sm_limits import Limits

from ...errors import EnvironmentProblem, InputError
from ...kernels.cuda.build import build
from ...kernels.cuda.target import Target
from .driver import ADVICE, attribute, bindings, call, ready, results, succeeds, uuid_text

NAME_BYTES = 256
HANDLE_BYTES = 64  # CU_IPC_HANDLE_SIZE
DEFAULT_SHARED = 48 << 10  # bytes of shared memory, static and dynamic, that every launch may have


@dataclass
class Loaded:
    """A loaded kernel. registers: how many each thread has.

    static: bytes of static shared memory; a launch may add dynamic shared memory.
    """

    kernel: Any
    function: int
    registers: int
    static: int
    allowed: int  # dynamic bytes that a launch may have so far


def count() -> int:
    """How many GPUs this process may use; 0 without a driver or without cuda.bindings."""
    try:
        call("cuInit", 0)
        return int(call("cuDeviceGetCount"))
    except EnvironmentProblem:
        return 0


class CudaDevice:
    """A visible GPU, given by its ordinal: the number that CUDA gives it in this process.

    name: the GPU's name. uuid: 'GPU-...', the same in every process. arch: such as 'sm_90'. target: arch and the limits
    of an SM. sms: how many streaming multiprocessors it has. driver: the CUDA version that the driver supports, such as
    '12.9'. stream: this object's stream, for work that names no other stream. Raises EnvironmentProblem.
    """

    count = staticmethod(count)

    def __init__(self, ordinal: int) -> None:
        call("cuInit", 0)
        visible = int(call("cuDeviceGetCount"))
        if not 0 <= ordinal < visible:
            raise EnvironmentProblem(
                f"a GPU's number must be at least 0 and below {visible}, the number of visible GPUs, got {ordinal}:"
                f" {ADVICE['CUDA_ERROR_INVALID_DEVICE']}"
            )
        self.ordinal = ordinal
        self._device = int(call("cuDeviceGet", ordinal))
        self.name = call("cuDeviceGetName", NAME_BYTES, self._device).split(b"\0")[0].decode()
        self.uuid = _uuid(self._device)
        major, minor = (attribute(self._device, f"COMPUTE_CAPABILITY_{part}") for part in ("MAJOR", "MINOR"))
        self.arch = f"sm_{major}{minor}"
        self.sms = attribute(self._device, "MULTIPROCESSOR_COUNT")
        self.target = Target(self.arch, _limits(self._device))
        number = int(call("cuDriverGetVersion"))
        self.driver = f"{number // 1000}.{number % 1000 // 10}"
        self._context = int(call("cuDevicePrimaryCtxRetain", self._device))
        self._loaded: dict[Any, Loaded] = {}
        self._pinned: dict[int, int] = {}  # host address -> bytes
        self.stream = self.new_stream()

    @classmethod
    def find(cls, local_rank: int) -> CudaDevice:
        """The GPU of a rank: number `local_rank` of the visible GPUs, modulo their number."""
        call("cuInit", 0)
        visible = int(call("cuDeviceGetCount"))
        if visible == 0:
            raise EnvironmentProblem(f"cuDeviceGetCount: {ADVICE['CUDA_ERROR_NO_DEVICE']}")
        return cls(local_rank % visible)

    @contextlib.contextmanager
    def current(self, queues: bool = False) -> Iterator[None]:
        """A `with` block in which this thread's driver calls go to this GPU, and are permitted during captures.

        While a stream captures, the driver refuses calls that it cannot capture, such as an allocation or the query of
        an event, and makes the capture invalid. Calls of this class belong to no capture. queues: whether the block
        only queues work, which is always permitted.
        """
        call("cuCtxPushCurrent", self._context)
        if queues:
            try:
                yield
            finally:
                call("cuCtxPopCurrent")
            return
        mode = call("cuThreadExchangeStreamCaptureMode", bindings().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)
        try:
            yield
        finally:
            call("cuThreadExchangeStreamCaptureMode", mode)
            call("cuCtxPopCurrent")

    # ---- memory ----
    def allocate(self, nbytes: int) -> int:
        """The address of zeroed device memory that CUDA IPC can share; raises MemoryProblem if it does not fit.

        During this call, as during `free` and `load`, the driver may wait for the whole GPU, so no kernel may be
        waiting for this process.
        """
        _positive(nbytes)
        with self.current():
            address = int(call("cuMemAlloc", nbytes))
            call("cuMemsetD8Async", address, 0, nbytes, self.stream)
            call("cuStreamSynchronize", self.stream)  # another process may read it next
        return address

    def free(self, address: int) -> None:
        """Free what `allocate` returned. No kernel may use it any more, and other processes must have closed it."""
        with self.current():
            call("cuMemFree", address)

    def host(self, nbytes: int) -> tuple[np.ndarray, int]:
        """(array: [nbytes] uint8 of zeroed, pinned host memory; its address for kernels)."""
        _positive(nbytes)
        flags = bindings()
        with self.current():
            start = int(
                call("cuMemHostAlloc", nbytes, flags.CU_MEMHOSTALLOC_PORTABLE | flags.CU_MEMHOSTALLOC_DEVICEMAP)
            )
            address = int(call("cuMemHostGetDevicePointer", start, 0))
        array = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(start))
        array[:] = 0
        self._pinned[start] = nbytes
        return array, address

    def free_host(self, array: np.ndarray) -> None:
        """Free what `host` returned. Neither the array nor a view of it may be used afterwards."""
        start = array.ctypes.data
        if self._pinned.pop(start, None) is None:
            raise InputError(f"free_host needs an array that CudaDevice.host returned, got one at {start:#x}")
        with self.current():
            call("cuMemFreeHost", start)

    def pin(self, address: int, nbytes: int) -> int:
        """Let kernels use host memory that was allocated elsewhere, such as MPI's. Returns its address for kernels.

        Returns 0 if CUDA refuses.
        """
        flags = bindings().CU_MEMHOSTREGISTER_PORTABLE | bindings().CU_MEMHOSTREGISTER_DEVICEMAP
        with self.current():
            if not succeeds("cuMemHostRegister", address, nbytes, flags):
                return 0
            return int(call("cuMemHostGetDevicePointer", address, 0))

    def unpin(self, address: int) -> None:
        """Undo `pin`, before the memory is freed."""
        with self.current():
            call("cuMemHostUnregister", address)

    def copy_in(self, address: int, array: np.ndarray, stream: int | None = None) -> None:
        """Copy a contiguous array to the device, in the order of the stream (default: this object's own).

        An array in memory of `host` must not change until the stream has made the copy. Other arrays may change as soon
        as this returns.
        """
        self._transfer("cuMemcpyHtoDAsync", address, array.ctypes.data, array, stream)

    def copy_out(self, array: np.ndarray, address: int, stream: int | None = None) -> None:
        """Copy from the device into a contiguous array.

        The copy is complete on return, except into memory of `host`.
        """
        if not array.flags.writeable:
            raise InputError("copy_out needs a writable array, got a read-only one")
        self._transfer("cuMemcpyDtoHAsync", array.ctypes.data, address, array, stream)

    def _transfer(self, function: str, to: int, source: int, array: np.ndarray, stream: int | None) -> None:
        """Copy between the device and an array. Raises InputError unless the array is contiguous.

        GPUs that use the host's page tables (GH200) copy pageable memory asynchronously, so this waits for such copies.
        """
        if not array.flags.c_contiguous:
            raise InputError(f"copies need a contiguous array, got strides {array.strides} for shape {array.shape}")
        if array.nbytes:
            start, end = array.ctypes.data, array.ctypes.data + array.nbytes
            stream = self.stream if stream is None else stream
            with self.current():
                call(function, to, source, array.nbytes, stream)
                if not any(low <= start and end <= low + size for low, size in self._pinned.items()):
                    call("cuStreamSynchronize", stream)

    def copy(self, to: int, source: int, nbytes: int, stream: int) -> None:
        """Copy within device memory, in the order of the stream."""
        with self.current(queues=True):
            call("cuMemcpyDtoDAsync", to, source, nbytes, stream)

    def clear(self, address: int, nbytes: int, stream: int) -> None:
        """Zero device memory, in the order of the stream."""
        with self.current(queues=True):
            call("cuMemsetD8Async", address, 0, nbytes, stream)

    # ---- kernels ----
    def load(self, kernel: Any) -> Loaded:
        """Load a catalogue.Kernel on this GPU, once. It is compiled, or read from the cache."""
        found = self._loaded.get(kernel)
        if found is None:
            built = build(kernel, self.arch)
            with self.current():
                module = call("cuModuleLoadData", built.cubin)
                function = int(call("cuModuleGetFunction", module, built.entry.encode()))
                names = bindings().CUfunction_attribute
                registers = int(call("cuFuncGetAttribute", names.CU_FUNC_ATTRIBUTE_NUM_REGS, function))
                static = int(call("cuFuncGetAttribute", names.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function))
            found = self._loaded[kernel] = Loaded(kernel, function, registers, static, max(0, DEFAULT_SHARED - static))
        return found

    def resident(self, loaded: Loaded, shared_bytes: int) -> int:
        """How many blocks of a kernel one SM holds at once, if each has `shared_bytes` of dynamic shared memory."""
        with self.current():
            self._allow(loaded, shared_bytes)
            return int(
                call(
                    "cuOccupancyMaxActiveBlocksPerMultiprocessor", loaded.function, loaded.kernel.threads, shared_bytes
                )
            )

    def launch(
        self, loaded: Loaded, grid: int | tuple[int, ...], shared_bytes: int, *args: int, stream: int | None = None
    ) -> None:
        """Launch a kernel on `grid` blocks (x, or up to x, y, z). Every argument is an int64."""
        kernel = loaded.kernel
        blocks = tuple(grid) if isinstance(grid, tuple) else (grid,)
        if not 1 <= len(blocks) <= 3 or min(blocks) < 1:
            raise InputError(f"grid must be 1 to 3 positive numbers of blocks, got {grid}")
        if len(args) != len(kernel.types):
            raise InputError(f"kernel {kernel.name} takes {len(kernel.types)} arguments, got {len(args)}")
        values = tuple(int(value) for value in args)
        wrong = [value for value in values if not -(1 << 63) <= value < 1 << 63]
        if wrong:
            raise InputError(f"arguments of kernel {kernel.name} must be int64, got {wrong[0]}")
        x, y, z = blocks + (1,) * (3 - len(blocks))
        parameters = (values, (ctypes.c_longlong,) * len(values))
        stream = self.stream if stream is None else stream
        with self.current(queues=True):
            self._allow(loaded, shared_bytes)
            call("cuLaunchKernel", loaded.function, x, y, z, kernel.threads, 1, 1, shared_bytes, stream, parameters, 0)

    def _allow(self, loaded: Loaded, shared_bytes: int) -> None:
        """Allow a kernel more than 48 KB of shared memory, which the driver must know before the first launch."""
        if shared_bytes <= loaded.allowed:
            return
        whole = shared_bytes + loaded.static
        if whole > self.target.limits.shared_block:
            raise EnvironmentProblem(
                f"kernel {loaded.kernel.name} needs {whole} bytes of shared memory in each block, and {self.name}"
                f" ({self.arch}) has {self.target.limits.shared_block}: choose a smaller tile"
            )
        name = bindings().CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        call("cuFuncSetAttribute", loaded.function, name, shared_bytes)
        loaded.allowed = shared_bytes

    # ---- order and time ----
    def synchronize(self, stream: int | None = None) -> None:
        """Wait until all work of a stream (default: this object's own) is done. Raises a kernel's fault."""
        with self.current():
            call("cuStreamSynchronize", self.stream if stream is None else stream)

    def done(self, stream: int) -> bool:
        """Whether all work of a stream is done. Returns at once. Raises a kernel's fault."""
        with self.current():
            return ready("cuStreamQuery", stream)

    def new_stream(self) -> int:
        """A stream that does not wait for the default stream. So a kernel cannot delay a copy that it waits for."""
        with self.current():
            return int(call("cuStreamCreate", int(bindings().CUstream_flags.CU_STREAM_NON_BLOCKING)))

    def event(self, timed: bool = True) -> int:
        """A new event. timed: whether it records the time."""
        flags = bindings().CUevent_flags
        with self.current():
            return int(call("cuEventCreate", int(flags.CU_EVENT_DEFAULT if timed else flags.CU_EVENT_DISABLE_TIMING)))

    def record(self, event: int, stream: int, capturing: bool = False) -> None:
        """Let the event be recorded when all work that the stream has now is done.

        capturing: whether the stream captures. If it does, every replay of the graph records the event.
        """
        flags = bindings().CUevent_record_flags
        with self.current(queues=True):
            if capturing:
                call("cuEventRecordWithFlags", event, stream, int(flags.CU_EVENT_RECORD_EXTERNAL))
            else:
                call("cuEventRecord", event, stream)

    def wait(self, stream: int, event: int, capturing: bool = False) -> None:
        """Let later work of the stream wait for the last record of the event.

        capturing: whether the stream captures. Then every replay waits for the last record before the replay.
        """
        flags = bindings().CUevent_wait_flags
        with self.current(queues=True):
            call(
                "cuStreamWaitEvent",
                stream,
                event,
                int(flags.CU_EVENT_WAIT_EXTERNAL if capturing else flags.CU_EVENT_WAIT_DEFAULT),
            )

    def passed(self, event: int) -> bool:
        """Whether the work before the event's last record is done. Returns at once.

        True for an event that was never recorded.
        """
        with self.current():
            return ready("cuEventQuery", event)

    def capturing(self, stream: int) -> bool:
        """Whether the stream captures. False for the legacy default stream, which cannot."""
        with self.current(queues=True):
            if not succeeds("cuStreamIsCapturing", stream):  # another stream captures, and forbids the use of this one
                return False
            return bool(int(call("cuStreamIsCapturing", stream)))

    def captured(self, stream: int) -> tuple[int, list[Any]]:
        """(number of a stream's capture, nodes on which the next captured node will depend); (0, []) if unknown."""
        with self.current(queues=True):
            found = results("cuStreamGetCaptureInfo", stream)
        if found is None:
            return 0, []
        _, number, _, nodes, *_ = found
        return int(number), list(nodes or [])

    def follows(self, nodes: list[Any], earlier: Any) -> bool:
        """Whether one of these nodes of a captured graph is the node `earlier` or comes after it; True if unknown."""
        seen: set[int] = set()
        left = list(nodes)
        with self.current(queues=True):
            while left:
                node = left.pop()
                if int(node) == int(earlier):
                    return True
                if int(node) in seen:
                    continue
                seen.add(int(node))
                count = results("cuGraphNodeGetDependencies", node)
                before = results("cuGraphNodeGetDependencies", node, count[-1]) if count and count[-1] else count
                if before is None:
                    return True
                left += before[0] or []
        return False

    def elapsed(self, a: int, b: int) -> float:
        """Seconds from event a to event b. Waits for b."""
        with self.current():
            call("cuEventSynchronize", b)
            return float(call("cuEventElapsedTime", a, b)) / 1e3

    # ---- graphs ----
    def graph(self, stream: int, body: Callable[[], object]) -> int:
        """Capture what `body` queues on a stream of `new_stream`, without running it. Returns a graph for `replay`."""
        with self.current():
            call("cuStreamBeginCapture", stream, bindings().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)
            try:
                body()
            finally:
                captured = call("cuStreamEndCapture", stream)
            return int(call("cuGraphInstantiate", captured, 0))

    def replay(self, graph: int, stream: int) -> None:
        """Run a graph once, in the order of the stream."""
        with self.current(queues=True):
            call("cuGraphLaunch", graph, stream)

    # ---- memory of other processes ----
    def handle(self, address: int) -> bytes:
        """The 64 bytes by which another process of the node opens memory that `allocate` returned."""
        with self.current():
            return ctypes.string_at(call("cuIpcGetMemHandle", address).getPtr(), HANDLE_BYTES)

    def open(self, handle: bytes) -> int:
        """Open another process's memory, which may lie on another visible GPU. Returns its address on this GPU."""
        if len(handle) != HANDLE_BYTES:
            raise InputError(f"a handle must have {HANDLE_BYTES} bytes, got {len(handle)}")
        driver = bindings()
        opened = driver.CUipcMemHandle()
        ctypes.memmove(opened.getPtr(), handle, HANDLE_BYTES)
        with self.current():
            flags = int(driver.CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS)
            return int(call("cuIpcOpenMemHandle", opened, flags))

    def close(self, address: int) -> None:
        """Close memory that `open` returned. Call this before the memory's owner frees it."""
        with self.current():
            call("cuIpcCloseMemHandle", address)

    def can_access(self, other_ordinal: int) -> bool:
        """Whether this GPU can load and store the memory of another visible GPU (or its own)."""
        if other_ordinal == self.ordinal:
            return True
        other = int(call("cuDeviceGet", other_ordinal))
        return bool(call("cuDeviceCanAccessPeer", self._device, other))

    def ordinal_of(self, uuid: str) -> int | None:
        """The ordinal of a GPU in this process; None if the GPU is hidden from this process."""
        for ordinal in range(int(call("cuDeviceGetCount"))):
            if _uuid(int(call("cuDeviceGet", ordinal))) == uuid:
                return ordinal
        return None


def _limits(device: int) -> Limits:
    """The limits of an SM, as the driver reports them."""
    threads, blocks, shared, registers = (
        attribute(device, f"MAX_{name}_PER_MULTIPROCESSOR")
        for name in ("THREADS", "BLOCKS", "SHARED_MEMORY", "REGISTERS")
    )
    block = attribute(device, "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN")
    return Limits(threads, blocks, shared, block, registers, attribute(device, "MAX_THREADS_PER_BLOCK"))


def _uuid(device: int) -> str:
    """The UUID as nvidia-smi prints it; under MIG the UUID of the slice."""
    newer = hasattr(bindings(), "cuDeviceGetUuid_v2")  # in CUDA 13 the older name means the same
    return uuid_text(call("cuDeviceGetUuid_v2" if newer else "cuDeviceGetUuid", device).bytes)


def _positive(nbytes: int) -> None:
    if nbytes < 1:
        raise InputError(f"nbytes must be positive, got {nbytes}")
