"""What the stand-in knows between two calls: the machine, contexts, and the objects behind handles."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import isa
from ..address_space import Allocation, Memory
from ..demangle import readable
from ..findings import Report
from ..launches import Launch
from ..machine import Machine
from ..program import FunctionInfo, Program
from ..streams import Event, Stream
from .parts import SMALL_SHARED, Parts
from .results import Refused

LEGACY, PER_THREAD = 1, 2  # handles of the two default streams


class SharedMachine(Machine):
    """A machine whose memory has the same addresses for kernels and for this process, as with unified addressing.

    record: a function that gets all reports when there may be new ones.
    """

    def __init__(self, record: Callable[[list[Report]], None], **options: Any):
        super().__init__(**options)
        self.record_reports = record

    def flush(self) -> None:
        """Take the interpreter's records, and hand on the reports."""
        super().flush()
        self.record_reports(self.reports)

    def memory_of(self, checked: bool) -> Memory:
        """The machine's memory. If other memory of the process is in the way, kernels see other addresses."""
        return Memory(self.x, checked, at=isa.GLOBAL_START)

    @property
    def unified(self) -> bool:
        """Whether kernels may use addresses of the host."""
        return int(self.memory.data.ctypes.data) == isa.GLOBAL_START


@dataclass(eq=False)
class Context:
    """A context of a device. primary: whether it is the device's primary context, and not of cuCtxCreate."""

    device: int
    primary: bool
    handle: int = 0
    flags: int = 0


@dataclass(eq=False)
class Module:
    """A loaded module, or a library. text: its PTX. copy: its number among loaded modules of the same text.

    parts: of a module that is read in parts; `program` then has no kernel. read: the parts, by their kernels' names.
    """

    program: Program
    text: str
    copy: int
    handle: int = 0
    parts: Parts | None = None
    read: dict[str, Module] = field(default_factory=dict)


@dataclass(eq=False)
class Function:
    """A kernel of a module. dynamic: the most bytes of dynamic shared memory of a launch; None: 48 KiB in all."""

    module: Module
    name: str
    handle: int = 0
    dynamic: int | None = None
    carveout: int = -1

    @property
    def most_dynamic(self) -> int:
        """The most bytes of dynamic shared memory of a launch."""
        return SMALL_SHARED - self.module.program.shared_bytes if self.dynamic is None else self.dynamic

    @property
    def info(self) -> FunctionInfo:
        """The kernel's places and parameters."""
        return self.module.program.functions[self.name]


@dataclass(eq=False)
class QueueStream:
    """A stream of the program. priority: kept, but without a meaning for the machine."""

    stream: Stream
    context: Context
    handle: int = 0
    flags: int = 0
    priority: int = 0


@dataclass(eq=False)
class ProgramEvent:
    """An event of the program. recorded: the launches that must end before it. begun, over: time.perf_counter's seconds
    when it was recorded, and when these launches were found to have ended."""

    flags: int
    handle: int = 0
    recorded: Event | None = None
    begun: float = 0.0
    over: float | None = None
    context: Context | None = None
    captured: Any = None  # (capture, nodes) if it was last recorded in a stream that was captured (capture.py)


