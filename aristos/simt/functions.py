"""Kernels that Numba compiled, as functions of a machine: what Numba's launch code expects of the driver."""

from __future__ import annotations

import ctypes
import importlib
import re
import weakref
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from .heap import heap_for
from .sources import compiled_source

if TYPE_CHECKING:
    from .driver import Driver
    from .lower import Program

HEADER = re.compile(r"^\s*\.(version|target|address_size|file|loc)\b.*$", re.M)  # a module has them once
REFUSED = "the kernel links {what}: the machine links PTX and CUDA C++ sources alone, which it compiles to PTX"


def linked_ptx(library: Any, cc: tuple) -> str:
    """The PTX of a kernel with everything it is linked with; raises InputError for what is not PTX or CUDA C++."""
    return joined([*library.get_asm_strs(), *(of_file(file, cc) for file in sorted(library._linking_files, key=str))])


def joined(texts: list[str]) -> str:
    """One module of several, with malloc and free where they are asked for."""
    text = "\n".join([texts[0], *(HEADER.sub("", text) for text in texts[1:])])
    return text + heap_for(text)


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
        self.object_code = SimpleNamespace(handle=self.handle)
        self.initialized = False
        driver.modules[self.handle] = self
        if teardown:
            weakref.finalize(self, run_all, teardown, self.object_code)

    def setup(self) -> None:
        run_all(self.setups, self.object_code)
        self.initialized = True

    def variable(self, name: str) -> tuple[int, int]:
        """(address, bytes) of a variable on the current device."""
        if name not in self.program.variables:
            from .driver import failure

            raise failure("CUDA_ERROR_NOT_FOUND", "cuLibraryGetGlobal", f"no variable {name}")
        machine = self.driver.machine
        with machine.lock:
            address = machine.loader.address(self.program, self.driver.current_device(), name)
        return address, self.program.variables[name].size

    def get_function(self, name: str) -> MachineFunction:
        """A kernel of the module."""
        if name not in self.program.functions:
            from .driver import failure

            raise failure("CUDA_ERROR_NOT_FOUND", "cuLibraryGetKernel", f"no kernel {name}")
        return MachineFunction(self, name, name)

    def get_global_symbol(self, name: str) -> tuple[Any, int]:
        from numba.cuda.cudadrv import devices, driver

        address, size = self.variable(name)
        return driver.MemoryPointer(devices.get_context(), driver.binding.CUdeviceptr(address), size), size


def run_all(callbacks: Any, value: Any) -> None:
    for callback in callbacks or ():
        callback(value)


def load_library(driver: Driver, library: Any) -> MachineFunction:
    """The kernel of a library of code that Numba compiled, loaded with what it is linked with."""
    program = driver.machine.load(linked_ptx(library, driver.machine.cc))
    module = MachineModule(driver, program, library._setup_functions, library._teardown_functions)
    devices = importlib.import_module("numba.cuda.cudadrv.devices")
    devices.get_context().modules[module.handle] = module  # until the context is reset, as with CUDA's
    return MachineFunction(module, library._entry_name, library.name, library._max_registers)


class MachineLinker:
    """What Numba's runtime asks of a linker: sources to a module."""

    def __init__(self, *, cc: tuple, **_: Any):
        self.cc, self.texts = cc, list[str]()

    def add_cu_file(self, path: str) -> None:
        self.texts.append(of_file(path, self.cc))

    def complete(self) -> str:
        return joined(self.texts)


class MachineFunction:
    """A kernel of a module; attrs: registers (a guess), bytes of shared, local and constant memory, most threads."""

    def __init__(self, module: MachineModule, name: str, title: str, most_registers: int | None = None):
        from numba.cuda.cudadrv.driver import FuncAttr

        driver, program = module.driver, module.program
        machine = driver.machine
        self.driver, self.module, self.program = driver, weakref.proxy(module), program
        self.name, self.title = name, title
        self.info = program.functions[name]
        self.handle, self.kernel = next(driver.handles), self
        limit = self.info.limits.get(".maxntid") or self.info.limits.get(".reqntid")
        most = int(np.prod(limit)) if limit else machine.limits.block_threads
        constant = sum(v.size for v in program.variables.values() if v.space == "const")
        registers = min(self.info.registers, most_registers or self.info.registers)
        self.attrs = FuncAttr(
            regs=registers, shared=program.shared_bytes, local=program.local_bytes, const=constant, maxthreads=most
        )
        self.attributes = type("Attributes", (), {"max_threads_per_block": most})()
        driver.functions[self.handle] = self

    @property
    def shared(self) -> int:
        return self.program.shared_bytes

    def cache_config(self, prefer_equal: bool = False, prefer_cache: bool = False, prefer_shared: bool = False) -> None:
        """Taken and left: caches are not modelled."""

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
        try:
            machine.enqueue(
                self.driver.current_device(), self.program, self.name, self.title, config.grid, config.block,
                [number(value) for value in arguments], config.shmem_size or 0, [],
            )  # fmt: skip
        except InputError as error:
            raise launch_error(error) from None
        if self.driver.registered:
            machine.finish()
            self.driver.copy_registered(True)


def launch_error(error: InputError) -> Exception:
    """What cuda.core raises for a launch that the driver refuses; an InputError as well."""
    from cuda.core._utils.cuda_utils import CUDAError

    return type("LaunchError", (CUDAError, InputError), {})(f"CUDA_ERROR_INVALID_VALUE: {error}")


def number(value: Any) -> Any:
    """A kernel's argument as Numba prepares it (int, bool, ctypes) as `kernels.pack` takes it."""
    if isinstance(value, ctypes._SimpleCData):
        return bytes(value)
    if isinstance(value, (bool, int, np.integer)):
        return int(value)
    if hasattr(value, "value") or hasattr(value, "__int__"):
        return int(getattr(value, "value", value))
    raise InputError(f"a kernel's argument of type {type(value).__name__} is not supported")
