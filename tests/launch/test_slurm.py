"""Jobs under a real Slurm: one virtual cluster of 8 nodes on this machine (launch/virtual_slurm) for all tests here.

Nodes see each other through MPI alone, so transport rma, alone or with shm, runs as on a cluster. Slurm ends jobs as it
does there: by scancel, by the time limit, or after a lost task.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mpi import FLAG, LAUNCHER_VARIABLES, ONE_THREAD, find_mpiexec

from aristos import results
from aristos.doctor import progress
from aristos.host import mpi_library, workarounds
from aristos.topology import links

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "launch" / "virtual_slurm"
LAYER = ROOT / "tests" / "support" / "slurm_layer.py"
LIBRARY = mpi_library.find()
PMI = (LIBRARY and LIBRARY.pmi) or "pmi2"  # the kind of PMI that the MPI library needs
SMALL = ["--hidden", "32", "--ffn", "48", "--experts", "8", "--tokens", "24", "--warmup", "1"]
LIMIT = "1"  # minutes, the shortest time limit that Slurm has; it checks every half minute
PATH = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

pytestmark = [
    pytest.mark.skipif(
        not all(shutil.which(name, path=PATH) for name in ("slurmctld", "slurmd", "srun", "munged")),
        reason="no Slurm on this machine; on Debian: apt install slurm-wlm munge",
    ),
    pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH"),
]
own_memory = pytest.mark.skipif(
    os.geteuid() != 0, reason="nodes of several ranks need a /dev/shm each, which needs root"
)


def environment() -> dict[str, str]:
    """This process's environment, without the variables of a launcher that started the tests."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith((*LAUNCHER_VARIABLES, "SLURM_")) and k != FLAG}
    return kept | dict.fromkeys(ONE_THREAD, "1") | {"HYDRA_IFACE": "lo", "PYTHONPATH": str(ROOT), "PATH": PATH}


def exports() -> dict[str, str]:
    """Variables that a job script must export for a program that starts MPI itself; `aristos` sets them itself."""
    env = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "2"}
    return {each.name: each.value for each in workarounds.workarounds(env, LIBRARY, workarounds.this_machine(env))}


def under_srun(*words: object) -> list[object]:
    """The command for srun's options, "--" and Python's arguments."""
    at = words.index("--")
    return ["srun", *words[:at], sys.executable, *words[at + 1 :]]


def processes(*variables: str) -> list[int]:
    """Pids of processes with these variables in their environment, without zombies. Slurm's daemons have SLURM_CONF."""
    marks = {variable.encode() for variable in variables}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if marks <= set((folder / "environ").read_bytes().split(b"\0")):
                found.append(int(folder.name))
    return found


class Cluster:
    """Runs commands and jobs on a virtual cluster."""

    def __init__(self, folder: Path) -> None:
        self.environment = environment() | {"SLURM_CONF": str(folder / "slurm.conf")}

    def of(self, words: tuple[object, ...]) -> dict[str, str]:
        """The environment of a command."""
        return self.environment | (exports() if LAYER in words else {})

    def command(self, *words: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, e.g. scancel."""
        return subprocess.run(
            [str(word) for word in words],
            cwd=ROOT,
            env=self.of(words),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout,
        )

    def srun(self, *words: object, timeout: float = 120, mpi: str = PMI) -> subprocess.CompletedProcess[str]:
        """Run Python under srun to its end; words: srun's options, "--", Python's arguments."""
        return self.command(*under_srun(f"--mpi={mpi}", *words), timeout=timeout)

    @contextlib.contextmanager
    def job(self, name: str, out: Path, *words: object) -> Iterator[subprocess.Popen[str]]:
        """srun in the background, with all output in a file; cancelled at the end."""
        command = under_srun(f"--mpi={PMI}", f"--job-name={name}", *words)
        with open(out, "w") as file:
            running = subprocess.Popen(
                [str(word) for word in command],
                cwd=ROOT,
                env=self.of(words),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                text=True,
            )
            try:
                yield running
            finally:
                self.command("scancel", f"--name={name}")
                try:
                    running.wait(20)
                except subprocess.TimeoutExpired:
                    running.kill()

    def number(self, name: str) -> str:
        """The id of the job of this name."""
        (found,) = self.command("squeue", "--noheader", f"--name={name}", "--format=%i").stdout.split()
        return found

    def processes(self, job: str) -> list[int]:
        """Pids of a job's tasks, without zombies."""
        return processes(f"SLURM_JOB_ID={job}", f"SLURM_CONF={self.environment['SLURM_CONF']}")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="vs-"))  # pytest's folders have paths that are too long for a socket
    tool = [sys.executable, TOOL]
    subprocess.run([*tool, "start", "--nodes", "8", "--dir", folder], env=environment(), check=True, timeout=120)
    try:
        yield Cluster(folder)
    finally:
        subprocess.run([*tool, "stop", "--dir", folder], env=environment(), check=True, timeout=120)


