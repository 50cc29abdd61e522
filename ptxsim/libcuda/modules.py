"""Modules and libraries of PTX, their kernels and variables."""

from __future__ import annotations

import ctypes
import itertools
import re
import struct
from typing import Any

import numpy as np

from ..architectures import mismatch
from ..errors import InputError
from ..heap import heap_for
from ..program import Program
from . import fatbins
from .calls import ADDRESS, HANDLE, INT, POINTER, SIZE, UINT, call, put, text_at
from .parts import parts
from .results import Refused
from .state import Function, Module, State

ELF = b"\x7fELF"
TARGET = re.compile(r"^[ \t]*\.target[ \t]+(\w+)", re.M)
ERROR_LOG, ERROR_LOG_SIZE = 5, 6  # CUjit_option
MOST_DYNAMIC, CARVEOUT, LAST = 8, 9, 15  # CUfunction_attribute, and the last that CUDA 12.9 has
_names: dict[str, Any] = {}  # kernels' names as C texts, which programs keep pointers to


def ptx_at(now: State, image: int) -> str:
    """The PTX text of a module's image in the program's memory.

    Raises Refused for machine code, and for PTX of an architecture that the machine cannot be. Of a fat binary it takes
    what there is.
    """
    if not image:
        raise Refused("ERROR_INVALID_VALUE")
    start = ctypes.string_at(image, 4)
    (magic,) = struct.unpack("<I", start)
    linked = False
    if magic == fatbins.WRAPPER:
        linked = UINT.from_address(image + 4).value == fatbins.LINKED
        image = ctypes.c_uint64.from_address(image + 8).value
        (magic,) = struct.unpack("<I", ctypes.string_at(image, 4))
    if magic == fatbins.FATBIN:
        return fatbins.ptx_of(image, 10 * now.machine.cc[0] + now.machine.cc[1], linked)
    if start == ELF:
        raise fatbins.refused("machine code (a cubin)")
    text = text_at(image)
    target = TARGET.search(text)
    why = mismatch(target[1], now.machine.arch, now.machine.cc) if target else ""
    if why:
        raise Refused("ERROR_INVALID_PTX", f"the PTX of a module {why} before the program")
    return text


def load(now: State, image: int) -> Module:
    """Load a module. One that is loaded again has its variables' initial values."""
    text = ptx_at(now, image)
    text += heap_for(text)
    taken = {one.copy for one in now.objects.values() if isinstance(one, Module) and one.text == text}
    copy = next(number for number in itertools.count() if number not in taken)
    divided = parts(text)
    program = read(now, divided.text_for("") if divided else text, copy)
    return Module(program, text, copy, parts=divided)


def read(now: State, text: str, copy: int) -> Program:
    """The program of PTX text, its variables with their initial values."""
    key = text + "\n//" * copy  # because modules that live at the same time have variables of their own
    machine = now.machine
    try:
        program = machine.load(key)
    except InputError as error:
        raise Refused("ERROR_INVALID_PTX", f"the PTX of a module cannot be loaded: {error}") from error
    number = machine.loader.number(program)
    for owner, device, name in list(machine.loader.addresses):
        if owner == number:
            data = b"".join(machine.loader.initial(program, device, program.variables[name]))
            variable = program.variables[name]
            machine.loader.set_variable(program, device, name, data.ljust(variable.size, b"\0"))
    return program


def part(now: State, module: Module, kernel: str) -> Module:
    """The part of a module that has a kernel, with the whole's handle; the module itself if it has no parts."""
    if module.parts is None or kernel not in module.parts.kernels:
        return module
    if kernel not in module.read:
        text = module.parts.text_for(kernel)
        module.read[kernel] = Module(read(now, text, module.copy), text, module.copy, module.handle)
    return module.read[kernel]


def unload(now: State, handle: int) -> None:
    """Run what is queued and forget a module."""
    found = now.get(handle, Module)
    now.finish()
    for number, one in list(now.objects.items()):
        if one is found or (isinstance(one, Function) and one.module.handle == found.handle):
            del now.objects[number]


def function_of(now: State, module: Module, name: str) -> Function:
    """A kernel of a module: the same object each time. Raises Refused if there is none of this name."""
    module = part(now, module, name)
    info = module.program.functions.get(name)
    if info is None or not info.entry:
        raise Refused("ERROR_NOT_FOUND")
    for one in now.objects.values():
        if isinstance(one, Function) and one.module is module and one.name == name:
            return one
    made = Function(module, name)
    now.keep(made)
    return made


