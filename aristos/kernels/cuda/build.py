"""Compiles a kernel of the catalogue to a cubin for one architecture, and keeps the cubin on disk, without a driver.

Cubins are kept beside the code that is compiled for CPUs. A cubin's file is named by a hash of sources and tools. One
process of a node compiles a kernel; other ranks there and later processes read the file. A damaged file is rebuilt. A
file that other users could have written is refused (`kernel_cache/private.py`). Whole kernels are compiled; nothing is
linked.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from kernel_cache import offline, private
from kernel_cache.compile import cache_folder, compiling

from ...errors import EnvironmentProblem, InputError
from ...host.versions import version
from . import ahead
from .ahead import Built
from .assemble import TARGETS, assemble, tool_version
from .keys import kernel_key

PTXAS, LINKER = "ptxas", "nvJitLink"
LINES = re.compile(r"^\s*\.(loc|file)\b.*\n", re.MULTILINE)
COMPILED_AHEAD, KEPT, NOWHERE = "compiled ahead", "in the cache", "not compiled yet"


def build(kernel: Any, arch: str) -> Built:
    """The cubin of a catalogue.Kernel for an architecture such as sm_90.

    The cubin was compiled ahead, or lies in the cache, or is compiled now and put into the cache.

    One process of a node compiles at a time. Raises EnvironmentProblem if a tool is missing or fails.
    """
    target = TARGETS.get(arch, arch)
    if (found := ahead.find(kernel, target)) is not None:
        return found
    return kept(_path(kernel, target), lambda: _compiled(kernel, target))


def compile_and_keep(kernel: Any, arch: str) -> Built:
    """Compile a kernel and keep it, without waiting for other processes. For programs that compile many at once."""
    target = TARGETS.get(arch, arch)
    built = _compiled(kernel, target)
    _write(_path(kernel, target), built)
    return built


def bare(kernel: Any, arch: str) -> Built:
    """The cubin for shipping: without line numbers and PTX, which are more than half of a cubin. It is cached."""
    target = TARGETS.get(arch, arch)
    path = _path(kernel, target).with_suffix(".bare")
    found = _read(path)
    if found is None:
        text, entry = ptx(kernel, target)
        found = Built(entry, _machine_code(LINES.sub("", text), target))
        _write(path, found)
    return found


def _compiled(kernel: Any, target: str) -> Built:
    text, entry = ptx(kernel, target)
    return Built(entry, _machine_code(text, target))


def place(kernel: Any, arch: str) -> str:
    """Where `build` would find a kernel: COMPILED_AHEAD or KEPT; NOWHERE if it would compile the kernel."""
    target = TARGETS.get(arch, arch)
    if ahead.find(kernel, target) is not None:
        return COMPILED_AHEAD
    return KEPT if _read(_path(kernel, target)) is not None else NOWHERE


def _path(kernel: Any, target: str) -> Path:
    return cache_folder() / "cuda" / f"{kernel.name}.{target}.{_key(kernel)}.cubin"


def kept(path: Path, make: Callable[[], Built]) -> Built:
    """The cache entry at a path. If there is none, one process of the node makes it."""
    found = _read(path)
    if found is None:
        with compiling(name=path.stem):
            found = _read(path)  # another process may have compiled it meanwhile
            if found is None:
                found = make()
                _write(path, found)
    return found


def ptx(kernel: Any, target: str) -> tuple[str, str]:
    """(PTX of a catalogue.Kernel for a target such as sm_90a, the name of its entry)."""
    _, texts = offline.compiled(kernel.function, kernel.types, offline.capability(target))
    if len(texts) != 1:
        raise InputError(f"kernel {kernel.name} must be one PTX module, got {len(texts)}: the kernel links other code")
    return for_target(texts[0], target), offline.entry_of(texts[0], kernel.name)


def for_target(text: str, target: str) -> str:
    """A PTX text with another target, such as sm_90a, in its `.target` line."""
    return re.sub(r"^\.target .*$", f".target {target}", text, flags=re.M)


def assembler() -> tuple[str, str]:
    """(the tool that assembles on this machine, its version): ptxas, or nvJitLink if there is no ptxas."""
    try:
        return PTXAS, tool_version(PTXAS)
    except EnvironmentProblem as missing:
        try:
            from cuda.bindings import nvjitlink

            return LINKER, ".".join(str(part) for part in nvjitlink.version())
        except (ImportError, RuntimeError) as error:  # the module or its library is missing
            raise EnvironmentProblem(
                f"{missing}; nvJitLink, which could assemble too, cannot be loaded ({error})"
            ) from error


@cache
def _tools() -> str:
    """The versions of the tools on which a cubin depends besides its sources."""
    return repr((version("numba-cuda"), *assembler()))


def _key(kernel: Any) -> str:
    """Hash of a kernel and of the tools that assemble it."""
    return hashlib.sha256(repr((kernel_key(kernel), _tools())).encode()).hexdigest()[:16]


def _machine_code(text: str, target: str) -> bytes:
    """Assemble PTX to a cubin."""
    name, _ = assembler()
    if name == LINKER:
        return _linked(text, target)
    with tempfile.TemporaryDirectory(prefix="aristos-") as folder:
        source, cubin = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(text, encoding="utf-8")
        assemble(source, cubin, target)
        return cubin.read_bytes()


def _linked(text: str, target: str) -> bytes:
    """Assemble PTX to a cubin with nvJitLink."""
    from cuda.bindings import nvjitlink

    handle, data = nvjitlink.create(1, [f"-arch={target}"]), text.encode() + b"\0"
    try:
        nvjitlink.add_data(handle, nvjitlink.InputType.PTX, data, len(data), "kernel")
        nvjitlink.complete(handle)
        cubin = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, cubin)
    except nvjitlink.nvJitLinkError as error:
        log = bytearray(nvjitlink.get_error_log_size(handle))
        nvjitlink.get_error_log(handle, log)
        why = log.decode(errors="replace").strip("\0\n ")[:2000]
        raise EnvironmentProblem(f"nvJitLink for {target} failed: {error}: {why}") from error
    finally:
        nvjitlink.destroy(handle)
    return bytes(cubin)


def _read(path: Path) -> Built | None:
    """The contents of a cache entry; None if it is missing or damaged."""
    try:
        whole = private.read(path)
    except OSError:
        return None
    return None if whole is None else Built.from_bytes(whole)


def _write(path: Path, built: Built) -> None:
    """Write a cache entry atomically. If it cannot be written, warn; the next process compiles again."""
    try:
        private.write(path, built.to_bytes())
    except (OSError, EnvironmentProblem) as error:
        warnings.warn(
            f"a kernel cannot be kept in {path.parent}: {error}; set ARISTOS_CACHE to a writable folder",
            stacklevel=3,
        )
