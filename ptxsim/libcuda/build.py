"""Compiles the stand-ins libcuda.so.1 and libcudart.so, once for each state of their sources, into the kernel cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from kernel_cache import compile as compiler
from kernel_cache import private, regular

from ..errors import EnvironmentProblem, own

SOURCE = Path(__file__).with_name("stand_in.c")
NAMES = Path(__file__).with_name("names.txt")
PER_THREAD = Path(__file__).with_name("per_thread.txt")
RUNTIME = [Path(__file__).with_name(name) for name in ("runtime.c", "runtime_missing.c")]
RUNTIME_NAMES = Path(__file__).with_name("runtime_names.txt")
RUNTIMES = (12, 13)  # the major versions of libcudart
NVRTC = Path(__file__).with_name("nvrtc.c")
ABSENT = Path(__file__).with_name("absent.c")
ABSENT_NAMES = Path(__file__).with_name("absent_names.txt")
TIME = 300  # seconds that the compilation may take
LIBRARY = "libcuda.so.1"
OPTIONS = ["-shared", "-fPIC", "-O2", "-fvisibility=hidden", "-Wl,-z,nodelete", "-w"]
VERSIONS = "{library} {{ global: cu*; __cuda*; nvrtc*; local: *; }};\n"  # NVIDIA's version of a library's symbols
PTXAS = Path(__file__).with_name("ptxas.sh")


@cache
def versions() -> dict[str, list[int]]:
    """The driver API's functions: name -> the versions of CUDA that brought its first, second, ... form."""
    rows = (line.split() for line in NAMES.read_text("ascii").splitlines() if line[:1] != "#")
    return {row[0]: [int(word) for word in row[1:]] for row in rows}


def symbol(name: str, form: int) -> str:
    """The exported name of a function's form, counted from 0."""
    return f"{name}_v{form + 1}" if form else name


@cache
def symbols() -> list[str]:
    """All exported names, in the order of the library's table."""
    return [*(symbol(name, form) for name, found in versions().items() for form in range(len(found))), *per_thread()]


@cache
def per_thread() -> dict[str, str]:
    """The exported names of the forms for per-thread default streams, each with the name of its ordinary form."""
    names = [line for line in PER_THREAD.read_text("ascii").split("\n") if line[:2] == "cu"]
    return {name: name.rpartition("_")[0] for name in names}


@cache
def runtime_symbols() -> list[str]:
    """The names that NVIDIA's runtimes export."""
    return [line for line in RUNTIME_NAMES.read_text("ascii").splitlines() if line[:1] != "#"]


@cache
def absent() -> dict[str, tuple[str, str, list[str]]]:
    """Libraries that programs link and that ptxsim cannot run: file -> (name, code of results, functions)."""
    found: dict[str, tuple[str, str, list[str]]] = {}
    functions: list[str] = []
    for line in ABSENT_NAMES.read_text("ascii").splitlines():
        match line.split():
            case [file, name, code] if line[:1] != "#":
                functions = []
                found[file] = (name, code, functions)
            case [name]:
                functions.append(name)
    return found


def folder() -> Path:
    """The folder with the library, as libcuda.so.1 and libcuda.so, with runtimes, and with a stand-in for ptxas.

    Its folder `absent` has stand-ins for libraries such as cuBLAS, and the folders `nvrtc12` and `nvrtc13` have one for
    NVRTC, which calls NVRTC. The libraries are compiled if they are not there.

    Raises EnvironmentProblem if there is no C compiler, or if it fails.
    """
    parts = [regular.read(file).decode() for file in (SOURCE, PTXAS, *RUNTIME, NVRTC, ABSENT, ABSENT_NAMES)]
    parts += [*symbols(), *runtime_symbols(), VERSIONS, *OPTIONS]
    parts.append(os.environ.get("CC", ""))
    with own():
        cached = compiler.cache_folder() / "libcuda"
        try:
            private.make(cached)
            place = cached / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
            private.make(place)
        except OSError as error:
            raise EnvironmentProblem(f"the stand-in libcuda has no place in {cached}: {error.strerror}") from error
    if not (place / LIBRARY).exists():
        compiled(place)
    return place


