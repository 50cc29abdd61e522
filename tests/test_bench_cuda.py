"""`--backend cuda`: the suites as they ship, on a card that the PTX machine stands in for; its times mean nothing."""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("numba.cuda.extending", reason="numba-cuda is not installed: pip install 'aristos[simt]'")
from simt_card import on_ranks

from aristos import results
from aristos.bench import main, registry
from aristos.bench.context import VERDICTS, Context
from aristos.bench.gpu import clock, cublas, gemm, layer, put, signal
from aristos.bench.options import Options, UsageError, parse
from aristos.bench.world import World
from aristos.device_arrays import KINDS
from aristos.errors import EnvironmentProblem
from aristos.kernels.cuda.pack import narrow, widen

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
    monkeypatch.setattr(cublas, "library", lambda: (_ for _ in ()).throw(EnvironmentProblem("no cuBLAS here")))


def measured(name, **options):
    """A suite's result on one rank with a card of the machine."""

    def body(comm, rank):
        world = World()
        gpu = clock.Gpu(world)
        try:
            return registry.cuda_suites()[name](Context(world, Options(**SMALL | options), 5.0), gpu)
        finally:
            gpu.close()

    (result,) = on_ranks(1, body)
    assert result.ok, [(r.get("what"), r.get("error"), r["check"]) for s in result.sheets for r in s.records]
    assert all(record["check"] == VERDICTS[True] for sheet in result.sheets for record in sheet.records)
    return result


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
    monkeypatch.setattr(gemm, "Cublas", FakeCublas)
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
    monkeypatch.setattr(layer, "Cublas", FakeCublas)
    records = measured("layer", dtype=dtype, preset=preset).sheets[0].records
    assert [(r["tokens"], r["what"]) for r in records] == [
        (n, what) for n in (6, 20) for what in (layer.CALLED, layer.GRAPH, layer.CHAIN)
    ]
    assert {r["speedup"] for r in records if r["what"] == layer.GRAPH} == {1.0}


def test_layer_without_cublas():
    (sheet,) = measured("layer").sheets
    assert {r["what"] for r in sheet.records} == {layer.CALLED, layer.GRAPH}
    assert sheet.notes == ["no cuBLAS here"]


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
    (["exchange"], "suite exchange is for --backend cpu alone; with --backend cuda there are put, signal, gemm, layer"),
    (["layer", "--schedule", "bulk"], "--schedule bulk is for --backend cpu: cards run the fused schedule"),
    (["layer", "--threads", "2"], "--threads is for --backend cpu"),
    (["put", "--timeline", "t.json"], "--timeline is for --backend cpu"),
])  # fmt: skip
def test_refusals(words, why):
    with pytest.raises(UsageError, match=why):
        parse([*words, "--backend", "cuda"])
    assert main.main([*words, "--backend", "cuda"]) == 2


def test_without_the_compiler():
    """What is said about cards needs no compiler; a run on one says what is missing."""
    code = (
        "import sys; sys.modules['numba_cuda'] = None; from aristos.bench import main;"
        "assert main.main(['--help']) == 0; sys.exit(main.main(['put', '--backend', 'cuda', '--out', 'none']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 3
    assert "cuda: a card a rank, suites put, signal, gemm, layer" in " ".join(done.stdout.split())
    assert "GPU" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_card(capsys):
    from aristos.substrate.device import count

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
