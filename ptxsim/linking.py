"""Linking of a kernel's PTX with PTX files, and with CUDA C++ sources compiled by NVRTC."""

from __future__ import annotations

import re
from typing import Any

from kernel_cache import regular

from .errors import InputError
from .nvrtc import compiled_source

HEADER = re.compile(r"^\s*\.(version|target|address_size|file|loc)\b.*$", re.M)  # a joined module has them once
REFUSED = "the kernel links {what}: the machine links only PTX and CUDA C++ sources, which it compiles to PTX"


def linked_ptx(library: Any, cc: tuple[Any, ...]) -> str:
    """The PTX of a library that Numba compiled, with everything that it links.

    Raises InputError for anything that is neither PTX nor CUDA C++.
    """
    return joined([*library.get_asm_strs(), *(of_file(file, cc) for file in sorted(library._linking_files, key=str))])


def joined(texts: list[str]) -> str:
    """Join PTX modules into one."""
    return "\n".join([texts[0], *(HEADER.sub("", text) for text in texts[1:])])


def of_file(file: Any, cc: tuple[Any, ...]) -> str:
    """The PTX of one linked file or object of code."""
    kind = getattr(file, "kind", None) or str(file).rpartition(".")[2]
    name = str(getattr(file, "name", file))
    if kind not in ("ptx", "cu"):
        raise InputError(REFUSED.format(what=name))
    data = getattr(file, "data", None)
    if data is None:
        data = regular.read(str(file))
    text = data.decode() if isinstance(data, bytes) else str(data)
    return compiled_source(text, name, cc[:2]) if kind == "cu" else text.rstrip("\x00")