@pytest.fixture(scope="module")
def alone() -> Callable[[int], str]:
    """A function: number of parts -> hash of their outputs, computed by one process without MPI."""

    def run(parts: int) -> str:
        command = [sys.executable, str(LAYER), "--alone", "--parts", str(parts)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True, timeout=300)
        return hash_of(done.stdout)

    return run


@pytest.fixture(scope="module", autouse=True)
def compiled(alone) -> None:
    """Compile the kernels before ranks with time limits need them."""
    alone(1)


@pytest.fixture(scope="module")
def limited(cluster, compiled, tmp_path_factory) -> Iterator[tuple[subprocess.Popen[str], Path, str]]:
    """A job of ten minutes with a time limit of one minute: srun, its output and its job id."""
    out = tmp_path_factory.mktemp("limit") / "out"
    with cluster.job("limit", out, f"--time={LIMIT}", "-N2", "-n2", "--", LAYER, "--hold", 600) as running:
        pids_in(out, 2)
        yield running, out, cluster.number("limit")


def hash_of(text: str) -> str:
    found = re.search(r"^outputs ([0-9a-f]{64}) of", text, re.MULTILINE)
    assert found, text
    return found[1]


def wait_for(ready: Callable[[], object], seconds: float, what: Callable[[], str]) -> None:
    """Wait until `ready`, or fail."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, what()
        time.sleep(0.1)


def pids_in(out: Path, ranks: int) -> dict[int, int]:
    """rank -> pid, once every rank has printed its own."""

    def read() -> dict[int, int]:
        return {int(r): int(p) for r, p in re.findall(r"^rank (\d+) pid (\d+)$", out.read_text(), re.MULTILINE)}

    wait_for(lambda: len(read()) == ranks, 60, out.read_text)
    return read()


def test_a_job_with_a_short_time_limit_starts(limited):
    """The job starts here, so that its minute passes during the other tests. The last test checks how it ends."""
    running, out, _ = limited
    assert running.poll() is None, out.read_text()


@pytest.mark.parametrize(
    ("where", "nodes", "transports"),
    [
        (["-N1", "-n2"], [0, 0], "shm"),
        (["-N4", "-n4"], [0, 1, 2, 3], "rma"),
        (["-N2", "--ntasks-per-node=2"], [0, 0, 2, 2], "shm, rma"),
    ],
    ids=["one-node", "four-nodes", "two-by-two"],
)
def test_the_benchmark_on_nodes(cluster, tmp_path, where, nodes, transports):
    """The benchmark prints a correct table. The results file loads and records the nodes."""
    if transports != "rma" and os.geteuid() != 0:
        pytest.skip("nodes of several ranks need a /dev/shm each, which needs root")
    out = tmp_path / "r.h5"
    done = cluster.srun(*where, "--", "-m", "aristos.bench", "layer", *SMALL, "--iters", 3, "--json", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout)["suites"]["layer"]["tables"][0]["rows"]
    assert [row["check"] for row in rows] == ["ok", "ok"]
    (run,) = results.load(out).runs
    assert run.attributes["transports"] == transports
    assert run.attributes["node_of_rank"] == nodes
    assert run.attributes["launcher"] != "none"
    assert run.attributes["slurm_job_num_nodes"] == str(len(set(nodes)))
    (call,) = (table.variables["call_time"] for table in run.tables if table.name == "layer")
    assert call.values.shape == (1, 2, len(nodes), 3)
    assert (call.values > 0).all()


def test_progress_between_nodes(cluster, tmp_path):
    """The suite measures puts to a rank that computes: every payload arrives, every time is positive."""
    out = tmp_path / "r.h5"
    words = ["progress", "--iters", 1, "--seconds", 20, "--json", "--out", out]
    done = cluster.srun("-N2", "-n2", "--", "-m", "aristos.bench", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout)["suites"]["progress"]["tables"][0]["rows"]
    assert [row["size_bytes"] for row in rows] == [8, 4096, 65536, 1 << 20]
    for row in rows:
        assert row["check"] == "ok"
        assert all(row[f"{mode}_us"] > 0 for mode in ("waits", "computes", "thread", "worker"))
    (run,) = results.load(out).runs
    (table,) = run.tables
    assert (table.attributes["target"], table.attributes["pretended_nodes"]) == (1, 0)


@own_memory
def test_doctor_between_nodes(cluster):
    """On several nodes every check runs: the launcher fits, variables are set, progress is measured between nodes."""
    done = cluster.srun("-N2", "--ntasks-per-node=2", "--", "-m", "aristos", "doctor", "--json")
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    found = {each["name"]: each for each in report["findings"]}
    states = {name: each["state"] for name, each in found.items()}
    assert done.returncode == (3 if "fail" in states.values() else 0), done.stderr
    assert report["ranks"] == 4
    for name in ("launcher", "MPI library", "shared windows", "MPI threads", "/dev/shm", "same numpy", "Slurm"):
        assert states[name] == "ok", found[name]
    assert f"4 tasks on 2 nodes, started with --mpi={PMI}" in found["Slurm"]["text"]
    assert exports().items() <= found["workarounds"]["values"].get("set", {}).items()
    measured = found["RMA progress"]["values"]
    assert (measured["origin"], measured["target"], measured["other_node"]) == (0, 2, True)
    assert measured["helped_ms"] > 0
    if LIBRARY and LIBRARY.kind == "MPICH":  # it makes no progress by itself over TCP, so the put waits for the target
        assert measured["alone_ms"] > 0.5e3 * (progress.COMPUTE - progress.HEAD_START)
        assert measured["helped_ms"] < 0.5 * measured["alone_ms"]


@own_memory
def test_the_batch_script(cluster, tmp_path):
    """launch/slurm.sbatch runs unchanged, with options of sbatch. It finds the PMI that the MPI library needs."""
    out, file = tmp_path / "out", tmp_path / "r.h5"
    options = ["--parsable", "--cpus-per-task=1", f"--output={out}", f"--export=ALL,PYTHON={sys.executable}"]
    words = ["layer", *SMALL, "--iters", "3", "--out", str(file)]
    job = cluster.command("sbatch", *options, str(ROOT / "launch" / "slurm.sbatch"), *words).stdout.strip()

    def state() -> str:
        return cluster.command("scontrol", "show", "job", job).stdout

    wait_for(lambda: re.search(r"JobState=(COMPLETED|FAILED|CANCELLED|TIMEOUT)", state()), 90, state)
    text = out.read_text()
    assert "JobState=COMPLETED" in state(), text
    assert "4 ranks on 2 nodes by shm, rma" in text
    (run,) = results.load(file).runs
    assert run.attributes["ranks"] == 4


@own_memory
def test_outputs_are_the_same_bits_on_every_cluster(cluster, alone):
    """One process, two ranks on one node and on two nodes, and 4 ranks on 1, 2 and 4 nodes give equal bits."""
    want = alone(4)
    for pretended in ([], ["--ranks-per-node", "1"]):
        mpirun = cluster.command(*find_mpiexec(), "-n", "2", sys.executable, LAYER, *pretended)
        assert hash_of(mpirun.stdout + mpirun.stderr) == want
    for where in (["-N1", "-n4"], ["-N4", "-n4"], ["-N2", "--ntasks-per-node=2"]):
        done = cluster.srun(*where, "--", LAYER)
        assert hash_of(done.stdout + done.stderr) == want


@own_memory
def test_more_ranks_than_cores(cluster, alone):
    """16 ranks on 8 nodes finish a call, however few cores they share. Most of the time is Python's start."""
    done = cluster.srun("-N8", "--ntasks-per-node=2", "--", LAYER, "--parts", 16, "--timeout", 240, timeout=360)
    assert hash_of(done.stdout + done.stderr) == alone(16)


