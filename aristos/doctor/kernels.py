"""What compiles and runs the kernels: Numba with its NumPy, the CPU's instructions, the folder of compiled code."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from .. import __version__
from .finding import Finding, fail, ok, warn

PACKAGES = ("numpy", "numba", "llvmlite", "mpi4py")


def versions() -> dict[str, str]:
    """Of what all ranks should have alike."""
    found = {"aristos": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def numba(env: Mapping[str, str]) -> Finding:
    """Can Numba be imported with this NumPy, and does it compile?"""
    name = "Numba"
    text = ", ".join(f"{package} {version}" for package, version in versions().items())
    try:
        import numba
    except Exception as why:  # Numba raises ImportError and SystemError for a NumPy that is too new or too old
        return fail(name, f"cannot be imported: {why} ({text})", "pip install -U numba numpy, together in one command")
    if numba.config.DISABLE_JIT:
        remedy = "unset NUMBA_DISABLE_JIT: plain Python runs the protocol for tests, not a layer"
        return warn(
            name, f"NUMBA_DISABLE_JIT={env.get('NUMBA_DISABLE_JIT', '1')}: nothing is compiled ({text})", remedy
        )
    return ok(name, text, **versions())


def isa() -> str:
    """What the kernels will use: 'AVX-512', 'AVX2' or 'generic'; outputs are equal bit for bit within each only."""
    from llvmlite import binding

    features = dict(binding.get_host_cpu_features())
    if features.get("avx512vl"):
        return "AVX-512"
    return "AVX2" if features.get("avx2") and features.get("fma") else "generic"


def instructions() -> Finding:
    name = "instructions"
    from llvmlite import binding

    from ..kernels.cpu.llvm import vector_shape

    kind, cpu = isa(), binding.get_host_cpu_name()
    lanes, vectors, rows = vector_shape()
    text = f"{kind} on {cpu}: {rows} rows x {vectors} vectors of {lanes} floats in registers"
    values = {"isa": kind, "cpu": cpu}
    if kind == "generic" and platform.machine() == "x86_64":
        remedy = "ask for nodes with AVX2; in a virtual machine pass the host's CPU through (qemu -cpu host)"
        return warn(name, f"{text}; this x86 shows no AVX2", remedy, **values)
    return ok(name, text, **values)


def cache() -> Finding:
    """Where compiled kernels are kept: can it be written, and how much is there?"""
    name = "kernel cache"
    from ..compile import cache_folder

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        folder = cache_folder()
    return kept(folder, os.environ.get("ARISTOS_CACHE"), [str(each.message) for each in said], name)


def kept(folder: Path, wanted: str | None, said: list[str], name: str = "kernel cache") -> Finding:
    """folder: the one in use; wanted: ARISTOS_CACHE; said: warnings on the way."""
    files = [path for path in folder.parent.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    here = sum(path.suffix == ".nbc" for path in folder.rglob("*"))
    old = sum(path.is_dir() and path != folder for path in folder.parent.iterdir()) if folder.name != "" else 0
    text = f"{folder}: {here} compiled functions; {size / 2**20:.0f} MiB with {old} other versions"
    values = {"folder": str(folder), "functions": here, "bytes": size}
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")) / "aristos"
    expected = Path(wanted) if wanted else home
    if said or folder.parent != expected:
        why = "; ".join(said) or f"{expected} cannot be used (full, not writable, or others can write)"
        remedy = "export ARISTOS_CACHE=/a/folder/only/you/can/write: else every job compiles anew, on every node"
        return warn(name, f"{why}; in its place {text}", remedy, **values)
    return ok(name, text, **values)
