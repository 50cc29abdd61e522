"""`ptxsim run PROGRAM`: run a program of CUDA's driver API with the stand-in libcuda, and print the reports."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import suppress, units
from ..coverage import Coverage
from ..demangle import readable
from ..errors import InputError
from ..findings import LINES_OF_SOURCE, Report, lines, total
from ..waiting import compile_machine
from . import build
from .session import SETTING

INTERRUPTED = 130
LAST_SECONDS = 20.0  # seconds that a program may take to end after Ctrl-C
NOTHING = (
    "the program launched no kernel through the stand-in libcuda: it must use the driver API of the shared library "
    "libcuda.so.1, or the CUDA runtime as the shared library libcudart.so (nvcc -cudart shared)"
)
UNENDED = (
    "a process of the program crashed or called os._exit: kernels that it had queued may not have run, and what it "
    "covered is not counted"
)


def run(program: list[str], seeds: int, rules_files: list[str], **options: Any) -> int:
    """Run a program with `seeds` seeds and print the reports.

    options: those of `Machine`. Returns 1 if there are reports, if the program fails or does not come to its end, or if
    kernels fail at its end; else 0. After Ctrl-C it prints the reports so far and returns 130. Raises InputError if the
    program is missing or launches nothing, and EnvironmentProblem if the library cannot be compiled.
    """
    if shutil.which(program[0]) is None:
        raise InputError(f"there is no program {program[0]}")
    rules = suppress.read(rules_files)
    library = build.folder()
    if not units.kept():
        compile_machine()  # the program's process then loads the code
    first = options.pop("seed")
    failed, found, known, covered = 0, list[Report](), list[Report](), Coverage()
    seen: dict[int, int] = {}
    unended = incomplete = interrupted = False
    for seed in range(first, first + seeds):
        with tempfile.TemporaryDirectory(prefix="ptxsim-") as folder:
            variables = environment(library, folder, {"seed": seed, **options})
            code = ended(program, variables)
            interrupted = code is None
            failed = failed or code or 0
            unended = unended or (not interrupted and any(Path(folder).glob("*.unended")))
            incomplete = incomplete or unended or any(Path(folder).glob("*.failed"))
            reports = read(Path(folder), Path(variables["CUPY_CACHE_DIR"]), covered)
        for report in [one for one in reports if not any(same(one, other) for other in [*found, *known])]:
            (known if suppress.matching(rules, report) else found).append(report)
            seen[id(report)] = seed
        if interrupted:
            print("ptxsim run: interrupted: these are the reports so far", file=sys.stderr)
            break
    if not (found or interrupted) and not known and not covered.launches and not incomplete:
        if not failed:
            raise InputError(NOTHING)
        print(f"ptxsim run: {NOTHING}", file=sys.stderr)
    if unended:
        print(f"ptxsim run: {UNENDED}", file=sys.stderr)
    if failed:
        print(f"ptxsim run: the program ended with exit code {failed}", file=sys.stderr)
    printed = lines(found, str if seeds == 1 else lambda report: f"{report} [--seed {seen[id(report)]}]")
    bare = [f"reports without a file name lines of the PTX: {LINES_OF_SOURCE}"] if any(map(of_ptx, found)) else []
    ends = [*map(readable, suppress.said(rules, known)), *bare, covered.said(first, seeds)]
    print(*map(readable, printed), *ends, sep="\n")
    print(total(len(printed)) if options["check"] else "not checked")
    return INTERRUPTED if interrupted else 1 if found or failed or incomplete else 0


def ended(program: list[str], variables: dict[str, str]) -> int | None:
    """Run a program to its end. Returns its exit code, or None after Ctrl-C, which the program gets too.

    The program is killed at a second Ctrl-C, or if it has not ended LAST_SECONDS after the first.
    """
    try:
        process = subprocess.Popen(program, env=variables)
    except OSError as error:
        raise InputError(f"cannot run {program[0]}: {error}") from error
    try:
        return process.wait()
    except KeyboardInterrupt:
        with contextlib.suppress(KeyboardInterrupt, subprocess.TimeoutExpired):
            process.wait(LAST_SECONDS)
        process.kill()
        process.wait()
        return None


def same(one: Report, other: Report) -> bool:
    """Whether the reports of two runs name the same fault."""
    return (one.kind, one.file, one.line, one.other_line) == (other.kind, other.file, other.line, other.other_line)


def of_ptx(report: Report) -> bool:
    """Whether a report names a line of PTX, which has no lines of its source."""
    return bool(report.block and report.line and not report.file)


def environment(library: Path, folder: str, machine: dict[str, Any]) -> dict[str, str]:
    """The variables with which the program finds the library, the stand-in for ptxas, and the library ptxsim.

    If the user named no cache for Triton, Triton gets one for programs of the current folder. One reason is that its
    machine code is PTX here. Another is that Triton would reuse a kernel of the same text that a program of another
    folder compiled, and reports would name that folder's file. CuPy gets a cache for the same reasons, and
    keeps sources in it, which reports name. After the user's folders of libraries come those with NVRTC and with
    stand-ins for libraries such as cuBLAS. If there is NVRTC, programs find a stand-in first, which makes NVRTC write
    the numbers of lines.
    """
    here = hashlib.sha256(os.fsencode(Path.cwd())).hexdigest()[:16]
    root = str(Path(__file__).resolve().parents[2])
    standard = [sysconfig.get_path("stdlib"), os.path.join(sysconfig.get_path("platstdlib"), "lib-dynload")]
    places = [place for place in sys.path if os.path.isdir(place) and place not in standard]
    before = os.environ.get("LD_LIBRARY_PATH")
    users = before.split(":") if before else []
    nvrtc = {version: found for version in build.RUNTIMES if (found := nvrtc_library(version, users))}
    passing = [str(library / f"nvrtc{version}") for version in nvrtc]
    folders = [os.path.dirname(found) for found in nvrtc.values()]
    libraries = [str(library), *passing, *users, *folders, str(library / "absent")]
    return os.environ | {
        "LD_LIBRARY_PATH": ":".join(libraries),
        "TRITON_LIBCUDA_PATH": str(library),
        "TRITON_PTXAS_PATH": str(library / "ptxas"),
        "TRITON_PTXAS_BLACKWELL_PATH": str(library / "ptxas"),
        "TRITON_CACHE_DIR": os.environ.get("TRITON_CACHE_DIR") or str(library / "triton" / here),
        "CUPY_COMPILE_WITH_PTX": "1",
        "CUPY_CACHE_DIR": os.environ.get("CUPY_CACHE_DIR") or str(library / "cupy" / here),
        "CUPY_CACHE_SAVE_CUDA_SOURCE": "1",
        **{build.nvrtc_variable(version): found for version, found in nvrtc.items()},
        SETTING: json.dumps({"folder": folder, "machine": machine}),
        "PTXSIM_PATH": os.pathsep.join([root, *places]),
        "PTXSIM_LIBPYTHON": build.libpython(),
        "PTXSIM_PYTHONHOME": sys.base_prefix
        if sys.base_prefix == sys.base_exec_prefix
        else f"{sys.base_prefix}:{sys.base_exec_prefix}",
    }


def nvrtc_library(version: int, folders: list[str]) -> str:
    """The path of NVRTC's library in the first of some folders, or in this Python's packages; '' if there is none."""
    packages = [file.parent for place in sys.path for file in Path(place).glob(f"nvidia/*/lib/libnvrtc.so.{version}")]
    files = [folder / f"libnvrtc.so.{version}" for folder in [*map(Path, folders), *packages]]
    return next((str(file.resolve()) for file in files if file.is_file()), "")


def read(folder: Path, sources: Path, covered: Coverage) -> list[Report]:
    """The reports that the program's processes wrote. What they covered is added to `covered`.

    sources: the folder in which CuPy keeps sources. It compiles them in a folder that is gone at the end.
    """
    found = []
    for file in sorted(folder.glob("*.reports")):
        for line in file.read_text(encoding="utf-8").splitlines():
            made = json.loads(line)
            report = Report(**made | {"block": tuple(made["block"]), "thread": tuple(made["thread"])})
            kept = sources / Path(report.file).name
            there = not Path(report.file).exists() and kept.is_file()
            found.append(replace(report, file=shown(str(kept) if there else report.file)))
    for file in sorted(folder.glob("*.covered")):
        made = json.loads(file.read_text(encoding="utf-8"))
        covered.launches += made["launches"]
        covered.kernels |= set(made["kernels"])
        covered.ran |= {(name, index) for name, index in made["ran"]}
        covered.all |= {(name, index) for name, index in made["all"]}
    return found


def shown(file: str) -> str:
    """The name of a report's file, relative to the current folder if the file lies there."""
    return os.path.relpath(file) if file and Path(file).is_relative_to(Path.cwd()) else file