SEATED = """
import json, os
from mpi4py import MPI
c = MPI.COMM_WORLD
row = [c.rank, c.size, os.environ["SLURMD_NODENAME"], sorted(os.sched_getaffinity(0)), os.environ["ARISTOS_LOCAL_RANK"]]
os.write(1, (json.dumps(row) + "\\n").encode())
"""


def salloc(*words: object) -> list[object]:
    """The command for salloc's options, "--", the options of `aristos run` and its program."""
    at = words.index("--")
    return ["salloc", "--quiet", *words[:at], sys.executable, "-m", "aristos", "run", *words[at + 1 :]]


@own_memory
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.parametrize("how", ["srun", "mpirun"])
def test_aristos_run_in_an_allocation(cluster, how):
    """As many ranks start as were asked for, block by block. Each reports its own binding."""
    asked = ["-N2", "-n4", "--ntasks-per-node=2", "--nodelist=n1,n2"]  # the job waits for earlier ones on n1, n2
    done = cluster.command(*salloc(*asked, "--", "--launcher", how, "--", "python", "-c", SEATED))
    assert done.returncode == 0, done.stderr
    rows = sorted(json.loads(line) for line in done.stdout.splitlines())
    assert [row[:3] for row in rows] == [[0, 4, "n1"], [1, 4, "n1"], [2, 4, "n2"], [3, 4, "n2"]]
    assert [row[4] for row in rows] == ["0", "1", "0", "1"]
    for first, second in (rows[:2], rows[2:]):
        assert first[3]
        assert second[3]
        assert not set(first[3]) & set(second[3])
    assert rows[0][3] == rows[2][3]


