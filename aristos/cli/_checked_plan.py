"""`aristos plan --check simulate`: a plan's groups are simulated, and each term of Equation 1 is compared."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from ..bench.context import Column, Sheet, counted
from ..bench.tables import Reporter
from ._simulated import Progress

if TYPE_CHECKING:
    from ..planner import Plan
    from ..simulate.planned import Checked

COLUMNS = (
    Column("group", "group", "d"),
    Column("devices", "devices", "d"),
    *(
        Column(f"{key}{end}", f"{name}\n{title}", form)
        for name, key in (("compute", "pi"), ("network", "comm"), ("stage", "stage"))
        for end, title, form in (("", "us", ".4g"), ("_simulated", "simulated", ".4g"), ("_error", "error", "+.0%"))
    ),
    Column("steps", "steps\nsimulated", ".4g"),
)
NOTES = (
    "one forward pass of a layer with uniform routing; compute and network as Equation 1 predicts them, and simulated",
    "simulated network: how long the busiest device waits, beyond what overlap hides. Steps and copies of rows take"
    " the time of CPU cores; Equation 1 has no term for them",
)


def check_plan(plan: Plan, asked: argparse.Namespace) -> list[Checked]:
    """A check of each kind of group. Raises InputError for a layer that cannot be simulated."""
    from .. import models
    from ..simulate import planned

    cfg = models.reduced(asked.model, 1, max_tokens=asked.tokens, dtype="bfloat16", shared_ffn=0, shared_sigmoid=False)
    kinds, found = planned.distinct(plan), []
    with Progress(len(kinds), "aristos plan") as progress:
        for alike in kinds:
            progress.next()
            report = partial(_report, progress, alike[0])
            found.append(planned.check(plan, alike, cfg, asked.tokens, asked.seed, report))
    return found


def _report(progress: Progress, group: int, now: int) -> None:
    progress.report(f"group {group}, {now * 1e-6:.3f} ms of virtual time", 0.0)


def show(plan: Plan, checked: list[Checked]) -> None:
    """Print the table of terms."""
    records, notes = [], list(NOTES)
    for each in checked:
        facts = each.to_json()
        record = {"group": each.group, "devices": each.devices, "steps": each.steps}
        for key in ("pi", "comm", "stage"):
            record[key], record[f"{key}_simulated"] = facts["predicted"][f"{key}_us"], facts["simulated"][f"{key}_us"]
            record[f"{key}_error"] = facts["error"][f"{key}_us"]
        records.append(record)
        if len(each.alike) > 1:
            notes.append(f"group {each.group} stands for {len(each.alike)} groups with equal devices and links")
    if missing := len(plan.groups) - sum(len(each.alike) for each in checked):
        notes.append(f"not simulated, because too large: {counted(missing, 'group')}")
    Reporter(quiet=False).show(Sheet("Equation 1, checked by a simulation", COLUMNS, records, notes))
