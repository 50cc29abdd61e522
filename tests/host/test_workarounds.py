"""Which MPI library is found without starting it, and what is set for it before it starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mpi import LAUNCHER_VARIABLES

from aristos.bench import main
from aristos.errors import EnvironmentProblem
from aristos.host import mpi_library, workarounds
from aristos.host.mpi_library import Library
from aristos.host.workarounds import HostFacts, Workaround

HOST = HostFacts("host", libpmix="/usr/lib/libpmix.so.2")
STEP = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "2", "SLURMD_NODENAME": "host", "SLURM_JOB_ID": "7"}
MPICH, OPEN, INTEL = (Library(kind, "/env/lib/libmpi.so", True) for kind in ("MPICH", "Open MPI", "Intel MPI"))
UCX, MUNGE, NETMOD = ("OMPI_MCA_osc", "^ucx"), ("PMIX_MCA_psec", "native"), ("MPIR_CVAR_CH4_NETMOD", "ofi")
TCP = ("FI_PROVIDER", "tcp")
FOLDER = (workarounds.SM_FOLDER, f"/dev/shm/aristos-{os.getuid()}-7-n1")
VIRTUAL = STEP | {"SLURMD_NODENAME": "n1"}


def site(library: Library) -> Library:
    return Library(library.kind, "/opt/mpi/lib/libmpi.so")


@pytest.mark.parametrize(
    ("env", "library", "machine", "want"),
    [
        (STEP, None, HOST, []),
        ({}, MPICH, HOST, []),
        (STEP, MPICH, HOST, [NETMOD, TCP]),
        (STEP, MPICH, HostFacts("host", rdma=True), [NETMOD]),
        (STEP | {"MPIR_CVAR_CH4_NETMOD": "ofi"}, MPICH, HOST, [TCP]),
        (STEP, site(MPICH), HOST, []),  # a site's MPICH knows its network
        (STEP, Library("Cray MPICH", "/opt/cray/libmpi_cray.so"), HOST, []),
        (STEP | {"SLURM_STEP_NUM_NODES": "1"}, MPICH, HOST, []),
        (STEP | {"MPI_LOCALNRANKS": "1"}, MPICH, HOST, []),  # mpirun in a job brings its own PMI
        (STEP | {"MPIR_CVAR_CH4_NETMOD": "ucx"}, MPICH, HOST, []),
        ({}, OPEN, HOST, [UCX]),
        ({}, OPEN, HostFacts("host", rdma=True), []),  # with RDMA UCX is useful
        ({}, site(OPEN), HOST, []),
        ({"OMPI_MCA_osc": "rdma"}, OPEN, HOST, []),
        (STEP, OPEN, HOST, [UCX, MUNGE]),
        (STEP, OPEN, HostFacts("host.domain"), [UCX, MUNGE]),
        (STEP | {"PMIX_MCA_psec": "munge", "OMPI_MCA_osc": ""}, OPEN, HOST, []),
        (VIRTUAL, OPEN, HOST, [UCX, MUNGE, FOLDER]),
        (VIRTUAL, site(OPEN), HOST, [FOLDER]),
        (STEP | {"PMIX_RANK": "0"}, INTEL, HOST, [("I_MPI_PMI_LIBRARY", "/usr/lib/libpmix.so.2")]),
        (STEP | {"PMIX_RANK": "0", "I_MPI_PMI_LIBRARY": "/x"}, INTEL, HOST, []),
        (STEP | {"PMIX_RANK": "0"}, INTEL, HostFacts("host"), []),
        (STEP | {"PMI_RANK": "0"}, INTEL, HOST, []),  # pmi2 works as it is
    ],
)
def test_what_a_library_needs(env, library, machine, want):
    found = workarounds.workarounds(env, library, machine)
    assert [(each.name, each.value) for each in found] == want
    assert all(each.why for each in found)


def test_what_was_set_is_remembered_and_set_once(monkeypatch):
    name = UCX[0]
    monkeypatch.setattr(workarounds, "_set", [])
    monkeypatch.setattr(workarounds, "this_machine", lambda env: HOST)
    monkeypatch.setenv(name, "so that it is restored")
    del os.environ[name]
    for _ in range(2):
        assert [each[:2] for each in workarounds.apply(OPEN)] == [UCX]
        assert os.environ[name] == "^ucx"
    monkeypatch.setenv(name, "rdma")
    workarounds.apply(OPEN)
    assert os.environ[name] == "rdma"


def test_a_folder_of_somebody_else_is_not_used(monkeypatch, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    assert workarounds._private(tmp_path / "mine")
    assert not workarounds._private(tmp_path / "link")
    assert not workarounds._private(tmp_path / "no" / "parent")
    needed = [Workaround(workarounds.SM_FOLDER, str(tmp_path / "link"), "test")]
    monkeypatch.setattr(workarounds, "workarounds", lambda *_: needed)
    monkeypatch.setattr(workarounds, "_set", [])
    assert workarounds.apply(OPEN) == []


def test_the_benchmark_sets_workarounds_before_mpi_starts(monkeypatch):
    order = []

    def connect(ranks_per_node, limit, timeout):
        order.append("connect")
        raise EnvironmentProblem("far enough")

    monkeypatch.setattr(main.workarounds, "apply", lambda: order.append("apply"))
    monkeypatch.setattr(main.world, "connect", connect)
    assert main.main(["put"]) == 3
    assert order == ["apply", "connect"]


def library(path: Path, *marks: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0".join([b"\x7fELF", *(mark.encode() for mark in marks), b""]))
    return path


@pytest.mark.parametrize(
    ("marks", "kind"),
    [
        (["MPICH Version:"], "MPICH"),
        (["MPICH Version:", "I_MPI_Check_image_status"], "Intel MPI"),
        (["MPICH Version:", "CRAY MPICH version"], "Cray MPICH"),
        (["ompi_mpi_comm_self"], "Open MPI"),
        ([], "unknown MPI"),
    ],
)
def test_a_library_is_known_by_its_file(tmp_path, marks, kind):
    path = library(tmp_path / "libmpi.so.12", *marks)
    assert mpi_library.identify(path) == Library(kind, str(path))


def test_a_linkers_script_or_nothing_is_no_library(tmp_path):
    (tmp_path / "libmpi.so").write_text("INPUT(libmpi.so.40)\n")
    (tmp_path / "libmpi.so.12").write_text("")
    for name in mpi_library.NAMES:
        assert mpi_library.identify(tmp_path / name) is None


def environment(monkeypatch, folder: Path, *extensions: str) -> None:
    """Make a Python environment in `folder`, with an mpi4py that has these extension modules."""
    for name in extensions:
        library(folder / "site" / "mpi4py" / name, "libmpi.so.40" if "cpython" in name[:12] else "")
    spec = type("Spec", (), {"submodule_search_locations": [str(folder / "site" / "mpi4py")]})
    monkeypatch.setattr(mpi_library.importlib.util, "find_spec", lambda name: spec if extensions else None)
    monkeypatch.setattr(mpi_library, "prefixes", lambda: [folder / "lib"])
    monkeypatch.setattr(mpi_library, "search_path", lambda env: env.get("LD_LIBRARY_PATH", "").split(":"))


WHEEL = ("MPI.mpich.cpython-311.so", "MPI.openmpi.cpython-311.so")


def test_the_environments_library_goes_before_the_systems(monkeypatch, tmp_path):
    environment(monkeypatch, tmp_path, *WHEEL)
    system = library(tmp_path / "opt" / "libmpi.so.40", "ompi_mpi_comm_self")
    env = {"LD_LIBRARY_PATH": str(system.parent)}
    assert mpi_library.find({}) is None
    assert mpi_library.find(env) == Library("Open MPI", str(system))
    own = library(tmp_path / "lib" / "libmpi.so.12", "MPICH Version:")
    assert mpi_library.find(env) == Library("MPICH", str(own), wheel=True)
    assert mpi_library.find(env | {"MPI4PY_LIBMPI": str(system)}) == Library("Open MPI", str(system))
    assert mpi_library.find(env | {"MPI4PY_LIBMPI": "libmpi.so.40"}) == Library("Open MPI", str(system))
    assert mpi_library.find(env | {"LD_PRELOAD": str(system)}) == Library("Open MPI", str(system))


def test_an_mpi4py_that_was_built_here_names_its_library(monkeypatch, tmp_path):
    environment(monkeypatch, tmp_path, "MPI.cpython-311.so")
    library(tmp_path / "lib" / "libmpi.so.12", "MPICH Version:")
    assert mpi_library.find({}) == Library("Open MPI")
    system = library(tmp_path / "opt" / "libmpi.so.40", "ompi_mpi_comm_self")
    assert mpi_library.find({"LD_LIBRARY_PATH": str(system.parent)}) == Library("Open MPI", str(system))


def test_without_mpi4py_there_is_no_library(monkeypatch, tmp_path):
    environment(monkeypatch, tmp_path)
    assert mpi_library.find({}) is None
    assert workarounds.workarounds(STEP, None, HOST) == []


def test_mpi4py_loads_the_library_that_was_found():
    pytest.importorskip("mpi4py")
    found = mpi_library.find()
    done = subprocess.run([sys.executable, "-m", "mpi4py", "--mpi-library"], capture_output=True, text=True, timeout=60)
    if found is None:
        assert done.returncode
    else:
        assert os.path.realpath(done.stdout.strip()) == os.path.realpath(found.path)
        code = "import sys; from aristos.host import workarounds as w; w.apply(); print('mpi4py' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.strip() == "False"


def mpi_started(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a process that a launcher seems to have started as one of two. For MPI it is a world of one."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_VARIABLES)}
    step = STEP | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"} | env
    code = f"import os, sys\nfrom aristos.host import mpi_world\n{code}"
    return subprocess.run([sys.executable, "-c", code], env=clean | step, capture_output=True, text=True, timeout=60)


def test_variables_are_set_before_mpi_starts():
    done = mpi_started("mpi_world.prepare(); print('mpi4py.MPI' in sys.modules, os.environ.get('FI_PROVIDER'))")
    library = mpi_library.find()
    wanted = "tcp" if library is not None and library.kind == "MPICH" and library.wheel else None
    assert done.stdout == f"False {wanted}\n" or workarounds.this_machine(os.environ).rdma, done.stderr


def test_tasks_that_mpi_does_not_see_as_one_job():
    done = mpi_started("mpi_world.connect()")
    assert re.search(r"EnvironmentProblem: srun started 2 tasks, but the size of MPI_COMM_WORLD is 1: ", done.stderr), (
        done.stderr
    )


def test_tasks_without_an_mpi_library():
    done = mpi_started("sys.modules['mpi4py'] = None; mpi_world.connect()")
    assert "srun started 2 tasks, but no MPI library could be loaded" in done.stderr, done.stderr
