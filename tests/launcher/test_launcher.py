"""`aristos run`: the command, and the job: bindings, exit codes, signals, files left behind."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from mpi import FLAG, LAUNCHER_VARIABLES, find_mpiexec

from aristos.cli.__main__ import main as command
from aristos.errors import EnvironmentProblem, InputError
from aristos.host import mpi_library
from aristos.host.mpi_files import NAMES
from aristos.host.mpi_library import Library
from aristos.launcher import commands, job, left, main, this_node
from aristos.launcher.seats import seats
from aristos.topology import Gpu, Link, Nic, Node, Numa, cpusets
from aristos.topology.visible import VisibleDevice

ROOT = Path(__file__).resolve().parents[2]
CORES = os.sched_getaffinity(0)
needs_mpi = pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH")


def node(domains: int, cores: int, threads: int = 1, allowed: str = "", **more: object) -> Node:
    """A node of `domains` NUMA domains of `cores` cores. Second hardware threads are numbered after all first ones."""
    whole = domains * cores
    sets = [frozenset(c + t * whole for t in range(threads)) for c in range(whole)]
    numa = tuple(Numa(d, frozenset().union(*sets[d * cores : (d + 1) * cores])) for d in range(domains))
    cpus = frozenset().union(*sets)
    usable = cpusets.parse(allowed) if allowed else cpus
    return Node("n", numa=numa, cores=tuple(sets), cpus=cpus, allowed=usable, complete=True, **more)


def perlmutter() -> Node:
    """NERSC's GPU node as its documentation shows it: 64 cores in 4 domains, GPU 0 in the last one, a NIC in each."""
    base = node(4, 16, threads=2)
    devices = tuple(
        Gpu(g, "A100", numa=3 - g, cpus=base.numa[3 - g].cpus, cpus_from="sysfs", pci=f"0000:{g}") for g in range(4)
    )
    nics = tuple(Nic(f"NIC{i}", f"hsn{i}", numa=i) for i in range(4))
    links = {}
    for g in range(4):
        for i in range(4):
            link = Link("PHB" if i == 3 - g else "SYS")
            links[f"GPU{g}", f"NIC{i}"] = links[f"NIC{i}", f"GPU{g}"] = link
    return replace(base, devices=devices, nics=nics, links=links)


def seen(where: Node) -> tuple[VisibleDevice, ...]:
    return this_node.usable(where.devices, {})


WHEEL = {"MPICH": "pmi2", "Open MPI": "pmix", "Intel MPI": "pmi2"}


@pytest.mark.parametrize(("kind", "pmi"), WHEEL.items())
def test_the_srun_command(monkeypatch, kind, pmi):
    monkeypatch.setattr(
        commands.mpi_launchers, "srun", lambda *words: "MPI plugin types are...\n\tpmi2\n\tpmix_v5\n\tpmix\n"
    )
    env = {"SLURM_JOB_CPUS_PER_NODE": "8(x2)"}
    made = commands.by_srun(8, 4, 2, ["program"], Library(kind), env)
    assert made.words[0] == "srun"
    tasks = ["--ntasks=8", "--nodes=2", "--ntasks-per-node=4"]
    assert {f"--mpi={pmi}", *tasks, "--cpu-bind=none", "--gpu-bind=none"} <= set(made.words)
    assert made.words[-1] == "program"
    assert "--overcommit" not in made.words
    assert "--overcommit" in commands.by_srun(8, 9, 1, ["p"], Library(kind), env).words
    assert made.environment({})["OMP_NUM_THREADS"] == "1"
    kept = commands.by_srun(8, 4, 2, ["program"], Library(kind), {"OMP_NUM_THREADS": "3"})
    assert "OMP_NUM_THREADS" not in kept.environment({})
    assert kept.environment({})["OMP_WAIT_POLICY"] == "passive"
    chosen = commands.by_srun(8, 4, 2, ["program"], Library(kind), {"KMP_BLOCKTIME": "1"})
    assert "OMP_WAIT_POLICY" not in chosen.environment({})


def test_the_pmi_is_the_librarys():
    assert commands.pmi_for(Library("Open MPI"), ["pmi2", "pmix_v5"]) == "pmix_v5"
    with pytest.raises(EnvironmentProblem, match=r"no --mpi=pmix.*pmi2.*--launcher mpirun"):
        commands.pmi_for(Library("Open MPI"), ["pmi2"])
    with pytest.raises(EnvironmentProblem, match="pip install"):
        commands.pmi_for(None, ["pmi2"])


