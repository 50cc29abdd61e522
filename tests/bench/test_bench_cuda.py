"""`--backend cuda`: the real suites on the PTX machine instead of a GPU. The machine's times mean nothing."""

from __future__ import annotations

import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest
import sweeps

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
from gpu_rivals import (
    GPUS,
    FakeCublas,
    FakeNccl,
    MachineTorch,
    bytes_anywhere,
    of_tests,
    torch_or_skip,
)
from simt_gpu import MachineGpu, on_ranks

from aristos import results
from aristos.bench import main, plots, routing, suites
from aristos.bench.command_line import parse
from aristos.bench.context import VERDICTS, WRONG_RIVAL, Context
from aristos.bench.gpu import alltoall, calls, clock, cublas, launch_cost, rival, torch_layer
from aristos.bench.options import Options, UsageError
from aristos.bench.suites import (
    exchange_gpu,
    gemm_gpu,
    layer_gpu,
    plan_gpu,
    progress_gpu,
    put_gpu,
    replay,
    replay_gpu,
    router_gpu,
    signal_gpu,
)
from aristos.bench.workload import Workload, routed_call
from aristos.bench.world import World
from aristos.errors import EnvironmentProblem
from aristos.row_types import KINDS

pytestmark = [pytest.mark.slow, pytest.mark.parallel]

SMALL = {
    "hidden": 32,
    "ffn": 24,
    "experts": 3,
    "top_k": 2,
    "tokens": (6, 20),
    "iters": 2,
    "warmup": 1,
    "backend": "cuda",
    "dtype": "float32",
}


@pytest.fixture
def nccl(monkeypatch):
    library = FakeNccl()
    monkeypatch.setattr(alltoall, "library", lambda: library)


@pytest.fixture
def chain(monkeypatch):
    """Give `layer` and `replay` a rival that is made for the tests."""
    for suite in (layer_gpu, replay_gpu):
        monkeypatch.setattr(suite, "rival_or_why", of_tests())


@pytest.fixture
def torch(monkeypatch):
    """Make PyTorch on CPUs the rival."""
    torch_or_skip()
    for module in (rival, router_gpu):
        monkeypatch.setattr(module, "TorchGpu", MachineTorch)
    monkeypatch.setattr(MachineGpu, "_bytes", bytes_anywhere)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Sizes that the PTX machine can run quickly."""
    monkeypatch.setattr(clock, "FLUSH", 1 << 12)
    monkeypatch.setattr(put_gpu, "ROW_BYTES", (512, 1024))
    monkeypatch.setattr(put_gpu, "BLOCK_BYTES", 2048)
    monkeypatch.setattr(put_gpu, "BATCH_BYTES", 1024)
    monkeypatch.setattr(signal_gpu, "ROW_BYTES", (16, 512))
    monkeypatch.setattr(signal_gpu, "ROUNDS", 3)
    monkeypatch.setattr(gemm_gpu, "ROWS", (3, 20))
    monkeypatch.setattr(progress_gpu, "CALLS", 2)
    monkeypatch.setattr(progress_gpu, "MATRIX", 8)
    monkeypatch.setattr(plan_gpu, "SIZES", (512, 1024))
    monkeypatch.setattr(plan_gpu, "TURNS", 1)
    monkeypatch.setattr(cublas, "library", missing("no cuBLAS here"))
    monkeypatch.setattr(alltoall, "library", missing("no NCCL here"))
    for module in (rival, router_gpu):
        monkeypatch.setattr(module, "TorchGpu", missing("no PyTorch here"))


def missing(why):
    """A function that raises EnvironmentProblem."""

    def raises(*arguments):
        raise EnvironmentProblem(why)

    return raises


def measured(name, ranks=1, trace=None, right=True, **options):
    """Rank 0's result of a suite. Each rank has a GPU of the PTX machine. right: whether all rivals are right."""

    def body(comm, rank):
        world = World(comm)
        gpu = clock.BenchGpu(world)
        GPUS[threading.get_ident()] = gpu.device
        try:
            return suites.known("cuda")[name].run(Context(world, Options(**SMALL | options), 5.0, trace=trace), gpu)
        finally:
            gpu.close()

    result = on_ranks(ranks, body)[0]
    assert result.ok, [(r.get("what"), r.get("error"), r["check"]) for s in result.sheets for r in s.records]
    found = {record["check"] for sheet in result.sheets for record in sheet.records}
    assert found == {VERDICTS[True]} | (set() if right else {WRONG_RIVAL})
    draw(result.tables)
    return result


