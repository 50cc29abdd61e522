"""`aristos run --per numa` starts one rank for each NUMA domain. The machines' /sys is a folder of the test."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from mpi import FLAG, LAUNCHER_VARIABLES, find_mpiexec

from aristos.cli.__main__ import main as command
from aristos.errors import EnvironmentProblem, InputError
from aristos.host.mpi_library import Library
from aristos.launcher import commands, main, take_seat
from aristos.launcher.seats import default_ranks, numa_cores, numa_note, numa_seats, table
from aristos.launcher.this_node import ThisNode
from aristos.topology import Node, cpusets, sysfs

ROOT = Path(__file__).resolve().parents[2]
CORES = sorted(os.sched_getaffinity(0))
TWO_SOCKETS = ("0-1,8-9", "2-3,10-11", "4-5,12-13", "6-7,14-15", "")  # the last domain has only memory


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def system(root: Path, domains: tuple[str, ...], cores: tuple[str, ...] = ()) -> Path:
    """A machine's /sys, made from the CPUs of each NUMA domain and the hardware threads of each core."""
    at = root / "sys/devices/system"
    cpus = frozenset().union(*map(cpusets.parse, domains or cores))
    put(at / "cpu/online", cpusets.show(cpus))
    for threads in cores:
        for cpu in cpusets.parse(threads):
            put(at / f"cpu/cpu{cpu}/topology/core_cpus_list", threads)
    for number, listed in enumerate(domains):
        put(at / f"node/node{number}/cpulist", listed)
        put(at / f"node/node{number}/meminfo", f"Node {number} MemTotal: 1048576 kB")
    return root / "sys"


def two_sockets(root: Path, allowed: str = "0-15") -> Node:
    """Two sockets of two NUMA domains, eight cores of two threads, and a domain that has only memory."""
    pairs = tuple(f"{core},{core + 8}" for core in range(8))
    return sysfs.node("host", system(root, TWO_SOCKETS, pairs), cpusets.parse(allowed))


def places(node: Node, ranks: int, smt: bool = False) -> list[tuple[int | None, str]]:
    return [(seat.numa, cpusets.show(seat.cpus)) for seat in numa_seats(node, ranks, smt)]


# ---- seats


def test_a_rank_has_all_cores_of_its_domain(tmp_path):
    node = two_sockets(tmp_path)
    assert places(node, 4) == [(0, "0-1"), (1, "2-3"), (2, "4-5"), (3, "6-7")]
    assert places(node, 4, smt=True)[1] == (1, "2-3,10-11")
    assert all(seat.device is None and seat.sharing == 1 for seat in numa_seats(node, 4))
    assert table(numa_seats(node, 4)).splitlines()[4].split() == ["3", "6-7", "3", "-", "-"]
    assert main._ranks(ThisNode(node, ()), 1, {}, "numa") == 4, "the domain without CPUs has no rank"
    assert main._ranks(ThisNode(node, ()), 3, {"SLURM_NTASKS": "6"}, "numa") == 12, "on each of three nodes"
    assert "domains without a rank: 4 (no CPUs, only memory)" in numa_note(node, numa_seats(node, 4))


def test_fewer_ranks_than_domains_are_spread_over_the_sockets(tmp_path):
    node = two_sockets(tmp_path)
    assert places(node, 2) == [(0, "0-1"), (2, "4-5")]
    note = numa_note(node, numa_seats(node, 2))
    assert "1 (fewer ranks than domains), 3 (fewer ranks than domains), 4 (no CPUs, only memory)" in note


def test_domains_outside_of_the_cpuset_have_no_rank(tmp_path):
    node = two_sockets(tmp_path, allowed="4-5,12-13")
    assert places(node, 1, smt=True) == [(2, "4-5,12-13")]
    assert main._ranks(ThisNode(node, ()), 0, {}, "numa") == 1
    assert "0 (none of its CPUs is allowed)" in numa_note(node, numa_seats(node, 1))
    with pytest.raises(
        InputError, match=r"2 ranks: .* 4-5,12-13, lie in 1 of the domains .*\(domain 0: .*at most -n 1"
    ):
        numa_seats(node, 2)
    part = two_sockets(tmp_path, allowed="1-2")
    assert places(part, 2) == [(0, "1"), (1, "2")], "the allowed CPUs of each domain"


def test_a_machine_of_one_domain(tmp_path):
    node = sysfs.node("host", system(tmp_path, ("0-3",)), frozenset(range(4)))
    assert places(node, 1) == [(0, "0-3")]
    with pytest.raises(InputError, match=r"got 2 ranks: .* lie in 1 of the domains of host"):
        numa_seats(node, 2)


def test_a_machine_that_lists_no_domains(tmp_path):
    node = sysfs.node("host", system(tmp_path, (), ("0", "1")), frozenset({0, 1}))
    assert default_ranks(node, ()) == 1
    with pytest.raises(EnvironmentProblem, match=r"host lists no NUMA domains in /sys.*give -n RANKS"):
        numa_cores(node)


def test_allowed_cpus_that_no_domain_has(tmp_path):
    node = sysfs.node("host", system(tmp_path, ("0-1", "2-3"), ("0", "1", "2", "3", "9")), frozenset({9}))
    with pytest.raises(EnvironmentProblem, match=r"may use CPUs 9, and no NUMA domain of host.*domain 1: 2-3"):
        numa_cores(node)


# ---- the command


def asked(**more: object) -> Namespace:
    return Namespace(**{"per": "numa", "smt": False, "launcher": None} | more)


