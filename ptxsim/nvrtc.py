"""Compiles CUDA C++ to PTX by NVRTC, without a driver: sources that a kernel links, and files to check."""

from __future__ import annotations

import errno
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

from . import nvcc
from .errors import EnvironmentProblem, InputError
from .host_code import missing_headers, with_headers

ABSENT = (
    "compiling CUDA C++ needs NVRTC, which cannot be loaded ({why}): pip install 'aristos[simt]' brings it, and no "
    "GPU is needed. Where CUDA is installed, 'nvcc -ptx -lineinfo FILE.cu' makes PTX, which needs no NVRTC here"
)
HOST_CODE = (
    "Functions of the host that launch, allocate or print are left out. Put other host code, such as global objects, "
    "between '#ifndef __CUDACC_RTC__' and '#endif'"
)
# headers of the host, and the headers of libcu++ that replace them
LIBCU = {
    "stdint.h": "cstdint",
    "cstdint": "cstdint",
    "stddef.h": "cstddef",
    "cstddef": "cstddef",
    "limits": "limits",
    "type_traits": "type_traits",
    "utility": "utility",
    "tuple": "tuple",
    "array": "array",
}
ABSENT_HEADER = re.compile(r'cannot open source file "([^"\n]+)"\s*\n\s*#\s*include\s*<')
# NVRTC's messages if all of a file is right but the name that a launch gives
UNKNOWN_NAME = re.compile(r'__nv_name_map\(.*?Input name expression was: "\s*([^"]*?)\s*"', re.S)
MACROS = ("float.h", "cfloat", "limits.h", "climits")
LIMITS = """
#define FLT_MAX 3.402823466e+38F
#define FLT_MIN 1.175494351e-38F
#define FLT_EPSILON 1.192092896e-07F
#define DBL_MAX 1.7976931348623157e+308
#define DBL_MIN 2.2250738585072014e-308
#define DBL_EPSILON 2.2204460492503131e-016
#define CHAR_BIT 8
#define INT_MAX 2147483647
#define INT_MIN (-INT_MAX - 1)
#define UINT_MAX 4294967295U
#define LLONG_MAX 9223372036854775807LL
#define LLONG_MIN (-LLONG_MAX - 1)
#define ULLONG_MAX 18446744073709551615ULL
"""
# integers of Linux, which NCCL's headers use: in the CPU's byte order, or in the byte order that the name gives
LINUX = "".join(
    f"typedef unsigned {kind} __u{bits};\ntypedef __u{bits} __be{bits};\ntypedef __u{bits} __le{bits};\n"
    for kind, bits in (("char", 8), ("short", 16), ("int", 32), ("long long", 64))
) + "".join(f"typedef signed {kind} __s{bits};\n" for kind, bits in (("char", 8), ("short", 16), ("int", 32)))
ERRNO = "".join(f"#undef {name}\n#define {name} {number}\n" for number, name in errno.errorcode.items())
TYPES = "ptxsim/host_types.h"  # names of types that headers of glibc bring
SHORT_NAMES = "typedef unsigned short ushort;\ntypedef unsigned int uint;\ntypedef unsigned long ulong;\n"
# a header that CUDA includes for nvcc alone, and the calls that need it
DEVICE_RUNTIME = "#if __has_include(<cuda_device_runtime_api.h>)\n#include <cuda_device_runtime_api.h>\n#endif\n"
USES_RUNTIME = re.compile(r"\bcuda(GridDependencySynchronize|TriggerProgrammaticLaunchCompletion)\b")
CUB = "cub/cub.cuh"  # this header brings functions of the host too; these of its includes bring none
CUB_OF_DEVICES = re.compile(r"^#include <cub/(?:(?:block|thread|warp)/|util_(?:debug|ptx|type|temporary)).*$", re.M)
SHOWN = 40  # lines of NVRTC's messages that an error has
OFTEN = (
    "assert.h",
    "limits.h",
    "math.h",
    "stddef.h",
    "stdint.h",
    "stdio.h",
    "stdlib.h",
    "string.h",
)  # headers of the host that other headers often include