def draw(tables):
    """Draw every picture of these tables."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    for table in tables:
        for _, picture in plots.pictures().get(table.name, []):
            figure = picture(table)
            assert all(axes.lines for axes in figure.axes)
            pyplot.close(figure)


def test_put_times_both_ways():
    result = measured("put")
    records = result.sheets[0].records
    assert [(r["row_bytes"], r["way"]) for r in records] == [(n, way) for n in (512, 1024) for way in put_gpu.WAYS]
    assert all(r["share"] == 1 for r in records)  # the machine's clock counts events: both ways take equally long


def test_a_put_that_loses_rows_fails(monkeypatch):
    monkeypatch.setattr(put_gpu.Puts, "copy", lambda self, halves: None)
    real = put_gpu.Puts.put

    def lossy(self, halves):
        self.grid, grid = self.grid - 1 or 1, self.grid
        real(self, halves)
        self.grid = grid

    monkeypatch.setattr(put_gpu.Puts, "put", lossy)
    monkeypatch.setattr(put_gpu, "LIMIT_NS", 1000)
    with pytest.raises(AssertionError):
        measured("put")


def test_signal_times_round_trips():
    records = measured("signal").sheets[0].records
    assert [r["row_bytes"] for r in records] == [16, 512]
    assert records[0]["median_us"] == pytest.approx(1 / 3)


def test_put_and_signal_between_gpus_name_the_link():
    """Two ranks have a GPU each. Every row arrives at the other GPU, and each row of the table names the link."""
    (sheet,) = measured("put", ranks=2).sheets
    assert [(r["row_bytes"], r["way"]) for r in sheet.records] == [(n, w) for n in (512, 1024) for w in put_gpu.WAYS]
    (other,) = measured("signal", ranks=2).sheets
    assert [r["row_bytes"] for r in other.records] == [16, 512]
    links = {r["link"] for r in (*sheet.records, *other.records)}
    assert len(links) == 1
    assert links.pop().startswith("0-1 ")


def test_rows_that_do_not_reach_the_other_gpu_fail(monkeypatch):
    """Rank 0 puts to its own memory instead, so that rows are missing at rank 1."""
    real = put_gpu.PairPuts.put

    def lost(self, halves):
        theirs = self.pair.theirs
        if self.pair.side == 0:
            self.pair.theirs = self.gpu.array(np.zeros(self.size_of(self.grid) // 8, np.int64)).at
        real(self, halves)
        self.pair.theirs = theirs

    monkeypatch.setattr(put_gpu.PairPuts, "put", lost)
    monkeypatch.setattr(put_gpu, "LIMIT_NS", 1000)
    with pytest.raises(AssertionError):
        measured("put", ranks=2)


def test_the_default_type_on_gpus_is_bfloat16():
    """The default is not float32, for which GPUs have no tensor cores. A type that is given is kept."""
    for backend, given, want in (("cuda", None, "bfloat16"), ("cpu", None, "float32"), ("cuda", "float16", "float16")):
        options = Options(**SMALL | {"backend": backend, "dtype": given})
        assert Context(World(), options, 5.0).shape().cfg.dtype == want


@pytest.mark.parametrize("dtype", KINDS)
def test_gemm_against_cublas(dtype, monkeypatch):
    monkeypatch.setattr(gemm_gpu, "Cublas", FakeCublas)
    records = measured("gemm", dtype=dtype).sheets[0].records
    assert [r["rows"] for r in records] == [3, 20]
    assert all(r["share"] == 1 and r["blas_error"] < 0.03 for r in records)


def test_gemm_without_cublas():
    (sheet,) = measured("gemm").sheets
    assert "share" not in sheet.records[0]
    assert sheet.notes == ["no cuBLAS here"]


def test_gemm_against_a_cublas_that_is_wrong(monkeypatch):
    """The time of a wrong cuBLAS is not compared, and the suite passes."""
    monkeypatch.setattr(gemm_gpu, "Cublas", FakeCublas)
    monkeypatch.setattr(FakeCublas, "wrong", 1.0)
    (sheet,) = measured("gemm").sheets
    assert all("share" not in record for record in sheet.records)
    assert [note.split(":")[0] for note in sheet.notes] == [WRONG_RIVAL, WRONG_RIVAL, "cuBLAS of the tests"]


LAYERS = [
    ("float32", "gpt-oss-20b"),
    ("bfloat16", "mixtral-8x7b"),
    ("float16", "switch-base-128"),
    ("tf32", "mixtral-8x7b"),
]


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize(("dtype", "preset"), LAYERS)
def test_layer_against_pytorch(dtype, preset):
    """The layer and PyTorch's chain are right with and without biases and gate, for every dtype.

    The chain's row says what the chain is made of.
    """
    records = measured("layer", dtype=dtype, preset=preset).sheets[0].records
    assert [(r["tokens"], r["what"]) for r in records] == [
        (n, what) for n in (6, 20) for what in (layer_gpu.CALLED, layer_gpu.GRAPH, rival.CHAIN)
    ]
    assert {r["speedup"] for r in records if r["what"] == layer_gpu.GRAPH} == {1.0}
    (used,) = {r["used"].split(", ", 1)[1] for r in records if r["what"] == rival.CHAIN}
    assert used == "grouped, not compiled, one graph"


@pytest.mark.parametrize(("dtype", "preset"), sweeps.turn(LAYERS[:2]))
@pytest.mark.usefixtures("chain")
def test_layer_against_a_chain(dtype, preset):
    result = measured("layer", dtype=dtype, preset=preset)
    records = result.sheets[0].records
    assert [r["what"] for r in records] == [layer_gpu.CALLED, layer_gpu.GRAPH, rival.CHAIN] * 2
    assert [r.get("speedup") for r in records] == [None, 1.0, None] * 2
    assert "a rival of the tests" in result.sheets[0].notes
    assert result.tables[0].attributes["rival"] == "a rival of the tests"


def test_a_wrong_chain_is_named_and_not_compared(trace, monkeypatch):
    """Suites `layer` and `replay` name the wrong chain, do not compare its time, and pass."""
    for suite in (layer_gpu, replay_gpu):
        monkeypatch.setattr(suite, "rival_or_why", of_tests(factor=1.1))
    result = measured("layer", right=False, tokens=(6,))
    ours, graph, chain = result.sheets[0].records
    assert (ours["check"], graph["check"], chain["check"]) == ("ok", "ok", WRONG_RIVAL)
    assert "speedup" not in graph
    assert "median_us" not in chain
    assert chain["error"] == pytest.approx(0.1, rel=0.1)
    assert np.isnan(result.tables[0].variables["call_time"].values[0, -1]).all()
    records = measured("replay", right=False, tokens=(6,), trace=trace, iters=1).sheets[0].records
    assert [r["check"] for r in records] == ["ok", WRONG_RIVAL] * 3
    assert all("speedup" not in r for r in records)


@pytest.mark.usefixtures("torch", "nccl")
def test_layer_of_two_ranks_against_chains_with_nccl_and_mpi():
    """The layer has biases and a gate. Rows go to the experts' ranks, outputs come back, and every chain is right."""
    even = {"experts": 4, "tokens": (12,)}
    (sheet, _) = measured("layer", ranks=2, dtype="bfloat16", preset="gpt-oss-20b", iters=1, **even).sheets
    assert [r["what"] for r in sheet.records] == [
        layer_gpu.CALLED,
        layer_gpu.GRAPH,
        rival.CHAIN_NCCL,
        rival.CHAIN_MPI,
    ]
    assert "speedup" in sheet.records[1]
    assert [r["used"].rsplit(", ", 1)[1] for r in sheet.records[2:]] == ["one graph", "three graphs"]
    assert "NCCL 2.28.3 (libnccl of the tests)" in sheet.notes