def put_global(now: State, pointer: int, size: int, module: Module, name: str, device: int) -> None:
    """Write address and size of a module's variable."""
    if module.parts:
        module = part(now, module, module.parts.users.get(name, ""))
    variable = module.program.variables.get(name)
    if variable is None or variable.space not in ("global", "const"):
        raise Refused("ERROR_NOT_FOUND")
    with now.machine.lock:
        address = now.machine.loader.address(module.program, device, name)
    if pointer:
        put(pointer, ADDRESS, address)
    if size:
        put(size, SIZE, variable.size)


def with_log(now: State, made: int, image: int, count: int, options: int, values: int) -> None:
    """Load a module and write an error to the program's buffer for it, if there is one."""
    try:
        put(made, HANDLE, now.keep(load(now, image)))
    except Refused as error:
        found = {}
        for at in range(count if options and values else 0):
            found[INT.from_address(options + 4 * at).value] = POINTER.from_address(values + 8 * at).value
        if found.get(ERROR_LOG) and found.get(ERROR_LOG_SIZE, 0) > 1:
            data = error.why.encode()[: found[ERROR_LOG_SIZE] - 1] + b"\0"
            ctypes.memmove(found[ERROR_LOG], data, len(data))
        raise


@call(POINTER, POINTER)
def cuModuleLoadData(now: State, module: int, image: int) -> None:
    now.context()
    put(module, HANDLE, now.keep(load(now, image)))


@call(POINTER, POINTER, UINT, POINTER, POINTER)
def cuModuleLoadDataEx(now: State, module: int, image: int, count: int, options: int, values: int) -> None:
    now.context()
    with_log(now, module, image, count, options, values)


@call(POINTER, POINTER)
def cuModuleLoadFatBinary(now: State, module: int, image: int) -> None:
    cuModuleLoadData(now, module, image)


def file_image(path: int) -> Any:
    """The bytes of a file, ended by zeros."""
    try:
        with open(text_at(path), "rb") as file:
            return ctypes.create_string_buffer(file.read() + b"\0" * 8)
    except OSError as error:
        raise Refused("ERROR_FILE_NOT_FOUND", f"cannot read a module's file: {error}") from error


@call(POINTER, POINTER)
def cuModuleLoad(now: State, module: int, path: int) -> None:
    image = file_image(path)  # which must live until it is loaded
    cuModuleLoadData(now, module, ctypes.addressof(image))


@call(HANDLE)
def cuModuleUnload(now: State, module: int) -> None:
    unload(now, module)


@call(POINTER, HANDLE, POINTER)
def cuModuleGetFunction(now: State, function: int, module: int, name: int) -> None:
    put(function, HANDLE, function_of(now, now.get(module, Module), text_at(name)).handle)


@call(POINTER, HANDLE)
def cuModuleGetFunctionCount(now: State, count: int, module: int) -> None:
    found = now.get(module, Module)
    named = found.parts.kernels if found.parts else ()
    put(count, UINT, len(named) + sum(info.entry for info in found.program.functions.values()))


@call(POINTER, POINTER, HANDLE, POINTER)
def cuModuleGetGlobal_v2(now: State, pointer: int, size: int, module: int, name: int) -> None:
    put_global(now, pointer, size, now.get(module, Module), text_at(name), now.context().device)


# ---- libraries, which are modules of all contexts ----
@call(POINTER, POINTER, POINTER, POINTER, UINT, POINTER, POINTER, UINT)
def cuLibraryLoadData(
    now: State, library: int, image: int, options: int, values: int, count: int, others: int, settings: int, more: int
) -> None:
    with_log(now, library, image, count, options, values)


@call(POINTER, POINTER, POINTER, POINTER, UINT, POINTER, POINTER, UINT)
def cuLibraryLoadFromFile(
    now: State, library: int, path: int, options: int, values: int, count: int, others: int, settings: int, more: int
) -> None:
    file = file_image(path)  # which must live until it is loaded
    with_log(now, library, ctypes.addressof(file), count, options, values)


@call(HANDLE)
def cuLibraryUnload(now: State, library: int) -> None:
    unload(now, library)


@call(POINTER, HANDLE, POINTER)
def cuLibraryGetKernel(now: State, kernel: int, library: int, name: int) -> None:
    cuModuleGetFunction(now, kernel, library, name)


@call(POINTER, HANDLE)
def cuLibraryGetKernelCount(now: State, count: int, library: int) -> None:
    cuModuleGetFunctionCount(now, count, library)


@call(POINTER, HANDLE)
def cuLibraryGetModule(now: State, module: int, library: int) -> None:
    put(module, HANDLE, now.get(library, Module).handle)


@call(POINTER, POINTER, HANDLE, POINTER)
def cuLibraryGetGlobal(now: State, pointer: int, size: int, library: int, name: int) -> None:
    cuModuleGetGlobal_v2(now, pointer, size, library, name)


@call(POINTER, HANDLE)
def cuKernelGetFunction(now: State, function: int, kernel: int) -> None:
    put(function, HANDLE, now.get(kernel, Function).handle)


