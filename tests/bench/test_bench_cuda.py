"""`--backend cuda`: the suites as they ship, on a card that the PTX machine stands in for; its times mean nothing."""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
from simt_gpu import on_ranks

from aristos import results
from aristos.bench import main, plots, registry, routing
from aristos.bench.context import VERDICTS, Context
from aristos.bench.gpu import calls, clock, cublas, exchange, gemm, launch, layer, plan, progress, put, replay, signal
from aristos.bench.options import Options, UsageError, parse
from aristos.bench.suites import replay as on_cpus
from aristos.bench.workload import Workload
from aristos.bench.world import World
from aristos.errors import EnvironmentProblem
from aristos.kernels.cuda.pack import narrow, widen
from aristos.layer.device_arrays import KINDS

pytestmark = pytest.mark.slow

SMALL = {
    "hidden": 32,
    "ffn": 24,
    "experts": 3,
    "top_k": 2,
    "tokens": (6, 20),
    "iters": 2,
    "warmup": 1,
    "backend": "cuda",
}


class FakeCublas:
    """cuBLAS's product by NumPy, on the machine's memory."""

    def __init__(self, gpu):
        self.card = gpu.card

    def product(self, kind, m, n, k, a, lda, b, ldb, c, ldc):
        size = {"bf16": 2, "f16": 2}.get(kind, 4)
        dtype = clock.TYPES[kind]
        self.card.synchronize()

        def rows(at, count, width, pitch):
            whole = self.card._bytes(at, size * (pitch * (count - 1) + width))
            step = (size * pitch, size)
            return np.lib.stride_tricks.as_strided(whole.view(dtype), (count, width), step)

        left, right = widen(rows(a, m, k, lda), kind), widen(rows(b, n, k, ldb), kind)
        rows(c, m, n, ldc)[:] = narrow(left @ right.T, kind)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Sizes that the machine runs in a moment."""
    monkeypatch.setattr(clock, "FLUSH", 1 << 12)
    monkeypatch.setattr(put, "ROW_BYTES", (512, 1024))
    monkeypatch.setattr(put, "BLOCK_BYTES", 2048)
    monkeypatch.setattr(put, "BATCH_BYTES", 1024)
    monkeypatch.setattr(signal, "ROW_BYTES", (16, 512))
    monkeypatch.setattr(signal, "ROUNDS", 3)
    monkeypatch.setattr(gemm, "ROWS", (3, 20))
    monkeypatch.setattr(progress, "CALLS", 2)
    monkeypatch.setattr(progress, "MATRIX", 8)
    monkeypatch.setattr(plan, "SIZES", (512, 1024))
    monkeypatch.setattr(plan, "TURNS", 1)
    monkeypatch.setattr(cublas, "library", lambda: (_ for _ in ()).throw(EnvironmentProblem("no cuBLAS here")))


def measured(name, ranks=1, trace=None, **options):
    """A suite's result on rank 0, with a card of the machine a rank."""

    def body(comm, rank):
        world = World(comm)
        gpu = clock.Gpu(world)
        try:
            return registry.cuda_suites()[name](Context(world, Options(**SMALL | options), 5.0, trace=trace), gpu)
        finally:
            gpu.close()

    result = on_ranks(ranks, body)[0]
    assert result.ok, [(r.get("what"), r.get("error"), r["check"]) for s in result.sheets for r in s.records]
    assert all(record["check"] == VERDICTS[True] for sheet in result.sheets for record in sheet.records)
    draw(result.tables)
    return result