def test_a_signal_to_aristos_run_is_passed_to_the_ranks(cluster, tmp_path):
    """srun would kill the ranks. `aristos run` passes the signal on by scancel, and their handlers run."""
    out = tmp_path / "out"
    program = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *_: (print('caught', flush=True), sys.exit(9)))\n"
        "print('rank', os.environ['SLURM_PROCID'], 'pid', os.getpid(), flush=True)\n"
        "time.sleep(100)"
    )
    with open(out, "w") as file:
        job = [sys.executable, "-m", "aristos", "run", "--", "python", "-c", program]
        shell = ["sh", "-c", 'echo runner $$; exec "$@"', "sh"]
        words = ["salloc", "--quiet", "-n2", "--job-name=signalled", *shell, *job]
        running = subprocess.Popen(words, env=cluster.environment, stdout=file, stderr=file)
    try:
        pids_in(out, 2)
        runner = re.search(r"^runner (\d+)$", out.read_text(), re.MULTILINE)
        assert runner
        os.kill(int(runner[1]), signal.SIGINT)
        assert running.wait(40) == 128 + signal.SIGINT, out.read_text()
        assert out.read_text().count("caught") == 2
    finally:
        cluster.command("scancel", "--name=signalled")
        running.wait(20)


@own_memory
def test_links_are_measured_class_by_class(cluster, tmp_path):
    """A leaf switch has two nodes.

    One switch lies between some nodes, three lie between others, and none inside a node.
    """
    out = tmp_path / "links.json"
    words = ["python", "-m", "aristos", "topo", "--measure", "--again", "--out", out]
    # with a cold cache the ranks first wait until other tests have compiled their code
    done = cluster.command(*salloc("-N4", "--", "-n", "5", "--", *words), timeout=400)
    assert done.returncode == 0, done.stderr
    found = links.load(out)
    assert found.hosts == ["n1", "n1", "n2", "n3", "n4"]
    leaf = {"n1": 1, "n2": 1, "n3": 2, "n4": 2}
    for a, one in enumerate(found.hosts):
        for b, other in enumerate(found.hosts):
            want = "NET1" if leaf[one] == leaf[other] else "NET3"
            want = "self" if a == b else "NODE" if one == other else want
            assert found.classes[a][b] == want
            assert a == b or links.put_us(found.large, a, b, 1 << 20) > 0
    inside = [links.put_us(found.small, a, b, 1024) for a, b in ((0, 1), (1, 0))]
    between = [links.put_us(found.small, a, b, 1024) for a in range(5) for b in range(2, 5) if a != b]
    assert max(inside) < sorted(between)[len(between) // 2]
    assert re.search(r"^NET1 +6 ", done.stdout, re.MULTILINE), done.stdout  # (n1, n1)-n2 and n3-n4, both ways: 4 + 2
    assert re.search(r"^NODE +2 ", done.stdout, re.MULTILINE), done.stdout


def test_a_launcher_without_the_librarys_pmi_is_an_environment_error(cluster):
    done = cluster.srun("-n4", "--", "-m", "aristos.bench", "layer", *SMALL, "--out", "none", mpi="none")
    assert done.returncode == 3
    for word in ("srun", "4 tasks", "--mpi="):
        assert word in done.stderr
    assert done.stdout == ""


def test_scancel_leaves_no_process_and_no_half_written_file(cluster, tmp_path):
    out, file = tmp_path / "out", tmp_path / "results" / "r.h5"
    results.append(file, results.Run(attributes={"mine": 1}, tables=[]))
    before = file.read_bytes()
    bench = ["-m", "aristos.bench", "layer", *SMALL, "--seconds", 100, "--iters", 100_000, "--out", file]
    with cluster.job("cancelled", out, "-N2", "-n2", "--", *bench) as running:
        wait_for(lambda: "2 ranks on 2 nodes" in out.read_text(), 60, out.read_text)
        time.sleep(2)  # by now the timed calls run
        job = cluster.number("cancelled")
        assert running.poll() is None, out.read_text()
        assert len(cluster.processes(job)) >= 2
        cluster.command("scancel", job)
        assert running.wait(20) != 0
        wait_for(lambda: not cluster.processes(job), 10, lambda: str(cluster.processes(job)))
    assert file.read_bytes() == before
    assert {f.name for f in file.parent.iterdir()} <= {"r.h5", "r.h5.lock"}
    assert len(results.load(file).runs) == 1


def test_suites_that_are_done_are_written_before_the_time_limit(cluster, tmp_path):
    """`#SBATCH --signal=INT@60` in launch/slurm.sbatch sends this signal a minute before the end.

    The schedule is fused: bulk blocks in MPI's collectives, where Python handles no signal.
    """
    out, file = tmp_path / "out", tmp_path / "r.h5"
    bench = ["-m", "aristos.bench", "gemm", "layer", *SMALL, "--schedule", "fused", "--seconds", 60, "--out", file]
    with cluster.job("warned", out, "-N2", "-n2", "--", *bench) as running:
        wait_for(lambda: "\ngemm: " in out.read_text(), 90, out.read_text)
        time.sleep(1)  # by now the next suite runs
        cluster.command("scancel", "--signal=INT", cluster.number("warned"))
        assert running.wait(20) != 0
    assert "interrupted" in out.read_text()
    (run,) = results.load(file).runs
    assert run.attributes["interrupted"]
    assert {table.suite for table in run.tables} == {"gemm"}


PORTS_TAKEN = f"""
import runpy, socket, sys
tool = runpy.run_path({str(TOOL)!r})
names, chosen = tool["run"].__globals__, []
def ports(count, choose=tool["free_ports"]):
    found = choose(count)
    if not chosen:
        chosen.append(socket.create_server(("127.0.0.1", found[-1])))
    return found
names["free_ports"] = ports
sys.exit(tool["run"](2, "tree", ["sinfo", "-h", "-o", "nodes %D"]))
"""


def test_a_port_taken_by_another_process_is_replaced():
    """A port is free when it is chosen. If it is taken before a daemon binds it, the cluster chooses others."""
    done = subprocess.run(
        [sys.executable, "-c", PORTS_TAKEN], env=environment(), capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout.split()) == (0, ["nodes", "2"]), done.stdout + done.stderr


STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(1, f"rank {os.environ['SLURM_PROCID']} pid {os.getpid()}\\nconf {os.environ['SLURM_CONF']}\\n".encode())
time.sleep(300)
"""


def test_autogroups_are_off_while_a_cluster_is_up(tmp_path, monkeypatch):
    """After the cluster has ended, the setting is as before."""
    loader = importlib.machinery.SourceFileLoader("virtual_slurm", str(TOOL))
    tool = importlib.util.module_from_spec(importlib.util.spec_from_loader("virtual_slurm", loader))
    monkeypatch.setitem(sys.modules, "virtual_slurm", tool)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # no bytecode is written beside the script
    loader.exec_module(tool)
    monkeypatch.setattr(tool, "AUTOGROUPS", tmp_path / "setting")
    for before, during in (("1", "0"), ("0", "0"), (None, None)):
        folder = tmp_path / f"cluster-{before}"
        folder.mkdir()
        tool.AUTOGROUPS.unlink(missing_ok=True)
        if before:
            tool.AUTOGROUPS.write_text(before)
        tool.autogroups_off(folder)
        assert not during or tool.AUTOGROUPS.read_text() == during
        tool.autogroups_back(folder)
        assert not before or tool.AUTOGROUPS.read_text() == before


def restore_signals() -> None:
    """Restore the default signal handlers, since a shell's background job ignores these signals."""
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("command", "signals", "code"),
    [
        (["srun"], [signal.SIGTERM], 128 + signal.SIGTERM),
        (["sh", "-c", 'srun "$@" & wait', "sh"], [signal.SIGQUIT], 128 + signal.SIGQUIT),
        (["srun"], [signal.SIGINT] * 5, 128 + signal.SIGINT),
        (["sh", "-c", 'trap "" TERM INT; srun "$@"; sleep 300', "sh"], [signal.SIGKILL], -signal.SIGKILL),
    ],
    ids=["srun", "behind-a-shell", "ctrl-c-five-times", "killed-before-a-stubborn-shell"],
)
def test_ending_a_cluster_ends_tasks_that_ignore_signals(tmp_path, command, signals, code):
    """When `virtual_slurm run` is ended and its tasks ignore SIGTERM, no daemon, no task and no folder is left.

    An srun that gets a signal kills its tasks. An srun without its shell is ended by scancel, which sends SIGTERM.
    """
    out = tmp_path / "out"
    with open(out, "w") as file:
        words = [sys.executable, TOOL, "run", "--nodes=2", "--", *command, "-N2", "-n2", sys.executable, "-c", STUBBORN]
        running = subprocess.Popen(
            words,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            preexec_fn=restore_signals,
        )
    try:
        tasks = pids_in(out, 2).values()
        conf = re.search(r"^conf (.+)$", out.read_text(), re.MULTILINE)
        assert conf, out.read_text()
        mine = f"SLURM_CONF={conf[1]}"
        assert set(tasks) <= set(processes(mine))
        assert len(processes(mine)) >= 2 + 4  # munged, slurmctld and two slurmds
        for how in signals:
            (os.killpg if how == signal.SIGINT else os.kill)(running.pid, how)  # a terminal sends it to the whole group
            time.sleep(0.05)
        assert running.wait(150) == code, out.read_text()  # each step of the shutdown has a time limit
        if code == -signal.SIGKILL:  # no process waits for the keeper any more
            wait_for(lambda: not Path(conf[1]).parent.exists(), 60, out.read_text)
        assert not processes(mine), out.read_text()
        assert not Path(conf[1]).parent.exists()
    finally:
        running.kill()
        for pid in processes(mine):
            os.kill(pid, signal.SIGKILL)