@pytest.mark.usefixtures("torch")
def test_chains_of_two_ranks_without_nccl():
    """Of the two chains only MPI's is measured, and the sheet says why."""
    (sheet, _) = measured("layer", ranks=2, experts=4, tokens=(12,), iters=1).sheets
    assert {r["what"] for r in sheet.records} == {layer_gpu.CALLED, layer_gpu.GRAPH, rival.CHAIN_MPI}
    assert "rank 0: no NCCL here" in sheet.notes


def test_layer_without_pytorch():
    """There is no chain, but the layer and the cost of a launch are measured."""
    sheet, launched = measured("layer", tokens=(6,)).sheets
    assert {r["what"] for r in sheet.records} == {layer_gpu.CALLED, layer_gpu.GRAPH}
    assert sheet.notes == ["no PyTorch here"]
    assert [r["what"] for r in launched.records] == [
        launch_cost.CALL,
        launch_cost.CALL_GRAPH,
        launch_cost.EMPTY,
        launch_cost.EMPTY_GRAPH,
    ]
    assert all(0 < r["queued_us"] < r["done_us"] for r in launched.records)


@pytest.mark.usefixtures("torch")
def test_a_chain_that_fails_is_left_out(monkeypatch):
    """A chain may fail because memory runs out. The layer is still measured."""

    def fails(self):
        raise RuntimeError("CUDA out of memory\nmore")

    monkeypatch.setattr(torch_layer.Chain, "compute", fails)
    sheet, _ = measured("layer", tokens=(6,)).sheets
    assert {r["what"] for r in sheet.records} == {layer_gpu.CALLED, layer_gpu.GRAPH}
    why = "calls of 6 tokens are not timed: PyTorch failed with RuntimeError: CUDA out of memory"
    assert sheet.notes[-2:] == [f"{rival.CHAIN}, {way}: {why}" for way in torch_layer.WAYS]