def draw(tables):
    """Every picture there is of them."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    for table in tables:
        for _, picture in plots.pictures().get(table.name, []):
            figure = picture(table)
            assert all(axes.lines for axes in figure.axes)
            pyplot.close(figure)


def test_put():
    result = measured("put")
    records = result.sheets[0].records
    assert [(r["row_bytes"], r["way"]) for r in records] == [(n, way) for n in (512, 1024) for way in put.WAYS]
    assert all(r["share"] == 1 for r in records)  # of a clock that counts events


def test_a_put_that_loses_rows_is_refused(monkeypatch):
    monkeypatch.setattr(put.Puts, "copy", lambda self, halves: None)
    real = put.Puts.put

    def lossy(self, halves):
        self.grid, grid = self.grid - 1 or 1, self.grid
        real(self, halves)
        self.grid = grid

    monkeypatch.setattr(put.Puts, "put", lossy)
    monkeypatch.setattr(put, "LIMIT_NS", 1000)
    with pytest.raises(AssertionError):
        measured("put")


def test_signal():
    records = measured("signal").sheets[0].records
    assert [r["row_bytes"] for r in records] == [16, 512]
    assert records[0]["median_us"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("dtype", KINDS)
def test_gemm_and_cublas(dtype, monkeypatch):
    monkeypatch.setattr(cublas, "Cublas", FakeCublas)
    records = measured("gemm", dtype=dtype).sheets[0].records
    assert [r["rows"] for r in records] == [3, 20]
    assert all(r["share"] == 1 and r["blas_error"] < 0.03 for r in records)


def test_gemm_without_cublas():
    (sheet,) = measured("gemm").sheets
    assert "share" not in sheet.records[0]
    assert sheet.notes == ["no cuBLAS here"]


@pytest.mark.parametrize(("dtype", "preset"), [("float32", "gpt-oss-20b"), ("bfloat16", "mixtral-8x7b"),
                                               ("float16", "switch-base-128"), ("tf32", "mixtral-8x7b")])  # fmt: skip
def test_layer_and_chain(dtype, preset, monkeypatch):
    """Both, with biases and without, gated and not: against the oracle, which knows neither."""
    monkeypatch.setattr(cublas, "Cublas", FakeCublas)
    records = measured("layer", dtype=dtype, preset=preset).sheets[0].records
    assert [(r["tokens"], r["what"]) for r in records] == [
        (n, what) for n in (6, 20) for what in (layer.CALLED, layer.GRAPH, layer.CHAIN)
    ]
    assert {r["speedup"] for r in records if r["what"] == layer.GRAPH} == {1.0}


def test_layer_without_cublas():
    """What launching costs is there all the same."""
    sheet, launched = measured("layer", tokens=(6,)).sheets
    assert {r["what"] for r in sheet.records} == {layer.CALLED, layer.GRAPH}
    assert sheet.notes == ["no cuBLAS here"]
    assert [r["what"] for r in launched.records] == [launch.CALL, launch.CALL_GRAPH, launch.EMPTY, launch.EMPTY_GRAPH]
    assert all(0 < r["queued_us"] < r["done_us"] for r in launched.records)


@pytest.fixture
def trace(tmp_path, monkeypatch):
    """Two sequences, two layers, choices that were not taken; few steps of it."""
    monkeypatch.setattr(on_cpus, "MOST_STEPS", steps := {"prefill": 2, "decode": 3})
    monkeypatch.setattr(replay, "MOST_STEPS", steps)
    ids = np.argsort(np.random.default_rng(0).random((14, 2, 3)), axis=2)[:, :, :2].astype(np.int16)
    ids[1, 0, 1] = ids[3, 1, :] = -1
    np.savez(tmp_path / "trace.npz", expert_ids=ids, seq_lens=[12, 2])
    return routing.load(str(tmp_path / "trace.npz"))


def test_layer_routed_outside(trace, monkeypatch):
    """The chain takes the same routing, choices that were not taken too."""
    monkeypatch.setattr(cublas, "Cublas", FakeCublas)
    records = measured("layer", tokens=(6,), trace=trace, routing=trace.path).sheets[0].records
    assert [r["what"] for r in records] == [layer.CALLED, layer.GRAPH, layer.CHAIN]


def test_replay(trace, monkeypatch):
    monkeypatch.setattr(cublas, "Cublas", FakeCublas)
    result = measured("replay", tokens=(6,), trace=trace, iters=1)
    records = result.sheets[0].records
    assert [(r["phase"], r["steps"], r["what"]) for r in records] == [
        (phase, steps, what) for phase, steps in (("prefill", 2), ("decode", 3)) for what in (layer.GRAPH, layer.CHAIN)
    ]
    assert [table.variables["tokens"].values.tolist() for table in result.tables] == [[6, 6], [2, 1, 1]]


def test_replay_on_ranks(trace):
    """One rank has no sequence left: it serves the other's tokens."""
    result = measured("replay", ranks=2, tokens=(3,), trace=trace, iters=1)
    assert {r["what"] for r in result.sheets[0].records} == {layer.GRAPH}
    assert result.tables[1].variables["tokens"].values.tolist() == [2, 1, 1]