@contextlib.contextmanager
def temporary_folder(place: Path) -> Iterator[str]:
    """A folder inside a folder for the time of a block. Raises EnvironmentProblem if it cannot be made."""
    try:
        folder = tempfile.TemporaryDirectory(dir=place)
    except OSError as error:
        raise EnvironmentProblem(f"the stand-in libcuda cannot be written to {place}: {error.strerror}") from error
    with folder as name:
        yield name


def compiled(place: Path) -> None:
    """Compile the libraries into a folder."""
    words = (os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang") or "").split()
    if not words:
        raise EnvironmentProblem(
            "running programs of the driver API needs a C compiler, which makes the stand-in libcuda: install one "
            "(gcc or clang), or name it in the variable CC"
        )
    with temporary_folder(place) as temporary:
        made = Path(temporary) / LIBRARY
        library([*words, f"-DFUNCTIONS={listed(symbols())}", str(SOURCE), "-ldl", "-lpthread"], made)
        for version in RUNTIMES:
            runtime = Path(temporary) / f"libcudart.so.{version}"
            defined = [f"-DRUNTIME={version}", f"-DMISSING={listed(runtime_symbols())}"]
            files = [*map(str, RUNTIME), str(made), "-Wl,-rpath,$ORIGIN", "-lpthread"]
            versioned([*words, *defined, *files], runtime)
            os.replace(runtime, place / runtime.name)
            passing = Path(temporary) / f"libnvrtc.so.{version}"
            versioned([*words, f'-DREAL="{nvrtc_variable(version)}"', str(NVRTC), "-ldl"], passing)
            (place / f"nvrtc{version}").mkdir(exist_ok=True)
            os.replace(passing, place / f"nvrtc{version}" / passing.name)
        (place / "absent").mkdir(exist_ok=True)
        for file, (name, code, functions) in absent().items():
            other = Path(temporary) / file
            defined = [f'-DLIBRARY="{name}"', f"-DCODE={code}", f"-DFUNCTIONS={listed(functions)}"]
            versioned([*words, *defined, str(ABSENT)], other)
            os.replace(other, place / "absent" / file)
        link = Path(temporary) / "libcuda.so"
        link.symlink_to(LIBRARY)
        assembler = Path(temporary) / "ptxas"
        assembler.write_bytes(regular.read(PTXAS))
        assembler.chmod(0o700)
        os.replace(assembler, place / "ptxas")
        os.replace(link, place / "libcuda.so")
        os.replace(made, place / LIBRARY)


def nvrtc_variable(version: int) -> str:
    """The variable that names NVRTC's own library to its stand-in. version: the library's."""
    return f"PTXSIM_NVRTC_{version}"


def listed(names: list[str]) -> str:
    """Names as a list X(name) for the compiler."""
    return " ".join(f"X({name})" for name in names)


def versioned(words: list[str], made: Path) -> None:
    """Compile a shared library whose symbols have NVIDIA's versions. words: the compiler with its options and files."""
    script = made.with_name("versions")
    script.write_text(VERSIONS.format(library=made.name))
    library([*words, f"-Wl,--version-script={script}"], made)


def library(words: list[str], made: Path) -> None:
    """Compile a shared library. words: the compiler with its options and files."""
    words = [*words, *OPTIONS, f"-Wl,-soname,{made.name}", "-o", str(made)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=TIME)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentProblem(f"the stand-in libcuda cannot be compiled: {error}") from error
    if done.returncode:
        raise EnvironmentProblem(f"the stand-in libcuda does not compile by {words[0]}: {done.stderr.strip()}")


def libpython() -> str:
    """The shared library of this Python, which programs without Python load; '' if it has none."""
    name, place = sysconfig.get_config_var("LDLIBRARY") or "", sysconfig.get_config_var("LIBDIR") or ""
    found = os.path.join(place, name)
    return found if ".so" in name and os.path.exists(found) else ""
