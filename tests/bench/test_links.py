"""Measured links: the rounds, the fits, the file, slow links, the table of defaults, and the command on ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpi import FLAG, LAUNCHER_VARIABLES, find_mpiexec

from aristos.bench import links as measured
from aristos.bench.pairs import schedule
from aristos.errors import InputError
from aristos.launcher import this_node
from aristos.topology import Gpu, Link, Network, Node, Numa, Topology, defaults, links, table
from aristos.topology.links import MIB, Links, RankDevice, Span
from aristos.topology.visible import VisibleDevice
from kernel_cache import compile as compiling

ROOT = Path(__file__).resolve().parents[2]


# ---- rounds


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12))
def test_quiet_rounds_have_every_pair_once_and_a_node_in_one_pair_at_a_time(node_of):
    n = len(node_of)
    rounds = measured.quiet(schedule(n, n), node_of)
    assert sorted(pair for row in rounds for pair in row) == [(a, b) for a in range(n) for b in range(n) if a != b]
    for row in rounds:
        busy = [node for a, b in row for node in {node_of[a], node_of[b]}]
        assert len(busy) == len(set(busy))
        ends = [r for pair in row for r in pair]
        assert len(ends) == len(set(ends))


@pytest.mark.parametrize("nodes", [4, 8, 16, 32])
def test_rounds_grow_with_the_ranks_and_not_with_the_pairs(nodes):
    """With four ranks a node, a round of the tournament becomes at most eight quiet rounds."""
    node_of = [r // 4 for r in range(4 * nodes)]
    n = len(node_of)
    assert len(schedule(n, n)) == 2 * (n - 1)
    assert len(measured.quiet(schedule(n, n), node_of)) <= 2 * (n - 1) * 4 * 2


# ---- fits


def line(alpha_us: float, beta_us_per_mib: float, size: int) -> float:
    return (alpha_us + beta_us_per_mib * size / MIB) * 1e-6


def test_the_fit_finds_alpha_and_beta_of_both_ranges():
    sizes = list(measured.SIZES)
    times = np.full((2, 2, len(sizes)), np.nan)
    for j, size in enumerate(sizes):
        times[0, 1, j] = line(2.0, 50.0, size) if size in measured.SMALL else line(9.0, 25.0, size)
    small, large = (measured._span(times, sizes, wanted) for wanted in (measured.SMALL, measured.LARGE))
    assert small.alpha_us[0][1] == pytest.approx(2.0, rel=1e-6)
    assert large.alpha_us[0][1] == pytest.approx(9.0, rel=1e-6)
    assert large.beta_us_per_mib[0][1] == pytest.approx(25.0, rel=1e-6)
    assert large.alpha_us[1][0] is None
    assert large.alpha_us[1][1] == 0.0
    rows = measured._residual(times, sizes)
    assert rows[0][1] == pytest.approx(0.0, abs=1e-9)
    times[0, 1, -1] *= 1.5
    assert measured._residual(times, sizes)[0][1] > 0.05


# ---- the file


def example(n: int = 3) -> Links:
    rows = [[0.0 if a == b else 2.0 + a for b in range(n)] for a in range(n)]
    span = Span(rows, [[0.0 if a == b else 10.0 * (1 + a) for b in range(n)] for a in range(n)])
    return Links(
        hosts=[f"n{r // 2}" for r in range(n)],
        devices=[RankDevice("cores", cpus="0", rate_gflops=20.0, memory_bytes=10**9)] * n,
        classes=[["self" if a == b else "NODE" for b in range(n)] for a in range(n)],
        small=span,
        large=span,
        residual=rows,
        origin=[["measured"] * n for _ in range(n)],
        notes=["a note"],
    )


def test_saved_links_load_again(tmp_path):
    path = tmp_path / "links.json"
    links.save(example(), path)
    assert links.load(path) == example()
    found = json.loads(path.read_text())
    assert (found["schema"], found["source"]) == ("aristos-links/1", "measured")
    assert found["alpha_us"] == [[0.0, 3.0, 4.0], [3.0, 0.0, 4.0], [4.0, 4.0, 0.0]]  # the slower of both directions
    assert found["beta_us_per_mib"][0][2] == 30.0
    assert os.listdir(tmp_path) == ["links.json"]


def test_a_link_planted_beside_the_file_is_not_followed(tmp_path):
    """The file is written under a name that nobody can know before, and then renamed. The rename replaces a link."""
    (tmp_path / "precious").write_text("x")
    for name in ("links.json", f"links.json.{os.getpid()}.tmp", ".links.json.aside"):
        (tmp_path / name).symlink_to("precious")
    links.save(example(), tmp_path / "links.json")
    assert (tmp_path / "precious").read_text() == "x"
    assert links.load(tmp_path / "links.json") == example()


def broken(**changes: object) -> dict[str, object]:
    return {**example().to_json(), **changes}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], "schema must be"),
        (broken(schema="aristos-links/2"), "aristos-links/2"),
        (broken(hosts=[]), "hosts must be"),
        (broken(devices=[{"name": "x"}]), "devices must be a list of 3"),
        (broken(devices=[{"name": "x"}, {}, {"name": "y"}]), r"devices\[1\]"),
        (broken(large={"alpha_us": [[0]]}), "large.alpha_us must be a list of 3 rows, each of 3 entries"),
        (broken(large=7), "large must be an object"),
        (broken(residual=[[0, 0, -1]] * 3), r"residual\[0\]\[2\] must be a number of at least 0"),
        (broken(residual=[[0, 0, float("nan")]] * 3), r"residual\[0\]\[2\]"),
        (broken(classes=[["self", 1, "NODE"]] * 3), r"classes\[0\]\[1\] must be a string"),
        (broken(residual=[[0, 0, 10**400]] * 3), r"residual\[0\]\[2\] must be a number"),
        (broken(residual=[[0, 0, "x" * 10**6]] * 3), r"residual\[0\]\[2\] must be a number .{,200}$"),
        (broken(hosts=["a", "b", "c\x1b[31m"]), "hosts must be a list of names without control characters"),
        (broken(hosts=["a", "b", "\ud800"]), "hosts must be"),
        (broken(devices=[{"name": "x", "label": 7}] * 3), r"devices\[0\].label must be a string"),
        (broken(devices=[{"name": "x\x07"}] * 3), r"devices\[0\].name must be a string without"),
        (broken(devices=[{"name": "x", "rate_gflops": True}] * 3), r"devices\[0\].rate_gflops must be a number"),
        (
            broken(devices=[{"name": "x", "memory_bytes": 0}] * 3),
            r"devices\[0\].memory_bytes must be a positive number",
        ),
        (broken(faults=5), "faults must be a list of sentences"),
        (broken(notes=[None]), r"notes\[0\] must be a string"),
        (broken(seconds="x"), "seconds must be a number"),
        (broken(seconds=10**400), "seconds must be a number"),
        (broken(command=["x"]), "command must be a string"),
    ],
)
def test_wrong_fields_are_named(found, message):
    with pytest.raises(InputError, match=message):
        links.from_json(found)


def test_a_file_that_is_not_json_is_an_error(tmp_path):
    (tmp_path / "x").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        links.load(tmp_path / "x")


def test_links_become_a_problem_of_the_planner():
    found = links.problem(example(), expert_bytes=10**8)
    assert found["devices"][0] == {"name": "n0:0", "rate": 0.02, "memory": 9}
    for name in ("alpha_us", "beta_us_per_mib"):
        rows = np.array(found[name])
        assert (rows == rows.T).all()
        assert (np.diag(rows) == 0).all()
    unknown = replace(example(), devices=[RankDevice("H100")] * 3)
    with pytest.raises(InputError, match="rate of device 0"):
        links.problem(unknown, 1)


def test_the_cache_depends_on_hosts_ranks_and_library(tmp_path):
    env = {"ARISTOS_CACHE": str(tmp_path)}
    path = links.cache_path(["a", "b"], ["0", "1"], "MPICH 5", env)
    assert path.parent == tmp_path / "links"
    others = [(["a", "c"], ["0", "1"], "MPICH 5"), (["a", "b"], ["0", "2"], "MPICH 5"), (["a", "b"], ["0", "1"], "x")]
    assert len({path, *(links.cache_path(*each, env) for each in others)}) == 4


def test_the_cache_is_where_compiled_code_is(tmp_path, monkeypatch):
    """A symbolic link above the cache's folder is followed, as for compiled code."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "home").symlink_to("scratch")
    monkeypatch.setenv("ARISTOS_CACHE", str(tmp_path / "home" / "cache"))
    path = links.cache_path(["a"], ["0"], "MPICH 5", os.environ)
    assert path.parent.parent == compiling.wanted() == tmp_path / "scratch" / "cache"