def test_idle_on_ranks():
    """Blocks count what they wait, and a rank that comes late is idle meanwhile."""
    records = measured("idle", ranks=2, tokens=(4,), iters=1).sheets[0].records
    assert [r["pattern"] for r in records] == ["uniform", "zipf", "one", "late rank"]
    assert all(r["blocks"] == 2 and r["idle"] > 0 for r in records)
    assert records[2]["busiest_over_mean"] == 2


def test_exchange():
    (sheet,) = measured("exchange", tokens=(6,), iters=1).sheets
    assert [r["pattern"] for r in sheet.records] == ["uniform", "zipf"]
    assert all(r["mb"] == 2 * 6 * 128 / 1e6 and r["share"] == 1 and "mpi_us" not in r for r in sheet.records)
    assert "in place" in sheet.notes[-1]


def test_exchange_on_ranks():
    (sheet,) = measured("exchange", ranks=2, tokens=(6,), routing="uniform", preset="gpt-oss-20b", iters=1).sheets
    (record,) = sheet.records
    assert record["share"] == record["speedup"] == 1
    assert record["mb"] < 2 * 6 * 128 / 1e6  # a rank's own rows stay


@pytest.mark.parametrize("what", [exchange.COPY, exchange.STAGED])
def test_bytes_that_do_not_move_are_seen(what):
    def lossy(moves):
        moves.staged()
        moves.gpu.card.clear(moves.landed, 8)

    def body(comm, rank):
        gpu = clock.Gpu(World(comm))
        moves = exchange.Moves(gpu, np.array([[0, 3], [2, 0]]), 64)
        right = moves.right(what)
        if rank == 1:
            moves.calls[what] = {exchange.COPY: lambda: None, exchange.STAGED: partial(lossy, moves)}[what]
        wrong = moves.right(what)
        moves.close()
        gpu.close()
        return right, wrong

    assert on_ranks(2, body) == [(True, False)] * 2


def test_progress():
    (sheet,) = measured("progress", tokens=(6,), iters=1).sheets
    (record,) = sheet.records
    assert record["slowdown"] == 0
    assert record["host_alone_us"] > 0
    assert "the proxy takes was not measured" in sheet.notes[-1]


def test_plan_on_ranks():
    result = measured("plan", ranks=2, tokens=(4,), iters=1)
    records = result.sheets[0].records
    assert records[0]["plan"].startswith("planned")
    assert {r["groups"] for r in records} == {"0 1", "0+1"}
    assert records[0]["speedup"] == 1
    assert result.tables[0].variables["alpha"].values[0, 1] == pytest.approx(1e-6)  # a clock that counts events


def test_an_output_that_is_not_written_is_an_error():
    """What all of these suites check with."""

    def body(comm, rank):
        world = World()
        gpu = clock.Gpu(world)
        ctx = Context(world, Options(**SMALL), 5.0)
        work = Workload(world, ctx.shape().cfg, 0)
        moe = work.layer("fused", None, backend="cuda")
        played = calls.Played(gpu, work, moe, calls.routed_call(ctx, work, 6))
        found = played.error(), played.error(lambda: None)
        moe.close()
        gpu.close()
        return found

    ((right, wrong),) = on_ranks(1, body)
    assert right < 1e-5
    assert wrong == 1


