"""CUDA C++ sources that a kernel links, compiled to PTX by NVRTC, which needs no driver."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import EnvironmentProblem, InputError


@cache
def compiled_source(text: str, name: str, cc: tuple) -> str:
    """PTX of CUDA C++. Raises InputError with the compiler's messages, EnvironmentProblem if NVRTC is not installed."""
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise EnvironmentProblem(f"the kernel links {name}, and NVRTC is not installed ({error})") from error
    program = answer(nvrtc, nvrtc.nvrtcCreateProgram(text.encode(), name.encode(), 0, [], []), name)[0]
    major = answer(nvrtc, nvrtc.nvrtcVersion(), name)[0]
    options = [f"--gpu-architecture=compute_{cc[0]}{cc[1]}", "--relocatable-device-code=true", "--std=c++17"]
    options += [f"--include-path={folder}" for folder in include_folders(major)]
    status = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])[0]
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        size = answer(nvrtc, nvrtc.nvrtcGetProgramLogSize(program), name)[0]
        log = b" " * size
        nvrtc.nvrtcGetProgramLog(program, log)
        raise InputError(f"{name}, which the kernel links, does not compile: {log.decode(errors='replace').strip()}")
    size = answer(nvrtc, nvrtc.nvrtcGetPTXSize(program), name)[0]
    ptx = b" " * size
    answer(nvrtc, nvrtc.nvrtcGetPTX(program, ptx), name)
    nvrtc.nvrtcDestroyProgram(program)
    return ptx.decode().rstrip("\x00 ")


def answer(nvrtc: Any, values: tuple, name: str) -> tuple:
    """The results of an NVRTC call without its status; raises InputError if it failed."""
    if values[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise InputError(f"{name}, which the kernel links, cannot be compiled: {values[0].name}")
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
    cccl = pathfinder.locate_nvidia_header_directory("cccl")
    if cccl is not None:
        found.append(cccl.abs_path)
    return found + [
        path for path in (config.CUDA_NVRTC_EXTRA_SEARCH_PATHS or "").split(":") if path and os.path.isdir(path)
    ]