@cache
def compiled_source(text: str, name: str, cc: tuple[Any, ...]) -> str:
    """Compile CUDA C++ to PTX.

    Raises InputError with the compiler's messages, EnvironmentProblem if NVRTC is not installed.
    """
    nvrtc = loaded()
    options = ["--relocatable-device-code=true"]
    return compiled(nvrtc, text, {}, f"{name}, which the kernel links,", name, cc, options, ())[0]


@cache
def compiled_kernels(
    text: str, name: str, cc: tuple[Any, ...], wanted: tuple[str, ...], flags: tuple[str, ...] = ()
) -> tuple[str, dict[str, str]]:
    """Compile a file of CUDA C++. Returns (the PTX with line information, the name of each wanted kernel in the PTX).

    NVRTC compiles it: the host's functions are left out, and headers in angle brackets that are not found count as
    empty. If NVRTC rejects the file, nvcc compiles it where there is one. wanted: names in C++, such as `add` or
    `add<float>`. flags: `-I` and `-D` options. Raises the same errors as `compiled_source`.
    """
    nvrtc = loaded()
    folder = str(Path(name).resolve().parent)
    options = [
        "--generate-line-info",
        "--disable-warnings",
        "--device-as-default-execution-space",
        *flags,
        f"--include-path={folder}",
    ]
    try:
        own = [Path(folder), *(Path(flag[2:].strip()) for flag in flags if flag[:2] == "-I")]
        return compiled(nvrtc, *with_headers(text, own), name, name, cc, options, wanted)
    except InputError as error:
        other = nvcc.found()
        if other is None:
            raise InputError(f"{error}\nnvcc, which compiles more files, is not on PATH") from None
        try:
            ptx = nvcc.compiled(other, name, cc, wanted, flags)
        except InputError as again:
            raise InputError(f"{error}\n{again}") from None
        return ptx, nvcc.names(ptx, wanted, name)


def loaded() -> Any:
    """The module of NVRTC. Raises EnvironmentProblem if the module or its library is missing."""
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:  # the module or its library is missing
        raise EnvironmentProblem(ABSENT.format(why=str(error).partition("\n")[0])) from error
    return nvrtc


def compiled(
    nvrtc: Any,
    text: str,
    included: dict[str, str],
    what: str,
    name: str,
    cc: tuple[Any, ...],
    options: list[str],
    wanted: tuple[str, ...],
) -> tuple[str, dict[str, str]]:
    """Compile CUDA C++. Returns the same as `compiled_kernels`.

    included: texts by names of headers, which replace the headers in files. what: what messages call the source.
    options: those besides the target, the standard and the folders of headers.
    """
    major = answer(nvrtc, nvrtc.nvrtcVersion(), what)[0]
    folders = include_folders(major)
    words = [f"--gpu-architecture=compute_{''.join(map(str, cc))}", "--std=c++17", *options]
    words += [f"--include-path={folder}" for folder in folders]
    if wanted:
        words.append(f"--pre-include={TYPES}")
    all_text = "\n".join([text, *included.values()])
    missing = missing_headers(all_text, folders) if wanted else []
    first = SHORT_NAMES + (DEVICE_RUNTIME if USES_RUNTIME.search(all_text) else "")
    while True:
        headers = (
            {header: header_text(header) for header in ([*missing, *OFTEN] if wanted else [])}
            | included
            | {TYPES: first}
            | (cub_header(folders) if wanted else {})
        )
        program = created(nvrtc, text, what, name, headers)
        for kernel in wanted:
            answer(nvrtc, nvrtc.nvrtcAddNameExpression(program, kernel.encode()), what)
        status = nvrtc.nvrtcCompileProgram(program, len(words), [word.encode() for word in words])[0]
        if status == nvrtc.nvrtcResult.NVRTC_SUCCESS:
            break
        log = b" " * answer(nvrtc, nvrtc.nvrtcGetProgramLogSize(program), what)[0]
        nvrtc.nvrtcGetProgramLog(program, log)
        nvrtc.nvrtcDestroyProgram(program)
        messages = log.decode(errors="replace").strip(" \0\n")
        absent = ABSENT_HEADER.search(messages) if wanted else None  # a header that another header includes
        if absent is None or absent[1] in missing:
            unknown = UNKNOWN_NAME.match(messages)
            if unknown:
                kernel = unknown[1].replace(" :: ", "::")
                raise InputError(
                    f"{what} has no kernel or variable {kernel}: write the name of one as in C++, with its "
                    "namespace and its template arguments"
                )
            missing = [header for header in missing if not header_text(header)]
            empty = f". Headers that were not found, and taken as empty: {', '.join(missing)}" if missing else ""
            lines = messages.splitlines()
            if len(lines) > SHOWN:
                messages = "\n".join([*lines[:SHOWN], f"(more lines: {len(lines) - SHOWN})"])
            raise InputError(f"{what} does not compile: {messages}" + (f"\n{HOST_CODE}{empty}" if wanted else ""))
        missing.append(absent[1])
    try:
        names = {
            kernel: answer(nvrtc, nvrtc.nvrtcGetLoweredName(program, kernel.encode()), what)[0].decode()
            for kernel in wanted
        }
        ptx = b" " * answer(nvrtc, nvrtc.nvrtcGetPTXSize(program), what)[0]
        answer(nvrtc, nvrtc.nvrtcGetPTX(program, ptx), what)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return ptx.decode().rstrip("\x00 "), names