@call(POINTER, HANDLE)
def cuKernelGetLibrary(now: State, library: int, kernel: int) -> None:
    put(library, HANDLE, now.get(kernel, Function).module.handle)


@call(POINTER, HANDLE)
def cuFuncGetModule(now: State, module: int, function: int) -> None:
    put(module, HANDLE, now.get(function, Function).module.handle)


@call(HANDLE, SIZE, POINTER, POINTER, also=("cuFuncGetParamInfo",))
def cuKernelGetParamInfo(now: State, kernel: int, number: int, offset: int, size: int) -> None:
    params, start = now.get(kernel, Function).info.params, 0
    if number >= len(params):
        raise Refused("ERROR_INVALID_VALUE")
    for param in params[: number + 1]:
        start = -(-start // param.align) * param.align
        begin, start = start, start + param.size
    put(offset, SIZE, begin)
    if size:
        put(size, SIZE, params[number].size)


# ---- attributes of kernels ----
def function_attribute(now: State, function: Function, attribute: int) -> int:
    """An attribute of a kernel, by its number in CUfunction_attribute. One that is missing is 0."""
    program, info = function.module.program, function.info
    limit = info.limits.get(".maxntid") or info.limits.get(".reqntid")
    most = int(np.prod(limit)) if limit else now.machine.limits.block_threads
    constants = sum(one.size for one in program.variables.values() if one.space == "const")
    given = info.limits.get(".reqnctapercluster")
    cluster = [*given, 1, 1, 1] if given else [0, 0, 0]
    arch = now.machine.cc[0] * 10 + now.machine.cc[1]
    return {
        0: most,
        1: program.shared_bytes,
        2: constants,
        3: program.local_bytes,
        4: info.registers,
        5: arch,
        6: arch,
        8: function.most_dynamic,
        9: function.carveout,
        10: int(any(cluster)),
        11: cluster[0],
        12: cluster[1],
        13: cluster[2],
        14: 1,
    }.get(attribute, 0)


def set_attribute(now: State, function: Function, attribute: int, value: int) -> None:
    """Set an attribute of a kernel. Those that only hardware has are accepted, those of newer drivers refused."""
    if not 0 <= attribute <= LAST:
        raise Refused("ERROR_INVALID_VALUE")
    if attribute == MOST_DYNAMIC:
        if not 0 <= value <= now.machine.limits.shared_block - function.module.program.shared_bytes:
            raise Refused("ERROR_INVALID_VALUE")
        function.dynamic = value
    elif attribute == CARVEOUT:
        function.carveout = value


@call(POINTER, INT, HANDLE)
def cuFuncGetAttribute(now: State, value: int, attribute: int, function: int) -> None:
    put(value, INT, function_attribute(now, now.get(function, Function), attribute))


@call(HANDLE, INT, INT)
def cuFuncSetAttribute(now: State, function: int, attribute: int, value: int) -> None:
    set_attribute(now, now.get(function, Function), attribute, value)


@call(POINTER, INT, HANDLE, INT)
def cuKernelGetAttribute(now: State, value: int, attribute: int, kernel: int, device: int) -> None:
    put(value, INT, function_attribute(now, now.get(kernel, Function), attribute))


@call(INT, INT, HANDLE, INT)
def cuKernelSetAttribute(now: State, attribute: int, value: int, kernel: int, device: int) -> None:
    set_attribute(now, now.get(kernel, Function), attribute, value)


@call(HANDLE, INT)
def cuFuncSetCacheConfig(now: State, function: int, config: int) -> None:
    """Do nothing: caches are not modelled."""


@call(HANDLE, INT, INT)
def cuKernelSetCacheConfig(now: State, kernel: int, config: int, device: int) -> None:
    """Do nothing: caches are not modelled."""


@call(POINTER)
def cuModuleGetLoadingMode(now: State, mode: int) -> None:
    put(mode, INT, 1)


@call(HANDLE)
def cuFuncLoad(now: State, function: int) -> None:
    now.get(function, Function)


@call(POINTER, HANDLE)
def cuFuncIsLoaded(now: State, state: int, function: int) -> None:
    now.get(function, Function)
    put(state, INT, 1)


def put_name(address: int, function: Function) -> None:
    """Write the address of a kernel's name."""
    text = _names.setdefault(function.name, ctypes.create_string_buffer(function.name.encode()))
    put(address, POINTER, ctypes.addressof(text))


@call(POINTER, HANDLE)
def cuFuncGetName(now: State, name: int, function: int) -> None:
    put_name(name, now.get(function, Function))


@call(POINTER, HANDLE)
def cuKernelGetName(now: State, name: int, kernel: int) -> None:
    put_name(name, now.get(kernel, Function))
