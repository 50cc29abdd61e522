"""Kernels that were compiled ahead, on another machine: files in the folder `ahead` beside this file.

A checkout has no such folder; `make gpu-kit` fills one. A file's name consists of the kernel's name, the target, and a
hash of sources, types and options. The hash covers neither CPU, Python nor assembler, because a cubin runs on a GPU,
whatever machine compiled it. If the sources of a kernel differ, its file is not found, and the kernel is compiled as
usual. The files are trusted, because a user who can write to the folder can also change the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernel_cache import private

from ...errors import InputError
from .keys import ahead_key, edited

FOLDER = Path(__file__).with_name("ahead")


@dataclass(frozen=True)
class Built:
    """A compiled kernel. entry: its name in the cubin. cubin: machine code for one architecture, an ELF file."""

    entry: str
    cubin: bytes

    def to_bytes(self) -> bytes:
        return self.entry.encode() + b"\n" + self.cubin

    @classmethod
    def from_bytes(cls, whole: bytes) -> Built:
        entry, _, cubin = whole.partition(b"\n")
        return cls(entry.decode(), cubin)


def find(kernel: Any, target: str) -> Built | None:
    """The compiled catalogue.Kernel for a target such as sm_90a; None if it was not compiled ahead."""
    if not FOLDER.is_dir():
        return None
    path = _path(FOLDER, kernel, target)
    try:
        whole = private.whole(path, path.read_bytes())
    except OSError:
        return None
    return None if whole is None else Built.from_bytes(whole)


def write(folder: Path, kernel: Any, target: str, built: Built) -> Path:
    """Write the file of a kernel into a folder that will be FOLDER on another machine. Returns the file's path.

    Raises InputError if a source was edited after this process started.
    """
    if edited(kernel):
        raise InputError(
            f"a source of the kernel {kernel.name} was edited while this program ran: start the program again"
        )
    path = _path(folder, kernel, target)
    path.write_bytes(private.hashed(built.to_bytes()))
    return path


def _path(folder: Path, kernel: Any, target: str) -> Path:
    return folder / f"{kernel.name}.{target}.{ahead_key(kernel)}"