def test_variables_of_the_user_are_kept():
    library = mpi_library.find()
    if library is None:
        pytest.skip("no MPI library")
    first = commands.by_mpirun(2, 2, 1, ["p"], library, {})
    assert first.set
    again = commands.by_mpirun(2, 2, 1, ["p"], library, {each.name: "mine" for each in first.set})
    assert again.set == []


def test_open_mpi_passes_a_jobs_variables_to_other_nodes(monkeypatch):
    monkeypatch.setattr(commands, "find_mpiexec", lambda library: "mpiexec")
    words = commands.by_mpirun(4, 2, 2, ["p"], Library("Open MPI", "/nowhere/lib/libmpi.so.40"), {}).words
    passed = {word for option, word in pairwise(words) if option == "-x"}
    assert passed >= {"ARISTOS_SEATS", "ARISTOS_JOB", "ARISTOS_RESTART"}


def test_another_mpis_mpiexec_is_an_error(monkeypatch, tmp_path):
    fake = tmp_path / "mpiexec"
    fake.write_text("#!/bin/sh\necho 'mpiexec (Open MPI) 5.0.11'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="job of its own"):
        commands.find_mpiexec(Library("MPICH", "/nowhere/lib/libmpi.so.12"))
    assert commands.find_mpiexec(Library("Open MPI", "/nowhere/lib/libmpi.so.40")) == str(fake)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EnvironmentProblem, match="needs its mpiexec on PATH"):
        commands.find_mpiexec(Library("MPICH", "/nowhere/lib/libmpi.so.12"))


def test_allocations():
    assert commands.allocation({}) == 0
    assert commands.allocation({"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_NNODES": "3"}) == 3
    step = {"SLURM_JOB_ID": "1", "SLURM_NODELIST": "n[1-3]", "SLURM_JOB_NODELIST": "n1", "SLURM_NNODES": "1"}
    assert commands.allocation(step) == 3  # the variables of a step of `srun --overlap -N1`
    assert commands.cpus_per_node({"SLURM_JOB_CPUS_PER_NODE": "4(x2),3"}) == 3


def test_aristos_run_inside_a_job_is_an_error():
    with pytest.raises(EnvironmentProblem, match="one of 4 tasks"):
        commands.check_not_inside_a_job(("srun", 4, 0))
    commands.check_not_inside_a_job(("srun", 1, 0))  # an interactive step of salloc


def test_on_a_login_node_n_is_required(monkeypatch):
    away = this_node.ThisNode(node(1, 2), (), outside=True)
    with pytest.raises(InputError, match="give -n"):
        main._ranks(away, 2, {})
    assert main._ranks(away, 2, {"SLURM_NTASKS": "6"}) == 6
    assert main._ranks(this_node.ThisNode(node(2, 2), ()), 3, {}) == 6


def test_too_many_ranks_are_reported():
    crowded = seats(node(1, 2), 3, ())
    (line,) = main.notes(crowded, 1)
    assert "oversubscribed: 3 ranks share 2 cores of this machine" in line
    assert main.notes(seats(node(1, 2), 2, ()), 1) == []
    one = perlmutter()
    assert "5 ranks share 4 GPUs" in main.notes(seats(one, 5, seen(one)), 1)[0]
    assert "2 ranks of a node share 1 processor of" in main.short(2, {"SLURM_JOB_CPUS_PER_NODE": "1(x2)"}, True)[0]


def clean_environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith((*LAUNCHER_VARIABLES, "SLURM_")) and k != FLAG}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | more


