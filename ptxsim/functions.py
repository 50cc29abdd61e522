"""Modules and kernels that Numba compiled, loaded on a machine, with the interface that Numba's launch code expects."""

from __future__ import annotations

import ctypes
import importlib
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np

from . import linking
from .driver import Driver, failure
from .errors import InputError
from .machine import How
from .program import Program


class MachineModule:
    """A loaded module, with access to its kernels and variables (Numba's error codes, for example)."""

    def __init__(self, driver: Driver, program: Program, setup: Any, teardown: Any):
        self.driver, self.program, self.setups = driver, program, setup
        self.handle = next(driver.handles)
        self.object_code = SimpleNamespace(handle=self.handle)
        self.initialized = False
        driver.modules[self.handle] = self
        if teardown:
            weakref.finalize(self, run_all, teardown, self.object_code)

    def setup(self) -> None:
        """Run the module's set-up callbacks."""
        run_all(self.setups, self.object_code)
        self.initialized = True

    def variable(self, name: str) -> tuple[int, int]:
        """(address, bytes) of a variable on the current device. Raises CudaAPIError for an unknown name."""
        if name not in self.program.variables:
            raise failure("CUDA_ERROR_NOT_FOUND", "cuLibraryGetGlobal", f"no variable {name}")
        machine = self.driver.machine
        with machine.lock:
            address = machine.loader.address(self.program, self.driver.current_device(), name)
        return address, self.program.variables[name].size

    def get_function(self, name: str) -> MachineFunction:
        """A kernel of the module. Raises CudaAPIError for an unknown name."""
        if name not in self.program.functions:
            raise failure("CUDA_ERROR_NOT_FOUND", "cuLibraryGetKernel", f"no kernel {name}")
        return MachineFunction(self, name, name)

    def get_global_symbol(self, name: str) -> tuple[Any, int]:
        """(pointer, bytes) of a variable, in the form that Numba's module returns."""
        from numba.cuda.cudadrv import devices, driver

        address, size = self.variable(name)
        return driver.MemoryPointer(devices.get_context(), driver.binding.CUdeviceptr(address), size), size


def run_all(callbacks: Any, value: Any) -> None:
    """Call each of the callbacks, if there are any."""
    for callback in callbacks or ():
        callback(value)


def load_library(driver: Driver, library: Any) -> MachineFunction:
    """Load a library that Numba compiled, with everything that it links. Returns its kernel."""
    program = driver.machine.load(linking.linked_ptx(library, driver.machine.cc))
    program.ir = library.llvm_strs
    module = MachineModule(driver, program, library._setup_functions, library._teardown_functions)
    devices = importlib.import_module("numba.cuda.cudadrv.devices")
    devices.get_context().modules[module.handle] = module  # kept until the context is reset, as with CUDA
    return MachineFunction(module, library._entry_name, library.name, library._max_registers)


class MachineLinker:
    """The linker of Numba's runtime, from CUDA C++ sources to the PTX of one module."""

    def __init__(self, *, cc: tuple[Any, ...], **_: Any):
        self.cc, self.texts = cc, list[str]()

    def add_cu_file(self, path: str) -> None:
        """Compile and add a CUDA C++ file."""
        self.texts.append(linking.of_file(path, self.cc))

    def complete(self) -> str:
        """One PTX text of all files that were added."""
        return linking.joined(self.texts)


class MachineFunction:
    """A kernel of a module.

    attrs: its number of registers (an estimate), its bytes of shared, local and constant memory, and the most threads
    that a block of it may have.
    """

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
        """Bytes of static shared memory."""
        return self.program.shared_bytes

    def cache_config(self, prefer_equal: bool = False, prefer_cache: bool = False, prefer_shared: bool = False) -> None:
        """Do nothing, because caches are not modelled."""

    def set_shared_memory_carveout(self, carveout: Any) -> None:
        """Raise ValueError for the same values as CUDA. Otherwise do nothing, because caches are not modelled."""
        if not -1 <= int(carveout) <= 100:
            raise ValueError("Carveout must be between -1 and 100")

    def launch(self, config: Any, arguments: tuple[Any, ...], names: dict[int, str], stream: int) -> None:
        """Queue the kernel. names: for reports, the names of arrays by their addresses. stream: its handle."""
        machine = self.driver.machine
        for address, name in names.items():
            allocation = machine.memory.at(address)
            if allocation is not None and not allocation.name:
                allocation.name = name
        self.driver.copy_registered(False)
        try:
            machine.enqueue(
                self.driver.current_device(),
                self.program,
                self.name,
                self.title,
                config.grid,
                config.block,
                [number(value) for value in arguments],
                How(config.shmem_size or 0, self.driver.stream(stream)),
                [],
            )
        except InputError as error:
            raise launch_error(error) from None
        if self.driver.registered:
            machine.finish()
            self.driver.copy_registered(True)


def launch_error(error: InputError) -> Exception:
    """The exception to raise for a refused launch. It is both a CUDAError of cuda.core and an InputError."""
    from cuda.core._utils.cuda_utils import CUDAError

    return type("LaunchError", (CUDAError, InputError), {})(f"CUDA_ERROR_INVALID_VALUE: {error}")


def number(value: Any) -> Any:
    """An argument that Numba prepared (int, bool, ctypes), in the form that `kernels.pack` takes."""
    if isinstance(value, ctypes._SimpleCData):
        return bytes(value)
    if isinstance(value, (bool, int, np.integer)):
        return int(value)
    if hasattr(value, "value") or hasattr(value, "__int__"):
        return int(getattr(value, "value", value))
    raise InputError(f"a kernel's argument of type {type(value).__name__} is not supported")
