"""Compiles CUDA C++ by nvcc, for files that NVRTC rejects: nvcc also reads the host's headers and code."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from .errors import InputError

TIME = 600  # seconds that a compilation may take
# empty kernels; each name has that of a template's kernel as the compiler writes it, and its place in `wanted`
MARK = "ptxsim_use"
MARKER = f"template <auto Kernel, int At> __global__ void {MARK}() {{}}"
MARKED = re.compile(rf"void {MARK}<&\((.*)\), (\d+)>\(\)")


def found() -> str | None:
    """The path of nvcc, or None."""
    return shutil.which("nvcc")


@cache
def compiled(nvcc: str, name: str, cc: tuple[Any, ...], wanted: tuple[str, ...], flags: tuple[str, ...]) -> str:
    """The PTX of a file of CUDA C++, with line information.

    wanted: names of kernels; those of templates are instantiated. flags: `-I` and `-D` options. Raises InputError with
    nvcc's messages.
    """
    with tempfile.TemporaryDirectory() as folder:
        target, source = Path(folder) / "kernels.ptx", Path(folder) / "kernels.cu"
        uses = [
            f"template __global__ void {MARK}<&{kernel}, {at}>();" for at, kernel in enumerate(wanted) if "<" in kernel
        ]
        source.write_text("\n".join([f'#include "{Path(name).resolve()}"', MARKER, *uses, ""]))
        words = [
            nvcc,
            "-ptx",
            "-w",
            "-lineinfo",
            "-std=c++17",
            "--expt-relaxed-constexpr",
            f"-arch=sm_{''.join(map(str, cc))}",
            *flags,
        ]
        try:
            done = subprocess.run(
                [*words, "-o", str(target), str(source)], capture_output=True, text=True, timeout=TIME
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InputError(f"{name} cannot be compiled: {error}") from error
        if done.returncode:
            raise InputError(f"{name} does not compile: {done.stderr.strip()}")
        return target.read_text()


def names(ptx: str, wanted: tuple[str, ...], file: str) -> dict[str, str]:
    """A dict from each of the names in `wanted` to the name that it has in the PTX.

    wanted: names of kernels as in C++, and names of variables, each after an `&`. file: the source, which messages
    name. Raises InputError if one is missing.
    """
    variables = re.findall(r"^(?:\.visible\s+)?\.(?:const|global)\s[^;=\n]*?([\w$]+)(?:\[\d*\])?\s*[;=]", ptx, re.M)
    entries = [*re.findall(r"\.entry\s+([\w$]+)", ptx), *variables]
    demangler = shutil.which("c++filt")
    if demangler is None:
        return {kernel: kernel.removeprefix("&") for kernel in wanted}
    done = subprocess.run([demangler, *entries], capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    marked = {int(at): shape(kernel) for kernel, at in MARKED.findall(done.stdout)}
    plain = {shape(line): entry for line, entry in zip(lines, entries) if not MARKED.fullmatch(line)}
    keys = [marked.get(at, shape(kernel.removeprefix("&"))) for at, kernel in enumerate(wanted)]
    missing = [kernel for kernel, key in zip(wanted, keys) if key not in plain]
    if missing:
        there = ", ".join(key for key, entry in plain.items() if entry not in variables) or "(there are none)"
        raise InputError(f"{file} has the kernels {there}, got {missing[0]}: name one of these")
    return {kernel: plain[key] for kernel, key in zip(wanted, keys)}


def shape(name: str) -> str:
    """A demangled name without its result, its parameters, blanks and suffixes of numbers."""
    text = re.sub(r"^void ", "", name.strip())
    depth, end = 0, len(text)
    for at, letter in enumerate(text):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0 and not text.startswith("(anonymous", at):
            end = at
            break
    return re.sub(r"\b(\d+)[uUlL]+\b", r"\1", re.sub(r"\s+", "", text[:end]))