def started(monkeypatch, node: Node, kind: str, nodes: int, ranks: int) -> main.Start:
    """What `aristos run --per numa` starts with this MPI."""
    monkeypatch.setattr(main.mpi_library, "find", lambda env: Library(kind, "/nowhere/libmpi.so"))
    monkeypatch.setattr(commands, "find_mpiexec", lambda library: "mpiexec")
    monkeypatch.setattr(commands.mpi_launchers, "srun", lambda *words: "MPI plugin types are...\n\tpmi2\n\tpmix\n")
    monkeypatch.setattr(commands.os, "geteuid", lambda: 1000)
    words = commands.seated(["program"], False, False, True)
    return main._start(asked(), words, ThisNode(node, ()), nodes, ranks, {})


@pytest.mark.parametrize(
    ("kind", "nodes", "want"),
    [
        ("MPICH", 0, "mpiexec -n 4"),
        ("Intel MPI", 0, "mpiexec -n 4"),
        ("Open MPI", 0, "mpiexec -n 4 --map-by ppr:4:node:OVERSUBSCRIBE --bind-to none"),
        (
            "MPICH",
            2,
            "srun --mpi=pmi2 --ntasks=8 --nodes=2 --ntasks-per-node=4 --distribution=block:block"
            " --kill-on-bad-exit=1 --cpu-bind=none --gpu-bind=none",
        ),
    ],
)
def test_the_launcher_binds_none_and_each_rank_binds_itself(monkeypatch, tmp_path, kind, nodes, want):
    made = started(monkeypatch, two_sockets(tmp_path), kind, nodes, 4 * max(1, nodes))
    assert shlex.join(made.command.words) == f"{want} {sys.executable} -m {commands.SEAT} --per-numa -- program"
    assert made.env.get("I_MPI_PIN") == ("0" if kind == "Intel MPI" else None)
    passed = take_seat.from_json(made.env[take_seat.PLAN], 4)
    assert [cpusets.show(seat.cpus) for seat in passed] == ["0-1", "2-3", "4-5", "6-7"]
    assert "each rank binds itself when it starts, the launcher binds none" in made.notes[-1]


def test_a_login_node_says_nothing_about_the_jobs_nodes(monkeypatch, tmp_path):
    node = sysfs.node("login", system(tmp_path, ("0",)), frozenset({0}))
    away = ThisNode(node, (), outside=True)
    with pytest.raises(InputError, match="give -n"):
        main._ranks(away, 2, {"SLURM_NTASKS": "2"}, "numa")
    assert main._seats(asked(), away, 4) == []


def test_nvidia_smi_lists_no_domains(capsys):
    assert command(["run", "--per", "numa", "--dry-run", "--nvidia-smi", "FILE", "--", "true"]) == 2
    assert "--per numa excludes --nvidia-smi" in capsys.readouterr().err


# ---- the ranks


def take(monkeypatch, node: Node, ranks: int, mask: frozenset[int]) -> int:
    """Rank 0 of `ranks` takes its seat on a node for which the launcher sent no seats."""
    monkeypatch.setenv("MPI_LOCALRANKID", "0")
    monkeypatch.setenv("MPI_LOCALNRANKS", str(ranks))
    monkeypatch.delenv("OMPI_COMM_WORLD_LOCAL_RANK", raising=False)
    monkeypatch.delenv(take_seat.PLAN, raising=False)
    monkeypatch.setattr(take_seat, "find", lambda env: ThisNode(node, ()))
    monkeypatch.setattr(take_seat.os, "sched_getaffinity", lambda pid: mask)
    return take_seat.main(["--per-numa", "--", "true"])


def test_another_node_with_fewer_domains(monkeypatch, tmp_path, capsys):
    assert take(monkeypatch, two_sockets(tmp_path, "0-3"), 4, frozenset(range(4))) == 3
    assert (
        "local rank 0: --per numa starts at most one rank for each NUMA domain, got 4 ranks" in capsys.readouterr().err
    )


def test_a_rank_that_may_not_use_its_whole_domain(monkeypatch, tmp_path, capsys):
    """Such a rank would compute with fewer workers than its share of the memory needs."""
    assert take(monkeypatch, two_sockets(tmp_path), 4, frozenset({1, 2})) == 3
    found = capsys.readouterr().err
    assert "this rank needs all CPUs of its NUMA domain, 0-1, but may use only 1-2" in found
    assert "sbatch --exclusive" in found


ON_FAKE = """
import sys
from pathlib import Path
from aristos.cli.__main__ import main as command
from aristos.launcher import main, this_node
from aristos.topology import discover
root = Path(sys.argv.pop(1))
main.find = lambda env: this_node.this_node_of(discover(network=False, env=env, root=root, library=lambda: None), env)
sys.exit(command(["run", *sys.argv[1:]]))
"""
REPORT = """
import json, os
from mpi4py import MPI
c = MPI.COMM_WORLD
os.write(1, (json.dumps([c.rank, c.size, sorted(os.sched_getaffinity(0))]) + "\\n").encode())
"""


@pytest.mark.slow
@pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH")
@pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")
def test_ranks_run_on_the_cores_of_their_domains(tmp_path):
    """The ranks read their cores after MPI has started, since MPI may change a binding. Domain 1 has only memory."""
    system(tmp_path, (str(CORES[0]), "", str(CORES[1])), (str(CORES[0]), str(CORES[1])))
    env = {k: v for k, v in os.environ.items() if not k.startswith((*LAUNCHER_VARIABLES, "SLURM_")) and k != FLAG}
    words = [sys.executable, "-c", ON_FAKE, str(tmp_path), "--per", "numa", "--", "python", "-c", REPORT]
    done = subprocess.run(words, env=env | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = sorted(json.loads(line) for line in done.stdout.splitlines())
    assert rows == [[0, 2, [CORES[0]]], [1, 2, [CORES[1]]]]
    assert "domains without a rank: 1 (no CPUs, only memory)" in done.stderr