@pytest.mark.parametrize("preset", ["mixtral-8x7b", "switch-base-128"])
@pytest.mark.usefixtures("torch")
def test_router_against_pytorch(preset):
    (sheet,) = measured("router", preset=preset, dtype="bfloat16").sheets
    assert [(r["tokens"], r["what"]) for r in sheet.records] == [(n, s) for n in (6, 20) for s in router_gpu.STEPS]
    assert all(r["speedup"] == 1 and r["error"] < 1e-5 for r in sheet.records)


@pytest.mark.usefixtures("torch")
def test_a_router_of_pytorch_that_fails_is_left_out(monkeypatch):
    monkeypatch.setattr(torch_layer.Order, "__call__", lambda *given: given.missing)
    (sheet,) = measured("router", tokens=(6,)).sheets
    assert all("speedup" not in r for r in sheet.records)
    assert sheet.notes[-1].startswith("6 tokens: PyTorch failed with AttributeError:")


def test_router_alone():
    (sheet,) = measured("router", preset="gpt-oss-20b").sheets
    assert sheet.notes == ["no PyTorch here"]
    assert all("speedup" not in r for r in sheet.records)


def test_a_wrong_order_or_expert_is_an_error():
    ids, weights = np.array([[2, 0], [1, 2]]), np.array([[0.7, 0.3], [0.6, 0.4]])
    position = np.array([[2, 0], [1, 3]])
    assert router_gpu.error([ids, weights, position], (ids, weights)) == 0
    assert router_gpu.error([ids[:, ::-1], weights[:, ::-1], position[:, ::-1]], (ids, weights)) == 0
    assert router_gpu.error([ids, weights, position[::-1]], (ids, weights)) == np.inf
    assert router_gpu.error([ids * 2, weights, position], (ids, weights)) == np.inf
    assert router_gpu.error([ids, weights[::-1], position], (ids, weights)) > 0.1


@pytest.fixture
def trace(tmp_path, monkeypatch):
    """A trace of two sequences and two layers, in which some choices are not taken. Its replay has few steps."""
    monkeypatch.setattr(replay, "MOST_STEPS", steps := {"prefill": 2, "decode": 3, "call_2": 1})
    monkeypatch.setattr(replay_gpu, "MOST_STEPS", steps)
    ids = np.argsort(np.random.default_rng(0).random((14, 2, 3)), axis=2)[:, :, :2].astype(np.int16)
    ids[1, 0, 1] = ids[3, 1, :] = -1
    np.savez(tmp_path / "trace.npz", expert_ids=ids, seq_lens=[12, 2])
    return routing.load(str(tmp_path / "trace.npz"))


