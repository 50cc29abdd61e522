"""PTX of the shipped kernels, kept on disk: ranks that are processes of their own compile each kernel once.

The PTX machine compiles a kernel in every process that launches it, which takes half a minute for those of a layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aristos.kernels.cuda import build
from kernel_cache.compile import cache_folder
from ptxsim.kernels import part

_read: dict[Path, tuple[str, str]] = {}


def ptx(kernel: Any, arch: str) -> tuple[str, str]:
    """(PTX of a catalogue.Kernel for an architecture such as sm_90, the name of its entry)."""
    compiler = "-".join(map(str, (build.version("numba-cuda"), *part("cudadrv.nvvm").NVVM().get_version())))
    path = cache_folder() / "ptx" / f"{kernel.name}.{arch}.{build.kernel_key(kernel)}.{compiler}"
    if path not in _read:
        found = build.kept(path, lambda: _compiled(kernel, arch))
        _read[path] = found.cubin.decode(), found.entry
    return _read[path]


def _compiled(kernel: Any, arch: str) -> build.Built:
    text, entry = build.ptx(kernel, arch)
    return build.Built(entry, text.encode())
