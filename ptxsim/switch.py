"""Lets ordinary Numba-CUDA code run on a machine: `k[grid, block](...)`, `cuda.to_device`, and the rest.

`use(machine)` replaces Numba-CUDA's launches, and the functions of the CUDA driver that Numba-CUDA calls (driver.py).
plugin.py does so for each test of pytest. Numba-CUDA's compiler, dispatcher, arrays, ufuncs and error codes are not
replaced.
"""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from kernel_cache import offline

from . import kernels
from .driver import Driver, MachineDevice
from .errors import InputError
from .functions import MachineFunction, MachineLinker, MachineModule, load_library
from .machine import Machine

_drivers: list[Driver] = []
_replaced: dict[tuple[Any, str], Any] = {}
_missing = object()
# Names of the current launch's arguments. `of`: by the addresses of arrays. `hosts`: by the ids of NumPy arrays, in the
# order of the arguments.
_names = threading.local()


def current() -> Machine:
    """The machine in use. Raises InputError if there is none."""
    return _driver().machine


def _driver() -> Driver:
    if not _drivers:
        raise InputError("no machine is in use: call ptxsim.enable(), or pytest -p ptxsim.plugin --simt")
    return _drivers[-1]


def _function_of(name: str) -> Any:
    """A driver function that calls the present machine's function. Like CUDA's function, it fails in a forked child."""

    def call(*args: Any) -> Any:
        mine = _driver()
        if os.getpid() != mine.pid:
            raise kernels.part("cudadrv.error").CudaDriverError("CUDA initialized before forking")
        return getattr(mine, name)(*args)

    return call


class CoreStream:
    """A stream with the interface of cuda.core's stream. The machine needs only its handle."""

    def __init__(self, handle: Any = 0):
        self.handle = handle

    def __int__(self) -> int:
        return int(self.handle)


def _core_stream(stream: Any) -> CoreStream:
    return stream if isinstance(stream, CoreStream) else CoreStream(int(stream) if stream else 0)


def _launch(stream: Any, config: Any, kernel: MachineFunction, *arguments: Any) -> None:
    kernel.launch(config, arguments, getattr(_names, "of", {}), int(stream or 0))


def _named_launch(original: Any) -> Any:
    """A _Kernel.launch that keeps the arguments' names while it runs."""

    def launch(self: Any, args: Any, *rest: Any, **options: Any) -> None:
        _names.of, _names.hosts = {}, {}
        function = getattr(self, "py_func", None)
        if function is not None:
            for name, value in zip(function.__code__.co_varnames, args):
                _name(name, value)
        try:
            original(self, args, *rest, **options)
        finally:
            _names.of, _names.hosts = {}, {}

    return launch


def _name(name: str, value: Any) -> None:
    """Note the name of an argument if it is an array, or of each array in it if it is a tuple."""
    if isinstance(value, tuple):
        for number, item in enumerate(value):
            _name(f"{name}[{number}]", item)
    pointer = getattr(value, "device_ctypes_pointer", None)
    if pointer is not None and pointer.value:
        _names.of[pointer.value] = name
    held = value.value if type(value).__name__ in ("In", "Out", "InOut") else value
    if isinstance(held, np.ndarray):
        _names.hosts.setdefault(id(held), []).append(name)


def _function(library: Any) -> MachineFunction:
    if library._entry_name is None:
        raise RuntimeError("Missing entry_name - are you trying to get the cufunc for a device function?")
    known = _driver().loaded
    if library not in known:
        known[library] = load_library(_driver(), library)
    return known[library]


def _device(self: Any, number: int) -> None:
    self._dev = MachineDevice(_driver(), number)
    self.id, self.compute_capability = number, self._dev.compute_capability
    self.name, self.uuid, self.primary_context = self._dev.name, f"GPU-{self._dev.uuid}", None


def _managers(self: Any) -> list[Any]:
    from numba.cuda.cudadrv import devices, driver

    mine = _driver()
    if not mine.managers:
        mine.managers = [
            devices._DeviceContextManager(driver.driver.get_device(n)) for n in range(len(mine.machine.devices))
        ]
    return mine.managers


def _with_lines(original: Any) -> Any:
    """A _Kernel.__init__ that requests line information, which reports need."""

    def init(self: Any, *args: Any, **options: Any) -> None:
        if options.get("debug") or options.get("lineinfo"):
            original(self, *args, **options)
        else:
            offline.with_lines(lambda lineinfo: original(self, *args, **options | {"lineinfo": lineinfo}))

    return init