def aristos_run(*words: object, timeout: float = 60, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aristos", "run", *map(str, words)]
    return subprocess.run(command, env=clean_environment(**more), capture_output=True, text=True, timeout=timeout)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["-n", "2"], 2, "a program to run must follow --, got none"),
        (["-n", "2", "--"], 2, "a program to run must follow --, got none"),
        (["-n", "0", "--", "true"], 2, "at least 1"),
        (["-n", "999999999", "--dry-run", "--", "true"], 2, "at most 4096 ranks of a node"),
        (["-n", "2", "--", "no-such-program"], 2, "got 'no-such-program'"),
        (["-n", "2", "python", "x.py"], 2, "put -- before the program: aristos run -n 2 -- python x.py"),
        (["-n", "2", "python", "x.py", "--lr", "1"], 2, "aristos run -n 2 -- python x.py --lr 1"),
        (["-n", "2", "--no-such", "--", "true"], 2, "unrecognized arguments: --no-such\n"),
        (["-n", "2", "--restart-ranks", "1", "--", "true"], 2, "needs --restarts"),
        (["-n", "2", "--restarts", "1", "--restart-ranks", "2,0", "--", "true"], 2, "at least 1"),
        (["--launcher", "srun", "-n", "2", "--", "true"], 3, "needs an allocation"),
        (["--nvidia-smi", "x", "--", "true"], 2, "--dry-run"),
        (["--dry-run", "--nvidia-smi", "", "--", "true"], 2, "shell's variable"),
        (["--dry-run", "--nvidia-smi", "/no/file", "--", "true"], 3, "/no/file"),
        (["--dry-run", "--nvidia-smi", "/etc/hostname", "--", "true"], 3, "aristos run: "),
    ],
)
def test_wrong_use(words, code, message):
    done = aristos_run(*words)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_task_count_of_zero_is_ignored():
    assert main._ranks(this_node.ThisNode(node(2, 4), ()), 1, {"SLURM_NTASKS": "0"}) == 2


def test_ctrl_c_before_the_job_starts(monkeypatch):
    def interrupted(asked, program):
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "launch", interrupted)
    assert command(["run", "--", "true"]) == 130


def test_a_matrix_from_windows(tmp_path):
    file = tmp_path / "text"
    file.write_bytes("\tGPU0\tCPU Affinity\r\nGPU0\t X \t4-7\r\n".encode("utf-16"))
    assert this_node.read(str(file)).node.devices[0].cpus == {4, 5, 6, 7}


