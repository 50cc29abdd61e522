"""A machine's versions of the CUDA driver's functions that Numba-CUDA calls.

While a machine is in use, Numba's `driver` object finds its functions in this module, so that Numba's own arrays,
streams, records, ufuncs and caches work unchanged. The functions take and return the same as Numba's wrapper of
cuda.bindings, which returns the value without the status. A failure raises Numba's CudaAPIError. The CUDA driver API
reference explains what each function means.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
import time
import weakref
from typing import Any

import numpy as np

from kernel_cache import sm_limits as limits

from . import isa
from .address_space import Allocation
from .arrays import granule_of
from .errors import own
from .machine import Machine
from .streams import Event, Stream

FREE_BYTES, TOTAL_BYTES = 1 << 34, 1 << 35  # results of cuMemGetInfo
VERSION = 12090  # the driver's version: CUDA 12.9


def failure(name: str, call: str, why: str = "") -> Exception:
    """A CudaAPIError with one of CUDA's result codes."""
    from numba.cuda.cudadrv import driver

    text = f"Call to {call} results in {name}" + (f": {why}" if why else "")
    return driver.CudaAPIError(getattr(driver.binding.CUresult, name), text)


class Driver:
    """The driver of one machine. Its methods named cu... stand for the driver's functions."""

    def __init__(self, machine: Machine):
        from numba.cuda.cudadrv.driver import binding

        self.machine, self.binding, self.pid = machine, binding, os.getpid()
        self.devices: dict[int, Any] = {}  # Numba's device objects, by number
        self.managers: list[Any] = []
        self.stacks = threading.local()  # each thread's stack of contexts
        self.modules: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self.functions: dict[int, Any] = {}
        self.loaded: Any = weakref.WeakKeyDictionary()  # library that Numba compiled -> its kernel
        self.events: dict[int, float] = {}
        self.streams: dict[int, Stream] = {}  # by handle
        self.recorded: dict[int, Event] = {}  # by handle
        self.registered: dict[int, tuple[Allocation, int]] = {}  # host memory that kernels may touch
        self.handles = itertools.count(1 << 8)
        self.hints = threading.local()  # dtype and shape of the array that a thread allocates
        self.pointer = pointer_class(binding)

    # ---- memory ----
    def allocate(self, size: int, device: int, initialised: bool) -> Allocation:
        """Allocate memory on a device, or in host memory for device -1."""
        dtype, shape = getattr(self.hints, "of", None) or (np.dtype(np.uint8), (size,))
        with self.machine.lock:
            allocation = self.machine.memory.allocate(size, device, granule_of(dtype), "", initialised)
        allocation.dtype, allocation.shape, allocation.itemsize = dtype, shape, dtype.itemsize
        return allocation

    def pointer_to(self, allocation: Allocation) -> Any:
        """An allocation's device pointer."""
        pointer = self.pointer(isa.GLOBAL_START + allocation.start)
        pointer.machine = self.machine
        return pointer

    def host_address(self, allocation: Allocation) -> int:
        """An allocation's address in this process."""
        return int(self.machine.memory.data.ctypes.data) + allocation.start

    def cuMemAlloc(self, size: int) -> Any:
        if size <= 0:
            raise failure("CUDA_ERROR_INVALID_VALUE", "cuMemAlloc", f"{size} bytes requested")
        if size > TOTAL_BYTES:
            raise failure("CUDA_ERROR_OUT_OF_MEMORY", "cuMemAlloc", f"{size} bytes requested")
        return self.pointer_to(self.allocate(size, self.current_device(), False))

    def cuMemFree(self, pointer: Any) -> None:
        machine = getattr(pointer, "machine", self.machine)
        allocation = machine.memory.at(int(pointer))
        if allocation is not None and not allocation.freed and isa.GLOBAL_START + allocation.start == int(pointer):
            with machine.lock:
                machine.finish()
                machine.memory.free(allocation)

    def cuMemAllocManaged(self, size: int, flags: int) -> Any:
        return self.pointer_to(self.allocate(size, -1, True))

    def cuMemHostAlloc(self, size: int, flags: int) -> int:
        return self.host_address(self.allocate(size, -1, True))

    def cuMemFreeHost(self, address: int) -> None:
        """Do nothing. Host memory lives as long as the machine, because NumPy views may outlive this call."""

    def cuMemHostRegister(self, address: int, size: int, flags: int) -> None:
        self.registered[int(address)] = self.allocate(size, -1, True), size

    def cuMemHostUnregister(self, address: int) -> None:
        self.machine.finish()
        found = self.registered.pop(int(address), None)
        if found is not None:
            self.machine.memory.free(found[0])

    def cuMemHostGetDevicePointer(self, address: int, flags: int) -> Any:
        if int(address) in self.registered:
            return self.pointer_to(self.registered[int(address)][0])
        return self.binding.CUdeviceptr(self.device_address(int(address)))

    def device_address(self, address: int) -> int:
        """The device address of host memory that the machine allocated. Raises CudaAPIError for other memory."""
        place = address - int(self.machine.memory.data.ctypes.data)
        if not 0 <= place < len(self.machine.memory.data):
            raise failure("CUDA_ERROR_INVALID_VALUE", "cuMemHostGetDevicePointer", "the memory is not mapped")
        return isa.GLOBAL_START + place

    def cuMemGetInfo(self) -> tuple[int, int]:
        return FREE_BYTES, TOTAL_BYTES

    def cuMemGetAddressRange(self, address: Any) -> tuple[Any, int]:
        allocation, _ = self.place(int(address), 0, "cuMemGetAddressRange")
        return self.binding.CUdeviceptr(isa.GLOBAL_START + allocation.start), allocation.size

    def cuPointerGetAttribute(self, attribute: Any, pointer: Any) -> Any:
        kinds = self.binding.CUpointer_attribute
        if attribute == kinds.CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
            self.place(int(pointer), 0, "cuPointerGetAttribute")
            return pointer
        raise failure("CUDA_ERROR_NOT_SUPPORTED", "cuPointerGetAttribute", str(attribute))

    def place(self, address: int, size: int, call: str) -> tuple[Allocation, int]:
        """(allocation, offset in the machine's memory) of an address.

        Raises CudaAPIError unless `size` bytes from the address lie in one allocation.
        """
        memory = self.machine.memory
        offset = address - isa.GLOBAL_START
        allocation = memory.at(address)
        if allocation is None or allocation.freed or not 0 <= offset - allocation.start <= allocation.size - size:
            raise failure("CUDA_ERROR_INVALID_VALUE", call, f"{size} bytes at {address:#x} are not in one allocation")
        return allocation, offset

    def bytes_at(self, address: Any, size: int, call: str, written: bool) -> np.ndarray:
        """Run all queued launches. Then return a view of device memory, [size] uint8."""
        self.machine.finish()
        memory = self.machine.memory
        if not size:
            return memory.data[:0]
        _, offset = self.place(int(address), size, call)
        if written and memory.checked:
            memory.init[offset : offset + size] = 1
        return memory.data[offset : offset + size]

    def cuMemcpyHtoD(self, device: Any, host: Any, size: int) -> None:
        self.bytes_at(device, size, "cuMemcpyHtoD", True)[:] = host_bytes(host, size)

    def cuMemcpyDtoH(self, host: Any, device: Any, size: int) -> None:
        host_bytes(host, size)[:] = self.bytes_at(device, size, "cuMemcpyDtoH", False)

    def cuMemcpyDtoD(self, to: Any, from_: Any, size: int) -> None:
        source = self.bytes_at(from_, size, "cuMemcpyDtoD", False)
        self.bytes_at(to, size, "cuMemcpyDtoD", True)[:] = source.copy()

    def cuMemsetD8(self, device: Any, value: Any, size: int) -> None:
        self.bytes_at(device, int(size), "cuMemsetD8", True)[:] = int(value) & 0xFF

    def cuMemcpyHtoDAsync(self, device: Any, host: Any, size: int, stream: Any) -> None:
        self.cuMemcpyHtoD(device, host, size)

    def cuMemcpyDtoHAsync(self, host: Any, device: Any, size: int, stream: Any) -> None:
        self.cuMemcpyDtoH(host, device, size)

    def cuMemcpyDtoDAsync(self, to: Any, from_: Any, size: int, stream: Any) -> None:
        self.cuMemcpyDtoD(to, from_, size)

    def cuMemsetD8Async(self, device: Any, value: Any, size: int, stream: Any) -> None:
        self.cuMemsetD8(device, value, size)

    def copy_registered(self, out: bool) -> None:
        """Copy registered host memory into the machine before a kernel, or out of it after the kernel."""
        for address, (allocation, size) in self.registered.items():
            mine, theirs = self.machine.memory.bytes_of(allocation), host_bytes(address, size)
            if out:
                theirs[:] = mine
            else:
                mine[:] = theirs

    # ---- devices and contexts ----
    def current_device(self) -> int:
        """The device of this thread's current context."""
        stack = self.stack()
        return stack[-1] if stack else 0

    def stack(self) -> list[int]:
        """This thread's stack of contexts, as device numbers."""
        if not hasattr(self.stacks, "devices"):
            self.stacks.devices = []
        return self.stacks.devices

    def context(self, device: int) -> Any:
        """The handle of a device's context."""
        return self.binding.CUcontext(0x1000 + device)

    def cuInit(self, flags: int) -> None:
        pass

    def cuDriverGetVersion(self) -> int:
        return VERSION

    def cuDeviceGetCount(self) -> int:
        return len(self.machine.devices)

    def cuCtxGetCurrent(self) -> Any:
        stack = self.stack()
        return self.context(stack[-1]) if stack else self.binding.CUcontext(0)

    def cuCtxGetDevice(self) -> int:
        return self.current_device()

    def cuCtxPushCurrent(self, handle: Any) -> None:
        self.stack().append(int(handle) - 0x1000)

    def cuCtxPopCurrent(self) -> Any:
        stack = self.stack()
        if not stack:
            raise failure("CUDA_ERROR_INVALID_CONTEXT", "cuCtxPopCurrent")
        return self.context(stack.pop())

    def cuCtxSynchronize(self) -> None:
        self.machine.finish()

    def cuDevicePrimaryCtxRelease(self, device: int) -> None:
        self.machine.finish()

    def cuDevicePrimaryCtxReset(self, device: int) -> None:
        self.machine.finish()

    def cuDeviceCanAccessPeer(self, device: Any, peer: Any) -> int:
        return int(int(device) != int(peer))

    def cuCtxEnablePeerAccess(self, context: Any, flags: int) -> None:
        """Do nothing, because devices of a machine always see each other's memory."""

    def cuDeviceGetAttribute(self, code: Any, device: int) -> int:
        name = code.name.removeprefix("CU_DEVICE_ATTRIBUTE_")
        limit, cc = self.machine.limits, self.machine.cc
        known = {
            "MULTIPROCESSOR_COUNT": self.machine.sm_count, "WARP_SIZE": limits.WARP,
            "MAX_THREADS_PER_BLOCK": limit.block_threads, "MAX_SHARED_MEMORY_PER_BLOCK": 49152,
            "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": limit.shared_block, "MAX_REGISTERS_PER_BLOCK": limit.registers,
            "MAX_SHARED_MEMORY_PER_MULTIPROCESSOR": limit.shared, "MAX_THREADS_PER_MULTIPROCESSOR": limit.threads,
            "MAX_BLOCKS_PER_MULTIPROCESSOR": limit.blocks, "MAX_REGISTERS_PER_MULTIPROCESSOR": limit.registers,
            "MAX_BLOCK_DIM_X": 1024, "MAX_BLOCK_DIM_Y": 1024, "MAX_BLOCK_DIM_Z": 64, "MAX_GRID_DIM_X": 2147483647,
            "MAX_GRID_DIM_Y": 65535, "MAX_GRID_DIM_Z": 65535, "COMPUTE_CAPABILITY_MAJOR": cc[0],
            "COMPUTE_CAPABILITY_MINOR": cc[1], "UNIFIED_ADDRESSING": 1, "CAN_MAP_HOST_MEMORY": 1, "MANAGED_MEMORY": 1,
            "CONCURRENT_MANAGED_ACCESS": 1, "COOPERATIVE_LAUNCH": 1, "COMPUTE_MODE": 0, "KERNEL_EXEC_TIMEOUT": 0,
            "TCC_DRIVER": 0, "PCI_DOMAIN_ID": 0, "PCI_BUS_ID": device, "PCI_DEVICE_ID": 0, "INTEGRATED": 0,
            "TOTAL_CONSTANT_MEMORY": 65536, "CONCURRENT_KERNELS": 1, "ASYNC_ENGINE_COUNT": 1, "CLOCK_RATE": 1000000,
            "SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO": 2,
        }  # fmt: skip
        if name not in known:
            raise failure("CUDA_ERROR_NOT_SUPPORTED", "cuDeviceGetAttribute", f"the machine has no {name}")
        return known[name]

    # ---- streams and events; copies run all launches before them ----
    def cuStreamCreate(self, flags: int) -> Any:
        handle = next(self.handles)
        self.streams[handle] = self.machine.device(self.current_device()).stream(not flags & 1)
        return self.binding.CUstream(handle)

    def cuStreamDestroy(self, stream: Any) -> None:
        """Forget the handle. The stream's launches still run, and the default stream waits for them."""
        self.streams.pop(int(stream), None)

    def stream(self, handle: int) -> Stream:
        """The stream of a handle. For an unknown handle, or one of CUDA's own, the current device's default stream."""
        return self.streams.get(handle) or self.machine.device(self.current_device()).default

    def cuStreamSynchronize(self, stream: Any) -> None:
        self.machine.finish()

    def cuStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> None:
        if int(event) in self.recorded:
            self.stream(int(stream)).wait(self.recorded[int(event)])

    def cuStreamAddCallback(self, stream: Any, callback: Any, data: int, flags: int) -> None:
        """Run all queued launches. Then call the callback in another thread, as CUDA does."""
        from numba.cuda.cudadrv.driver import Stream

        self.machine.finish()
        value = ctypes.cast(data, ctypes.py_object).value
        thread = threading.Thread(target=Stream._stream_callback, args=(ctypes.c_void_p(int(stream or 0)), 0, value))
        thread.start()

    def cuEventCreate(self, flags: int) -> Any:
        return self.binding.CUevent(next(self.handles))

    def cuEventDestroy(self, event: Any) -> None:
        self.events.pop(int(event), None)
        self.recorded.pop(int(event), None)

    def cuEventRecord(self, event: Any, stream: Any) -> None:
        """Note the event. In the default stream, where programs measure time, run all queued launches first."""
        found = self.stream(int(stream))
        self.recorded[int(event)] = found.record()
        if found is self.machine.devices[found.device].default:
            self.machine.finish()
        self.events[int(event)] = time.perf_counter()

    def cuEventQuery(self, event: Any) -> None:
        self.machine.finish()

    def cuEventSynchronize(self, event: Any) -> None:
        self.machine.finish()

    def cuEventElapsedTime(self, start: Any, end: Any) -> float:
        """Milliseconds that passed on this computer between two events. They are no estimate of a GPU's time."""
        if int(start) not in self.events or int(end) not in self.events:
            raise failure("CUDA_ERROR_INVALID_HANDLE", "cuEventElapsedTime", "an event was not recorded")
        return (self.events[int(end)] - self.events[int(start)]) * 1e3

    def cuProfilerStart(self) -> None:
        pass

    def cuProfilerStop(self) -> None:
        pass

    # ---- modules and functions ----
    def cuLibraryGetGlobal(self, handle: Any, name: bytes) -> tuple[Any, int]:
        module = self.modules[int(handle)]
        address, size = module.variable(name.decode())
        return self.binding.CUdeviceptr(address), size

    def cuLibraryUnload(self, handle: Any) -> None:
        self.modules.pop(int(handle), None)

    def cuKernelSetAttribute(self, attribute: Any, value: int, kernel: Any, device: Any) -> None:
        """Do nothing, because caches are not modelled."""

    def cuKernelSetCacheConfig(self, kernel: Any, config: Any, device: Any) -> None:
        """Do nothing, because caches are not modelled."""

    def cuOccupancyMaxActiveBlocksPerMultiprocessor(self, handle: Any, threads: int, dynamic: int) -> int:
        function = self.functions[int(handle)]
        with own():
            return limits.resident(self.machine.limits, threads, function.shared + dynamic, function.info.registers)