def virtual_slurm(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, (TOOL, *words))]
    return subprocess.run(command, env=environment() | variables, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (["/no/such/command"], 127, "virtual_slurm: cannot start /no/such/command: No such file or directory"),
        (["/etc/passwd"], 126, "virtual_slurm: cannot start /etc/passwd: Permission denied"),
        (["sh", "-c", "kill -9 $$"], 128 + signal.SIGKILL, ""),
        (["sh", "-c", "setsid sleep 300 & sleep 300 & exit 5"], 5, ""),
    ],
    ids=["missing", "not-executable", "killed", "background"],
)
def test_the_exit_code_is_the_commands(command, code, message):
    done = virtual_slurm("run", "--nodes=1", "--", *command, MARK="exit-code-test")
    assert (done.returncode, done.stderr.strip()) == (code, message)
    assert not processes("MARK=exit-code-test")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for a cluster; it does not exist yet and has a short path."""
    parent = Path(tempfile.mkdtemp(prefix="vs-"))
    yield parent / "c"
    for pid in processes(f"SLURM_CONF={parent}/c/slurm.conf"):
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(parent, ignore_errors=True)


def test_unusable_folders_are_errors(folder):
    folder.mkdir(mode=0o700)
    spaced = folder / "a b"
    spaced.mkdir()
    for name, mode in (("readable", 0o755), ("shared", 0o777), ("foreign", 0o700)):
        (folder / name).mkdir()
        (folder / name).chmod(mode)
    (folder / "readable" / "slurm.conf").write_text("ClusterName=virtual")
    if os.getuid() == 0:
        os.chown(folder / "foreign", 12345, 12345)
    else:
        (folder / "foreign").chmod(0o750)
    for words, variables, message in (
        (["start", "--dir", "/etc/passwd"], {}, "File exists"),
        (["start", "--dir", "/proc/x"], {}, "No such file or directory"),
        (["start", "--dir", "/tmp/" + "x" * 100], {}, "too long"),
        (["start", "--dir", spaced], {}, "letters, digits"),
        (["run", "--", "true"], {"TMPDIR": str(spaced)}, "letters, digits"),
        (["stop", "--dir", folder], {}, "no virtual cluster"),
        (["start", "--dir", folder / "readable"], {}, "must be yours alone, but"),
        (["start", "--dir", folder / "shared" / "new"], {}, "has mode 0777: name a folder that does not exist yet"),
        (["start", "--dir", folder / "foreign"], {}, "must be yours alone"),
        (["stop", "--dir", folder / "readable"], {}, "must be yours alone"),
    ):
        done = virtual_slurm(*words, **variables)
        assert (done.returncode, len(done.stderr.splitlines())) == (3, 1), done.stderr
        assert message in done.stderr
    assert not any(spaced.iterdir())
    assert not (folder / "shared" / "new").exists()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_start_leaves_nothing(folder, how):
    words = [sys.executable, TOOL, "start", "--nodes=8", "--dir", folder]
    starting = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_for(lambda: (folder / "slurmctld.out").exists(), 30, lambda: "no slurmctld")
    starting.send_signal(how)
    text, _ = starting.communicate(timeout=30)  # it also waits until the keeper has closed the pipe
    assert starting.returncode in (128 + how, -how), text
    assert not processes(f"SLURM_CONF={folder}/slurm.conf")
    assert not folder.exists()


def test_stop_after_the_daemons_were_killed(folder, tmp_path):
    """The daemons were killed; a task and its slurmstepd still run. `stop` ends both without a controller."""
    assert virtual_slurm("start", "--nodes=1", "--dir", folder).returncode == 0
    conf, out = f"{folder}/slurm.conf", tmp_path / "out"
    daemons = processes(f"SLURM_CONF={conf}")
    with open(out, "w") as file:
        words = ["srun", sys.executable, "-c", STUBBORN]
        running = subprocess.Popen(words, env=environment() | {"SLURM_CONF": conf}, stdout=file, stderr=file)
    (task,) = pids_in(out, 1).values()
    step = int(Path(f"/proc/{task}/stat").read_text().rsplit(")", 1)[1].split()[1])
    assert (Path(f"/proc/{step}/comm").read_text()) == "slurmstepd\n"
    for pid in daemons:
        os.kill(pid, signal.SIGKILL)
    (folder / "pids").write_text("damaged")
    begun = time.monotonic()
    done = virtual_slurm("stop", "--dir", folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - begun < 20
    assert not folder.exists()
    for pid in (task, step):
        with contextlib.suppress(OSError):
            assert Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    running.wait(30)


def test_a_job_outlives_a_killed_slurmd(folder, tmp_path):
    """The step's own daemon goes on; nothing is left when the cluster is stopped."""
    assert virtual_slurm("start", "--nodes=2", "--dir", folder).returncode == 0
    out = tmp_path / "out"
    with Cluster(folder).job("daemon", out, "-N2", "-n2", "--", LAYER, "--hold", 3) as running:
        pids_in(out, 2)
        slurmd = int((folder / "slurmd-n2.pid").read_text())
        os.kill(slurmd, signal.SIGKILL)
        wait_for(lambda: running.poll() is not None, 60, out.read_text)
        assert running.poll() == 0, out.read_text()
        assert not processes(f"SLURM_CONF={folder}/slurm.conf", "SLURM_STEP_ID=0")
    assert virtual_slurm("stop", "--dir", folder).returncode == 0
    assert not processes(f"SLURM_CONF={folder}/slurm.conf")
    assert not folder.exists()


