"""Tables and files name the kernels that ran. A suite fails if they have another element type than asked for."""

from __future__ import annotations

import numpy as np
import pytest

from aristos import results
from aristos.bench import bounds, main, workload, world
from aristos.bench.context import Result, Sheet
from aristos.bench.ran import Ran
from aristos.bench.suites import gemm
from aristos.primitives import isa

pytestmark = pytest.mark.parallel
TINY = ["--hidden", "32", "--ffn", "32", "--experts", "2", "--top-k", "1", "--tokens", "4", "--iters", "1"]


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Run one rank. Bounds take no time, rows are few, and no layers are compiled before the suites."""
    monkeypatch.setattr(workload, "compile_all", lambda _: None)
    monkeypatch.setattr(world, "connect", lambda *_, **__: world.World())
    for name in ("peak", "micro_kernel", "read_bandwidth"):
        monkeypatch.setattr(bounds, name, lambda *_: 1.0)
    monkeypatch.setattr(gemm, "ROWS", (1, 3))


def run(tmp_path, capsys, *words):
    """Run suite `gemm`: (exit code, printed tables, the table in the file)."""
    file = tmp_path / "r.h5"
    code = main.main(["gemm", *TINY, *words, "--out", str(file)])
    (kept,) = results.load(file).runs
    return code, capsys.readouterr().out, kept.tables[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_gemm_measures_the_element_type_that_its_heading_names(tmp_path, capsys, dtype):
    code, out, table = run(tmp_path, capsys, "--dtype", dtype)
    assert code == 0
    assert f"in turn, {dtype}, {isa.chosen()}\n" in out
    assert (table.attributes["dtype"], table.attributes["precision"]) == (dtype, "highest")
    assert table.attributes["isa"] == isa.chosen()
    nbytes = 3 * 32 * 32 * (4 if dtype == "float32" else 2)
    flops = 2 * 3 * 32 * 32
    row = nbytes + 2 * 32 * (4 if dtype == "float32" else 2)
    assert table.variables["intensity"].values[0] == pytest.approx(flops / row)
    error = table.variables["error"].values[0].max()
    assert error < 1e-5 if dtype == "float32" else error > 1e-5


def test_a_suite_that_measures_another_element_type_fails_and_says_which(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gemm.Experts, "_typed", lambda _, weights: weights)
    monkeypatch.setattr(gemm.Experts, "rows", lambda self, m: self.work.tokens(m, m))
    code, out, table = run(tmp_path, capsys, "--dtype", "bfloat16")
    assert code == 1
    assert f"in turn, float32, {isa.chosen()}\n" in out
    assert "FAILED: bfloat16 highest was asked for, but float32 highest ran" in out
    assert table.attributes["dtype"] == "float32"


def test_a_dtype_of_gpus_is_refused_on_cpus(capsys):
    assert main.main(["gemm", *TINY, "--dtype", "tf32", "--out", "none"]) == 2
    assert "measures float32, bfloat16, float16, got --dtype tf32" in capsys.readouterr().err


def test_rows_and_weights_of_two_types_are_both_named():
    from aristos.bench.ran import of_kernels
    from aristos.config import MoEConfig
    from aristos.kernels.cpu.elements import ELEMENTS

    cfg = MoEConfig(hidden=8, ffn=8, experts=1, top_k=1, max_tokens=1, dtype="bfloat16")
    mixed = of_kernels(ELEMENTS["bfloat16"], [np.zeros(1, np.float32)], "avx2", cfg)
    assert str(mixed) == "bfloat16 and float32, avx2"
    assert mixed.wrong


def test_a_finer_precision_than_asked_for_is_right():
    """With precision="high" AMX may compute less exactly. Other instruction sets compute as for "highest"."""
    assert not Ran("float32", "highest", "avx2", ("float32", "high")).wrong
    assert Ran("float32", "high", "amx", ("float32", "highest")).wrong
    assert Ran("float32", "high", "amx", ("float32", "high")).kind == "float32 high"


def test_every_table_names_its_isa_even_where_nothing_is_computed():
    result = Result(True, [Sheet("put by shm", ())], [results.Table("put")])
    result.name_kernels("avx512")
    assert result.sheets[0].title == "put by shm, avx512"
    assert result.tables[0].attributes == {"isa": "avx512"}
    two = [Ran(dtype, "highest", "amx", (dtype, "highest")) for dtype in ("float32", "bfloat16")]
    both = Result(True, [Sheet("overlap", ())], [results.Table("overlap")], two)
    both.name_kernels("avx512")
    assert both.sheets[0].title == "overlap, float32, bfloat16, amx"
    assert both.tables[0].attributes == {"dtype": "float32, bfloat16", "precision": "highest", "isa": "amx"}