def created(nvrtc: Any, text: str, what: str, name: str, headers: dict[str, str]) -> Any:
    """A program of NVRTC. headers: the texts of headers by name."""
    texts, names = [text.encode() for text in headers.values()], [name.encode() for name in headers]
    return answer(nvrtc, nvrtc.nvrtcCreateProgram(text.encode(), name.encode(), len(headers), texts, names), what)[0]


def header_text(header: str) -> str:
    """The text that replaces a header of the host: an include of libcu++'s headers, limits of types, or nothing."""
    if header in MACROS:
        return f"#ifndef FLT_MAX{LIMITS}#endif\n"
    if header in ("errno.h", "cerrno"):
        return ERRNO
    if header == "linux/types.h":
        return LINUX
    if header not in LIBCU and re.fullmatch("[a-z_]+", header):  # headers of C++ often bring what others need
        return "".join(header_text(other) for other in ("cstdint", "limits", "type_traits", "utility"))
    if header not in LIBCU:
        return ""
    names = "using namespace cuda::std;\n" if LIBCU[header].startswith("c") else ""
    return f"#include <cuda/std/{LIBCU[header]}>\nnamespace std {{ using namespace cuda::std; }}\n{names}"


def cub_header(folders: list[str]) -> dict[str, str]:
    """A dict from the name of CUB's main header to the text that replaces it; empty if no folder has it."""
    path = next((path for folder in folders if (path := Path(folder) / CUB).is_file()), None)
    return {} if path is None else {CUB: "\n".join(["#pragma once", *CUB_OF_DEVICES.findall(path.read_text()), ""])}


def answer(nvrtc: Any, values: tuple[Any, ...], what: str) -> tuple[Any, ...]:
    """The results of an NVRTC call without its status. Raises InputError if the call failed."""
    if values[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise InputError(f"{what} cannot be compiled: {values[0].name}")
    return values[1:]


def include_folders(major: int) -> list[str]:
    """The include folders that Numba-CUDA passes to NVRTC: its own, CUDA's, CCCL's and the user's."""
    import numba.cuda
    from cuda import pathfinder
    from numba.cuda.core import config
    from numba.cuda.cuda_paths import get_cuda_paths

    package = Path(numba.cuda.__file__).parent
    found = [str(package / "include" / str(major)), str(package / "memory_management")]
    cuda = get_cuda_paths()["include_dir"]
    if cuda is not None and cuda.info:
        found.append(str(cuda.info))
    for part in ("cccl", "nvcc"):
        place = pathfinder.locate_nvidia_header_directory(part)
        if place is not None:
            found.append(place.abs_path)
    return found + [
        path for path in (config.CUDA_NVRTC_EXTRA_SEARCH_PATHS or "").split(":") if path and os.path.isdir(path)
    ]