def _hinted(original: Any) -> Any:
    """A DeviceNDArrayBase.__init__ that notes dtype and shape for the allocation. The checker has a cell per item."""

    def init(self: Any, shape: Any, strides: Any, dtype: Any, stream: Any = 0, gpu_data: Any = None) -> None:
        mine = _driver()
        before, mine.hints.of = getattr(mine.hints, "of", None), (np.dtype(dtype), tuple(np.atleast_1d(shape).tolist()))
        try:
            original(self, shape, strides, dtype, stream, gpu_data)
        finally:
            mine.hints.of = before

    return init


def _held(obj: Any) -> None:
    """Raise InputError for a Numba array, or a view of one, that another machine allocated.

    Every machine's addresses begin at the same number, so without this check the mistake would go unnoticed.
    """
    memory = getattr(obj, "gpu_data", None)
    owner = getattr(memory, "owner", memory)
    pointer = getattr(owner, "device_pointer", owner)
    machine = getattr(pointer, "machine", None)
    if machine is not None and machine is not current():
        raise InputError("the array belongs to another machine: make the array and launch its kernels on one machine")


def _own_pointer(original: Any) -> property:
    """A DeviceNDArrayBase.device_ctypes_pointer that first makes the check of `_held`.

    Numba reads this pointer for copies, fills and records.
    """

    def pointer(self: Any) -> Any:
        _held(self)
        return original.__get__(self)

    return property(pointer)


def _memory_view(obj: Any, stream: Any = 0, copy: bool = True, user_explicit: bool = False) -> tuple[Any, bool]:
    """Stands in for Numba's _to_strided_memory_view. Returns (the argument in the machine's memory, whether copied)."""
    from numba.cuda.cudadrv import devicearray, driver

    kind = getattr(obj, "simt_type", None)
    if kind is not None:
        current().holds(obj)
        return _shim(obj, obj.ptr), False
    interface = getattr(obj, "__cuda_array_interface__", None)
    if driver.is_device_memory(obj):
        _held(obj)  # checked even if Numba has cached the view
        return obj._strided_memory_view_shim, False
    if interface is not None:
        from numba.cuda import api

        array = api.from_cuda_array_interface(interface, owner=obj)
        return array._strided_memory_view_shim, False
    host = np.asanyarray(obj)
    devicearray.sentry_contiguous(host)
    if copy and not user_explicit and isinstance(obj, np.ndarray):
        _warn_of_copy()
    array = devicearray.DeviceNDArray(host.shape, host.strides, host.dtype)
    if copy and host.size:
        driver.host_to_device(array, host, array.alloc_size)
    shim = array._strided_memory_view_shim
    names = getattr(_names, "hosts", {}).get(id(obj))
    if names and shim.ptr:
        _names.of[shim.ptr] = names.pop(0)
    return _Kept(shim, array), True


def _warn_of_copy() -> None:
    """Give Numba's warning about implicit copies, unless it is switched off."""
    config, errors = kernels.part("core.config"), kernels.part("core.errors")
    if config.CUDA_WARN_ON_IMPLICIT_COPY and not config.DISABLE_PERFORMANCE_WARNINGS:
        message = "Host array used in CUDA kernel will incur copy overhead to/from device."
        warnings.warn(errors.NumbaPerformanceWarning(message), stacklevel=2)


class _Kept:
    """A view that keeps alive the array that owns the view's memory."""

    def __init__(self, shim: Any, array: Any):
        self.ptr, self.shape, self.dtype, self.size = shim.ptr or 0, shim.shape, shim.dtype, shim.size
        self._layout, self.array = shim._layout, array


def _shim(array: Any, address: int) -> Any:
    view = array._view()
    c, f = view.flags.c_contiguous, view.flags.f_contiguous
    layout = SimpleNamespace(
        strides_in_bytes=array.strides, is_contiguous_c=c, is_contiguous_f=f, is_contiguous_any=c or f
    )
    return SimpleNamespace(ptr=address, shape=array.shape, dtype=array.dtype, size=array.size, _layout=layout)


def _host_view(obj: Any, *, stream_ptr: Any) -> Any:
    return SimpleNamespace(ptr=np.asanyarray(obj).__array_interface__["data"][0])