def pointer_class(binding: Any) -> Any:
    """A class like CUdeviceptr that keeps its machine.

    Numba may free memory late, when another machine is in use.
    """

    class Pointer(binding.CUdeviceptr):
        machine: Any = None

    return Pointer


def host_bytes(address: Any, size: int) -> np.ndarray:
    """[size] uint8: a view of this process's memory at an address."""
    if isinstance(address, ctypes.c_void_p):
        address = address.value
    if not size:
        return np.zeros(0, np.uint8)
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(address)))


class MachineDevice:
    """A device of a machine, with the interface of cuda.core's Device that Numba uses."""

    def __init__(self, driver: Driver, number: int):
        self.driver, self.device_id = driver, number
        cc = driver.machine.cc
        self.compute_capability = cc[:2]
        self.name = f"PTX machine, {driver.machine.arch}"
        self.uuid = f"00000000-0000-0000-0000-{number:012d}"

    @property
    def context(self) -> Any:
        """The device's context, an object with its handle."""
        handle = self.driver.context(self.device_id)
        return type("Context", (), {"handle": handle, "_handle": handle})()

    def set_current(self) -> None:
        """Push the device's context on this thread's stack unless it is current."""
        stack = self.driver.stack()
        if not stack or stack[-1] != self.device_id:
            stack.append(self.device_id)
