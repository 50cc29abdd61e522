"""The part of a page about one run: what ran where, and its tables with plots."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from ..bench import samples
from ..bench.context import counted
from ..results import Run, Table, Variable
from . import figures
from .figures import Plot
from .markup import Markup, joined, table, tag, text

MOST_ROWS = 300  # rows of a table
HEADINGS = {  # heading -> the facts below it
    "Machine": ("gpu", "cpu", "machine", "isa", "ranks", "nodes", "transports", "cores of ranks"),
    "MPI": ("mpi_library", "launcher"),
    "What ran": ("command", "started_utc", "shape", "shape_source", "seed", "seconds", "commit", "versions"),
}
NAMES = {
    "gpu": "GPU",
    "cpu": "CPU",
    "machine": "system",
    "isa": "ISA of the kernels",
    "mpi_library": "library",
    "shape_source": "source",
    "started_utc": "started",
    "seconds": "seconds of suites",
}
KINDS = {"shape": "shape", "dtype": "element type", "precision": "precision", "isa": "ISA"}  # attributes of a table


def part(run: Run, where: str, plot: Plot, place: str) -> Markup:
    """The section of a run. where: the file. place: the `id` of the section."""
    facts = readable(run.attributes)
    lists = []
    for heading, names in HEADINGS.items():
        if known := [(NAMES.get(name, name.replace("_", " ")), facts[name]) for name in names if facts.get(name)]:
            items = [joined(tag("dt", name), tag("dd", value)) for name, value in known]
            lists.append(joined(tag("h3", heading), tag("dl", items)))
    every = table(
        f"Everything that the file says about run {run.name}",
        ["attribute", "value"],
        [[key, str(value)] for key, value in sorted(run.attributes.items())],
        folded=True,
    )
    return tag(
        "section",
        tag("h2", f"Run {run.name}", id=place),
        tag("p", f"From {where}."),
        [tag("p", each, class_="warning") for each in warnings(run)],
        lists,
        every,
        [_table(each, run.name, plot) for each in run.tables],
        aria_labelledby=place,
    )


def readable(attributes: dict[str, Any]) -> dict[str, str]:
    """The facts of HEADINGS as text."""
    found = {key: str(value) for key, value in attributes.items() if not isinstance(value, list | dict)}
    masks = [str(each) for each in _listed(attributes.get("cores_of_rank"))]
    found["cores of ranks"] = "; ".join(f"rank {i}: {each}" for i, each in enumerate(masks[:8]))
    found["cores of ranks"] += f"; and {len(masks) - 8} more ranks" if len(masks) > 8 else ""
    hosts = dict.fromkeys(str(each) for each in _listed(attributes.get("hosts")))
    nodes = len({str(each) for each in _listed(attributes.get("node_of_rank"))})
    found["nodes"] = f"{nodes} on {counted(len(hosts), 'host')}" if nodes and nodes != len(hosts) else str(nodes or "")
    found["versions"] = _group(attributes, "versions.", "{} {}")
    found["seconds"] = _group(attributes, "suite_seconds.", "{} {:.0f}")
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _group(attributes: dict[str, Any], prefix: str, form: str) -> str:
    """The attributes that begin with the prefix, in a line. form: the format of a name without prefix and its value."""
    known = {key.removeprefix(prefix): value for key, value in attributes.items() if key.startswith(prefix)}
    if "f}" in form:
        known = {key: value for key, value in known.items() if isinstance(value, int | float)}
    return ", ".join(form.format(key, value) for key, value in known.items())


def warnings(run: Run) -> Iterator[str]:
    """Sentences about what makes the run's figures doubtful."""
    if run.attributes.get("finished") in (False, 0):
        yield "This run did not finish: it was interrupted, or ended by an error. The file has the suites that ended."
    if crowded := run.attributes.get("crowded"):
        yield f"The run had {crowded}."
    if marked := [each for each in run.tables if each.attributes.get("disturbed")]:
        said = "; ".join(f"{each.name}: {each.attributes['disturbed']}" for each in marked)
        yield "Other processes used the cores, or the times changed during the run."
        yield f"Disturbed tables: {said}."
        yield "Beside a rank is the share of its core that it had; beside rounds, how much the rounds' medians differ."


def _table(found: Table, run: str, plot: Plot) -> Markup:
    kinds = [f"{said} {found.attributes[key]}" for key, said in KINDS.items() if found.attributes.get(key)]
    parts = [tag("h3", f"{found.name}"), tag("p", f"{'; '.join(kinds)}.") if kinds else ""]
    shown = set()
    for name, variable in samples.timed(found).items():
        if rows := list(samples.rows(found, variable)):
            shown.add(name)
            about = variable.long_name or name
            parts += [
                plot(figures.times(found, name, rows), f"{found.name}, {name}: {about}"),
                times(found, name, rows),
            ]
    if others := list(_others(found, shown)):
        parts.append(tag("details", tag("summary", f"Other values of {found.name}"), others))
    return tag("section", parts, aria_label=f"{found.name} of run {run}")


def times(found: Table, name: str, rows: list[samples.Row]) -> Markup:
    """The table of a variable's rows: coordinates, median, percentiles, calls."""
    factor, unit = figures.scale(min(row.median for row in rows))
    dims = [dim for dim, _ in rows[0].key] or ["row"]
    marked = any(row.disturbed for row in rows)
    head = [*dims, *(f"{each} ({unit})" for each in ("median", "5 %", "95 %")), "calls"]
    lines, classes = [], []
    for row in rows[:MOST_ROWS]:
        low, high = (float(np.nanquantile(row.seconds, q)) for q in (0.05, 0.95))
        values = [f"{each * factor:.4g}" for each in (row.median, low, high)]
        lines.append([*([value for _, value in row.key] or ["all"]), *values, str(row.calls)])
        lines[-1] += [row.disturbed] if marked else []
        classes.append("disturbed" if row.disturbed else "")
    caption = f"{found.name}: {name}" + (f", {said}" if (said := found.variables[name].long_name) else "")
    whole = table(caption, head + ["disturbed"] * marked, lines, range(len(dims), len(dims) + 4), classes)
    return joined(whole, _rest(len(rows)))


def _others(found: Table, shown: set[str]) -> Iterator[Markup]:
    """Tables of the other variables. Variables with the same dimensions share a table."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for name, variable in found.variables.items():
        if name not in shown and not set(variable.dims) & set(samples.SAMPLES) and variable.values.size:
            kinds.setdefault(variable.dims, []).append(name)
    for dims, names in kinds.items():
        head = [*dims, *(f"{name}{_unit(found.variables[name])}" for name in names)]
        shape = [len(found.dims[dim].values) for dim in dims]
        lines = [
            [
                *(samples.coordinate(found.dims[dim], i) for dim, i in zip(dims, place)),
                *(_value(found.variables[name], place) for name in names),
            ]
            for place in islice(np.ndindex(*shape), MOST_ROWS)
        ]
        about = "; ".join(f"{name}: {said}" for name in names if (said := found.variables[name].long_name))
        numbers = range(len(dims), len(head))
        yield joined(table(about or ", ".join(names), head, lines, numbers, folded=False), _rest(math.prod(shape)))


def _rest(count: int) -> Markup:
    more = count - MOST_ROWS
    return tag("p", f"The file has {counted(more, 'more row')} of this table.") if more > 0 else Markup()


def _unit(variable: Variable) -> str:
    return f" ({text(variable.units)})" if variable.units not in ("", "1") else ""


def _value(variable: Variable, place: tuple[int, ...]) -> str:
    value = variable.values[place]
    return f"{value:.4g}" if variable.values.dtype.kind == "f" else str(value)
