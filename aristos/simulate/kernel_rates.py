"""Rates of the expert kernel from a results file: what suite `gemm` measured on the machine that is simulated."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError
from ..results import Run, Table, load
from .machine import Kernel

SUITE, OURS = "gemm", "aristos"


def from_results(path: Path, dtype: str) -> tuple[Kernel, str]:
    """The rates of the newest table of suite `gemm` with this dtype, and where they come from.

    This is a run's name, its CPU, and the shape of the expert. Raises InputError, ResultsError, OSError.
    """
    tables = [(run, table) for run in load(path).runs for table in run.tables if table.suite == SUITE]
    fitting = [(run, table) for run, table in tables if table.attributes.get("dtype") == dtype]
    if not fitting:
        known = sorted({str(table.attributes.get("dtype")) for _, table in tables})
        has = f"has it for {', '.join(known)}" if known else "has no table of it"
        raise InputError(
            f"{path} must have suite gemm for {dtype}, but {has}:"
            f" run `python -m aristos.bench gemm --dtype {dtype} --out {path}` on that machine"
        )
    return _measured(path, *fitting[-1])


def _measured(path: Path, run: Run, table: Table) -> tuple[Kernel, str]:
    """A table's rates, from the median time of each rank's runs and the mean over ranks; and their source."""
    try:
        times, rows = table.variables["call_time"], table.dims["rows"].values.astype(int)
        ours = times.values[table.dims["kernel"].values.tolist().index(OURS)]
        seconds = np.array([[np.median(each[~np.isnan(each)]) for each in ranks] for ranks in ours]).mean(axis=-1)
        operations = float(table.attributes["flops_per_row"]) * rows
    except (KeyError, ValueError, TypeError, IndexError) as why:
        raise InputError(f"{path}: table {SUITE} of {run.name} is not as the suite writes it ({why!r})") from why
    if not (seconds.size and np.isfinite(seconds).all() and (seconds > 0).all()):
        raise InputError(f"{path}: table {SUITE} of {run.name} must have positive times, got {seconds.tolist()} s")
    rates = 1e-9 * operations / seconds
    facts = f"{run.attributes.get('cpu', 'unknown CPU')}, {table.attributes.get('isa')}"
    shape = table.attributes.get("shape")
    kernel = Kernel(call=0.0, rates=dict(zip(rows.tolist(), rates.tolist())))
    return kernel, f"suite gemm of {path}, run {run.name} ({facts}, {shape})"
