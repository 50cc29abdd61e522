"""The rates of the expert kernel in a results file are those that suite `gemm` measured."""

from __future__ import annotations

import json

import numpy as np
import pytest

from aristos.cli import simulate
from aristos.errors import InputError
from aristos.results import Run, Table, append
from aristos.simulate import kernel_rates

ROWS, FLOPS = (1, 8, 64), 2_000_000


def written(path, us, dtype="bfloat16", second=0):
    """Append a run of suite gemm. us: of a run of each number of rows, on rank 0; rank 1 takes twice as long.

    second: when the run began.
    """
    seconds = 1e-6 * np.array([[us, 2 * np.array(us)], [np.ones(3), np.ones(3)]])  # [kernel, rank, rows]
    calls = np.stack([seconds, seconds, 50 * seconds], axis=-1).transpose(0, 2, 1, 3)  # the third was disturbed
    table = Table("gemm", attributes={"dtype": dtype, "isa": "amx", "flops_per_row": FLOPS, "shape": "an expert"})
    table.dim("kernel", ["aristos", "BLAS"]).dim("rows", ROWS).dim("rank", [0, 1]).dim("iteration", [0, 1, 2])
    table.add("call_time", ("kernel", "rows", "rank", "iteration"), calls, "s")
    began = f"2026-01-31T12:00:{second:02}Z"
    append(path, Run(attributes={"cpu": "a processor", "started_utc": began}, tables=[table]))


def test_rates_are_those_of_the_newest_run_with_the_dtype(tmp_path):
    path = tmp_path / "results.h5"
    written(path, (1.0, 1.0, 1.0))
    written(path, (100.0, 120.0, 400.0), second=1)
    written(path, (7.0, 7.0, 7.0), dtype="float32", second=2)
    kernel, source = kernel_rates.from_results(path, "bfloat16")
    expected = {rows: 1e-9 * FLOPS * rows / (1.5e-6 * us) for rows, us in zip(ROWS, (100, 120, 400))}
    assert kernel.rates == pytest.approx(expected)
    assert "a processor, amx, an expert" in source


def test_a_file_without_the_dtype_is_refused(tmp_path):
    path = tmp_path / "results.h5"
    written(path, (1.0, 1.0, 1.0), dtype="float32")
    with pytest.raises(InputError, match="must have suite gemm for float16, but has it for float32: run `python -m"):
        kernel_rates.from_results(path, "float16")
    append(path.with_name("empty.h5"), Run(tables=[Table("idle")]))
    with pytest.raises(InputError, match="but has no table of it"):
        kernel_rates.from_results(path.with_name("empty.h5"), "float16")


@pytest.mark.parametrize("us", [(0.0, 1.0, 1.0), (-1.0, 1.0, 1.0), (np.inf, 1.0, 1.0)])
def test_impossible_times_are_refused(tmp_path, us):
    path = tmp_path / "results.h5"
    written(path, us)
    with pytest.raises(InputError, match="must have positive times"):
        kernel_rates.from_results(path, "bfloat16")


def test_a_damaged_table_is_refused(tmp_path):
    path = tmp_path / "results.h5"
    table = Table("gemm", attributes={"dtype": "bfloat16"}).dim("rows", ROWS)
    append(path, Run(tables=[table]))
    with pytest.raises(InputError, match="is not as the suite writes it"):
        kernel_rates.from_results(path, "bfloat16")


@pytest.mark.slow
def test_the_command_takes_rates_from_a_file(tmp_path, capsys):
    path = tmp_path / "results.h5"
    times = []
    for factor in (1, 3):
        written(path, tuple(factor * us for us in (100.0, 120.0, 400.0)), second=factor)
        argv = ["--model", "olmoe-1b-7b", "--tokens", "16", "--calls", "1", "--kernel", str(path), "--json"]
        assert simulate.main(argv) == 0
        times.append(json.loads(capsys.readouterr().out)["call_ms"][-1])
    assert times[1] / times[0] == pytest.approx(3, rel=0.1)
