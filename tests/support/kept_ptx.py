"""PTX of the shipped kernels, kept on disk: ranks that are processes of their own compile each kernel once.

The PTX machine compiles a kernel in every process that launches it, which takes half a minute for those of a layer.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

from aristos.kernels.cuda import build
from aristos.primitives.compile import cache_folder, compiling
from aristos.simt.kernels import part

_read: dict[Path, tuple[str, str]] = {}


def ptx(kernel: Any, arch: str) -> tuple[str, str]:
    """(PTX of a catalogue.Kernel for an architecture such as sm_90, the name of its entry)."""
    compiler = "-".join(map(str, (build.version("numba-cuda"), *part("cudadrv.nvvm").NVVM().get_version())))
    path = cache_folder() / "ptx" / f"{kernel.name}.{arch}.{build.kernel_key(kernel)}.{compiler}"
    if path not in _read:
        if not path.exists():
            with compiling(quiet=True):
                if not path.exists():  # another process may have compiled it meanwhile
                    _write(path, *build.ptx(kernel, arch))
        entry, _, text = path.read_text(encoding="utf-8").partition("\n")
        _read[path] = text, entry
    return _read[path]


def _write(path: Path, text: str, entry: str) -> None:
    path.parent.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
        file.write(f"{entry}\n{text}")
    try:
        os.replace(file.name, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(file.name)
        raise