def test_a_python_file_without_python_is_an_error(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text("")
    with pytest.raises(InputError, match=r"-- python model\.py"):
        commands.find_program(["model.py"])
    assert commands.find_program(["python", "model.py"])[0] == sys.executable


@pytest.mark.slow
@needs_mpi
def test_a_dry_run_starts_nothing(tmp_path):
    proof = tmp_path / "started"
    done = aristos_run("-n", 2, "--dry-run", "--", "touch", proof)
    assert done.returncode == 0, done.stderr
    assert not proof.exists()
    assert re.search(r"^\S*mpiexec -n 2 .*take_seat -- \S*touch", done.stdout, re.MULTILINE)
    assert re.search(r"^rank +cores +NUMA", done.stdout, re.MULTILINE)
    assert re.search(r"^1 +\d", done.stdout, re.MULTILINE)


REPORT = """
import json, os
from mpi4py import MPI
c = MPI.COMM_WORLD
found = {k: v for k, v in os.environ.items() if k.startswith(("ARISTOS_", "CUDA_", "OMP_"))}
os.write(1, (json.dumps([c.rank, c.size, sorted(os.sched_getaffinity(0)), found]) + "\\n").encode())
"""


@pytest.mark.slow
@needs_mpi
@pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")
@pytest.mark.parametrize("ranks", [2, 3])
def test_bindings_as_the_ranks_see_them(ranks):
    """The ranks read their bindings after MPI has started, since MPI may change them."""
    done = aristos_run("-n", ranks, "--", "python", "-c", REPORT)
    assert done.returncode == 0, done.stderr
    rows = sorted(json.loads(line) for line in done.stdout.splitlines())
    assert [row[:2] for row in rows] == [[r, ranks] for r in range(ranks)]
    here = this_node.find(clean_environment())
    want = seats(here.node, ranks, here.devices)
    assert [frozenset(row[2]) for row in rows] == [s.cpus for s in want]
    if ranks <= len(CORES):
        assert sum(len(row[2]) for row in rows) == len({c for row in rows for c in row[2]})
    for rank, row in enumerate(rows):
        assert row[3]["ARISTOS_LOCAL_RANK"] == str(rank)
        assert row[3]["OMP_NUM_THREADS"] == "1"
    assert ("oversubscribed" in done.stderr) == (ranks > len(CORES))


@pytest.mark.slow
@needs_mpi
def test_the_jobs_exit_code():
    done = aristos_run("-n", 1, "--", "python", "-c", "import sys; sys.exit(7)")
    assert done.returncode == 7, done.stderr


STARTS = """
import os, signal
from mpi4py import MPI
start = os.environ["ARISTOS_RESTART"]
os.write(1, f"start {start} of {MPI.COMM_WORLD.size} ranks\\n".encode())
MPI.COMM_WORLD.Barrier()
if start in "01" and MPI.COMM_WORLD.rank == MPI.COMM_WORLD.size - 1:
    os.kill(os.getpid(), signal.SIGKILL) if start == "0" else os._exit(5)
MPI.COMM_WORLD.Barrier()
"""


@pytest.mark.slow
@needs_mpi
def test_a_job_that_lost_a_rank_starts_again():
    """Each start has as many ranks as asked for. There is no further start after one that ends well."""
    words = ("-n", 2, "--restarts", 3, "--restart-ranks", "2,1", "--", "python", "-c", STARTS)
    done = aristos_run(*words)
    assert done.returncode == 0, done.stderr
    lines = sorted(line for line in done.stdout.splitlines() if line.startswith("start "))
    assert lines == [*2 * ["start 0 of 2 ranks"], *2 * ["start 1 of 2 ranks"], "start 2 of 1 ranks"]
    assert re.search(r"ended with code \d+ after [\d.]+ s: restart 1 of 3 with 2 ranks\n", done.stderr)
    assert re.search(r"ended with code 5 after [\d.]+ s: restart 2 of 3 with 1 rank\n", done.stderr)


@pytest.mark.slow
@needs_mpi
def test_a_job_that_is_stopped_does_not_start_again(tmp_path):
    running, pids, out = start(tmp_path, options=("--restarts", "3"))
    os.kill(running.pid, signal.SIGTERM)
    assert running.wait(40) == 128 + signal.SIGTERM, out.read_text()
    assert "restart" not in out.read_text()
    assert alive(pids) == []


SLEEPER = """
import os, signal, sys, time
from mpi4py import MPI
if "stubborn" in sys.argv:
    for how in (signal.SIGINT, signal.SIGTERM):
        signal.signal(how, signal.SIG_IGN)
os.write(1, f"pid {os.getpid()}\\n".encode())
time.sleep(100)
"""

IMPATIENT = """
import sys
from aristos.cli.__main__ import main as command
from aristos.launcher import job
job.PATIENCE = job.FIRMER = 1.0
sys.exit(command(["run", *sys.argv[1:]]))
"""


def alive(pids: list[int]) -> list[int]:
    found = []
    for pid in pids:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                found.append(pid)
        except OSError:
            pass
    return found


def start(
    tmp_path: Path, *words: str, options: tuple[str, ...] = ()
) -> tuple[subprocess.Popen[bytes], list[int], Path]:
    """Start a job of two sleeping ranks. Returns (`aristos run`, the ranks' pids, the file of all output)."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", IMPATIENT, "--clean", "-n", "2", *options, "--", "python", "-c", SLEEPER, *words]
    with open(out, "w") as file:
        running = subprocess.Popen(command, env=clean_environment(), stdout=file, stderr=file, start_new_session=True)
    end = time.monotonic() + 30
    while len(pids := [int(p) for p in re.findall(r"^pid (\d+)$", out.read_text(), re.MULTILINE)]) < 2:
        assert time.monotonic() < end, out.read_text()
        assert running.poll() is None, out.read_text()
        time.sleep(0.05)
    return running, pids, out


def shared_files(pids: list[int]) -> set[str]:
    """MPI's files of shared memory that these processes have mapped: other jobs of the machine have their own."""
    maps = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in pids)
    found = {path for path in re.findall(r"(/\S+)$", maps, re.MULTILINE) if NAMES.match(Path(path).name)}
    assert found, maps
    return found


@pytest.mark.slow
@needs_mpi
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_job_and_leaves_nothing(tmp_path, how):
    running, pids, out = start(tmp_path)
    files = shared_files(pids)
    os.kill(running.pid, how)
    assert running.wait(30) == 128 + how, out.read_text()
    assert alive(pids) == []
    assert not any(map(os.path.exists, files))