@pytest.mark.usefixtures("torch")
def test_layer_routed_outside(trace):
    """The chain gets the layer's routing, in which some choices are not taken."""
    records = measured("layer", tokens=(6,), trace=trace, routing=trace.path).sheets[0].records
    assert [r["what"] for r in records] == [layer_gpu.CALLED, layer_gpu.GRAPH, rival.CHAIN]


@pytest.mark.usefixtures("chain")
def test_replay_times_prefill_and_decode(trace):
    result = measured("replay", tokens=(6,), trace=trace, iters=1)
    records = result.sheets[0].records
    assert [(r["phase"], r["steps"], r["what"]) for r in records] == [
        (phase, steps, what)
        for phase, steps in (("prefill", 2), ("decode", 3), ("call_2", 1))
        for what in (layer_gpu.GRAPH, rival.CHAIN)
    ]
    assert [table.variables["tokens"].values.tolist() for table in result.tables] == [[6, 6], [2, 1, 1], [2]]


@pytest.mark.usefixtures("torch", "nccl")
def test_replay_on_two_ranks_against_pytorch(trace):
    """In some steps a rank has no tokens."""
    records = measured("replay", ranks=2, tokens=(3,), trace=trace, iters=1).sheets[0].records
    assert [r["what"] for r in records] == [layer_gpu.GRAPH, rival.CHAIN_NCCL, rival.CHAIN_MPI] * 3


def test_replay_on_two_ranks(trace):
    """A rank without sequences still serves the other's tokens."""
    result = measured("replay", ranks=2, tokens=(3,), trace=trace, iters=1)
    assert {r["what"] for r in result.sheets[0].records} == {layer_gpu.GRAPH}
    assert result.tables[1].variables["tokens"].values.tolist() == [2, 1, 1]


def test_idle_on_two_ranks():
    """Blocks count their waits, and a late rank counts as idle."""
    records = measured("idle", ranks=2, tokens=(4,), iters=1).sheets[0].records
    assert [r["pattern"] for r in records] == ["uniform", "zipf", "one", "late rank"]
    assert all(r["blocks"] == 2 and r["idle"] > 0 for r in records)
    assert records[2]["busiest_over_mean"] == 2


def test_exchange_on_one_rank():
    (sheet,) = measured("exchange", tokens=(6,), iters=1).sheets
    assert [r["pattern"] for r in sheet.records] == ["uniform", "zipf"]
    assert all(r["mb"] == 2 * 6 * 128 / 1e6 and r["share"] == 1 and "mpi_us" not in r for r in sheet.records)
    assert "in place" in sheet.notes[-1]


def test_exchange_on_two_ranks(nccl):
    (sheet,) = measured("exchange", ranks=2, tokens=(6,), routing="uniform", preset="gpt-oss-20b", iters=1).sheets
    (record,) = sheet.records
    assert record["share"] == record["speedup"] == record["nccl_speedup"] == 1
    assert record["mb"] < 2 * 6 * 128 / 1e6  # a rank's own rows do not move


@pytest.mark.parametrize("what", [exchange_gpu.COPY, exchange_gpu.STAGED, exchange_gpu.NCCL])
def test_exchange_detects_bytes_that_did_not_move(what, nccl):
    def lossy(moves, exchange):
        moves.there_and_back(exchange)
        moves.gpu.device.clear(moves.landed, 8)

    def body(comm, rank):
        gpu = clock.BenchGpu(World(comm))
        GPUS[threading.get_ident()] = gpu.device
        by_nccl = alltoall.Nccl(gpu)
        moves = exchange_gpu.Moves(gpu, np.array([[0, 3], [2, 0]]), 64, by_nccl)
        right = moves.right(what)
        if rank == 1:
            exchange = {exchange_gpu.STAGED: moves.through_hosts, exchange_gpu.NCCL: by_nccl}.get(what)
            moves.calls[what] = partial(lossy, moves, exchange) if exchange else lambda: None
        wrong = moves.right(what)
        moves.close()
        gpu.close()
        return right, wrong

    assert on_ranks(2, body) == [(True, False)] * 2


