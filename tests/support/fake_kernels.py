"""Kernels of the fake driver. They run on the PTX machine in turns, and are resident until they end.

Each launch has its own machine. All machines share one memory, which the fake driver allocates. There is no checker,
because it would not see the other machines' writes. SMs are a budget: a launch gets room for as many blocks as fit
beside the kernels that are resident, and starts when at least one block fits. PG, "Hardware Multithreading": blocks
reside on an SM as long as its registers, shared memory and threads suffice.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
from kept_ptx import ptx

import ptxsim
from aristos.kernels.cuda.build import Built
from kernel_cache import sm_limits as limits
from ptxsim import isa
from ptxsim import state as s
from ptxsim.address_space import FreeRuns
from ptxsim.kernels import pack
from ptxsim.launches import Launch
from ptxsim.prepare import prepare
from ptxsim.units import python_function

GRAIN = 2 << 20
SIZE = 1 << 35  # bytes of addresses; untouched pages take no memory
PARAMETERS = 1 << 20  # bytes for the parameters and constants of a launch
TURN = 30_000  # warp instructions in a kernel's turn
FRESH = 0xEE  # fresh memory is not zero
MOST_FRESH = 1 << 22  # at most this many bytes are filled with FRESH
ELF = b"\x7fELF"

_known: dict[bytes, Any] = {}  # image -> catalogue.Kernel


def build(kernel: Any, arch: str) -> Built:
    """A replacement for kernels.cuda.build.build. It returns an image that stands for the kernel."""
    image = ELF + f" {kernel.name} {id(kernel.function)}".encode()
    _known[image] = kernel
    return Built(kernel.name, image)


def kernel_of(image: bytes) -> Any:
    """The catalogue.Kernel of an image of `build`; None for any other image."""
    return _known.get(image)


class Arena:
    """The memory of all GPUs and of pinned host memory. A part can appear at a second address, as IPC maps it."""

    def __init__(self) -> None:
        self.file = os.memfd_create("fake-cuda")
        weakref.finalize(self, os.close, self.file)
        os.ftruncate(self.file, SIZE)
        self.map = mmap.mmap(self.file, SIZE, flags=mmap.MAP_SHARED)
        self.bytes = np.frombuffer(self.map, np.uint8)
        self.base = self.bytes.ctypes.data
        self.runs = FreeRuns(GRAIN, SIZE // 2)
        self.aliases = FreeRuns(SIZE // 2, SIZE)
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.mmap.restype = ctypes.c_void_p
        self.libc.mmap.argtypes = (
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_long,
        )

    def take(self, nbytes: int) -> int:
        """Take memory and return its offset. It is filled with FRESH, and a gap follows it."""
        start = self.runs.take(-(-nbytes // GRAIN) * GRAIN + GRAIN)
        assert start >= 0, "the fake driver has no addresses left"
        self.bytes[start : start + min(nbytes, MOST_FRESH)] = FRESH
        return start

    def give(self, start: int, nbytes: int) -> None:
        size = -(-nbytes // GRAIN) * GRAIN
        self.map.madvise(mmap.MADV_REMOVE, start, size)
        self.runs.give(start, size + GRAIN)

    def alias(self, start: int, nbytes: int) -> int:
        """A second offset of the same memory."""
        size = -(-nbytes // GRAIN) * GRAIN
        at = self.aliases.take(size + GRAIN)
        assert at >= 0, "the fake driver has no addresses left"
        found = self.libc.mmap(
            self.base + at, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | 0x10, self.file, start
        )
        assert found == self.base + at, os.strerror(ctypes.get_errno())
        return at


class Memory:
    """A stand-in for a machine's address space, with the arena's bytes. clear: as in `Reserved`."""

    def __init__(self, arena: Arena) -> None:
        self.bytes = arena.bytes

    def clear(self, start: int, end: int) -> None:
        self.bytes[start:end] = 0


class Sms:
    """The SMs of a GPU, with the resources that resident blocks leave free on each."""

    def __init__(self, count: int, of_each: limits.Limits) -> None:
        self.free = [
            SimpleNamespace(
                threads=of_each.threads, blocks=of_each.blocks, shared=of_each.shared, registers=of_each.registers
            )
            for _ in range(count)
        ]

    def take(self, blocks: int, threads: int, shared: int, registers: int) -> list[tuple[Any, Any]]:
        """Take room for at most `blocks` blocks, spread over the SMs. Returns an object for `give`."""
        warps = -(-threads // limits.WARP)
        need = SimpleNamespace(
            threads=warps * limits.WARP,
            blocks=1,
            shared=shared + limits.RESERVED_SHARED,
            registers=-(-registers * limits.WARP // 256) * 256 * warps,
        )
        held: list[tuple[Any, Any]] = []
        while len(held) < blocks:
            fit = [sm for sm in self.free if all(getattr(sm, name) >= n for name, n in vars(need).items())]
            if not fit:
                break
            sm = max(fit, key=lambda sm: sm.threads)
            for name, n in vars(need).items():
                setattr(sm, name, getattr(sm, name) - n)
            held.append((sm, need))
        return held

    def give(self, held: list[tuple[Any, Any]]) -> None:
        for sm, need in held:
            for name, n in vars(need).items():
                setattr(sm, name, getattr(sm, name) + n)


class Resident:
    """A launch of a catalogue.Kernel. `turn` lets it go on, and returns True when it has ended."""

    def __init__(
        self,
        owner: Any,
        sms: Sms,
        process: int,
        kernel: Any,
        grid: tuple[int, int, int],
        shared: int,
        values: Any,
        cc: tuple[int, ...],
    ) -> None:
        """owner: the fake driver's machine."""
        self.owner, self.sms, self.process, self.kernel, self.grid = owner, sms, process, kernel, grid
        self.arena, self.shared, self.values, self.cc = owner.arena, shared, values, cc
        self.held: list[tuple[Any, Any]] = []
        self.machine: Any = None

    def start(self) -> bool:
        text, entry = ptx(self.kernel, arch_of(self.cc))
        program = simt_program(text)
        info = program.functions[entry]
        launch = Launch(
            0,
            program,
            info,
            self.kernel.name,
            self.grid,
            (self.kernel.threads, 1, 1),
            pack(list(self.values), info.params),
            self.shared,
        )
        self.held = self.sms.take(launch.blocks, launch.threads, launch.shared, info.registers)
        if not self.held:
            return False
        launch.per_sm = 1
        machine = ptxsim.Machine(check=False, sm_count=len(self.held), arch=arch_of(self.cc))
        machine.patience = 1 << 60
        self.parameters = self.arena.take(PARAMETERS)
        memory = machine.memory
        memory.whole, memory.data = Memory(self.arena), self.arena.bytes
        memory.runs = FreeRuns(self.parameters, self.parameters + PARAMETERS)
        memory.publish()
        machine.loader.program(text)
        prepare(machine, [launch], past=0)
        self.machine = machine
        self.owner.resides(self.process, self.kernel.name, 1)
        return True

    def turn(self) -> bool:
        if self.machine is None and not self.start():
            return False
        reason = python_function("run")(int(self.machine.x.ctypes.data), TURN)
        self.machine.flush()
        if reason not in (s.ALL_DONE, s.STUCK, s.LIVELOCK) or (reason == s.STUCK and self.machine.x[s.READY_COUNT]):
            return False
        if reason != s.ALL_DONE:
            self.owner.violations.append(f"kernel {self.kernel.name} cannot go on")
        self.owner.violations += [f"kernel {self.kernel.name}: {report}" for report in self.machine.reports]
        self.owner.resides(self.process, self.kernel.name, -1)
        self.sms.give(self.held)
        self.arena.give(self.parameters, PARAMETERS)
        self.machine.close()
        return True


_programs: dict[str, Any] = {}


def arch_of(cc: tuple[int, ...]) -> str:
    """(9, 0) -> sm_90."""
    return "sm_" + "".join(map(str, cc[:2]))


def simt_program(text: str) -> Any:
    """The program of a PTX text. Its facts are needed before its machine exists."""
    if text not in _programs:
        _programs[text] = ptxsim.Machine(check=False).load(text)
    return _programs[text]


def facts(kernel: Any, cc: tuple[int, ...]) -> tuple[int, int]:
    """(registers of a thread, bytes of static shared memory) of a kernel."""
    text, entry = ptx(kernel, arch_of(cc))
    program = simt_program(text)
    return program.functions[entry].registers, program.shared_bytes


def offset(address: int) -> int:
    """The place in the arena of a GPU's address."""
    return address - isa.GLOBAL_START


def address(offset: int) -> int:
    """A GPU's address of a place in the arena."""
    return isa.GLOBAL_START + offset
