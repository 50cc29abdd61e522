"""The machine's interface for users: devices, arrays and launches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from kernel_cache import sm_limits as limits
from kernel_cache.offline import capability

from . import kernels
from . import state as s
from .address_space import span
from .arrays import DeviceArray, granule_of
from .core import PATIENCE
from .errors import ClosedError, InputError, MemoryProblem, own
from .graphs import Graph, capture
from .launches import Launch, cluster_size, three
from .program import Program
from .runner import Runner
from .streams import Stream, needs_of
from .syntax import PTXError

LIMIT = 100_000_000_000  # the most warp instructions of one run; so many take about a day
MOST_LIMIT = 1 << 60
DISTANCE = 1 << 32  # bytes between the arrays of neighbouring devices that `symmetric` makes


@dataclass(frozen=True)
class How:
    """How a kernel is launched: the options of SimulatedGpu.launch."""

    shared: int
    stream: Stream
    programmatic: bool = False
    cooperative: bool | None = None
    cluster: Any = None


class SimulatedGpu:
    """One GPU of a machine."""

    def __init__(self, machine: Machine, number: int):
        self.machine, self.number = machine, number
        self.default = Stream(number)
        self.streams: list[Stream] = []

    def array(self, values: Any, name: str = "") -> DeviceArray:
        """A copy of a NumPy array in this device's memory."""
        return self.machine.new_array(self.number, np.asarray(values), None, None, name)

    def empty(self, shape: Any, dtype: Any = np.float64, name: str = "", strides: Any = None) -> DeviceArray:
        """An uninitialised array in this device's memory. strides: in bytes."""
        return self.machine.new_array(self.number, None, shape, dtype, name, strides)

    def stream(self, blocking: bool = True) -> Stream:
        """A new stream, whose launches run at the same time as those of the device's other streams.

        blocking: whether the stream and the default stream wait for each other, as with cudaStreamCreate.
        """
        made = Stream(self.number, blocking)
        self.streams.append(made)
        return made

    def launch(
        self,
        kernel: Any,
        grid: Any,
        block: Any,
        *args: Any,
        shared: int = 0,
        entry: str | None = None,
        stream: Stream | None = None,
        programmatic: bool = False,
        cooperative: bool | None = None,
        cluster: Any = None,
    ) -> None:
        """Queue a kernel: a `cuda.jit` function, or PTX text and `entry`.

        The kernel runs at the next Machine.run, after earlier launches of its stream. args: arrays of the machine,
        NumPy arrays (copied to the device, and back after the run), numbers, tuples. PTX text takes one argument for
        each parameter; an array then stands for its address. shared: bytes of dynamic shared memory. stream: by default
        the device's default stream. programmatic: whether the kernel may begin before the previous kernel of its stream
        has ended (programmatic dependent launch). cooperative: whether all blocks must be resident at once, as a
        barrier of the whole grid needs; with None they need not be, but a kernel that uses cooperative groups still
        gets memory for this barrier. cluster: the blocks of a cluster, a number or (x, y, z); by default those that the
        kernel was compiled for.
        """
        how = How(shared, stream or self.default, programmatic, cooperative, cluster)
        if how.stream.device != self.number:
            raise InputError(f"the stream belongs to device {how.stream.device}, not to device {self.number}")
        self.machine.launch(self.number, kernel, grid, block, args, how, entry)


