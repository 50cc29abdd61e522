"""All cases, and the table of what the machine reports for each."""

from __future__ import annotations

import time

from . import flags, launches, proxies, shared
from .run import Case, run

CASES: list[Case] = [*flags.CASES, *shared.CASES, *launches.CASES, *proxies.CASES]


def table(cases: list[Case], seeds: int) -> tuple[str, int]:
    """Run cases, each with `seeds` schedules. Returns (a table in Markdown, how many of them the machine got wrong)."""
    lines = [
        "| case | bug | reported in | repaired, reported in | first report | s |",
        "|---|---|---:|---:|---|---:|",
    ]
    missed = false = 0
    for case in cases:
        start = time.perf_counter()
        bad = [run(case, False, seed) for seed in range(seeds)]
        good = [run(case, True, seed) for seed in range(seeds)]
        taken = time.perf_counter() - start
        found, alarms = sum(one.found for one in bad), sum(one.found for one in good)
        missed, false = missed + (found == 0), false + (alarms > 0)
        first = next((one.reports[0] for one in bad if one.reports), None)
        said = f"{first.kind}{': ' + first.missing if first.missing else ''}" if first else ""
        counts = f"{found} of {seeds} | {alarms} of {seeds}"
        lines.append(f"| {case.name} | [{case.bug}]({case.link}) | {counts} | {said} | {taken:.1f} |")
    lines.append(
        f"\n{len(cases) - missed} of {len(cases)} bugs reported in at least one of {seeds} schedules; "
        f"{false} of {len(cases)} repaired kernels reported."
    )
    return "\n".join(lines), missed + false
