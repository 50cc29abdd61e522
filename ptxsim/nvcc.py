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
        uses = [f"static auto *ptxsim_use_{at} = &{kernel};" for at, kernel in enumerate(wanted) if "<" in kernel]
        source.write_text("\n".join([f'#include "{Path(name).resolve()}"', *uses, ""]))
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


def names(ptx: str, wanted: tuple[str, ...]) -> dict[str, str]:
    """A dict from each of the names in `wanted` to the name that it has in the PTX.

    wanted: names of kernels as in C++, and names of variables, each after an `&`. Raises InputError if one is missing.
    """
    variables = re.findall(r"^(?:\.visible\s+)?\.(?:const|global)\s[^;=\n]*?([\w$]+)(?:\[\d*\])?\s*[;=]", ptx, re.M)
    entries = [*re.findall(r"\.entry\s+([\w$]+)", ptx), *variables]
    demangler = shutil.which("c++filt")
    if demangler is None:
        return {kernel: kernel.removeprefix("&") for kernel in wanted}
    done = subprocess.run([demangler, *entries], capture_output=True, text=True, timeout=60)
    plain = dict(zip(map(shape, done.stdout.splitlines()), entries))
    missing = [kernel for kernel in wanted if shape(kernel.removeprefix("&")) not in plain]
    if missing:
        there = ", ".join(plain) or "(there are none)"
        raise InputError(f"nvcc made the kernels {there}, not {missing[0]}")
    return {kernel: plain[shape(kernel.removeprefix("&"))] for kernel in wanted}


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