def _managed(original: Any) -> Any:
    """A ManagedMemory.__init__ that also keeps the memory's address on the host, which differs from the device's."""

    def init(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        mine = _driver()
        allocation, _ = mine.place(int(self.device_pointer), 0, "cuMemAllocManaged")
        self._bufptr_ = mine.host_address(allocation)

    return init


def _module(self: Any, image: Any, setup: Any = None, teardown: Any = None) -> MachineModule:
    """A Context.create_module_image for PTX."""
    if not isinstance(image, str):
        raise InputError(f"the machine loads only PTX modules, got {type(image).__name__}")
    return MachineModule(_driver(), _driver().machine.load(image), setup, teardown)


def _replace(owner: Any, name: str, value: Any) -> None:
    _replaced.setdefault((owner, name), vars(owner).get(name, _missing))
    setattr(owner, name, value)


def _install() -> None:
    kernels.numba_cuda()
    from numba.cuda import codegen, dispatcher
    from numba.cuda.cudadrv import devicearray, devices, driver
    from numba.cuda.memory_management import nrt

    _replace(driver.driver, "ensure_initialized", lambda: None)
    _replace(driver.driver, "initialization_error", None)
    _replace(driver.driver, "is_initialized", True)
    vars(driver).setdefault("_logger", driver.make_logger())
    for name in dir(Driver):
        if name.startswith("cu") and name[2].isupper():
            _replace(driver.driver, name, _function_of(name))
    _replace(driver.Device, "__init__", _device)
    _replace(driver, "_to_core_stream", _core_stream)
    _replace(driver.ManagedMemory, "__init__", _managed(driver.ManagedMemory.__init__))
    _replace(devices._DeviceList, "lst", property(_managers))
    _replace(codegen.CUDACodeLibrary, "get_cufunc", _function)
    base = devicearray.DeviceNDArrayBase
    _replace(base, "__init__", _hinted(base.__init__))
    _replace(base, "device_ctypes_pointer", _own_pointer(base.device_ctypes_pointer))
    _replace(devicearray, "_to_strided_memory_view", _memory_view)
    _replace(devicearray, "_make_strided_memory_view", _host_view)
    for module in (dispatcher, nrt):
        _replace(module, "launch", _launch)
        _replace(module, "LaunchConfig", lambda **options: SimpleNamespace(**options))
    _replace(nrt, "_Linker", MachineLinker)
    _replace(driver.Context, "create_module_image", _module)
    _replace(
        driver.Context,
        "create_module_ptx",
        lambda self, ptx: _module(self, ptx if isinstance(ptx, str) else ptx.decode()),
    )
    _replace(dispatcher._Kernel, "launch", _named_launch(dispatcher._Kernel.launch))
    _replace(dispatcher._Kernel, "__init__", _with_lines(dispatcher._Kernel.__init__))


LATE = ("cuMemFree", "cuMemFreeHost", "cuMemHostUnregister", "cuEventDestroy", "cuStreamDestroy", "cuLibraryUnload")


def _freed(name: str) -> Any:
    """A driver function that frees memory. Numba may call it when the machine is no longer in use."""

    def free(value: Any) -> None:
        from numba.cuda.cudadrv import driver

        if driver.driver.initialization_error is None and getattr(value, "machine", None) is None:
            driver.driver._cuda_python_wrap_fn(name)(value)

    return free


def _remove() -> None:
    while _replaced:
        (owner, name), value = _replaced.popitem()
        if name in LATE and value is _missing:
            setattr(owner, name, _freed(name))
        elif value is _missing:
            delattr(owner, name)
        else:
            setattr(owner, name, value)


def _enter(machine: Machine) -> None:
    if not _drivers:
        _install()
    _drivers.append(Driver(machine))
    _changed()


def _leave() -> None:
    _drivers.pop()
    if not _drivers:
        _remove()
    _changed()


def _changed() -> None:
    """Let Numba use the device and runtime objects of the machine now in use."""
    from numba.cuda.cudadrv import devices, driver
    from numba.cuda.memory_management.nrt import rtsys

    vars(driver.driver)["devices"] = _drivers[-1].devices if _drivers else {}
    devices._runtime._tls.attached_context = None
    driver._ActiveContext._tls_cache.__dict__.pop("ctx_devnum", None)
    rtsys.close()


@contextlib.contextmanager
def use(machine: Machine) -> Iterator[Machine]:
    """A block in which `@cuda.jit` kernels launched as k[grid, block](...) run on this machine.

    Launches with NumPy arrays run at once. Other launches run at the next synchronize or copy, or when the block ends.
    """
    _enter(machine)
    try:
        yield machine
        machine.finish()
    finally:
        _leave()


def enable(**options: Any) -> Machine:
    """Use a new machine for all launches from now on, and return it. options: those of `Machine`."""
    machine = Machine(**options)
    _enter(machine)
    return machine