def test_progress_on_one_node():
    (sheet,) = measured("progress", tokens=(6,), iters=1).sheets
    (record,) = sheet.records
    assert record["slowdown"] == 0
    assert record["host_alone_us"] > 0
    assert "its cost was not measured" in sheet.notes[-1]


def test_plan_on_two_ranks():
    result = measured("plan", ranks=2, tokens=(4,), iters=1)
    records = result.sheets[0].records
    assert records[0]["plan"].startswith("planned")
    assert {r["groups"] for r in records} == {"0 1", "0+1"}
    assert records[0]["speedup"] == 1
    assert result.tables[0].variables["alpha"].values[0, 1] == pytest.approx(1e-6)  # the machine's clock counts events


def test_an_output_that_is_not_written_is_an_error():
    """The check that all these suites use finds the fault."""

    def body(comm, rank):
        world = World()
        gpu = clock.BenchGpu(world)
        ctx = Context(world, Options(**SMALL), 5.0)
        work = Workload(world, ctx.shape().cfg, 0)
        moe = work.layer("fused", None, backend="cuda")
        played = calls.Played(gpu, work, moe, routed_call(ctx, work, 6))
        found = played.error(), played.error(lambda: None)
        moe.close()
        gpu.close()
        return found

    ((right, wrong),) = on_ranks(1, body)
    assert right < 1e-5
    assert wrong == 1


def test_a_whole_run_writes_the_file(tmp_path, monkeypatch, capsys):
    """The run is started by its command line. The file's attributes name the GPU, and its tables hold raw times."""
    monkeypatch.setattr("aristos.bench.world.connect", lambda *a, **k: World())
    out = tmp_path / "r.h5"
    words = ["put", "signal", "--backend", "cuda", "--iters", "2", "--out", str(out)]
    assert on_ranks(1, lambda comm, rank: main.main(words)) == [0]
    assert "put on PTX machine: 2 blocks" in capsys.readouterr().out
    (run,) = results.load(out).runs
    assert (run.attributes["gpu"], run.attributes["gpu_arch"]) == ("PTX machine", "sm_90")
    assert {table.name for table in run.tables} == {"put_cuda", "signal_cuda"}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["layer", "--schedule", "bulk"], "--schedule bulk is for --backend cpu: GPUs run only the fused schedule"),
        (["layer", "--threads", "2"], "--threads is for --backend cpu"),
        (["put", "--timeline", "t.json"], "--timeline is for --backend cpu"),
        (
            ["layer", "--ranks-per-node", "1"],
            "--ranks-per-node is for --backend cpu: ranks of pretended nodes would use",
        ),
    ],
)
def test_options_for_cpus_alone_are_usage_errors(words, why):
    with pytest.raises(UsageError, match=why):
        parse([*words, "--backend", "cuda"])
    assert main.main([*words, "--backend", "cuda"]) == 2


def test_suites_by_number_of_gpus():
    """One GPU is enough for all suites but `plan`; a trace adds `replay`."""
    asked = parse(["--backend", "cuda"])
    assert [s.name for s in main.chosen(asked, 1)] == ["put", "signal", "exchange", "gemm", "router", "layer", "idle"]
    traced = Options(backend="cuda", routing="t.npz")
    assert [s.name for s in main.chosen(traced, 1)][-1] == "replay"
    with pytest.raises(UsageError, match="suite plan needs at least 2 ranks, got 1"):
        main.chosen(parse(["plan", "--backend", "cuda"]), 1)


def test_help_without_the_compiler():
    """Without the compiler the help lists the suites on GPUs, and a run names the missing part."""
    code = (
        "import sys; sys.modules['numba_cuda'] = None; from aristos.bench import main;"
        "assert main.main(['--help']) == 0; sys.exit(main.main(['put', '--backend', 'cuda', '--out', 'none']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 3
    assert "suites on GPUs (--backend cuda), timed by CUDA events:" in done.stdout
    assert "the tile product against cuBLAS" in done.stdout
    assert "GPU" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_gpu(capsys):
    from aristos.substrate.cuda.device import count

    if count():
        pytest.skip("there is a GPU")
    assert main.main(["signal", "--backend", "cuda", "--out", "none"]) == 3
    assert "GPU" in capsys.readouterr().err