class Machine(Runner):
    """GPUs that are simulated on the CPU and run compiled PTX.

    devices: number of GPUs. sm_count: streaming multiprocessors of each GPU. arch: the architecture that kernels are
    compiled for. seed: the seed of the schedule; the same seed repeats a run. check: whether to report races and other
    errors. strict: whether to raise KernelFault at the first report. limit: the most warp instructions of a run.
    patience: after so many warp instructions without any change, threads count as stuck. stale: whether reads may
    return older values where PTX permits it; if False, memory is sequentially consistent, but races are still reported.
    `profile()` returns the counters of all kernels that ran. docs/ptxsim.md has an example.
    """

    def __init__(
        self,
        devices: int = 1,
        sm_count: int = 4,
        arch: str = "sm_90",
        seed: int = 0,
        check: bool = True,
        strict: bool = False,
        limit: int = LIMIT,
        patience: int = PATIENCE,
        stale: bool = True,
    ):
        if not isinstance(seed, (int, np.integer)):
            raise InputError(f"seed must be an int, got {seed!r}")
        devices, sm_count = whole("devices", devices, 64), whole("sm_count", sm_count, s.MAX_SMS)
        limit, patience = whole("limit", limit, MOST_LIMIT), whole("patience", patience, MOST_LIMIT)
        with own():
            super().__init__(devices, sm_count, capability(arch), int(seed), check, strict=strict, limit=limit)
        self.devices = [SimulatedGpu(self, number) for number in range(devices)]
        self.arch, self.seed, self.patience = arch, int(seed), patience
        self.x[s.WEAK_MEMORY] = int(check and stale)

    def device(self, number: int = 0) -> SimulatedGpu:
        """A device by its number. Raises InputError if the machine does not have it."""
        if not isinstance(number, (int, np.integer)) or not 0 <= number < len(self.devices):
            raise InputError(
                f"the machine has devices 0 to {len(self.devices) - 1}, got {number!r}: "
                "--devices, or Machine(devices=), gives more"
            )
        return self.devices[number]

    def new_array(
        self,
        device: int,
        values: np.ndarray | None,
        shape: Any,
        dtype: Any,
        name: str,
        strides: Any = None,
        at: int | None = None,
    ) -> DeviceArray:
        """Make an array on a device, or for device -1 in host memory.

        The array is a copy of `values`, or uninitialised if `values` is None. at: its offset in the machine's memory.
        """
        if values is not None:
            shape, dtype = values.shape, values.dtype
            order = "F" if values.flags.f_contiguous and not values.flags.c_contiguous else "C"
        else:
            order = "C"
        dtype = np.dtype(dtype)
        if dtype.hasobject:
            raise InputError(f"arrays of Python objects cannot be on a device, got dtype {dtype}")
        shape = tuple(int(n) for n in shape) if isinstance(shape, (tuple, list)) else (int(shape),)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        with self.lock:
            allocation = self.memory.allocate(size, device, granule_of(dtype), name, values is not None, at)
        allocation.dtype, allocation.shape, allocation.itemsize = dtype, shape, dtype.itemsize
        if strides is None:
            strides = np.empty(shape, np.dtype("u1"), order=order).strides  # type: ignore[call-overload]
            strides = tuple(n * dtype.itemsize for n in strides)
        array = DeviceArray(self, allocation, 0, shape, dtype, strides)
        if values is not None:
            array._view()[...] = values
        return array

    def host_array(self, values: Any, name: str = "") -> DeviceArray:
        """Copy a NumPy array to host memory that every device may read and write (mapped, pinned memory)."""
        return self.new_array(-1, np.asarray(values), None, None, name)

    def symmetric(
        self, shape: Any, dtype: Any = np.float64, name: str = "", distance: int = DISTANCE
    ) -> list[DeviceArray]:
        """An uninitialised array on each device. The arrays' addresses are `distance` bytes apart.

        Libraries that find a peer's memory by adding to an address need this, such as NCCL with its symmetric windows,
        whose distance is a multiple of 4 GiB. Raises MemoryProblem if the machine has no space for so many.
        """
        count = len(self.devices)
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        with self.lock:
            first = self.memory.runs.apart(span(size), count, distance)
            if first < 0 or distance % span(0) or span(size) > distance:
                raise MemoryProblem(
                    f"the machine's memory of {len(self.memory.data)} bytes has no space for {count} arrays of {size} "
                    f"bytes that are {distance} bytes apart"
                )
            names = [f"{name}@{number}" if name else "" for number in range(count)]
            made: list[DeviceArray] = []
            try:
                for number in range(count):
                    made.append(self.new_array(number, None, shape, dtype, names[number], at=first + number * distance))
            except MemoryProblem:
                for one in made:
                    one.free()
                raise
            return made

    def capture(self) -> AbstractContextManager[Graph]:
        """A block whose launches become a graph, to launch again and again: `with machine.capture() as graph:`."""
        return capture(self)

    # ---- launching ----
    def load(self, ptx: str) -> Program:
        """The program of PTX text."""
        with self.lock:
            return self.loader.program(ptx)

    def launch(
        self, device: int, kernel: Any, grid: Any, block: Any, args: tuple[Any, ...], how: How, entry: str | None
    ) -> None:
        """Queue a kernel on a device. The arguments are those of SimulatedGpu.launch."""
        names: list[str] = []
        after: list[Callable[[], None]] = []
        if isinstance(kernel, str):
            program = self.load(kernel)
            entries = [name for name, info in program.functions.items() if info.entry]
            if entry is None and len(entries) == 1:
                entry = entries[0]
            if not entries:
                raise InputError("the PTX has no kernel (.entry)")
            if entry not in entries:
                raise InputError(f"entry must be one of {entries}, got {entry!r}")
            numbers = [a.ptr if isinstance(a, DeviceArray) else a for a in self._own(device, args, after)]
            title = entry
        else:
            if not hasattr(kernel, "py_func"):
                raise InputError(f"expected a cuda.jit kernel or PTX text, got {type(kernel).__name__}")
            args = self._own(device, self._converted(kernel, args), after)
            types_ = tuple(kernels.type_of(a) for a in args)
            made = kernels.compiled(kernel, types_, self.cc)
            entry, types_ = made.entry, made.types
            program = self.load(made.ptx)
            program.ir = made.library.llvm_strs
            numbers = []
            for type_, value in zip(types_, args):
                kernels.flatten(type_, value, numbers)
            title = kernel.py_func.__name__
            names = list(kernel.py_func.__code__.co_varnames)
        for name, value in zip(names, args):
            if isinstance(value, DeviceArray) and not value.allocation.name:
                value.allocation.name = name
        self.enqueue(device, program, entry, title, grid, block, numbers, how, after)

    def enqueue(
        self,
        device: int,
        program: Program,
        entry: str,
        title: str,
        grid: Any,
        block: Any,
        numbers: list[Any],
        how: How,
        after: list[Callable[[], None]],
    ) -> Launch:
        """Queue a kernel of a loaded program.

        title: the kernel's name in reports. numbers: its parameters, as `kernels.pack` takes them. after: functions to
        call when the kernel has ended. Raises InputError for a launch that no device could hold, or a kernel that has
        instructions that the machine lacks.
        """
        info, shared = program.functions[entry], how.shared
        if info.refused:
            raise PTXError(f"{info.refused}; other kernels of the module can be launched")
        if not isinstance(shared, (int, np.integer)) or shared < 0:
            raise InputError(f"shared must be a number of bytes, not negative, got {shared!r}")
        one = Launch(
            device,
            program,
            info,
            title,
            three(grid, "grid"),
            three(block, "block"),
            kernels.pack(numbers, info.params),
            int(shared),
            after=after,
        )
        with own():
            one.per_sm = limits.resident(self.limits, one.threads, one.shared, info.registers)
        limit = info.limits.get(".maxntid") or info.limits.get(".reqntid")
        if limit and one.threads > int(np.prod(limit)):
            raise InputError(
                f"{title} was compiled for blocks of at most {int(np.prod(limit))} threads, got {one.threads}"
            )
        most = one.per_sm * self.sm_count
        if how.cooperative and one.blocks > most:
            raise InputError(f"a cooperative launch needs all its blocks resident: {most} fit, got {one.blocks}")
        one.cluster, one.explicit = cluster_size(info, how.cluster, one.grid)
        if one.cluster_blocks > most:
            raise InputError(
                f"all blocks of a cluster must be resident at once: {most} fit, and {title} has clusters of "
                f"{one.cluster_blocks}; a machine with more SMs (sm_count) holds more"
            )
        one.stream, one.programmatic = how.stream, how.programmatic
        if how.cooperative is not False and program.workspace:
            barrier = self.new_array(device, np.zeros(16, np.uint32), None, None, "grid barrier")
            one.workspace = barrier.ptr
            if not self.capturing:
                after.append(partial(self.memory.free, barrier.allocation))
        with self.lock:
            one.needs = self.needs_of(how.stream)
            how.stream.last, how.stream.waits = one, []
            self.queue.append(one)
        return one

    def needs_of(self, stream: Stream) -> list[Launch]:
        """The launches that must end before what is queued next in a stream begins."""
        gpu = self.devices[stream.device]
        return [*self.known(), *needs_of(stream, gpu.default, gpu.streams)]

    def _converted(self, kernel: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Convert the arguments by the kernel's extensions. Wrappers such as numba-cuda's ArgHint are kept."""
        extensions = getattr(kernel, "extensions", None)
        if not extensions:
            return args
        changed = []
        for value in args:
            type_ = kernels.type_of(value)
            for extension in reversed(extensions):
                type_, value = extension.prepare_args(type_, value, stream=0, retr=[])
            changed.append(value)
        return tuple(changed)

    def _own(self, device: int, args: tuple[Any, ...], after: list[Callable[[], None]]) -> tuple[Any, ...]:
        """The arguments, with NumPy arrays replaced by copies on the device.

        The method appends to `after` functions that copy the copies back into the arrays, and free them.
        """
        own = []
        for value in args:
            back = forth = True
            wrapped = type(value).__name__
            if wrapped in ("In", "Out", "InOut") and hasattr(value, "value"):
                back, forth, value = wrapped != "In", wrapped != "Out", value.value
            if isinstance(value, DeviceArray):
                self.holds(value)
            if isinstance(value, tuple) and not hasattr(value, "_fields"):
                value = self._own(device, value, after)
            elif isinstance(value, np.ndarray) or (isinstance(value, np.void) and value.dtype.fields is not None):
                source = np.asarray(value)
                mine = self.new_array(device, source, None, None, "")
                if not forth and self.check:
                    start = mine.allocation.start
                    self.memory.init[start : start + mine.allocation.size] = 0
                if back and isinstance(value, np.void):
                    after.append(partial(assign_fields, value, mine))
                elif back and source.flags.writeable:
                    after.append(partial(copy_back, source, mine))
                after.append(partial(self.memory.free, mine.allocation))
                value = mine
            own.append(value)
        return tuple(own)

    def holds(self, array: DeviceArray) -> None:
        """Raise InputError unless the array belongs to this machine and was not freed."""
        if array.machine is not self:
            raise InputError("the array belongs to another machine: make it with this machine's device(n).array")
        if array.allocation.freed:
            raise InputError(f"the array {array.allocation.name} was freed")

    def close(self) -> None:
        """Drop the interpreter's tables, queued launches (which never run) and the record of those that ran.

        Afterwards new arrays, launches, runs, and reads and writes of arrays raise ClosedError. The machine's address
        space is unmapped when the machine and its arrays are collected. `reports` and `profile()` can still be used.
        """
        self.tables.clear()
        self.queue, self.done, self.past = [], [], []
        self.launch = self.run = self.new_array = self.finish = closed  # type: ignore[method-assign]


def whole(name: str, value: Any, most: int) -> int:
    """`value` as an int. Raises InputError unless `value` is an integer of Python or NumPy in 1..most."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 1 <= value <= most:
        raise InputError(f"{name} must be an int in 1..{most}, got {value!r}")
    return int(value)


def closed(*_: Any, **__: Any) -> Any:
    """A stand-in for the methods of a closed machine."""
    raise ClosedError("the machine was closed")


def assign_fields(record: np.void, source: DeviceArray) -> None:
    """Copy the fields of an array without dimensions into a record."""
    for name in record.dtype.names or ():
        record[name] = source._view()[name]


def copy_back(target: np.ndarray, source: DeviceArray) -> None:
    """Copy an array of the machine into a NumPy array."""
    target[...] = source._view()