def test_a_whole_run(tmp_path, monkeypatch, capsys):
    """From the command line to the file: attributes say which card, tables hold raw times."""
    monkeypatch.setattr("aristos.bench.world.connect", lambda *a, **k: World())
    out = tmp_path / "r.h5"
    words = ["put", "signal", "--backend", "cuda", "--iters", "2", "--out", str(out)]
    assert on_ranks(1, lambda comm, rank: main.main(words)) == [0]
    assert "put on PTX machine: 2 blocks" in capsys.readouterr().out
    (run,) = results.load(out).runs
    assert (run.attributes["card"], run.attributes["card_arch"]) == ("PTX machine", "sm_90")
    assert {table.name for table in run.tables} == {"put_cuda", "signal_cuda"}


@pytest.mark.parametrize(("words", "why"), [
    (["layer", "--schedule", "bulk"], "--schedule bulk is for --backend cpu: cards run the fused schedule"),
    (["layer", "--threads", "2"], "--threads is for --backend cpu"),
    (["put", "--timeline", "t.json"], "--timeline is for --backend cpu"),
    (["layer", "--ranks-per-node", "1"], "--ranks-per-node is for --backend cpu: ranks of pretended nodes would take"),
])  # fmt: skip
def test_refusals(words, why):
    with pytest.raises(UsageError, match=why):
        parse([*words, "--backend", "cuda"])
    assert main.main([*words, "--backend", "cuda"]) == 2


def test_what_runs_where():
    """One card is enough for all but groups of ranks; a trace brings its suite along."""
    asked = parse(["--backend", "cuda"])
    assert [s.name for s in main.chosen(asked, 1)] == ["put", "signal", "exchange", "gemm", "layer", "idle"]
    traced = Options(backend="cuda", routing="t.npz")
    assert [s.name for s in main.chosen(traced, 1)][-1] == "replay"
    assert set(registry.cuda_suites()) == set(registry.suites())
    with pytest.raises(UsageError, match="suite plan needs at least 2 ranks, got 1"):
        main.chosen(parse(["plan", "--backend", "cuda"]), 1)


def test_without_the_compiler():
    """What is said about cards needs no compiler; a run on one says what is missing."""
    code = (
        "import sys; sys.modules['numba_cuda'] = None; from aristos.bench import main;"
        "assert main.main(['--help']) == 0; sys.exit(main.main(['put', '--backend', 'cuda', '--out', 'none']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 3
    assert "cuda: a card a rank, every suite, each as far as it has a meaning there" in " ".join(done.stdout.split())
    assert "GPU" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_card(capsys):
    from aristos.substrate.cuda.device import count

    if count():
        pytest.skip("there is a card")
    assert main.main(["signal", "--backend", "cuda", "--out", "none"]) == 3
    assert "GPU" in capsys.readouterr().err


def test_cublas_is_told_rows_as_columns(monkeypatch):
    """C^T = B A^T: operations, sizes and leading dimensions in the library's order; a refusal is an error."""
    told = []

    class Library:
        def __getattr__(self, name):
            def function(*arguments):
                told.append((name, [getattr(a, "value", a) for a in arguments]))
                return 15 if name == "cublasGemmEx" and len(told) > 4 else 0

            return function

    monkeypatch.setattr(cublas, "library", Library)

    class G:
        stream = 7

        class card:
            @staticmethod
            def current():
                return contextlib.nullcontext()

        @staticmethod
        def allocate(n):
            return 4096

    blas = cublas.Cublas(G)
    blas.product("bf16", 3, 5, 7, 100, 8, 200, 16, 300, 24)
    name, (_, op_a, op_b, m, n, k, _, a, a_type, lda, b, b_type, ldb, _, c, c_type, ldc, compute, algo) = told[-1]
    assert (name, op_a, op_b, m, n, k) == ("cublasGemmEx", 1, 0, 5, 3, 7)
    assert (a, lda, b, ldb, c, ldc) == (200, 16, 100, 8, 300, 24)
    assert {a_type, b_type, c_type} == {14}
    assert (compute, algo) == (68, -1)
    with pytest.raises(EnvironmentProblem, match="cublasGemmEx failed with cublasStatus_t 15"):
        blas.product("f32", 1, 1, 1, 0, 1, 0, 1, 0, 1)
    assert ctypes.sizeof(ctypes.c_int) == 4