@dataclass
class State:
    """The stand-in's state. thread_number: returns a number of the calling thread of the program."""

    machine: SharedMachine
    thread_number: Callable[[], int]
    objects: dict[int, Any] = field(default_factory=dict)
    primary: dict[int, Context] = field(default_factory=dict)
    retained: dict[int, int] = field(default_factory=dict)  # device -> how often its primary context is in use
    stacks: dict[int, list[Context]] = field(default_factory=dict)  # each thread's contexts, the current one last
    own: dict[tuple[int, int], Stream] = field(default_factory=dict)  # (thread, device) -> the thread's default stream
    handles: Any = field(default_factory=lambda: itertools.count(0x10000, 16))
    late: list[tuple[Allocation, list[Launch]]] = field(default_factory=list)  # to be freed when launches have ended
    registered: dict[int, tuple[Allocation, int]] = field(default_factory=dict)  # memory of the program, by address
    pending: list[ProgramEvent] = field(default_factory=list)
    peers: set[tuple[int, int]] = field(default_factory=set)
    pools: dict[int, Any] = field(default_factory=dict)  # device -> the memory pool that the program has set
    default_pools: dict[int, Any] = field(default_factory=dict)
    initialised: bool = False
    per_thread: bool = False  # whether the present call means the thread's default stream by the stream 0
    said: set[str] = field(default_factory=set)
    captures: list[Any] = field(default_factory=list)  # the captures that are going on
    modes: dict[int, int] = field(default_factory=dict)  # thread -> its mode for captures, by default 0
    host: dict[int, Launch] = field(default_factory=dict)  # by id, host functions (host_functions.py) to call
    calling: dict[int, Launch] = field(default_factory=dict)  # thread -> the host function that it is in
    caller: threading.Thread | None = None  # the stand-in's own thread for host functions
    last_call: float = 0.0  # when the program last called the driver API, as of time.monotonic
    lock: Any = field(default_factory=threading.RLock)
    returned: Any = None  # the condition that a host function has returned

    def __post_init__(self) -> None:
        """Make the condition, whose lock is the state's."""
        self.returned = threading.Condition(self.lock)

    @contextlib.contextmanager
    def unlocked(self) -> Iterator[None]:
        """A block in which other threads may call the driver API, while this call is not over."""
        self.lock.release()
        try:
            yield
        finally:
            self.lock.acquire()

    def say(self, text: str) -> None:
        """Print a line on stderr, once."""
        if text not in self.said:
            self.said.add(text)
            print(f"ptxsim: {readable(text)}", file=sys.stderr, flush=True)

    # ---- handles ----
    def keep(self, made: Any) -> int:
        """The handle of a new object."""
        made.handle = next(self.handles)
        self.objects[made.handle] = made
        return int(made.handle)

    def get(self, handle: int, kind: Any) -> Any:
        """The object behind a handle. Raises Refused if there is none of this kind."""
        found = self.objects.get(handle)
        if not isinstance(found, kind):
            raise Refused("ERROR_INVALID_CONTEXT" if kind is Context else "ERROR_INVALID_HANDLE")
        return found

    # ---- devices, contexts and streams ----
    def device(self, number: int) -> int:
        """A device's number. Raises Refused if the machine does not have it."""
        if not 0 <= number < len(self.machine.devices):
            raise Refused("ERROR_INVALID_DEVICE")
        return number

    def stack(self) -> list[Context]:
        """This thread's stack of contexts."""
        return self.stacks.setdefault(self.thread_number(), [])

    def context(self) -> Context:
        """This thread's current context. Raises Refused if there is none."""
        stack = self.stack()
        if not stack:
            raise Refused("ERROR_INVALID_CONTEXT")
        return stack[-1]

    def primary_of(self, device: int) -> Context:
        """A device's primary context."""
        if device not in self.primary:
            self.primary[device] = Context(device, True)
            self.keep(self.primary[device])
        return self.primary[device]

    def stream(self, handle: int, use: bool = True) -> Stream:
        """The stream of a handle. Raises Refused for an unknown one. use: as of `Capture.refuse_default`."""
        if handle == LEGACY or (handle == 0 and not self.per_thread):
            device = self.context().device
            for capture in self.captures:
                capture.refuse_default(device, use)
            return self.machine.devices[device].default
        if handle in (0, PER_THREAD):
            device = self.context().device
            key = self.thread_number(), device
            if key not in self.own:
                self.own[key] = self.machine.devices[device].stream()
            return self.own[key]
        made: Stream = self.get(handle, QueueStream).stream
        return made

    # ---- running ----
    def finish(self, device: int | None = None) -> None:
        """Run what is queued, on one device or on all. The rest is as of `wait`."""
        machine = self.machine
        self.wait([one for one in (*machine.past, *machine.queue) if device in (None, one.device)])

    def wait(self, launches: list[Launch], known: bool = True) -> None:
        """Run launches and those that they need. Raises Refused if kernels hang or trap, as after CUDA's errors.

        Host functions among them are called. known: whether the program has waited, so that what it does next comes
        after them.
        """
        while (host := self.first_function(launches)) is not None:
            if any(host is one for one in self.calling.values()):
                self.returned.wait()
                continue
            self.run(host.needs, False)
            if host.call is None:  # the runner has called it, because kernels were stuck without it
                continue
            self.calling[self.thread_number()] = host
            with self.unlocked():
                host.call()
            self.returned.notify_all()
        self.run(launches, known)

    def first_function(self, launches: list[Launch]) -> Launch | None:
        """The first host function that was not called yet, of launches and those that they need."""
        if not self.host:
            return None
        wanted = {id(one) for one in launches}
        for one in reversed(self.machine.queue):
            if id(one) in wanted:
                wanted |= {id(need) for need in one.needs}
        return next((one for number, one in self.host.items() if number in wanted), None)

    def call_host(self, launch: Launch, function: Callable[[], None]) -> None:
        """Call the program's function, for which the host function `launch` stands in the queue."""
        thread = self.thread_number()
        self.calling[thread] = launch
        try:
            function()
        finally:
            launch.call = None
            self.host.pop(id(launch), None)
            del self.calling[thread]

    def run(self, launches: list[Launch], known: bool) -> None:
        """Run launches, before which no host function is left to call. The rest is as of `wait`."""
        machine = self.machine
        first = len(machine.reports)
        before = bool(machine.queue)
        if before:
            self.copy_registered(False)
        try:
            machine.wait(launches, known)
        finally:
            if before:
                self.copy_registered(True)
            self.tidy()
            machine.record_reports(machine.reports)
        found = [report.kind for report in machine.reports[first:]]
        if "deadlock" in found:
            raise Refused("ERROR_LAUNCH_TIMEOUT", "kernels hang (a deadlock report follows at the end)")
        if "trap" in found:
            raise Refused("ERROR_LAUNCH_FAILED", "a kernel trapped (a report follows at the end)")

    def tidy(self) -> None:
        """Free memory and note the time of events, if what these wait for has ended."""
        queued = {id(launch) for launch in self.machine.queue}
        for one in list(self.late):
            if not any(id(launch) in queued for launch in one[1]):
                self.machine.memory.free(one[0])
                self.late.remove(one)
        now = time.perf_counter()
        for event in list(self.pending):
            if event.recorded is None or not any(id(one) in queued for one in event.recorded.launches):
                event.over = now
                self.pending.remove(event)

    def copy_registered(self, out: bool) -> None:
        """Copy memory that the program registered into the machine before kernels run, or back afterwards."""
        for address, (allocation, size) in self.registered.items():
            mine, theirs = self.machine.memory.bytes_of(allocation)[:size], bytes_at(address, size)
            if out:
                theirs[:] = mine
            else:
                mine[:] = theirs

    # ---- memory ----
    def place(self, address: int, size: int, what: str) -> tuple[Allocation, int] | None:
        """(allocation, offset in the machine's memory) of an address, or None if it is not the machine's.

        Raises Refused if `size` bytes there are not in one allocation.
        """
        offset = address - isa.GLOBAL_START
        if not 0 <= offset < len(self.machine.memory.data):
            offset = address - int(self.machine.memory.data.ctypes.data)
            if not 0 <= offset < len(self.machine.memory.data):
                return None
        found = self.machine.memory.at(isa.GLOBAL_START + offset)
        if found is None or found.freed or not 0 <= offset - found.start <= found.size - size:
            raise Refused("ERROR_INVALID_VALUE", f"{what}: {size} bytes at {address:#x} are not in one allocation")
        return found, offset


def bytes_at(address: int, size: int) -> np.ndarray:
    """[size] uint8: a view of the process's memory."""
    if not size:
        return np.zeros(0, np.uint8)
    if not address:
        raise Refused("ERROR_INVALID_VALUE")
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
