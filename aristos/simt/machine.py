"""The machine a user holds: devices, arrays, launches, and `run`, which executes what was launched.

It fills the tables that the compiled interpreter reads (state.py) and turns what comes back into reports.
"""

from __future__ import annotations

import operator
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ..errors import ClosedError, InputError
from ..kernels.cuda import limits
from ..kernels.cuda.assemble import capability
from . import isa, kernels
from . import state as s
from .address_space import PARAMETERS, Allocation, Memory
from .arrays import DeviceArray
from .counters import Profile
from .explain import explain, stuck, waiting
from .findings import KernelFault, Report
from .loader import Loader
from .lower import FunctionInfo, Program
from .units import addresses, python_function

BUDGET = 400_000  # instructions of warps between two looks at Ctrl-C and actors
FIRST_CLOCKS = 1 << 18
LIMIT = 100_000_000_000  # instructions of one run: a day or so
PATIENCE = 50_000_000  # instructions without any change before a run is given up as a livelock
MOST = {"grid": (2**31 - 1, 65535, 65535), "block": (1024, 1024, 64)}  # the CUDA programming guide's limits
ACTOR_STEPS = 400  # instructions between two turns of the actors
ACTOR_PATIENCE = 5000  # turns without any change before waiting actors count as stuck


@dataclass
class Launch:
    device: int
    program: Program
    info: FunctionInfo
    name: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    params: bytes
    dynamic: int
    first: int = 0
    per_sm: int = 1
    base: int = 0
    errors: Any = None
    after: list[Callable[[], None]] = field(default_factory=list)

    @property
    def blocks(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def threads(self) -> int:
        return self.block[0] * self.block[1] * self.block[2]

    @property
    def shared(self) -> int:
        return -(-self.program.shared_bytes // 128) * 128 + self.dynamic if self.dynamic else self.program.shared_bytes


def three(value: Any, what: str) -> tuple[int, int, int]:
    """A grid's or a block's size as (x, y, z)."""
    try:
        sizes = tuple(operator.index(v) for v in (value if isinstance(value, (tuple, list)) else (value,)))
    except TypeError:
        sizes = ()
    if not 1 <= len(sizes) <= 3 or any(v < 1 for v in sizes):
        raise InputError(f"{what} must be 1 to 3 positive whole numbers, got {value!r}")
    if any(v > most for v, most in zip(sizes, MOST[what])):
        raise InputError(f"{what} can be {MOST[what]} at most, got {value!r}")
    return (*sizes, *(1,) * (3 - len(sizes)))  # type: ignore[return-value]


class Device:
    """One device of a machine."""

    def __init__(self, machine: Machine, number: int):
        self.machine, self.number = machine, number

    def array(self, values: Any, name: str = "") -> DeviceArray:
        """A copy of a NumPy array in this device's memory."""
        return self.machine.new_array(self.number, np.asarray(values), None, None, name)

    def empty(self, shape: Any, dtype: Any = np.float64, name: str = "", strides: Any = None) -> DeviceArray:
        """An array that nothing has been written to yet."""
        return self.machine.new_array(self.number, None, shape, dtype, name, strides)

    def launch(self, kernel: Any, grid: Any, block: Any, *args: Any, shared: int = 0, entry: str | None = None) -> None:
        """Queue a kernel: a `cuda.jit` function, or PTX text and `entry`.

        args: arrays of the machine, NumPy arrays (copied in, and back when the machine has run), numbers, tuples; for
        PTX text one for each parameter, arrays standing for their addresses. shared: bytes of dynamic shared memory.
        It runs at the next Machine.run, after what was launched on this device before.
        """
        self.machine.launch(self.number, kernel, grid, block, args, shared, entry)


class Machine:
    """Devices that run compiled kernels on the CPU.

    devices, sm_count: how many, and streaming multiprocessors of each. arch: what kernels are compiled for. seed: of
    the schedule; the same seed gives the same run. check: look for races and other errors, and let stores become
    visible late where PTX permits it. strict: raise KernelFault at the first report. limit: warp instructions of one
    run, after which it is given up. Counters of all kernels that ran: `profile()`. Example: see docs/simt.md.
    """

    def __init__(self, devices: int = 1, sm_count: int = 4, arch: str = "sm_90", seed: int = 0, check: bool = True,
                 strict: bool = False, limit: int = LIMIT):  # fmt: skip
        if not isinstance(seed, (int, np.integer)) or not isinstance(limit, int) or limit < 1:
            raise InputError(f"seed must be a whole number and limit a positive one, got {seed!r} and {limit!r}")
        if not 1 <= devices <= 64 or not 1 <= sm_count <= s.MAX_SMS:
            raise InputError(f"devices must be 1 to 64 and sm_count 1 to {s.MAX_SMS}, got {devices} and {sm_count}")
        self.devices = [Device(self, number) for number in range(devices)]
        self.sm_count, self.arch, self.seed, self.check, self.strict = sm_count, arch, seed, check, strict
        self.cc = capability(arch)
        self.lock = threading.RLock()  # memory and code may not grow while another thread runs kernels
        self.limits = limits.of(self.cc)
        self.x = np.zeros(s.X_FIELDS + s.UNITS, np.int64)
        units = addresses()
        self.x[s.X_FIELDS : s.X_FIELDS + len(units)] = units
        self.memory = Memory(self.x, check)
        self.loader = Loader(self)
        self.queue: list[Launch] = []
        self.done: list[Launch] = []
        self.reports: list[Report] = []
        self.first_report = 0  # of the run under way
        self.output: list[str] = []  # what kernels printed
        self.actors: dict[int, Iterator] = {}
        self.acting = -1
        self.changed = False  # by the actors, in their last turn
        self.next_gid = 1
        self.parameters: list[Allocation] = []  # of the launches that ran last
        self.tables: dict[str, np.ndarray] = {}
        self.patience, self.limit = PATIENCE, limit
        self.x[s.RNG] = (seed * 2654435761 + 88172645463325252) & ((1 << 62) - 1)
        self.x[s.CHECK] = self.x[s.WEAK_MEMORY] = int(check)
        self.x[s.CLOCKS_TOP] = 1
        self.x[s.BURST] = 12 if check else 48
        if check:
            self._table("clocks", (FIRST_CLOCKS, 2), s.CLOCKS)
            self._table("sync", (1 << 14, s.S_FIELDS), s.SYNC)
            self._table("history", (s.HISTORY_SLOTS, s.H_FIELDS), s.HISTORY)
            self.x[s.CLOCKS_CAP], self.x[s.SYNC_CAP] = FIRST_CLOCKS, 1 << 14
        self._table("scratch", (512,), s.SCRATCH)
        self._table("reports", (s.MAX_REPORTS, s.R_FIELDS), s.REPORTS)
        self.x[s.PRINTS_CAP] = 4096
        self._table("prints", (4096, 80), s.PRINTS)
        self._table("agent", (s.T_FIELDS,), s.AGENT)
        self._table("pending", (s.P_MOST, s.P_FIELDS), s.PENDING)

    def _table(self, name: str, shape: tuple, field_: int, dtype: Any = np.int64) -> np.ndarray:
        table = np.zeros(shape, dtype)
        self.tables[name] = table
        self.x[field_] = table.ctypes.data
        return table

    def device(self, number: int = 0) -> Device:
        if not 0 <= number < len(self.devices):
            raise InputError(f"the machine has devices 0 to {len(self.devices) - 1}, got {number}")
        return self.devices[number]

    # ---- memory ----
    def new_array(self, device: int, values: np.ndarray | None, shape: Any, dtype: Any, name: str,
                  strides: Any = None) -> DeviceArray:  # fmt: skip
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
            allocation = self.memory.allocate(size, device, granule_of(dtype), name, values is not None)
        allocation.dtype, allocation.shape, allocation.itemsize = dtype, shape, dtype.itemsize
        if strides is None:
            strides = np.empty(shape, np.dtype("u1"), order=order).strides  # type: ignore[call-overload]
            strides = tuple(n * dtype.itemsize for n in strides)
        array = DeviceArray(self, allocation, 0, shape, dtype, strides)
        if values is not None:
            array._view()[...] = values
        return array

    def host_array(self, values: Any, name: str = "") -> DeviceArray:
        """A copy of a NumPy array in host memory that every device may read and write (mapped, pinned memory)."""
        return self.new_array(-1, np.asarray(values), None, None, name)

    # ---- launching ----
    def load(self, ptx: str) -> Program:
        """The program of PTX text."""
        with self.lock:
            return self.loader.program(ptx)

    def launch(
        self, device: int, kernel: Any, grid: Any, block: Any, args: tuple, shared: int, entry: str | None
    ) -> None:
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
            numbers = []
            for type_, value in zip(types_, args):
                kernels.flatten(type_, value, numbers)
            title = kernel.py_func.__name__
            names = list(kernel.py_func.__code__.co_varnames)
        for name, value in zip(names, args):
            if isinstance(value, DeviceArray) and not value.allocation.name:
                value.allocation.name = name
        self.enqueue(device, program, entry, title, grid, block, numbers, shared, after)

    def enqueue(self, device: int, program: Program, entry: str, title: str, grid: Any, block: Any,
                numbers: list[Any], shared: int, after: list[Callable[[], None]]) -> None:  # fmt: skip
        """Queue a kernel of a loaded program; numbers: its parameters, as of `kernels.pack`; after: done at its end."""
        info = program.functions[entry]
        if not isinstance(shared, (int, np.integer)) or shared < 0:
            raise InputError(f"shared must be a number of bytes, not negative, got {shared!r}")
        one = Launch(device, program, info, title, three(grid, "grid"), three(block, "block"),
                     kernels.pack(numbers, info.params), int(shared), after=after)  # fmt: skip
        one.per_sm = limits.resident(self.limits, one.threads, one.shared, info.registers)
        limit = info.limits.get(".maxntid") or info.limits.get(".reqntid")
        if limit and one.threads > int(np.prod(limit)):
            raise InputError(
                f"{title} was compiled for blocks of at most {int(np.prod(limit))} threads, got {one.threads}"
            )
        with self.lock:
            self.queue.append(one)

    def _converted(self, kernel: Any, args: tuple) -> tuple:
        """Arguments after the kernel's own extensions (numba-cuda's ArgHint and the like keep what they wrap)."""
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

    def _own(self, device: int, args: tuple, after: list[Callable[[], None]]) -> tuple:
        """NumPy arrays among the arguments become arrays of the device, and are written back after the run."""
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
        """Raises InputError for an array of another machine, or one that was freed."""
        if array.machine is not self:
            raise InputError("the array is another machine's: make it with this machine's device(n).array")
        if array.allocation.freed:
            raise InputError(f"the array {array.allocation.name} was freed")

    def actor(self, function: Callable[..., Iterator], *args: Any) -> None:
        """Let a Python generator take part in the next run, as a thread of the host.

        It reads and writes arrays by `load` and `store` and yields to let the devices go on.
        """
        if len(self.actors) >= 31:
            raise InputError("at most 31 actors can take part")
        self.actors[len(self.actors)] = iter(function(*args))

    # ---- running ----
    def finish(self) -> None:
        """Run what was launched and has not run yet."""
        with self.lock:
            if self.queue and self.acting < 0:
                self.run()

    def run(self, strict: bool | None = None) -> list[Report]:
        """Run everything launched, together, to its end or to a dead-lock; returns what was found in it."""
        with self.lock:
            return self._run(self.strict if strict is None else strict)

    def _run(self, strict: bool) -> list[Report]:
        launches, self.queue = self.queue, []
        if not launches and not self.actors:
            return []
        self.x[s.STRICT] = int(strict)
        first = self.first_report = len(self.reports)
        self._prepare(launches)
        try:
            self._loop(launches)
        finally:
            self.actors = {}
            self.done += launches
            self.flush()
            for launch in launches:
                for action in launch.after:
                    action()
                launch.after = []  # they hold the arguments
        found = self.reports[first:]
        if self.x[s.STRICT] and found:
            raise KernelFault(found[0])
        return found

    def _loop(self, launches: list[Launch]) -> None:
        idle, progress = 0, -1
        run_compiled = python_function("run")
        until = int(self.x[s.STEP]) + self.limit
        while True:
            reason = run_compiled(int(self.x.ctypes.data), ACTOR_STEPS if self.actors else BUDGET)
            self.flush()
            if self.x[s.STEP] > until and reason in (s.BUDGET, s.PRINTS_FULL, s.CLOCKS_FULL, s.SYNC_FULL):
                self.reports += stuck(self, launches, True, f"still run after {self.limit} instructions of warps")
                return
            if reason == s.CLOCKS_FULL:
                self._compact()
            elif reason == s.SYNC_FULL:
                self._grow_sync()
            if self.actors and reason not in (s.CLOCKS_FULL, s.SYNC_FULL, s.PRINTS_FULL, s.STOPPED):
                changed = self._turn()
                idle = idle + 1 if self.x[s.PROGRESS] == progress and not changed else 0
                progress = int(self.x[s.PROGRESS])
                if idle < ACTOR_PATIENCE and self.actors:
                    continue
            if reason in (s.STUCK, s.LIVELOCK):
                if self.x[s.READY_COUNT] and reason == s.STUCK:
                    continue
                self.reports += stuck(self, launches, reason == s.LIVELOCK)
            if reason in (s.STUCK, s.LIVELOCK, s.ALL_DONE):
                self.reports += [waiting(number, actor) for number, actor in self.actors.items()]
            if reason in (s.STUCK, s.LIVELOCK, s.ALL_DONE, s.STOPPED):
                return

    def _turn(self) -> bool:
        """Let every actor go on once; did one of them change memory, or end?"""
        self.changed = False
        for number, actor in list(self.actors.items()):
            self.acting = number
            try:
                next(actor)
            except StopIteration:
                del self.actors[number]
                self.x[s.PROGRESS] = self.x[s.STEP]
                self.changed = True
            finally:
                self.acting = -1
        return self.changed

    def flush(self) -> None:
        """Turn what the interpreter recorded into reports and printed lines."""
        for row in range(int(self.x[s.REPORTS_COUNT])):
            self.reports += explain(self, self.tables["reports"][row])
        self.x[s.REPORTS_COUNT] = 0
        if self.x[s.PRINTS_COUNT]:
            from .printing import formatted

            for row in range(int(self.x[s.PRINTS_COUNT])):
                text = formatted(self, self.tables["prints"][row])
                self.output.append(text)
                sys.stdout.write(text)
            self.x[s.PRINTS_COUNT] = 0

    def profile(self) -> Profile:
        """Counters of everything that ran, by source line."""
        return Profile(self)

    # ---- tables ----
    def _prepare(self, launches: list[Launch]) -> None:
        """Lay out the tables for these launches: slots for the blocks that can be resident, queues, counters."""
        x = self.x
        device_count = len(self.devices)
        wanted = [0] * device_count
        for launch in launches:
            wanted[launch.device] = max(wanted[launch.device], min(launch.blocks, launch.per_sm * self.sm_count))
        slots = sum(wanted)
        per_block = max((-(-launch.threads // 32) for launch in launches), default=1)
        warp_slots = slots * per_block + 1  # the last is the host's actors'
        rows = max((launch.program.rows for launch in launches), default=1)
        local = -(-max((launch.program.local_bytes for launch in launches), default=0) // 16) * 16 + 16
        depth = max((launch.program.depth for launch in launches), default=1)
        save = max((launch.program.save_rows for launch in launches), default=0)
        shared = -(-max((launch.shared for launch in launches), default=0) // 16) * 16 + 16
        granule = min((launch.program.granule for launch in launches), default=4)
        self._table("regs", (max(warp_slots * rows * 32, 1),), s.REGS)
        self._table("warps", (warp_slots, s.W_FIELDS), s.WARPS)[:, s.W_READY] = -1
        self._table("threads", (warp_slots * 32, s.T_FIELDS), s.THREADS)
        blocks = self._table("blocks", (max(slots, 1), s.B_FIELDS), s.BLOCKS)
        self._table("barriers", (max(slots, 1) * s.BARRIERS_PER_BLOCK, s.Q_FIELDS), s.BARRIERS)
        self._table("ready", (warp_slots,), s.READY)
        self._table("local", (warp_slots * 32 * local,), s.LOCAL, np.uint8)
        stack = (4 * (depth + 1) + save) * 8
        self._table("stacks", (warp_slots * 32 * stack,), s.STACKS, np.uint8)
        self._table("copies", (warp_slots * 32 * s.C_MOST, s.C_FIELDS), s.COPIES)
        uses = {int(op) for launch in launches for op in np.unique(launch.program.code[:, isa.OP])}
        barriers = slots if uses & set(range(isa.MBINIT, isa.MBCOPIES + 1)) else 0
        x[s.CLOCK_ROOM] = 256 + (64 * per_block if barriers else 0)  # an mbarrier can let all threads of a block go on
        self._table("mbarriers", (max(barriers, 1) * s.MB_MOST, s.MB_FIELDS), s.MBARRIERS)
        self._table("flight", (warp_slots * rows if self.check and isa.WGMMA in uses else 1,), s.FLIGHT)
        self._table("shared", (max(slots, 1) * shared,), s.SHARED_MEMORY, np.uint8)
        x[s.REGISTERS_PER_WARP], x[s.LOCAL_BYTES], x[s.STACK_BYTES] = rows * 32, local, stack
        x[s.DEPTH], x[s.SAVE_ROWS], x[s.WARP_SLOTS], x[s.BLOCK_SLOTS] = depth + 1, save, warp_slots, slots
        cells = (shared // granule + 2) * s.CELL_WORDS
        if self.check:
            self._table("known", (warp_slots, 1024), s.KNOWN)
            self._table("shared_init", (max(slots, 1) * shared,), s.SHARED_INIT, np.uint8)
            self._table("shared_shadow", (max(slots, 1) * cells,), s.SHARED_SHADOW)
        blocks[:, s.B_LAUNCH] = -1
        slot = 0
        for device, count in enumerate(wanted):
            for _ in range(count):
                row = blocks[slot]
                row[s.B_DEVICE], row[s.B_SLOT], row[s.B_FIRST_WARP] = device, slot, slot * per_block
                row[s.B_SHARED] = x[s.SHARED_MEMORY] + slot * shared
                if self.check:
                    row[s.B_INIT] = x[s.SHARED_INIT] + slot * shared
                    row[s.B_SHADOW] = x[s.SHARED_SHADOW] + slot * cells * 8
                slot += 1
        x[s.PENDING_COUNT] = x[s.TIMES] = 0
        x[s.READY_COUNT] = x[s.DEAD] = x[s.STOP] = x[s.SUSPECT] = x[s.SPINNING] = 0
        if self.check:  # everything before this run is over, and the host may have written anything since
            self.tables["history"][:, s.H_COUNT] = 0
            self.tables["sync"][:] = 0
            x[s.SYNC_USED], x[s.SC_SYSTEM], x[s.CLOCKS_TOP] = 0, 0, 1
        x[s.PROGRESS], x[s.PATIENCE] = x[s.STEP], self.patience
        x[s.RUN_FLOOR], x[s.DEVICE_COUNT] = self.next_gid, device_count
        self._queues(launches)
        self.loader.publish()

    def _queues(self, launches: list[Launch]) -> None:
        x = self.x
        table = self._table("launches", (max(len(launches), 1), s.L_FIELDS), s.LAUNCHES)
        devices = self._table("devices", (len(self.devices), s.D_FIELDS + s.MAX_SMS), s.DEVICES)
        devices[:, s.D_SMS], devices[:, s.D_CURRENT] = self.sm_count, -1
        x[s.LAUNCH_COUNT] = len(launches)
        last: dict[int, int] = {}
        for old in self.parameters:
            self.memory.free(old)
        self.kept, self.parameters = [], []
        for number, launch in enumerate(launches):
            launch.first, launch.base = self.next_gid, self.loader.base(launch.program)
            self.next_gid += launch.blocks
            row = table[number]
            params = self.memory.allocate(max(len(launch.params), 8), launch.device, 8, PARAMETERS, True)
            self.parameters.append(params)
            self.memory.bytes_of(params)[: len(launch.params)] = np.frombuffer(launch.params, np.uint8)
            constants = self.loader.constants(launch.program, launch.device)
            valid = valid_bytes(launch)
            self.kept += [constants, valid]
            row[s.L_DEVICE], row[s.L_BLOCKS], row[s.L_FIRST_GID] = launch.device, launch.blocks, launch.first
            row[s.L_GX], row[s.L_GY], row[s.L_GZ] = launch.grid
            row[s.L_BX], row[s.L_BY], row[s.L_BZ] = launch.block
            row[s.L_THREADS], row[s.L_WARPS] = launch.threads, -(-launch.threads // 32)
            row[s.L_ENTRY], row[s.L_PARAMS] = launch.base + launch.info.start, isa.GLOBAL_START + params.start
            row[s.L_ROWS], row[s.L_SHARED] = launch.program.rows, launch.shared
            row[s.L_CONSTANTS], row[s.L_CONSTANT_COUNT] = constants.ctypes.data, len(constants)
            row[s.L_PER_SM], row[s.L_DYNAMIC], row[s.L_LOCAL] = (
                launch.per_sm,
                launch.dynamic,
                launch.program.local_bytes,
            )
            row[s.L_PREVIOUS], row[s.L_NUMBER] = last.get(launch.device, -1), number
            row[s.L_GRANULE], row[s.L_VALID] = launch.program.granule, valid.ctypes.data
            row[s.L_WARPGROUP] = int((launch.program.code[:, isa.OP] == isa.WGMMA).any())
            row[s.L_STATE] = s.QUEUED if launch.device in last else s.ACTIVE
            if launch.device not in last:
                devices[launch.device, s.D_CURRENT] = number
            last[launch.device] = number
        self.running = launches
        host = self.tables["threads"][-32:]
        host[:, s.T_GID] = (1 << 31) << 10 | np.arange(32)
        host[:, s.T_CLOCK] = 1

    def _clock_room(self) -> int:
        """Entries of vector clocks that a turn of the interpreter may need."""
        return 65536 + int(self.x[s.CLOCK_ROOM]) * int(self.x[s.MAX_CLOCKS])

    def _compact(self) -> None:
        old = self.tables["clocks"]
        used = len(old)
        new = np.zeros_like(old)
        self.tables["clocks"] = new
        self.x[s.CLOCKS] = new.ctypes.data
        python_function("compact")(int(self.x.ctypes.data), int(old.ctypes.data))
        if self.x[s.CLOCKS_TOP] * 2 > used or used < 2 * (self._clock_room()):
            bigger = np.zeros((2 * max(used, self._clock_room()), 2), np.int64)
            bigger[: self.x[s.CLOCKS_TOP]] = new[: self.x[s.CLOCKS_TOP]]
            self.tables["clocks"] = bigger
            self.x[s.CLOCKS], self.x[s.CLOCKS_CAP] = bigger.ctypes.data, len(bigger)

    def _grow_sync(self) -> None:
        old = self.tables["sync"]
        self._table("sync", (2 * len(old), s.S_FIELDS), s.SYNC)
        self.x[s.SYNC_CAP], self.x[s.SYNC_USED] = 2 * len(old), 0
        for row in old[old[:, s.S_KEY] != 0]:
            entry = python_function("host_entry")(int(self.x.ctypes.data), int(row[s.S_KEY]) - 1)
            self.tables["sync"][(entry - self.x[s.SYNC]) // (8 * s.S_FIELDS)] = row

    # ---- actors ----
    def _make_room(self) -> None:
        """As between two steps of the devices: an actor may read and write for long before it yields."""
        x = self.x
        if x[s.CLOCKS_CAP] - x[s.CLOCKS_TOP] < self._clock_room():
            self._compact()
        if 2 * x[s.SYNC_USED] + 4096 > x[s.SYNC_CAP]:
            self._grow_sync()

    def actor_load(self, array: DeviceArray, index: Any, order: str, scope: str) -> Any:
        from .host import host_load

        self._make_room()
        return host_load(self, array, index, order, scope)

    def actor_store(self, array: DeviceArray, index: Any, value: Any, order: str, scope: str) -> None:
        from .host import host_store

        self._make_room()
        host_store(self, array, index, value, order, scope)

    def host_race(self, array: DeviceArray, index: Any, write: bool) -> None:
        """An actor's access that nothing orders with a device's."""
        verb = "writes" if write else "reads"
        where = f"{array.allocation.name or 'array'}[{index}]"
        message = f"the host {verb} {where}, with nothing that orders it after a device's access"
        report = Report("race", "host", "", 0, (0, 0, 0), (self.acting, 0, 0), message, where, device=-1)
        if not any(r.kernel == "host" and r.address == where for r in self.reports[self.first_report :]):
            self.reports.append(report)

    def close(self) -> None:
        """Give all memory back; the machine cannot be used after."""
        self.tables.clear()
        self.queue, self.done = [], []
        self.launch = self.run = self.new_array = self.finish = closed  # type: ignore[method-assign]


def closed(*_: Any, **__: Any) -> Any:
    raise ClosedError("the machine was closed")


def granule_of(dtype: np.dtype) -> int:
    """Bytes of the smallest item that threads may own apart: 1, 2, 4 or 8."""
    if dtype.subdtype is not None:
        return granule_of(dtype.subdtype[0])
    if dtype.fields is not None:
        return min((granule_of(np.dtype(f[0])) for f in dtype.fields.values()), default=1)
    size = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
    return size if size in (1, 2, 4, 8) else 1


def assign_fields(record: np.void, source: DeviceArray) -> None:
    """Set a record's fields to those of an array of no dimensions."""
    for name in record.dtype.names or ():
        record[name] = source._view()[name]


def copy_back(target: np.ndarray, source: DeviceArray) -> None:
    target[...] = source._view()


def valid_bytes(launch: Launch) -> np.ndarray:
    """[shared bytes] uint8: which bytes of shared memory belong to a variable."""
    valid = np.zeros(launch.shared + 16, np.uint8)
    for at, size in launch.program.shared.values():
        valid[at : at + size] = 1
    if launch.dynamic:
        valid[launch.shared - launch.dynamic : launch.shared] = 1
    return valid
