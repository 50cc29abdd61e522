"""Kernels that Numba compiled, as functions of a machine: what Numba's launch code expects of the driver."""

from __future__ import annotations

import ctypes
import re
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from .sources import compiled_source

if TYPE_CHECKING:
    from .driver import Driver
    from .lower import Program

HEADER = re.compile(r"^\s*\.(version|target|address_size)\b.*$", re.M)
REFUSED = "the kernel links {what}: the machine links PTX and CUDA C++ sources alone, which it compiles to PTX"


def linked_ptx(library: Any, cc: tuple) -> str:
    """The PTX of a kernel with everything it is linked with; raises InputError for what is not PTX or CUDA C++."""
    texts = list(library.get_asm_strs())
    for file in sorted(library._linking_files, key=str):
        texts.append(of_file(file, cc))
    return "\n".join([texts[0], *(HEADER.sub("", text) for text in texts[1:])])


def of_file(file: Any, cc: tuple) -> str:
    """The PTX of one linked file or object of code."""
    kind = getattr(file, "kind", None) or str(file).rpartition(".")[2]
    name = str(getattr(file, "name", file))
    if kind not in ("ptx", "cu"):
        raise InputError(REFUSED.format(what=name))
    data = getattr(file, "data", None)
    if data is None:
        with open(str(file), "rb") as opened:
            data = opened.read()
    text = data.decode() if isinstance(data, bytes) else str(data)
    return compiled_source(text, name, cc[:2]) if kind == "cu" else text.rstrip("\x00")


class MachineModule:
    """A loaded module: its variables, for Numba's error codes and the like."""

    def __init__(self, driver: Driver, program: Program, setup: Any, teardown: Any):
        self.driver, self.program, self.setups = driver, program, setup
        self.handle = next(driver.handles)
        self.initialized = False
        driver.modules[self.handle] = self
        if teardown:
            weakref.finalize(self, run_all, teardown, self.handle)

    def setup(self) -> None:
        run_all(self.setups, self)
        self.initialized = True

    def variable(self, name: str) -> tuple[int, int]:
        """(address, bytes) of a variable on the current device."""
        if name not in self.program.variables:
            from .driver import failure

            raise failure("CUDA_ERROR_NOT_FOUND", "cuLibraryGetGlobal", f"no variable {name}")
        address = self.driver.machine.loader.address(self.program, self.driver.current_device(), name)
        return address, self.program.variables[name].size

    def get_global_symbol(self, name: str) -> tuple[Any, int]:
        from numba.cuda.cudadrv import devices, driver

        address, size = self.variable(name)
        return driver.MemoryPointer(devices.get_context(), driver.binding.CUdeviceptr(address), size), size


def run_all(callbacks: Any, value: Any) -> None:
    for callback in callbacks or ():
        callback(value)


class MachineFunction:
    """A kernel of a module; attrs: registers (a guess), bytes of shared, local and constant memory, most threads."""

    def __init__(self, driver: Driver, library: Any):
        from numba.cuda.cudadrv.driver import FuncAttr

        machine = driver.machine
        self.driver, self.name = driver, library._entry_name
        program = machine.loader.program(linked_ptx(library, machine.cc))
        self.program, self.info = program, program.functions[self.name]
        self.module = MachineModule(driver, program, library._setup_functions, library._teardown_functions)
        self.handle = next(driver.handles)
        self.kernel, self.title = self, library.name
        limit = self.info.limits.get(".maxntid") or self.info.limits.get(".reqntid")
        most = int(np.prod(limit)) if limit else machine.limits.block_threads
        constant = sum(v.size for v in program.variables.values() if v.space == "const")
        self.attrs = FuncAttr(
            regs=self.info.registers, shared=program.shared_bytes, local=program.local_bytes, const=constant,
            maxthreads=most,
        )  # fmt: skip
        self.attributes = type("Attributes", (), {"max_threads_per_block": most})()
        driver.functions[self.handle] = self

    @property
    def shared(self) -> int:
        return self.program.shared_bytes

    def set_shared_memory_carveout(self, carveout: Any) -> None:
        """Checked as CUDA does; caches are not modelled."""
        if not -1 <= int(carveout) <= 100:
            raise ValueError("Carveout must be between -1 and 100")

    def launch(self, config: Any, arguments: tuple, names: dict[int, str]) -> None:
        """Queue the kernel; names: of addresses, for reports."""
        machine = self.driver.machine
        for address, name in names.items():
            allocation = machine.memory.at(address)
            if allocation is not None and not allocation.name:
                allocation.name = name
        self.driver.copy_registered(False)
        machine.enqueue(
            self.driver.current_device(), self.program, self.name, self.title, config.grid, config.block,
            [number(value) for value in arguments], config.shmem_size or 0, [],
        )  # fmt: skip
        if self.driver.registered:
            machine.finish()
            self.driver.copy_registered(True)


def number(value: Any) -> Any:
    """A kernel's argument as Numba prepares it (int, bool, ctypes) as `kernels.pack` takes it."""
    if isinstance(value, ctypes._SimpleCData):
        return bytes(value)
    if isinstance(value, (bool, int, np.integer)):
        return int(value)
    if hasattr(value, "value") or hasattr(value, "__int__"):
        return int(getattr(value, "value", value))
    raise InputError(f"a kernel's argument of type {type(value).__name__} is not supported")
