"""Finds the MPI library that mpi4py will load, without loading it: its kind, its file, and whether pip installed it.

mpi4py's wheels choose a library when `mpi4py.MPI` is imported. This module follows their rule: MPI4PY_LIBMPI, then the
environments' `lib` folders, then the system's search path. It does not import mpi4py, and so does not start MPI.
"""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import os
import re
import site
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import mpi_facts

NAMES = ("libmpi.so", "libmpi.so.12", "libmpi.so.40")  # mpi4py's order
SYSTEM = ("/usr/local/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib")


@dataclass(frozen=True)
class Library:
    """An MPI library. kind: 'MPICH', 'Intel MPI', 'Open MPI', 'Cray MPICH' or 'unknown MPI'.

    path: its file, '' if only its kind is known. wheel: whether pip installed it in a Python environment.
    """

    kind: str
    path: str = ""
    wheel: bool = False

    @property
    def pmi(self) -> str | None:
        """The value of `srun --mpi=` for this library."""
        facts = mpi_facts.facts(self.kind)
        return facts.pmi if facts is not None else None

    def __str__(self) -> str:
        return f"{self.kind} ({self.path or 'linked into mpi4py'})"


def find(env: Mapping[str, str] | None = None) -> Library | None:
    """The library that mpi4py will load; None if there is no library, or no mpi4py."""
    env = os.environ if env is None else env
    spec = importlib.util.find_spec("mpi4py")  # finds the package without running any of it
    if spec is None or not spec.submodule_search_locations:
        return None
    extensions = [f for folder in spec.submodule_search_locations for f in sorted(Path(folder).glob("MPI.*.so"))]
    if len(extensions) == 1:
        return linked(extensions[0], env)
    libraries = (identify(path) for path in candidates(env))
    return next((library for library in libraries if library is not None), None)


def linked(extension: Path, env: Mapping[str, str]) -> Library:
    """The library to which mpi4py was linked. Its file is found as the dynamic loader would find it."""
    named = dict.fromkeys(re.findall(rb"\0(libmpi[\w-]*\.so[\d.]*)", extension.read_bytes()))
    for name in (n.decode() for n in named):
        for folder in (*map(str, prefixes()), *search_path(env)):
            if library := identify(Path(folder) / name):
                return library
    for name in (n.decode() for n in named):
        if "cray" in name:
            return Library("Cray MPICH")
        return Library("Open MPI" if name.endswith(".40") else "MPICH" if name.endswith(".12") else mpi_facts.UNKNOWN)
    return Library(mpi_facts.UNKNOWN)


def candidates(env: Mapping[str, str]) -> Iterator[Path]:
    """The files that mpi4py would try, in its order."""
    for entry in env.get("LD_PRELOAD", "").replace(":", " ").split():
        if "libmpi" in entry:
            yield Path(entry)
    wanted = env.get("MPI4PY_LIBMPI")
    places = wanted.split(os.pathsep) if wanted is not None else [*(str(f) for f in prefixes()), ""]
    for entry in places:
        place = os.path.expanduser(os.path.expandvars(entry))
        if place and not os.path.isdir(place):
            yield from (Path(place),) if "/" in place else (Path(folder) / place for folder in search_path(env))
            continue
        for name in NAMES:
            yield from (Path(folder) / name for folder in ([place] if place else search_path(env)))


def prefixes() -> list[Path]:
    """The `lib` folders of Python environments that mpi4py searches; MPI wheels install their libraries there."""
    found = []
    if sys.exec_prefix != sys.base_exec_prefix:
        found.append(sys.exec_prefix)
    if site.ENABLE_USER_SITE and site.USER_BASE:
        found.append(site.USER_BASE)
    found.append(sys.base_exec_prefix)
    return [Path(prefix) / "lib" for prefix in dict.fromkeys(found) if prefix != "/usr"]


def search_path(env: Mapping[str, str]) -> list[str]:
    """The folders where the dynamic loader searches for a bare name.

    They are those in LD_LIBRARY_PATH, those of MPI libraries in /etc/ld.so.cache, and SYSTEM, in this order.
    """
    folders = [folder for folder in env.get("LD_LIBRARY_PATH", "").split(":") if folder]
    try:
        cached = re.findall(rb"(/[^\0\s]*)/libmpi\.so[\d.]*\0", Path("/etc/ld.so.cache").read_bytes())
    except OSError:
        cached = []
    return list(dict.fromkeys([*folders, *(folder.decode() for folder in cached), *SYSTEM]))


def identify(path: Path) -> Library | None:
    """The MPI library in an ELF file. Its kind is that of the first of MPIS whose `mark` the file contains.

    Returns None if the file cannot be read or is no ELF file, such as the linker scripts of wheels.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as text:
            if text[:4] != b"\x7fELF":
                return None
            kind = next((each.kind for each in mpi_facts.MPIS if text.find(each.mark) >= 0), mpi_facts.UNKNOWN)
    except (OSError, ValueError):  # ValueError: an empty file
        return None
    return Library(kind, str(path), any(path.is_relative_to(prefix) for prefix in prefixes()))


def loaded(function: str) -> ctypes.CDLL | None:
    """The MPI library in this process that has this function; None if there is none.

    The library is never loaded a second time.
    """
    for path in mapped():
        library = ctypes.CDLL(path, mode=ctypes.DEFAULT_MODE | os.RTLD_NOLOAD)
        if hasattr(library, function):
            return library
    return None


def mapped() -> list[str]:
    """The files of MPI libraries that are loaded in this process."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    return list(dict.fromkeys(re.findall(r"(/\S*libmpi[\w.+-]*\.so[\w.]*)$", maps, re.MULTILINE)))
