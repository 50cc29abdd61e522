"""Route the ordinary way of launching kernels to a machine: `k[grid, block](...)`, `cuda.to_device`, and the rest.

`use(machine)` replaces what of `numba.cuda` would ask a driver; `ARISTOS_SIMT=1` in the environment does so when
`aristos.simt.plugin` is loaded by pytest, or when `enable()` is called. Inside, Numba-CUDA's own code compiles kernels.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..errors import InputError
from . import kernels, limits
from .arrays import DeviceArray
from .machine import Machine

VARIABLE = "ARISTOS_SIMT"
BLOCK_OF_FORALL = 128
HINTS = ("In", "Out", "InOut")


class Stream:
    """A stream: everything runs in the order of launches, so it has nothing to do."""

    handle = 0

    def synchronize(self) -> None:
        current().finish()

    @contextlib.contextmanager
    def auto_synchronize(self) -> Iterator[Stream]:
        yield self
        self.synchronize()

    def wait(self, *_: Any) -> None:
        pass


class Event:
    """An event; times are not modelled."""

    def __init__(self, timing: bool = True):
        pass

    def record(self, stream: Any = 0) -> None:
        pass

    def synchronize(self) -> None:
        current().finish()

    def wait(self, stream: Any = 0) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Any) -> float:
        return 0.0


_current: list[Machine] = []


def current() -> Machine:
    """The machine that launches go to."""
    if not _current:
        raise InputError("no machine is in use: call aristos.simt.enable(), or set ARISTOS_SIMT=1 for pytest")
    return _current[-1]


def _device_of(number: int) -> Any:
    machine = current()
    return SimpleNamespace(
        id=number, compute_capability=machine.cc, name=b"aristos.simt", supports_float16=True, supports_bfloat16=True,
        supports_fp8=machine.cc >= (8, 9), MULTIPROCESSOR_COUNT=machine.sm_count, WARP_SIZE=32, UNIFIED_ADDRESSING=1,
        MAX_THREADS_PER_BLOCK=machine.limits.block_threads, reset=lambda: None,
        MAX_SHARED_MEMORY_PER_BLOCK=machine.limits.shared_block, uuid=f"GPU-simt-{number}",
    )  # fmt: skip


def _context(number: int = 0) -> Any:
    return SimpleNamespace(
        device=_device_of(number), synchronize=lambda: current().finish(), get_memory_info=lambda: (1 << 34, 1 << 35),
        create_stream=Stream, get_default_stream=Stream, reset=lambda: None, deallocations=[],
        memory_manager=SimpleNamespace(deallocations=SimpleNamespace(clear=lambda: None)),
    )  # fmt: skip


def _to_device(obj: Any, stream: Any = 0, copy: bool = True, to: Any = None) -> DeviceArray:
    machine = current()
    if to is not None:
        to.copy_to_device(obj)
        return to
    if isinstance(obj, DeviceArray):
        return obj
    values = np.array(obj, copy=True) if not isinstance(obj, np.void) else np.asarray(obj)
    array = machine.new_array(0, values, None, None, "")
    if not copy and machine.check:
        machine.memory.init[array.allocation.start : array.allocation.start + array.allocation.size] = 0
    return array


def _empty(shape: Any, dtype: Any = np.float64, strides: Any = None, order: str = "C", stream: Any = 0) -> DeviceArray:
    machine = current()
    if order == "F" and strides is None:
        sizes = shape if isinstance(shape, tuple) else (shape,)
        strides = np.empty(sizes, dtype, order="F").strides
    return machine.new_array(0, None, shape, dtype, "", strides)


def _empty_like(ary: Any, stream: Any = 0) -> DeviceArray:
    view = ary._view() if isinstance(ary, DeviceArray) else np.asarray(ary)
    like = np.empty_like(view)
    return current().new_array(0, None, view.shape, view.dtype, "", like.strides)


def _host_like(ary: Any, **_: Any) -> np.ndarray:
    return np.empty_like(np.asarray(ary))


def _pinned(shape: Any, dtype: Any = np.float64, strides: Any = None, order: str = "C", **_: Any) -> np.ndarray:
    return np.zeros(shape, dtype, order=order)  # type: ignore[call-overload]


@contextlib.contextmanager
def _nothing(*_: Any, **__: Any) -> Iterator[None]:
    yield


def _compile(dispatcher: Any, sig: Any) -> Any:
    argtypes, result = kernels.part("core.sigutils").normalize_signature(sig)
    if result is not None and str(result) not in ("none", "void"):
        raise TypeError("CUDA kernel must have void return type.")
    if dispatcher.targetoptions.get("device"):
        return _replaced[type(dispatcher), "compile"](dispatcher, sig)
    if argtypes not in dispatcher.overloads:
        if not dispatcher._can_compile:
            raise RuntimeError("Compilation disabled")
        made = kernels.compiled(dispatcher, tuple(argtypes), current().cc)
        dispatcher.overloads[argtypes] = SimpleNamespace(
            signature=SimpleNamespace(args=tuple(argtypes)), objectmode=False, entry_point=None, metadata={},
            inspect_asm=lambda cc: made.ptx, inspect_lto_ptx=lambda cc: made.ptx, _type_annotation="",
            inspect_llvm=lambda: made.library.get_llvm_str(), cooperative="cudaCGSynchronize" in made.ptx,
            max_cooperative_grid_blocks=lambda block, shared=0: cooperative_blocks(made, block, shared),
        )  # fmt: skip
    return dispatcher.overloads[argtypes]


def cooperative_blocks(made: kernels.Compiled, block: Any, shared: int) -> int:
    """How many blocks of a kernel a device holds at once."""
    machine = current()
    program = machine.loader.program(made.ptx)
    threads = int(np.prod(block))
    held = limits.resident(
        machine.limits, threads, program.shared_bytes + shared, program.functions[made.entry].registers
    )
    return held * machine.sm_count


def _call(dispatcher: Any, args: tuple, config: Any) -> None:
    """Launch; NumPy arguments are copied in and back, as Numba does, so then the machine runs at once."""
    machine = current()
    if not dispatcher.overloads:
        types_ = tuple(kernels.type_of(getattr(a, "value", a) if type(a).__name__ in HINTS else a) for a in args)
        _compile(dispatcher, types_)
    machine.device(0).launch(dispatcher, config.griddim, config.blockdim, *args, shared=config.sharedmem)
    if any(launch.after for launch in machine.queue):
        machine.run()


def _forall(task: Any, *args: Any) -> None:
    if task.ntasks:
        block = task.thread_per_block or BLOCK_OF_FORALL
        task.dispatcher[-(-task.ntasks // block), block, task.stream, task.sharedmem](*args)


def _specialize(dispatcher: Any, *args: Any) -> Any:
    return dispatcher


_replaced: dict[tuple[Any, str], Any] = {}


def _replace(owner: Any, name: str, value: Any) -> None:
    if (owner, name) not in _replaced:
        _replaced[owner, name] = getattr(owner, name, None)
    setattr(owner, name, value)


def _typeof(original: Any) -> Any:
    def typeof(value: Any, purpose: Any = None) -> Any:
        if isinstance(value, DeviceArray):
            return kernels.type_of(value)
        return original(value, purpose) if purpose is not None else original(value)

    return typeof


def _install() -> None:
    cuda = kernels.numba_cuda()
    api, compiler, dispatcher = (kernels.part(name) for name in ("api", "compiler", "dispatcher"))
    devices, driver = kernels.part("cudadrv.devices"), kernels.part("cudadrv.driver")

    names = {
        "to_device": _to_device, "device_array": _empty, "device_array_like": _empty_like, "pinned_array": _pinned,
        "pinned_array_like": _host_like, "pinned": _nothing, "mapped": _nothing, "mapped_array": _mapped,
        "mapped_array_like": lambda ary, **_: _mapped(np.shape(ary), ary.dtype), "managed_array": _mapped,
        "synchronize": lambda: current().finish(), "stream": Stream, "default_stream": Stream,
        "legacy_default_stream": Stream, "per_thread_default_stream": Stream, "event": Event,
        "is_available": lambda: True, "get_current_device": lambda: _device_of(0), "current_context": _context,
        "select_device": lambda number: _device_of(number), "close": lambda: None, "defer_cleanup": _nothing,
        "is_cuda_array": lambda obj: hasattr(obj, "__cuda_array_interface__"), "profile_start": lambda: None,
        "profile_stop": lambda: None, "profiling": _nothing, "event_elapsed_time": lambda a, b: 0.0,
        "is_bfloat16_supported": lambda: True, "is_fp8_accelerated": lambda: current().cc >= (8, 9),
    }  # fmt: skip
    for name, value in names.items():
        for module in (cuda, api):
            if hasattr(module, name):
                _replace(module, name, value)
    for module in (dispatcher, compiler):
        _replace(module, "get_current_device", lambda: _device_of(0))
    _replace(devices, "get_context", _context)
    _replace(dispatcher, "get_context", _context)
    _replace(driver, "_to_core_stream", lambda stream: stream)
    _replace(dispatcher.CUDADispatcher, "call", _call)
    _replace(dispatcher.CUDADispatcher, "compile", _compile)
    _replace(dispatcher.CUDADispatcher, "specialize", _specialize)
    _replace(dispatcher.ForAll, "__call__", _forall)
    _replace(dispatcher, "typeof", _typeof(dispatcher.typeof))


def _mapped(shape: Any, dtype: Any = np.float64, strides: Any = None, order: str = "C", **_: Any) -> DeviceArray:
    machine = current()
    return machine.new_array(-1, np.zeros(shape, dtype, order=order), None, None, "")  # type: ignore[call-overload]


def _remove() -> None:
    while _replaced:
        (owner, name), value = _replaced.popitem()
        if value is None:
            delattr(owner, name)
        else:
            setattr(owner, name, value)


@contextlib.contextmanager
def use(machine: Machine) -> Iterator[Machine]:
    """While inside, `@cuda.jit` kernels launched the ordinary way run on this machine.

    Launches with NumPy arrays run at once; with device arrays at the next synchronize or copy, or at the end.
    """
    if not _current:
        _install()
    _current.append(machine)
    try:
        yield machine
        machine.finish()
    finally:
        _current.pop()
        if not _current:
            _remove()


def enable(**options: Any) -> Machine:
    """Use a new machine for all launches from here on; options as of `Machine`."""
    machine = Machine(**options)
    if not _current:
        _install()
    _current.append(machine)
    return machine


def asked() -> bool:
    """Does the environment ask for the machine?"""
    return os.environ.get(VARIABLE, "0") not in ("", "0")