@pytest.mark.parametrize(
    ("how", "late"),
    [(signal.SIGKILL, []), (signal.SIGSTOP, []), (signal.SIGSTOP, ["--late", 2])],
    ids=["killed", "silent", "silent-between-calls"],
)
def test_a_lost_rank_ends_the_job(cluster, tmp_path, how, late):
    """Slurm notices a killed process. A stopped process is noticed only by the ranks that wait for it.

    If the process is stopped within a call, the other ranks' puts wait for it. If it is stopped between calls, the
    other ranks raise an exception after `absent_timeout`, and end the job at their exit.
    """
    out = tmp_path / "out"
    with cluster.job("lost", out, "-N4", "-n4", "--", LAYER, "--hold", 100, *late, "--timeout", 2) as running:
        pids = pids_in(out, 4)
        time.sleep(1)
        job = cluster.number("lost")
        os.kill(pids[2], how)
        wait_for(lambda: running.poll() is not None, 60, out.read_text)
        assert running.poll() != 0
        wait_for(lambda: not cluster.processes(job), 15, lambda: str(cluster.processes(job)))
    text = out.read_text()
    if how == signal.SIGKILL:
        assert re.search(r"srun: error: n\d: task 2: Killed", text), text
    else:
        assert re.search(r"aristos: rank [013] waited .* rank 2 |rank [013] waited .* for rank 2", text), text


def test_the_time_limit_leaves_no_process(cluster, limited):
    running, out, job = limited
    assert running.wait(150) != 0
    assert "DUE TO TIME LIMIT" in out.read_text()
    wait_for(lambda: not cluster.processes(job), 10, lambda: str(cluster.processes(job)))