def test_ranks_of_open_mpi_get_an_ending_signal_and_its_launcher_does_not(tmp_path):
    """The launcher would kill the ranks a quarter of a second after the signal."""
    rank = "trap 'echo rank > said; exit' TERM; touch ready; while :; do sleep 0.05; done"
    launcher = f"trap 'echo launcher > said' TERM; OMPI_COMM_WORLD_RANK=0 sh -c {shlex.quote(rank)} & wait"
    started = job.Job(["sh", "-c", f"cd {tmp_path}; {launcher}"], os.environ)
    end = time.monotonic() + 20
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    started.send(signal.SIGTERM)
    assert started.child.wait(20) == 0
    assert (tmp_path / "said").read_text() == "rank\n"


@pytest.mark.slow
@needs_mpi
def test_stubborn_ranks_end_too(tmp_path):
    running, pids, out = start(tmp_path, "stubborn")
    os.kill(running.pid, signal.SIGTERM)
    assert running.wait(40) == 128 + signal.SIGTERM, out.read_text()
    assert alive(pids) == []


@pytest.mark.slow
@needs_mpi
def test_killed_ranks_leave_no_memory(tmp_path):
    running, pids, out = start(tmp_path)
    files = shared_files(pids)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert running.wait(30) != 0, out.read_text()
    assert not any(map(os.path.exists, files))


@pytest.mark.slow
@needs_mpi
def test_the_job_ends_when_aristos_run_is_killed(tmp_path):
    running, pids, out = start(tmp_path, "stubborn")
    os.kill(running.pid, signal.SIGKILL)
    running.wait(10)
    end = time.monotonic() + 20
    while alive(pids):
        assert time.monotonic() < end, out.read_text()
        time.sleep(0.1)


def test_unused_mpi_files_are_named_and_removed_on_request(tmp_path, capsys):
    names = ["mpich_shm_old", "mpich_shm_new", "mpich_shm_mapped", "sm_segment.vm.0.1", "mine.txt"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")

    def handled(*asked):
        left.handle(*asked, folder=str(tmp_path))
        return capsys.readouterr().err

    with open(tmp_path / "mpich_shm_mapped") as held:
        of_job = handled(False, {"mpich_shm_old"})
        assert of_job.count("\n") == 1
        assert f"rm {tmp_path}/mpich_shm_new {tmp_path}/sm_segment.vm.0.1\n" in of_job
        assert {f.name for f in tmp_path.iterdir()} == set(names)  # nothing is removed without --clean
        assert "removed 2 files" in handled(True, {"mpich_shm_old"})
        assert {f.name for f in tmp_path.iterdir()} == {"mpich_shm_old", "mpich_shm_mapped", "mine.txt"}
        assert handled(True) == ""  # the files are too young
        past = time.time() - 3600
        for name in ("mpich_shm_old", "mpich_shm_mapped", "mine.txt"):
            os.utime(tmp_path / name, (past, past))
        assert "MPI left 1 file in" in handled(False)
        assert "removed 1 file " in handled(True)
        assert held.name
    assert {f.name for f in tmp_path.iterdir()} == {"mpich_shm_mapped", "mine.txt"}


def test_many_left_files_are_not_all_named(tmp_path, capsys):
    for number in range(left.NAMED + 1):
        (tmp_path / f"mpich_shm_{number}").touch()
    left.handle(False, set(), str(tmp_path))
    found = capsys.readouterr().err
    assert found.count("mpich_shm_") == left.NAMED
    assert found.endswith(" and others\n")
    assert "`aristos run --clean` removes them, or: rm " in found


PERLMUTTER = """\
\tGPU0\tGPU1\tGPU2\tGPU3\tCPU Affinity\tNUMA Affinity
GPU0\t X \tNV4\tNV4\tNV4\t48-63,112-127\t3
GPU1\tNV4\t X \tNV4\tNV4\t32-47,96-111\t2
GPU2\tNV4\tNV4\t X \tNV4\t16-31,80-95\t1
GPU3\tNV4\tNV4\tNV4\t X \t0-15,64-79\t0
"""


@pytest.mark.slow
@needs_mpi
def test_a_dry_run_of_a_machine_whose_gpus_are_numbered_against_its_domains(tmp_path):
    (tmp_path / "node.txt").write_text(PERLMUTTER)
    done = aristos_run("--dry-run", "--nvidia-smi", tmp_path / "node.txt", "--", "true")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[-4:]]
    assert rows == [[str(r), f"{48 - 16 * r}-{63 - 16 * r}", str(3 - r), f"GPU{r}", "-"] for r in range(4)]
    assert " -n 4 " in done.stdout