# ---- slow links


def test_a_link_much_slower_than_its_class_is_a_fault():
    n = 6
    alpha = [[0.0 if a == b else 5.0 for b in range(n)] for a in range(n)]
    beta = [[0.0 if a == b else (20.0 if a // 3 == b // 3 else 100.0) for b in range(n)] for a in range(n)]
    classes = [["self" if a == b else ("NODE" if a // 3 == b // 3 else "NET1") for b in range(n)] for a in range(n)]
    assert links.slow(classes, Span(alpha, beta)) == []
    beta[1][2] = 60.0
    beta[4][0] = 190.0  # slower, but less than twice
    ((a, b, times),) = links.slow(classes, Span(alpha, beta))
    assert (a, b) == (1, 2)
    assert times == pytest.approx(65 / 25)
    assert measured._suspects(classes, Span(alpha, beta), {2}) == []
    (text,) = measured._faults(classes, ["x"] * n, [(a, b, times)])
    assert "rank 1 (x) to rank 2 (x)" in text
    assert "2.6 times" in text


def test_every_suspect_is_measured_a_second_time():
    n = 24
    rounds = schedule(n, n)
    suspects = [(a, b, 3.0) for a in range(n) for b in range(n) if (a + b) % 3 == 1 and a != b]
    assert len(suspects) > 4 * n
    again = measured.quiet(measured._only(rounds, suspects), [r // 4 for r in range(n)])
    assert sorted(pair for row in again for pair in row) == sorted((a, b) for a, b, _ in suspects)


def test_a_link_that_was_measured_once_is_no_fault():
    """The second measurement can lower the median of a class. A link that was no suspect may then exceed it."""
    suspects, after = [(0, 1, 2.5), (1, 2, 4.0)], [(1, 2, 3.9), (2, 0, 2.1)]
    assert measured._still_slow(suspects, after) == [(1, 2, 3.9)]


@pytest.mark.slow
@pytest.mark.ranks(2, timeout=90)
def test_a_direction_that_was_slow_once_is_no_fault(comm, monkeypatch):
    """At first one direction takes eight times as long as the other. Measured again, both take equally long."""
    from aristos.bench.world import World

    calls = []

    def slower(pairs, rounds, *rest):
        times = measured_times(pairs, rounds, *rest)
        calls.append(([row for row in rounds if row], times))
        if len(calls) < 3:
            times[0, 1] = (8, 1)[len(calls) - 1] * calls[0][1][1, 0]
        return times

    measured_times = measured._times
    monkeypatch.setattr(measured, "_times", slower)
    monkeypatch.setattr(measured, "_crowded", lambda world, where: set())
    world = World(comm)
    topology, ranks = measured.survey(world)
    found = measured.measure(world, topology, ranks, 1.0)
    assert calls[1][0] == [[(0, 1)]]
    assert not any("puts from rank" in fault for fault in found.faults), found.faults


@pytest.mark.slow
@pytest.mark.ranks(2, timeout=90)
def test_a_slow_direction_is_a_fault(comm, monkeypatch):
    """The measured times of one direction are multiplied by eight."""
    from aristos.bench.world import World

    def slower(side, *rest):
        taken = put_times(side, *rest)
        return taken * 8 if side.origin == 0 else taken

    put_times = measured.Side.put_times
    monkeypatch.setattr(measured.Side, "put_times", slower)
    monkeypatch.setattr(measured, "_crowded", lambda world, where: set())
    world = World(comm)
    topology, ranks = measured.survey(world)
    found = measured.measure(world, topology, ranks, 1.0)
    assert any("from rank 0" in fault and "to rank 1" in fault for fault in found.faults), found.faults
    assert not any("from rank 1" in fault for fault in found.faults)


# ---- the table


def test_the_tables_figures_have_sources():
    figures = [f for _, f in (*defaults.DEVICES, *defaults.NVLINK)]
    figures += [value for value in vars(defaults).values() if isinstance(value, defaults.LinkFigure)]
    assert len(figures) > 20
    assert all(len(figure.source) > 10 for figure in figures)


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("NVIDIA GH200 480GB", 829),
        ("NVIDIA H200", 795),
        ("NVIDIA GB200", 1822),
        ("NVIDIA B200", 1745),
        ("NVIDIA A100-SXM4-80GB", 271),
        ("NVIDIA A100 80GB PCIe", 253),
        ("Tesla T4", None),
    ],
)
def test_gpus_are_known_by_name(name, bf16):
    found = defaults.device(name)
    assert (found and found.bf16) == bf16


def test_nearer_links_are_faster():
    kinds = [Link.parse(text) for text in ("NV12", "NV4", "PIX", "SYS")]
    rates = [defaults.link(kind, "NVIDIA A100-SXM4-40GB").bandwidth for kind in kinds]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == 4
    assert defaults.link(Link.parse("NV4"), "A100").bandwidth == pytest.approx(95)
    assert defaults.link(Link("NET", 3)).alpha == defaults.link(Link("NET", 1)).alpha + 2 * defaults.SWITCH
    assert [defaults.link(Link("NET"), gpu).bandwidth for gpu in ("NVIDIA H200", "NVIDIA A100", "T4")] == [46, 23, 9.5]


def test_a_job_of_two_nodes_from_the_table():
    gpus = tuple(Gpu(g, "NVIDIA A100-SXM4-40GB", memory=40 << 30, cpus=frozenset({g})) for g in range(2))
    pair = {("GPU0", "GPU1"): Link("NV", 4), ("GPU1", "GPU0"): Link("NV", 4)}
    node = Node("n1", devices=gpus, numa=(Numa(0, frozenset({0, 1})),), links=pair, tasks=2, complete=True)
    network = Network("tree", {"n1": ("s",), "n2": ("s",)}, frozenset({"n1", "n2"}))
    found = table.of_machine(Topology((node, Node("n2", tasks=2)), network), [VisibleDevice(gpu) for gpu in gpus])
    assert found.hosts == ["n1", "n1", "n2", "n2"]
    assert found.classes[0] == ["self", "NV4", "NET1", "NET1"]
    assert found.classes[3] == ["NET1", "NET1", "NV4", "self"]
    assert found.source == "table"
    problem = links.problem(found, expert_bytes=1 << 30)
    assert problem["devices"][0] == {"name": "n1:GPU0", "rate": 271.0, "memory": 36}
    assert problem["beta_us_per_mib"][0][1] < problem["beta_us_per_mib"][0][2]


def test_links_of_a_sample_come_from_the_table(tmp_path):
    """`aristos topo --measure --nvidia-smi FILE`: the table's figures for that machine."""
    file = ROOT / "tests/support/samples/topo_a100_nics.txt"
    done = topo("--measure", "--nvidia-smi", file, "--out", tmp_path / "l.json", "--json")
    assert done.returncode == 0, done.stderr
    found = links.from_json(json.loads(done.stdout))
    assert found == links.load(tmp_path / "l.json")
    assert found.classes[0] == ["self", "NV3", "SYS", "SYS"]
    assert links.put_us(found.large, 0, 1, MIB) < links.put_us(found.large, 0, 2, MIB)
    assert this_node.read(file).devices[0].device.name is None
    assert found.devices[0].rate_gflops is None  # the matrix does not name the GPU


# ---- the command


def clean_environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith((*LAUNCHER_VARIABLES, "SLURM_")) and k != FLAG}
    return kept | {"PYTHONPATH": str(ROOT)} | more


def topo(*words: object, ranks: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
    start = ["run", "-n", ranks, "--", "python", "-m", "aristos", "topo"] if ranks else ["topo"]
    command = [sys.executable, "-m", "aristos", *map(str, [*start, *words])]
    return subprocess.run(command, env=clean_environment(**more), capture_output=True, text=True, timeout=150)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--measure", "--plot", "x.png"], 2, "--measure takes --nvidia-smi"),
        (["--measure"], 3, "aristos run -n 8"),
        (["--measure", "--nvidia-smi", "/no/file"], 3, "/no/file"),
    ],
)
def test_usage_and_environment_errors(words, code, message):
    done = topo(*words)
    if "--measure" in words and not done.returncode:
        pytest.skip("there is a GPU here")
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not find_mpiexec(), reason="no mpiexec beside python or on PATH")
def test_four_ranks_are_measured_in_time_and_then_cached(tmp_path):
    out, busy = tmp_path / "links.json", max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))
    first = topo("--measure", "--again", "--out", out, ranks=4)
    assert first.returncode == 0, first.stderr
    found = links.load(out)
    assert found.n == 4
    assert found.source == "measured"
    assert found.seconds < 20 * busy
    pairs = [(a, b) for a in range(4) for b in range(4) if a != b]
    for span in (found.small, found.large, found.contended):
        assert all(links.put_us(span, a, b, MIB) for a, b in pairs)
    assert all(found.residual[a][b] is not None for a, b in pairs)
    assert median(links.put_us(found.large, a, b, MIB) for a, b in pairs) > 1  # more than 1000 GB/s is no copy
    assert all(each.rate_gflops > 0.1 and each.memory_bytes > 1 << 20 for each in found.devices)
    links.problem(found, 1 << 20)
    again = topo("--measure", "--json", "--out", out, ranks=4)
    assert again.returncode == 0, again.stderr
    known = json.loads(again.stdout)
    assert known["measured_utc"] == found.measured_utc
    assert any("read from the cache" in note for note in known["notes"])
