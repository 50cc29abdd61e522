"""The files beside the report: a results file with figures, outcomes and samples, and at most six pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .figures import figures
from .parts import Ran
from .samples import Samples

PICTURES = 6  # with the report and the results file there are at most 8 files
MOST_BYTES = 16 << 20  # a larger picture is removed
WANTED = ("gpu_samples", "layer_cuda", "gemm_cuda", "put_cuda", "signal_cuda", "idle_cuda", "exchange_cuda")


def save(out: Path, facts: dict[str, Any], ran: list[Ran], samples: Samples | None) -> None:
    """Append the figures, the outcomes of the parts and the samples to the results file. Raises ResultsError."""
    from aristos import results

    goals = figures(facts["gpu_arch"])
    found = [figure.reached(ran) for figure in goals]
    made = results.Table("gpu_report").dim("figure", [figure.what for figure in goals])
    made.dim("part", [each.part.name for each in ran])
    made.add("asked", "figure", [figure.goal for figure in goals])
    made.add("reached", "figure", [float("nan") if value is None else value for value in found])
    made.add("outcome", "part", [each.outcome for each in ran])
    made.add("seconds", "part", [each.seconds for each in ran], "s")
    tables = [made] + ([_samples(samples)] if samples is not None and samples.rows else [])
    try:
        results.append(out, results.Run(attributes={"command": "python bench/gpu_report.py", **facts}, tables=tables))
    finally:
        out.with_name(f"{out.name}.lock").unlink(missing_ok=True)  # nobody else writes, and it need not be sent


def _samples(samples: Samples) -> Any:
    from aristos import results

    rows = list(samples.rows)
    made = results.Table("gpu_samples").dim("second", np.array([row["seconds"] for row in rows]), "s")
    for name, unit in (("sm_clock_mhz", "MHz"), ("power_w", "W"), ("celsius", "C")):
        if any(name in row for row in rows):
            made.add(name, "second", np.array([float(row.get(name, np.nan)) for row in rows]), unit)
    return made


def draw(out: Path, stem: Path) -> str:
    """Draw the tables of the results file that say most, as STEM-TABLE.png. Returns what was not drawn, and why."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        from aristos import results
        from aristos.bench import plots
        from aristos.bench.plots import any_table

        tables = {table.name: table for run in results.load(str(out)).runs for table in run.tables}
    except Exception as why:
        return f"no pictures: {why}"
    drawn, missing = 0, []
    for name in WANTED:
        for title, picture in plots.pictures().get(name, [(name, any_table.any_table)]) if name in tables else []:
            if drawn == PICTURES:
                break
            path = stem.with_name(f"{stem.name}-{title}.png")
            try:
                figure = picture(tables[name])
                figure.savefig(path, dpi=110)
                pyplot.close(figure)
                drawn += 1
            except Exception as why:
                missing.append(f"{title} ({why})")
            if path.exists() and path.stat().st_size > MOST_BYTES:
                path.unlink()
    return f"no picture of {', '.join(missing)}" if missing else ""
