"""The checks of `aristos doctor` in simulated environments."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import aristos
from aristos import models
from aristos.doctor import (
    cores,
    finding,
    kernels,
    libraries,
    package,
    shared_memory,
    slurm,
)
from aristos.doctor.cores import RankCores
from aristos.doctor.finding import Finding, merged, named, ok, warn
from aristos.engine.layout import rank_bytes
from aristos.host import mpi_files, mpi_launchers
from aristos.host.mpi_library import Library
from aristos.host.nodes import Nodes
from aristos.host.workarounds import SM_FOLDER, Workaround
from aristos.layer.collective import shape_of, widths
from aristos.placement import Placement
from aristos.primitives import isa
from aristos.substrate.windows import window_bytes
from aristos.transport import memfd

STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}
STEP |= {"SLURM_STEP_NUM_NODES": "2", "SLURM_MPI_TYPE": "none"}
MPICH, OPEN, INTEL = (Library(kind, f"/env/lib/{kind}.so", True) for kind in ("MPICH", "Open MPI", "Intel MPI"))
LISTING = """MPI plugin types are...
\tnone
\tpmix
\tcray_shasta
\tpmi2
specific pmix plugin versions available: pmix_v5
"""


def test_ranks_are_named_in_runs():
    assert named([3]) == "rank 3"
    assert named([3, 0, 1, 2, 8, 2]) == "ranks 0-3, 8"


def test_equal_findings_of_all_ranks_become_one():
    same = [(rank, [ok("Numba", "fine")]) for rank in range(4)]
    assert merged(same, 4) == [ok("Numba", "fine")]
    assert merged([(0, [ok("GPUs", "none")]), (2, [ok("GPUs", "none")])], 4) == [ok("GPUs", "none")]  # one rank a node


def test_ranks_with_another_finding_are_named_and_listed_first():
    found = [(rank, [ok("GPUs", f"{rank} MiB free")]) for rank in range(3)] + [(3, [warn("GPUs", "none", "get one")])]
    assert merged(found, 4) == [warn("GPUs", "rank 3: none", "get one"), ok("GPUs", "ranks 0-2: 0 MiB free")]


def test_a_check_that_raises_is_a_finding():
    def check() -> Finding:
        raise ValueError("no such thing")

    got = finding.guarded("GPUs", check)
    assert (got.state, got.text) == ("fail", "could not be checked: ValueError: no such thing")


def test_the_library_or_its_absence_is_reported():
    assert libraries.library(MPICH).text == "MPICH (/env/lib/MPICH.so), from pip"
    for found, why in ((None, ""), (None, "cannot load MPI library\nlibmpi.so: No such file"), (OPEN, "bad ELF")):
        got = libraries.library(found, why)
        assert got.state == "fail"
        assert "pip install 'aristos[mpich]'" in got.remedy
        assert "No such file" not in got.text
    assert "bad ELF; Open MPI (/env/lib/Open MPI.so) was expected" in got.text


@pytest.mark.parametrize(
    ("library", "fits"), [(MPICH, "pmi2"), (INTEL, "pmi2"), (OPEN, "pmix"), (Library("Cray MPICH"), "cray_shasta")]
)
def test_a_wrong_pmi_of_srun_is_reported(library, fits):
    got = libraries.launcher(1, STEP, library)
    assert got.state == "fail"
    assert got.text.startswith(f"srun started 4 tasks, but the size of MPI_COMM_WORLD is 1: try --mpi={fits}")
    assert got.remedy.startswith(f"srun --mpi={fits} ")
    assert libraries.launcher(4, STEP, library).state == "ok"


def test_launchers_other_than_srun():
    assert libraries.launcher(1, {}, MPICH).text.startswith("none: one process")
    got = libraries.launcher(1, {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, MPICH)
    assert got.text.startswith(
        "Open MPI's mpirun started 4 tasks, but the size of MPI_COMM_WORLD is 1: use the mpirun that belongs"
    )
    env = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0", "PMIX_RANK": "0"}
    assert "by PMIx, which pip's mpich does not support" in libraries.launcher(None, env, MPICH).text
    assert libraries.launcher(2, env, OPEN).state == "ok"
    assert "cannot become ranks without an MPI library" in libraries.launcher(None, env, None).text


@pytest.mark.parametrize(
    ("library", "path", "answer", "beside", "launched", "state"),
    [
        (MPICH, "/env/bin/mpirun", "HYDRA build details:", "/env/bin/mpirun", False, "ok"),
        (MPICH, None, "", "/env/bin/mpirun", False, "warn"),
        (MPICH, None, "", "/env/bin/mpirun", True, "ok"),
        (MPICH, "/usr/bin/mpirun", "mpirun (Open MPI) 5.0.11", "/env/bin/mpirun", False, "fail"),
        (MPICH, "/usr/bin/mpirun", "mpirun (Open MPI) 5.0.11", "/env/bin/mpirun", True, "warn"),
        (OPEN, "/usr/bin/mpirun", "mpirun (Open MPI) 4.1", "/env/bin/mpirun", False, "warn"),
        (Library("Open MPI", "/usr/lib/libmpi.so"), "/usr/bin/mpirun", "mpirun (Open MPI) 4.1", "", False, "ok"),
        (INTEL, "/usr/bin/mpirun", "HYDRA build details:", "", False, "fail"),
        (INTEL, "/opt/bin/mpirun", "Intel(R) MPI Library for Linux* OS", "", False, "ok"),
        (Library("Cray MPICH"), "/usr/bin/mpirun", "", "", False, "warn"),
        (None, "/usr/bin/mpirun", "", "", False, "ok"),
    ],
)
def test_mpirun_belongs_to_the_library(library, path, answer, beside, launched, state):
    got = libraries.mpirun(library, path, answer, beside, launched)
    assert got.state == state
    assert bool(got.remedy) == (state != "ok")
    if state != "ok" and beside:
        assert beside in got.remedy


def test_two_mpi_libraries_are_reported(tmp_path):
    assert libraries.one_mpi([], [], []).state == "ok"
    assert libraries.one_mpi(["/env/lib/libmpi.so.12"], ["mpich"], []).state == "ok"
    assert libraries.one_mpi(["/opt/libmpi.so.12", "/opt/libmpicxx.so"], [], ["MPI_HOME=/opt"]).state == "ok"
    for mapped, wheels, modules, word in (
        (["/env/lib/libmpi.so.12", "/usr/lib/libmpi.so.40"], ["mpich"], [], "2 MPI libraries"),
        ([], ["mpich", "openmpi"], [], "mpich, openmpi"),
        ([], ["mpich"], ["CRAY_MPICH_DIR=/opt/cray"], "CRAY_MPICH_DIR=/opt/cray"),
    ):
        got = libraries.one_mpi(mapped, wheels, modules)
        assert got.state == "fail"
        assert word in got.text
        assert "uninstall" in got.remedy


def test_a_loaded_mpi_module_is_found(tmp_path):
    (tmp_path / "libmpi.so.40").touch()
    (tmp_path / "env" / "lib").mkdir(parents=True)
    (tmp_path / "env" / "lib" / "libmpi.so.12").touch()
    own = [tmp_path / "env" / "lib"]
    env = {"I_MPI_ROOT": str(tmp_path / "env"), "LD_LIBRARY_PATH": f"{own[0]}:/nowhere"}
    assert libraries.loaded_modules(env, own) == []
    env = {"MPI_HOME": "/opt/mpi", "LD_LIBRARY_PATH": f"/nowhere:{tmp_path}:{tmp_path}"}
    assert libraries.loaded_modules(env, own) == ["MPI_HOME=/opt/mpi", f"LD_LIBRARY_PATH has {tmp_path}"]


def test_thread_level_matters_between_nodes():
    assert libraries.threads(3, 3, True).state == "ok"
    assert libraries.threads(1, 3, False).state == "warn"
    assert libraries.threads(1, 3, True).state == "fail"


def test_workarounds_are_shown_with_what_to_export():
    assert libraries.workarounds([]).state == "ok"
    got = libraries.workarounds([Workaround("A", "^b", "why"), Workaround(SM_FOLDER, "/x/n1", "shared")])
    assert "A=^b (why)" in got.text
    assert "export A='^b'" in got.remedy
    assert "/x/n1" not in got.remedy  # the folder exists on this node only
    assert got.values["set"]["A"] == "^b"


def test_pmi_types_are_read_from_srun():
    assert mpi_launchers.pmi_types(LISTING) == ["none", "pmix", "cray_shasta", "pmi2"]
    assert mpi_launchers.pmi_types(None) == []


def test_slurm_reports_whether_the_librarys_pmi_is_offered():
    types = mpi_launchers.pmi_types(LISTING)
    assert slurm.slurm({}, None, [], MPICH).text == "no job, and no srun that answers"
    got = slurm.slurm(STEP, "slurm 24.11.5\n", types, OPEN)
    assert got.text == ("slurm 24.11.5, job 7: 4 tasks on 2 nodes, started with --mpi=none; --mpi=pmix fits Open MPI")
    assert slurm.slurm({}, "slurm 24.11.5", types, None).text == "slurm 24.11.5, outside a job"
    got = slurm.slurm(STEP, "slurm 24.11.5", ["none", "pmi2"], OPEN)
    assert got.state == "warn"
    assert "no --mpi=pmix" in got.text
    assert slurm.slurm(STEP, "slurm 22.05", ["none", "pmix_v4"], OPEN).state == "ok"


def seats(*masks: tuple[int, ...], online: int = 8, node: int = 0) -> list[RankCores]:
    return [RankCores(node, frozenset(mask), online) for mask in masks]


@pytest.mark.parametrize(
    ("where", "state", "word"),
    [
        (seats((0, 1, 2, 3), (4, 5, 6, 7)), "ok", "each rank has cores of its own, rank 0 has cores 0-3 of 8"),
        (seats(tuple(range(8)), tuple(range(8))), "ok", "2 ranks a node share cores 0-7: 4 for each"),
        (seats(tuple(range(8))), "ok", "cores 0-7 of 8"),
        (seats((0,), (1,), online=2), "ok", "core 0 of 2"),
        (seats((0,), (1,)), "warn", "only one of 8 cores for each of ranks 0-1, although each rank could have 4"),
        (seats((0,), (1, 2, 3, 4)), "warn", "rank 0"),
        (seats((0,), (0,)), "warn", "2 ranks share core 0"),
        (seats((0, 1), (0, 1), (0, 1), online=2), "warn", "3 ranks share cores 0-1"),
        (seats((0, 1, 2), (2, 3, 4)), "warn", "ranks 0-1 share some cores"),
        (seats((0, 1), (2, 3)) + seats((0, 1), (1, 2), node=2), "warn", "ranks 2-3 share some cores"),
    ],
)
def test_binding(where, state, word):
    got = cores.binding(where, MPICH, {})
    assert got.state == state, got
    assert word in got.text


def test_the_remedy_for_a_binding_is_the_launchers_option():
    where = seats((0,), (1,))
    assert cores.binding(where, MPICH, STEP).remedy.startswith("srun --cpus-per-task=4 --cpu-bind=cores")
    assert "--map-by slot:PE=4" in cores.binding(where, OPEN, {}).remedy
    assert "-bind-to core:4" in cores.binding(where, MPICH, {}).remedy
    assert "I_MPI_PIN_DOMAIN=4" in cores.binding(where, INTEL, {}).remedy


@pytest.mark.parametrize(
    ("where", "on", "state"),
    [
        (seats((0,), (0,)), True, "warn"),
        (seats((0,), (0,)), False, "ok"),
        (seats((0, 1), (0, 1)), True, "ok"),
        (seats((0, 1), (0, 1)) + seats((0,), (0,), node=2), True, "warn"),
        (seats((0,)) + seats((0,), node=1), True, "ok"),
    ],
)
def test_autogroups_matter_where_ranks_share_cores(where, on, state):
    got = cores.scheduler(where, on)
    assert got.state == state, got
    assert ("sched_autogroup_enabled=0" in got.remedy) == (state == "warn")


def test_a_containers_cpu_limit_is_reported():
    assert cores.granted(8, None, {}).state == "ok"
    assert cores.granted(8, 8.0, {}).state == "ok"
    assert cores.granted(8, 2.0, {}).state == "warn"


@pytest.mark.parametrize(
    ("env", "installed", "word"),
    [
        ({}, False, "not installed"),
        ({}, True, "unless OMP_WAIT_POLICY=passive is set before python starts"),
        ({"OMP_NUM_THREADS": "1"}, True, "one a rank"),
        ({"KMP_BLOCKTIME": "0"}, True, "wait as set by KMP_BLOCKTIME=0"),
    ],
)
def test_how_torchs_threads_wait_is_reported(env, installed, word):
    assert word in cores.torch_threads(env, installed).text


def test_shared_memory_must_hold_the_default_layer():
    needed, layer = shared_memory.need(2, 2)
    assert needed > 64 << 20  # what a container has by default
    assert layer == "olmoe-1b-7b/4"
    assert shared_memory.shared(1 << 30, 1 << 30, needed, layer, 2).state == "ok"
    got = shared_memory.shared(64 << 20, 64 << 20, needed, layer, 2)
    assert got.state == "fail"
    size = int(got.remedy.split("--shm-size=")[1].split("m")[0])
    assert needed <= size << 20 < 4 * needed


def test_only_windows_are_counted_as_shared_memory():
    """Private memory (outboxes, staged rows) is not counted, and a rank alone on its node needs none."""
    for nodes, per_node in ((1, 2), (4, 2), (16, 4)):
        cfg = models.shape(models.DEFAULT, nodes * per_node).cfg
        world = nodes * per_node
        layout = shape_of(world, Placement(None, cfg.experts, world), **widths(cfg))
        rank = rank_bytes(layout, Nodes.split(world, per_node), world - 1)
        stride = 4 * cfg.hidden
        remote = (nodes - 1) * per_node
        ring = max(64, (64 << 20) // (max(1, nodes * per_node - 1) * stride))  # rows of a ring
        ring = min(ring, cfg.max_tokens * cfg.top_k)
        kept = remote * 2 * ring * stride  # an outbox and staged rows for each remote peer, mostly rows
        needed, _ = shared_memory.need(nodes * per_node, per_node)
        assert needed == pytest.approx(per_node * (rank - kept), rel=0.05)
    assert shared_memory.need(4, 1)[0] == 0
    got = shared_memory.shared(64 << 20, 1 << 20, 0, "", 1)
    assert (got.state, got.text) == ("ok", "free: 1 of 64 MiB; a rank alone on its node needs none")


def shared_bytes() -> int:
    """Bytes of files in /dev/shm that this process has mapped."""
    spans = re.findall(r"^(\w+)-(\w+) .* /dev/shm/", Path("/proc/self/maps").read_text(), re.MULTILINE)
    return sum(int(end, 16) - int(start, 16) for start, end in spans)


@pytest.mark.parallel
@pytest.mark.ranks(4, timeout=300)  # it may have to compile
def test_mpi_takes_both_windows_from_shared_memory(comm):
    """Windows between nodes lie in shared memory too, if ranks share a machine. Therefore `need` counts them."""
    cfg = aristos.MoEConfig(hidden=512, ffn=8, experts=4, top_k=2, max_tokens=256)
    layout = shape_of(4, Placement(None, 4, 4), **widths(cfg))
    local, remote, _ = window_bytes(layout, Nodes.split(4, 2), comm.rank)
    before = shared_bytes()
    with aristos.MoE(cfg, comm, threads=1, ranks_per_node=2):
        grown = shared_bytes() - before
        comm.Barrier()
    assert grown >= 2 * local + 4 * remote  # two ranks are on this pretended node, four on this machine


def test_the_doctor_says_whether_experts_are_computed_in_place(monkeypatch):
    def refused(*arguments):
        raise OSError(38, "Function not implemented")

    for huge, text in ((True, "yes: ranks of a node read"), (False, "no: tokens are always sent (no huge pages")):
        monkeypatch.setattr(memfd.SharedMap, "collapse", lambda self, start, nbytes, huge=huge: huge)
        got = shared_memory.in_place()
        assert (got.state, got.values) == ("ok", {"huge_pages": huge})
        assert got.text.startswith(text)
    monkeypatch.setattr(memfd.os, "memfd_create", refused)
    assert "no anonymous shared memory: [Errno 38]" in shared_memory.in_place().text


@pytest.mark.slow
@pytest.mark.ranks(2)
def test_the_doctor_and_a_layer_agree_on_experts_in_place(comm):
    # One way is clearly cheaper.
    cfg, rows = aristos.MoEConfig(hidden=16, ffn=16, experts=2, top_k=1, max_tokens=1000), 1000
    with aristos.MoE(cfg, comm, threads=1) as moe:
        moe.load(**aristos.reference.weights(cfg))
        ids = np.full((rows, 1), 1 - comm.rank)
        _, stats = moe(np.ones((rows, 16), "f4"), ids, np.ones((rows, 1), "f4"), return_stats=True)
    assert stats.kept_rows_to_peer[1 - comm.rank] == rows * shared_memory.in_place().values["huge_pages"]


def test_files_of_killed_jobs_are_found_unless_in_use(tmp_path):
    names = ("mpich_shm_1_0", "sm_segment.host.0.1.0", "mine", "mpich_shm_in_use", "mpich_shm_new")
    for name in names:
        (tmp_path / name).write_bytes(bytes(8192))
        if name != "mpich_shm_new":
            os.utime(tmp_path / name, (time.time() - 3600,) * 2)
    with open(tmp_path / "mpich_shm_in_use", "rb"):
        found = mpi_files.leftovers(str(tmp_path))
    assert [Path(path).name for path, _ in found] == ["mpich_shm_1_0", "sm_segment.host.0.1.0"]
    got = shared_memory.left(found)
    assert got.state == "warn"
    assert f"rm {tmp_path}/mpich_shm_1_0" in got.remedy
    assert shared_memory.left([]).state == "ok"
    assert f"-uid {os.getuid()} \\( -name 'mpich_shm_*'" in shared_memory.left(found * 3).remedy  # USER may be unset


def test_instruction_sets():
    assert kernels.suited("avx2", "znver3", "x86_64", "avx2").state == "ok"
    assert kernels.suited("generic", "neoverse-n1", "aarch64", "generic").state == "ok"
    assert kernels.suited("generic", "qemu64", "x86_64", "generic").state == "warn"
    forced = kernels.suited("avx2", "sapphirerapids", "x86_64", "avx512")
    assert (forced.state, forced.remedy) == ("warn", "unset ARISTOS_ISA")
    assert kernels.instructions().values["isa"] == isa.chosen()


def test_numba_is_checked(monkeypatch):
    assert kernels.numba({}).state == "ok"
    assert kernels.numba({"NUMBA_DISABLE_JIT": "1"}).state == "warn"
    monkeypatch.setitem(sys.modules, "numba", None)  # importing it raises ImportError
    got = kernels.numba({})
    assert got.state == "fail"
    assert "pip install" in got.remedy


@pytest.mark.slow
def test_the_folder_that_each_way_of_starting_loads(tmp_path, monkeypatch):
    """In a clone beside an installation, `python -m` loads the clone; commands and scripts load the installation."""
    installed = str(Path(aristos.__file__).parent)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: None)
    found = package.here()
    assert (found.state, found.text) == ("ok", f"every way to start a program loads {installed}")
    clone = tmp_path / "clone"
    (clone / "aristos").mkdir(parents=True)
    (clone / "aristos" / "__init__.py").touch()
    (clone / "pyproject.toml").touch()
    (tmp_path / "command").write_text(f"#!{sys.executable}\n")
    monkeypatch.setattr("shutil.which", lambda name: str(tmp_path / "command"))
    monkeypatch.chdir(clone)
    found = package.here()
    assert found.state == "warn"
    assert found.values == {
        package.MODULE: str(clone / "aristos"),
        package.SCRIPT: installed,
        package.COMMAND: installed,
    }
    assert f"python -m aristos: {clone / 'aristos'}" in found.text
    assert found.remedy.endswith(f"-m pip install -e {clone}")


def test_a_folder_without_the_package_is_no_copy_of_it(tmp_path, monkeypatch):
    """Python imports any folder of that name as a namespace package. With -S it finds no installation instead."""
    (tmp_path / "aristos").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert package.folder(sys.executable, "-S") == ""


def test_the_kernel_cache_is_checked(tmp_path):
    wanted = tmp_path / "aristos"
    folder = wanted / "0123"
    (wanted / "4567").mkdir(parents=True)
    folder.mkdir()
    (folder / "f.nbc").write_bytes(bytes(1 << 20))
    got = kernels.kept(folder, wanted)
    assert got.state == "ok"
    assert "compiled functions: 1; other versions: 1; 1 MiB in all" in got.text
    got = kernels.kept(folder, tmp_path / "full")
    assert got.state == "warn"
    assert "ARISTOS_CACHE" in got.remedy
