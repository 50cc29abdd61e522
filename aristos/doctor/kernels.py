"""Checks of what kernels need: Numba with its NumPy, the CPU's instructions, the folder of compiled code."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Mapping
from pathlib import Path

from kernel_cache import private

from ..host.versions import versions
from .finding import Finding, fail, ok, warn


def numba(env: Mapping[str, str]) -> Finding:
    """Whether Numba can be imported with this NumPy, and compiles."""
    name = "Numba"
    text = ", ".join(f"{package} {version}" for package, version in versions().items())
    try:
        import numba  # noqa: F401
    except Exception as why:  # Numba raises ImportError or SystemError if NumPy is too new or too old
        return fail(name, f"cannot be imported: {why} ({text})", "pip install -U numba numpy, together in one command")
    if env.get("NUMBA_DISABLE_JIT", "0") != "0":
        remedy = "unset NUMBA_DISABLE_JIT: plain Python runs the protocol for tests, not a layer"
        return warn(name, f"NUMBA_DISABLE_JIT={env['NUMBA_DISABLE_JIT']}: nothing is compiled ({text})", remedy)
    return ok(name, text, **versions())


def isa() -> str:
    """The instruction set that this process's kernels use. If a layer's bits depend on it, its ranks agree on one."""
    from ..primitives.isa import chosen

    return chosen()


def instructions() -> Finding:
    """The finding of `suited` for this machine."""
    from ..primitives.isa import available, target

    cpu, features = target()
    return suited(isa(), cpu, platform.machine(), available(cpu, features)[0])


def suited(kind: str, cpu: str, machine: str, best: str) -> Finding:
    """Whether kernels use the best ISA of this CPU, and whether the CPU has the usual one of its architecture.

    kind: the ISA that kernels use. machine: the architecture. best: the best ISA that the CPU has.
    """
    name = "instructions"
    values = {"isa": kind, "cpu": cpu}
    if kind == "generic" and machine == "x86_64":
        remedy = "ask for nodes with AVX2; in a virtual machine pass the host's CPU through (qemu -cpu host)"
        return warn(name, f"{cpu} shows no AVX2 and FMA: kernels use 128-bit vectors", remedy, **values)
    if kind != best:
        return warn(name, f"kernels use {kind} on {cpu}, which has {best}", "unset ARISTOS_ISA", **values)
    return ok(name, f"kernels use {kind} on {cpu}", **values)


def folder() -> Path:
    """The folder where compiled kernels are kept. Warnings about the choice of the folder are suppressed."""
    from kernel_cache.compile import cache_folder

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cache_folder()


def cache() -> Finding:
    """The finding of `kept` for this process."""
    from kernel_cache.compile import wanted

    return kept(folder(), wanted())


def kept(folder: Path, wanted: Path) -> Finding:
    """Whether kernels are kept in the wanted place. folder: where this version's kernels are. wanted: the parent that
    this folder should have."""
    name = "kernel cache"
    size = sum(path.stat().st_size for path in folder.parent.rglob("*") if path.is_file())
    functions = sum(1 for _ in folder.rglob("*.nbc"))
    others = sum(path.is_dir() and path != folder for path in folder.parent.iterdir())
    values = {"folder": str(folder), "functions": functions, "bytes": size}
    text = f"{folder}: compiled functions: {functions}; other versions: {others}; {size / 2**20:.0f} MiB in all"
    if folder.parent != wanted:
        why = private.problem(wanted) or "full, or not writable"
        text = f"{wanted} cannot be used ({why}): kernels are kept in {folder}, which may be removed"
        remedy = "export ARISTOS_CACHE=/a/folder/that/you/alone/can/write"
        return warn(name, text, remedy, **values)
    return ok(name, text, **values)
