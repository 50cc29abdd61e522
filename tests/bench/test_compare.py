"""The comparison against outside peers: tiny runs, the figures, the page's markers, teams and the barrier."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from mpi import LAUNCHER_VARIABLES, find_mpiexec

from aristos import results

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"
SHAPES = "24/16/32/4/2,5/8/8/2/1,6/16/8/4/2/gated@zipf"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make bench/ importable, as for a script in it."""
    monkeypatch.syspath_prepend(str(BENCH))


def script(name: str, *words: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a script of bench/ and keep its output."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHER_VARIABLES)}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    env["COLUMNS"] = "120"
    command = [sys.executable, str(BENCH / name), *words, *launcher]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL)


def compare(*words: str) -> subprocess.CompletedProcess[str]:
    """Run compare.py with the tests' MPI launcher."""
    mpiexec = find_mpiexec()
    if not mpiexec:
        pytest.skip("no mpiexec beside python or on PATH: pip install mpich")
    return script("compare.py", *words, launcher=("--mpiexec", " ".join(mpiexec)))


def needs(environment: str) -> None:
    """Skip if an environment of the comparison is not there."""
    import environments

    try:
        environments.python(environment)
    except environments.NoEnvironment as why:
        pytest.skip(str(why))


@pytest.mark.slow
@pytest.mark.parallel
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("compare.py", ("--ranks", "--rounds")),
        ("nodes.py", ("--shapes", "--rounds")),
        ("crowded.py", ("--rounds",)),
        ("overhead.py", ("--calls",)),
    ],
)
def test_scripts_have_help(name: str, options: tuple[str, ...]) -> None:
    done = script(name, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") == 1
    for option in options:
        assert re.search(rf"^  {option} \w+ +\w.*\(\S+\)$", done.stdout, re.MULTILINE), done.stdout  # with its default


@pytest.mark.slow
@pytest.mark.parallel
def test_a_small_run_checks_every_peer_and_writes_file_page_and_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page, out = tmp_path / "page.md", tmp_path / "compare.h5"
    page.write_text("# Mine\n\nbefore\n")
    words = ("uniform", "--shapes", SHAPES, "--rounds", "2", "--iters", "3", "--page", str(page), "--out", str(out))
    done = compare(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    text = page.read_text()
    assert text.startswith("# Mine\n\nbefore\n")
    assert "Aristos fused" in text
    assert "24/16/32/4/2" in text
    (picture,) = tmp_path.glob("performance-*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.name in text

    (run,) = results.load(out).runs
    assert run.attributes["command"] == f"python bench/compare.py uniform --shapes {SHAPES} --rounds 2 --iters 3"
    tables = {table.name: table for table in run.tables}
    table = tables["shape-24-16-32-4-2"]
    peers = table.dims["peer"].values.tolist()
    assert peers[:4] == ["fused", "bulk", "high", "numpy"]
    assert table.variables["seconds"].values.shape == (len(peers), 2, 3, 2)
    assert (table.variables["seconds"].values > 0).all()
    for peer, error in zip(peers, table.variables["error"].values):
        assert error < (3e-2 if "bf16" in peer else 2e-5 if peer == "high" else 1e-5)
    assert table.attributes["fused_and_bulk_equal_bits"]
    assert tables["shape-6-16-8-4-2-gated-zipf"].attributes["routing"] == "zipf"


@pytest.mark.slow
@pytest.mark.usefixtures("bench")
def test_peers_in_an_environment_of_their_own(tmp_path: Path) -> None:
    needs("torch")
    out = str(tmp_path / "compare.h5")
    names = "fused,torch-packed,torch-loop,torch-grouped,torch-bf16-packed,torch-bf16-grouped"
    words = ("uniform", "--shapes", "24/16/32/4/2", "--peers", names, "--rounds", "1", "--iters", "2", "--out", out)
    done = compare(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = results.load(out).runs
    (table,) = [table for table in run.tables if table.name == "shape-24-16-32-4-2"]
    assert table.dims["peer"].values.tolist() == names.split(",")
    assert not [key for key in table.attributes if key.startswith("absent")]
    assert "torch 2" in run.attributes["teams.torch"]


@pytest.mark.slow
@pytest.mark.parallel
def test_training_steps(tmp_path: Path) -> None:
    out = str(tmp_path / "compare.h5")
    words = ("train", "--shapes", "24/16/32/4/2,6/48/8/4/2/gated", "--rounds", "1", "--iters", "2", "--out", out)
    done = compare(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = results.load(out).runs
    tables = {table.name: table for table in run.tables}
    for name in ("step-24-16-32-4-2", "step-6-48-8-4-2-gated"):
        peers, errors = tables[name].dims["peer"].values.tolist(), tables[name].variables["error"].values
        assert peers[:2] == ["step", "step-rows"]
        assert "bf16-step" in peers
        for peer, error in zip(peers, errors):
            assert 0 < error < (3e-2 if "bf16" in peer else 1e-5)


@pytest.mark.usefixtures("bench")
def test_every_array_of_a_step_is_checked(tmp_path: Path) -> None:
    import jobs
    import oracle

    shape = jobs.step(jobs.parse_shape("5/4/8/4/2/gated"))
    truth = oracle.make_step(tmp_path, shape, 2, 0)
    job = jobs.read(tmp_path, 1)
    assert job.shape == shape
    wanted = truth.parts[1][1]
    assert [part.shape for part in wanted] == [(5, 4), (5, 2), (2, 4, 8), (2, 4, 8), (2, 8, 4)]
    assert truth.error(1, 1, jobs.flat(wanted)) == 0
    for part in wanted:
        kept, part[...] = part.copy(), 0
        zeroed = jobs.flat(wanted)
        part[...] = kept
        assert truth.error(1, 1, zeroed) == 1
    assert truth.error(1, 1, jobs.flat(wanted)[1:]) == np.inf


@pytest.mark.slow
@pytest.mark.parallel
def test_products_on_one_rank(tmp_path: Path) -> None:
    out = str(tmp_path / "compare.h5")
    done = script(
        "compare.py", "products", "--peers", "product,numpy-product", "--rounds", "1", "--iters", "1", "--out", out
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = results.load(out).runs
    table = {table.name: table for table in run.tables}["product-64x1024x4096"]
    assert (table.variables["error"].values < 1e-5).all()
    assert "share of the FMA peak" in done.stdout or "ISA" in os.environ


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing",), "a part must be one of"),
        (("uniform", "--shapes", "Q"), "a shape must be one of"),
        (("uniform", "--peers", "nobody"), "peers of uniform must be among"),
        (("--rounds", "0"), "must be at least 1"),
        (("uniform", "--shapes", "1/2/3/4"), "a shape must be one of"),
        (("uniform", "--shapes", "1/2/3/3/1"), "a multiple of the 2 ranks"),
        (("uniform", "--shapes", "1/2/3/4/5"), "top_k must be at most experts"),
    ],
)
@pytest.mark.usefixtures("bench")
def test_usage_errors(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    import compare as program

    with pytest.raises(SystemExit) as end:
        program.main(list(words))
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def measured(name: str, world: int = 2, **turns: np.ndarray | float) -> object:
    """Results of a shape. turns: for each peer its times [rounds], which all calls and ranks have."""
    import jobs
    import peers
    import rounds

    shape = jobs.parse_shape(name)
    m = rounds.ShapeResults(shape, world, iters=3, entries=dict(peers.LAYERS))
    m.times = {
        peer.replace("_", "-"): np.broadcast_to(np.asarray(t)[:, None, None], (3, 3, world)).copy()
        for peer, t in turns.items()
    }
    m.busiest = m.mean = np.full(3, 90e9)
    return m


@pytest.mark.usefixtures("bench")
def test_ratios_are_formed_within_each_round() -> None:
    import figures

    drift = np.array([1.0, 10.0, 2.0])  # in some rounds the machine is busy, and both peers are slower
    m = measured("A", fused=drift, numpy=drift * 1.5)
    m.times["fused"][:, :, 1] *= 0.5  # only the slowest rank counts
    assert figures.ratio(m, "numpy") == figures.Spread(1.5, 1.5, 1.5)
    assert figures.ratio(m, "bulk") is None
    m.mean, m.peak = np.full(3, 80e9), 100 / drift[:, None] * np.ones((3, 2))
    assert figures.peak_share(m).median == pytest.approx(0.9)
    assert figures.gflops(m, "fused").high == pytest.approx(80)


@pytest.mark.usefixtures("bench")
def test_figures_of_layers_compare_with_the_best_peer_of_the_dtype() -> None:
    import figures

    amx = figures.Family("amx", "x")
    drift = np.array([1.0, 10.0, 2.0])
    bf16 = {"bf16": drift * 0.1, "bf16_bulk": drift * 0.12, "torch_bf16_packed": drift * [0.2, 0.13, 0.2]}
    m = measured("A", fused=drift, numpy=drift * 1.5, torch_loop=drift * 1.3, torch_bf16_loop=drift * 0.18, **bf16)
    found = {f.what: f for f in figures.figures([m], amx, {8: [0.3, 0.5, 0.35]}, "")}
    assert found["A: fused over the best float32 peer"].reached.median == pytest.approx(1.3)
    over = found["A: bfloat16, fused over the best bfloat16 peer"].reached
    assert over == pytest.approx((1.8, 1.3, 1.8))  # compared with the best peer of each round
    assert found["A: bfloat16, bulk over the best bfloat16 peer"].reached.median == pytest.approx(1.5)
    assert found["A: bfloat16, fused over bulk"].met
    assert found["A: bfloat16 over float32, fused"].reached.median == pytest.approx(10)
    assert not found["A: fused over bulk"].met  # not timed
    assert found["8 bytes + signal, there and back"].met
    assert not found["4 KB row + signal, there and back"].met
    assert figures.figures([measured("G", fused=drift, numpy=drift)], amx)[0].goal == 1.0

    m.errors = {"fused": 2e-6, "high": 1.5e-5, "bf16": 4e-3, "numpy": 1.0}
    errors = [
        (f.what, f.goal, f.met) for f in figures.figures([m, measured("B", fused=drift)], amx) if "error" in f.what
    ]
    assert errors == [
        ("Aristos in float32, largest relative error", 1e-5, True),
        ("Aristos in float32, high precision, largest relative error", 2e-5, True),
        ("Aristos in bfloat16, largest relative error", 3e-2, True),
    ]


@pytest.mark.usefixtures("bench")
def test_figures_of_one_rank_and_of_products() -> None:
    import figures
    import jobs
    import peers
    import rounds

    amx = figures.Family("amx", "x")
    one = np.ones(3)
    m = measured("16/2048/512/32/8/gated", 1, bf16=one, torch_bf16_packed=one * 1.5)
    (found,) = figures.figures([m], amx)
    assert found.what == "16/2048/512/32/8/gated: bfloat16, over the better of kt-kernel and torch"
    assert found.met

    m = rounds.ShapeResults(jobs.Product(64, 1024, 4096), 1, iters=1, entries=dict(peers.PRODUCTS))
    m.times = {"product": np.full((3, 1, 1), 2.0)}
    m.busiest, m.peak = np.array([160e9]), np.full((3, 1), 100.0)
    share = figures.figures([m], amx)[0]
    assert share.what == "64 x 1024 x 4096: float32, share of the FMA peak"
    assert share.reached.median == pytest.approx(80)
    assert not share.met


@pytest.mark.usefixtures("bench")
def test_wrong_outputs_are_neither_timed_nor_hidden() -> None:
    import figures
    import report

    m = measured("C", fused=np.ones(3))
    m.errors = {"fused": 1e-7, "numpy": float("nan")}
    assert m.wrong() == ["numpy"]
    text = report.markdown("A title", [m], figures.figures([m], figures.Family("amx", "x")), [])
    assert "Alltoallv + NumPy gave WRONG outputs on C" in text


@pytest.mark.usefixtures("bench")
def test_an_error_that_is_no_number_stays_the_worst(tmp_path: Path) -> None:
    import rounds

    class Team:
        def __call__(self, method: str, name: str, i: int = 0, path: str = "") -> list[dict[str, str]]:
            if method == "output":
                np.save(f"{path}-0.npy", np.full((1, 1), np.nan if i == 0 else 1.0, np.float32))
            return [{"dtype": "float32"}]

    class Truth:
        def error(self, rank: int, i: int, y: np.ndarray) -> float:
            return float(y[0, 0])

    m = measured("C", 1)
    rounds.check({"numpy": Team()}, tmp_path, Truth(), [m.entries["numpy"]], m)
    assert not np.isfinite(m.errors["numpy"])
    assert m.wrong() == ["numpy"]


@pytest.mark.usefixtures("bench")
@pytest.mark.parametrize("planted", [None, "xs", "weight", "y"])
def test_a_peer_of_another_dtype_than_its_entry_is_caught(tmp_path: Path, planted: str | None) -> None:
    """A peer's dtype is that of its arrays. If its entry says another, it is not timed, and the report says so."""
    import jobs
    import oracle
    import peers
    import report
    import rounds
    import worker
    from barrier import Barrier

    shape = jobs.Product(3, 8, 4)
    truth = oracle.make_product(tmp_path, shape, 0)
    Barrier.create(tmp_path / "barrier", 1)
    one = worker.Worker(None, 1, tmp_path / "barrier")
    one.read(str(tmp_path))
    entry = peers.PRODUCTS["numpy-product"]
    one.make(entry.name, entry.factory, entry.options)
    if planted:
        setattr(one.peers[entry.name], planted, getattr(one.peers[entry.name], planted).astype(np.float64))
    m = rounds.ShapeResults(shape, 1, entries={entry.name: entry})
    team = {entry.environment: lambda method, *given: [getattr(one, method)(*given)]}
    rounds.check(team, tmp_path, truth, [entry], m)
    assert m.errors[entry.name] <= entry.bound
    assert m.wrong() == ([entry.name] if planted else [])
    said = "instead of float32 and was not timed there."
    assert (said in report.markdown("A title", [m], [], [])) == bool(planted)


@pytest.mark.parallel
@pytest.mark.usefixtures("bench")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peers_of_aristos_name_their_kernels(tmp_path: Path, dtype: str) -> None:
    import jobs
    import oracle
    import peers
    from peers import aristos_layer, aristos_step, products

    from aristos.primitives import isa

    def ran(peer: object) -> dict[str, str]:
        peer(0)
        found = peers.ran(peer)
        peer.close()
        return found

    oracle.make_product(tmp_path / "product", jobs.Product(3, 8, 4), 0)
    oracle.make_step(tmp_path / "step", jobs.step(jobs.parse_shape("5/8/8/2/1")), 1, 0)
    product, step = jobs.read(tmp_path / "product", 0), jobs.read(tmp_path / "step", 0)
    for peer in (
        products.AristosProduct(None, product, dtype),
        aristos_step.AristosStep(None, step, dtype, "hidden"),
        aristos_layer.AristosLayer(None, step, "fused", dtype, {}),
    ):
        assert ran(peer) == {"dtype": dtype, "precision": "highest", "isa": isa.chosen()}


@pytest.mark.usefixtures("bench")
def test_every_peer_says_what_it_read_and_wrote() -> None:
    """Each class has the method `arrays`. It is not called: peers of other environments cannot be made here."""
    import importlib

    import peers

    for entries in (peers.LAYERS, peers.STEPS, peers.ONE_RANK, peers.CODES, peers.PRODUCTS):
        for entry in entries.values():
            module, _, called = entry.factory.partition(":")
            assert callable(getattr(getattr(importlib.import_module(module), called), "arrays", None)), entry


@pytest.mark.usefixtures("bench")
def test_splice_keeps_the_text_around_the_markers_other_families_and_parts(tmp_path: Path) -> None:
    import report

    page = tmp_path / "docs" / "performance.md"
    report.splice(page, "one", "amx, x", "uniform")
    page.write_text(page.read_text() + "\n\nafter\n")
    report.splice(page, "other", "avx2, y", "uniform")
    report.splice(page, "skewed", "amx, x", "zipf")
    report.splice(page, "two", "amx, x", "uniform")
    text = page.read_text()
    assert text.startswith("# Performance")
    assert text.endswith("\n\nafter\n")
    first, last = report.BEGIN.format("amx, x", "uniform"), report.END.format("amx, x", "uniform")
    assert text.count("\ntwo\n") == text.count("\nskewed\n") == text.count("\nother\n") == text.count(first) == 1
    assert "\none\n" not in text
    assert text.count("## On ") == 2
    assert (
        text.index("two")
        < text.index("skewed")
        < text.index("## On avx2, y")
        < text.index("\nother")
        < text.index("after")
    )
    page.write_text(text.replace(last, ""))
    with pytest.raises(ValueError, match="both markers or none"):
        report.splice(page, "three", "amx, x", "uniform")


@pytest.mark.usefixtures("bench")
def test_a_table_of_many_jobs_has_a_row_for_each() -> None:
    import report

    head = ["peer", *(f"job {i}" for i in range(report.WIDEST))]
    lines = report.table(head, [["one", *map(str, range(report.WIDEST))]]).splitlines()
    assert lines[0] == "| peer | one |"
    assert lines[-1] == f"| job {report.WIDEST - 1} | {report.WIDEST - 1} |"
    assert report.table(head[:3], [["one", "1", "2"]]).splitlines()[0] == "| peer | job 0 | job 1 |"


@pytest.mark.usefixtures("bench")
@pytest.mark.parametrize(("disturbed", "kept"), [(set(), [0, 1, 2]), ({1, 2}, [0, 3, 4]), (set(range(99)), [0, 1, 2])])
def test_calls_during_which_a_thread_waited_are_repeated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, disturbed: set[int], kept: list[int]
) -> None:
    import jobs
    import worker
    from barrier import Barrier

    Barrier.create(tmp_path / "barrier", 1)
    w = worker.Worker(None, 1, tmp_path / "barrier")
    waited, calls = [0.0], []

    class Peer:
        def __call__(self, i: int) -> None:
            timed = len(calls) - 1  # the first call is not timed
            calls.append(i)
            waited[0] += 1.0 if timed in disturbed else 0.0

    w.peers, w.job = {"peer": Peer()}, jobs.ProductJob(jobs.Product(1, 1, 1), np.zeros((1, 1)), np.zeros((2, 1, 1)))
    clock = iter(range(10_000))
    monkeypatch.setattr(worker, "_waited", lambda: waited[0])
    monkeypatch.setattr(worker.time, "perf_counter", lambda: float(next(clock) ** 2))  # call n takes 4n + 1
    assert w.turn("peer", 3) == [4.0 * (n + 1) + 1 for n in kept]


@pytest.mark.usefixtures("bench")
def test_a_missing_environment_is_reported_and_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import environments
    import peers
    import report
    import rounds
    from teams import Team

    monkeypatch.setattr(environments.python, "__defaults__", (tmp_path / "peers",))
    teams = rounds.Teams(lambda name: Team(name, 2, tmp_path, ["mpiexec"]))
    m = measured("C", fused=np.ones(3))
    assert rounds.make_peers(teams, tmp_path, [peers.LAYERS["torch-loop"]], m) == []
    assert "no environment torch: `python bench/environments.py torch` makes it" in m.absent["torch-loop"]
    assert "Did not run: torch MPI, loop of mm: no environment torch" in report.markdown("A title", [m], [], [])


@pytest.mark.slow
@pytest.mark.parallel
@pytest.mark.usefixtures("bench")
def test_an_environment_that_cannot_be_made_leaves_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import environments

    monkeypatch.setattr(environments, "HERE", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    lists, made = tmp_path / "environments", tmp_path / "peers"
    lists.mkdir()
    wanted = lists / "some.txt"
    wanted.write_text(f"# nothing\n{environments.ALONE}\n# nothing either\n")
    with pytest.raises(environments.NoEnvironment, match="no environment some"):
        environments.python("some", made)
    assert environments.make("some", made) == ""
    done = subprocess.run([environments.python("some", made), "-c", "import numpy"], capture_output=True, text=True)
    assert "No module named 'numpy'" in done.stderr  # the new environment sees no package of this one
    assert environments.current("some", made)

    wanted.write_text("no-package-has-this-name==1\n")
    assert not environments.current("some", made)
    assert "pip cannot install some.txt: " in environments.make("some", made)
    with pytest.raises(environments.NoEnvironment, match="no-package-has-this-name"):
        environments.python("some", made)
    assert environments.current("some", made)  # making it was tried. It is tried again if a user asks for it by name


@pytest.mark.usefixtures("bench")
def test_the_error_of_a_rank_that_fails_or_ends_has_what_the_rank_printed(tmp_path: Path) -> None:
    from teams import Team, TeamError

    team = Team("numpy", 1, tmp_path, ["mpiexec"])
    with pytest.raises(TeamError, match="No module named 'nowhere'"):
        team("run", "nowhere:nothing")
    assert team("versions")[0]["numpy"] == np.__version__
    team._process.kill()
    with pytest.raises(TeamError, match="numpy: a rank ended: it printed nothing"):
        team("versions")
    team.close()


@pytest.mark.usefixtures("bench")
def test_the_barrier_lets_no_rank_through_before_the_last(tmp_path: Path) -> None:
    from barrier import Barrier

    path, world, turns = tmp_path / "barrier", 3, 50
    Barrier.create(path, world)
    seen: list[list[int]] = [[] for _ in range(turns)]
    early = []

    def rank(r: int) -> None:
        meet = Barrier(path, r, world)
        for turn in range(turns):
            seen[turn].append(r)
            meet()
            if len(seen[turn]) < world:
                early.append((r, turn))

    threads = [threading.Thread(target=rank, args=(r,)) for r in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not early
    assert all(len(ranks) == world for ranks in seen)


@pytest.mark.usefixtures("bench")
@pytest.mark.parametrize("routing", ["uniform", "zipf", "law"])
def test_a_job_is_the_same_for_all_and_its_rows_add_up(tmp_path: Path, routing: str) -> None:
    import jobs
    import oracle

    traces = ROOT.parent / "shared" / "traces"
    if routing == "law" and not (traces / oracle.TRACES["law"]).exists():
        with pytest.raises(oracle.Missing, match="no trace"):
            oracle.make(tmp_path, jobs.parse_shape("8/4/4/64/6@law"), 2, 0, traces)
        pytest.skip(f"no recorded routing in {traces}")
    shape = jobs.parse_shape(f"24/4/4/64/6@{routing}")
    truth = oracle.make(tmp_path, shape, 2, 0, traces)
    ranks = [jobs.read(tmp_path, rank) for rank in range(2)]
    assert truth.rows.sum(axis=1).tolist() == [2 * 24 * 6] * shape.inputs
    for i in range(shape.inputs):
        both = np.concatenate([job.ids[i].ravel() for job in ranks])
        assert truth.rows[i].tolist() == [(both < 32).sum(), (both >= 32).sum()]
    assert ranks[0].local == slice(0, 32)
    assert not np.array_equal(ranks[0].xs[0], ranks[1].xs[0])
    x, ids, weights = ranks[1].xs[0][3], ranks[1].ids[0][3], ranks[1].weights[0][3]
    parts = [np.maximum(x @ ranks[1].up[e], 0) @ ranks[1].down[e] for e in ids]
    assert truth.error(1, 0, truth.ys[1][0].astype(np.float32)) < 1e-6
    assert np.allclose(truth.ys[1][0][3], sum(w * y for w, y in zip(weights, parts)), atol=1e-5)
