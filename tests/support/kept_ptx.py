"""Keeps PTX of the shipped kernels, and the PTX machine's programs of it, on disk, so that processes share them.

Without this, every process that launches the kernels of a layer would compile them, which takes half a minute, and
would read their text, which takes three seconds. Numba takes nearly all of the half minute, and NVVM the rest. So
Numba's LLVM IR of a kernel is kept too, and the NVVMs of both toolkits compile it, for every architecture.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import zlib
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from aristos.kernels.cuda import build, keys
from aristos.kernels.cuda.assemble import TARGETS
from kernel_cache import offline, sources
from kernel_cache.compile import cache_folder
from ptxsim import loader
from ptxsim.kernels import part
from ptxsim.lower import lower
from ptxsim.parser import parse

BLOCKS = re.compile(r'(?<=!"minctasm", i32 )\d+')  # the least blocks of an SM in LLVM IR, a launch bound
_read: dict[Path, tuple[str, str]] = {}
_compile = build.ptx


def ptx(kernel: Any, arch: str) -> tuple[str, str]:
    """(PTX of a catalogue.Kernel for an architecture such as sm_90, the name of its entry)."""
    target = TARGETS.get(arch, arch)
    path = _path(kernel, target)
    if path not in _read:
        found = build.kept(path, lambda: _compiled(kernel, target))
        _read[path] = found.cubin.decode(), found.entry
        _load(found.cubin.decode())
    return _read[path]


def text(kernel: Any, target: str) -> tuple[str, str]:
    """Like `ptx`, for a target such as sm_90a. Several processes may compile at a time, and no machine runs the PTX."""
    path = _path(kernel, target)
    found = build._read(path)
    if found is None:
        found = _compiled(kernel, target)
        build._write(path, found)
    return found.cubin.decode(), found.entry


def _path(kernel: Any, target: str) -> Path:
    compiler = build.version("numba-cuda"), part("cudadrv.libs").get_cudalib("nvvm")
    digest = hashlib.sha256(repr((build.kernel_key(kernel), compiler)).encode()).hexdigest()[:16]
    return cache_folder() / "ptx" / f"{kernel.name}.{target}.{digest}"


def _load(text: str) -> None:
    """Give the machines of this process the program of a PTX text."""
    key = loader.key_of(text)
    path = cache_folder() / "ptx" / f"{key[:32]}.{_machine()}"
    found = build.kept(path, lambda: build.Built("", pickle.dumps(lower(parse(text)))))
    loader._programs[key] = pickle.loads(found.cubin)


@cache
def _machine() -> str:
    """A digest of the sources that a program depends on, besides its text."""
    return sources.digest(sources.files(Path(loader.__file__)))[:16]


def _compiled(kernel: Any, target: str) -> build.Built:
    path, (_, blocks) = _ir_path(kernel), _bounds(kernel)

    def from_ir(function: Any, types: tuple[Any, ...], cc: tuple[Any, ...]) -> tuple[Any, list[str]]:
        found = build._read(path)
        if found is not None:
            states = pickle.loads(zlib.decompress(found.cubin))
            states["llvm_strs"] = [BLOCKS.sub(str(blocks), each) for each in states["llvm_strs"]]
            library = part("codegen").CUDACodeLibrary._rebuild(**states)
            return library, library.get_asm_strs(cc=cc)
        library, texts = from_source(function, types, cc)
        states = library._reduce_states() | {f"{kind}_cache": {} for kind in ("ptx", "cubin", "linkerinfo")}
        build._write(path, build.Built("", zlib.compress(pickle.dumps(states), 1)))
        return library, texts

    from_source = offline.compiled
    with mock.patch.object(offline, "compiled", from_ir):
        text, entry = _compile(kernel, target)
    return build.Built(entry, text.encode())


def _ir_path(kernel: Any) -> Path:
    """The file of a kernel's IR, which is the same for all architectures and toolkits but for the blocks of an SM."""
    options = kernel.function.targetoptions | {"launch_bounds": _bounds(kernel)[0]}
    made_of = (*keys._sources(kernel, keys.source_key), kernel.types, options, build.version("numba-cuda"))
    return cache_folder() / "ptx" / f"{kernel.name}.{keys._hash(made_of)}.ir"


def _bounds(kernel: Any) -> tuple[int, int]:
    """A kernel's launch bounds: the most threads of a block, and the least blocks of an SM. (0, 0) if it has none."""
    return kernel.function.targetoptions.get("launch_bounds") or (0, 0)
