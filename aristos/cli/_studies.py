"""Several simulations of one command: `--what-if` changes one option at a time, `--scaling` the number of nodes."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from ..bench.context import Column, Sheet, counted
from ..results import Table
from ._simulated import Point

CHANGED = (
    "schedule", "levels", "moves", "tile", "threads", "ranks-per-node", "machine", "routing", "layer", "dtype",
    "tokens", "model",
)  # fmt: skip
BASE = "base"

COLUMNS = (
    Column("change", "change"),
    Column("nodes", "nodes", "d"),
    Column("ranks", "ranks", "d"),
    Column("tokens", "tokens\n/rank", "d"),
    Column("call_ms", "call\nms", ".3f"),
    Column("over_base", "against\nbase", "+.1%"),
    Column("efficiency", "efficiency", ".0%"),
    Column("tokens_per_s", "tokens\n/s", ",.0f"),
    Column("expert", "expert", ".0%"),
    Column("idle", "idle", ".0%"),
    Column("wire", "wire", ".0%"),
    Column("rows_over_mean", "busiest\n/ mean", ".2f"),
    Column("link", "busiest\nlink", ".0%"),
    Column("puts", "puts\n/rank", ",.0f"),
    Column("protocol_kib", "protocol\nKiB /rank", ",.1f"),
    Column("decisions", "decisions\n/rank", ",.0f"),
    Column("binds", "binds"),
)
ONLY = {"scaling": ("efficiency", "wire", "puts", "protocol_kib", "decisions"), "what-if": ("over_base",)}
# variable of the results file -> key of a record, factor, unit, meaning
VARIABLES = {
    "call_time": ("call_ms", 1e-3, "s", "a simulated call, the last one"),
    "tokens": ("tokens", 1, "1", "tokens of a rank in a call"),
    "tokens_per_s": ("tokens_per_s", 1, "1/s", "tokens of all ranks over the call's time"),
    "expert": ("expert", 1, "1", "share of the ranks' time in experts"),
    "idle": ("idle", 1, "1", "share of the ranks' time without work"),
    "wire": ("wire", 1, "1", "share of the ranks' time at the wire: puts, flushes, words that have arrived"),
    "rows_over_mean": ("rows_over_mean", 1, "1", "rows of the busiest rank's experts over the mean"),
    "link": ("link", 1, "1", "share of its capacity that the busiest link used"),
    "puts": ("puts", 1, "1", "puts between nodes of a rank in a call"),
    "decisions": ("decisions", 1, "1", "decisions of a rank in a call, idle polls included"),
    "protocol": ("protocol_kib", 1024, "B", "bytes between nodes of a rank in a call that are no rows"),
}


def parsed(texts: list[str], base: argparse.Namespace, check: Callable[[list[str], Any], Any]) -> list[Point]:
    """A point for each value of `--what-if NAME=VALUE,..` that differs from the base.

    check(words, namespace): parses options, and ends the command if they are wrong. Raises ValueError.
    """
    found = []
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not values or name not in CHANGED:
            raise ValueError(f"must be NAME=VALUE,.. with a name of {', '.join(CHANGED)}, got {text!r}")
        for value in values.split(","):
            asked = check([f"--{name}={value}"], copy.copy(base))
            key = name.replace("-", "_")
            if getattr(asked, key) != getattr(base, key):
                found.append(Point(asked, f"{name}={value}"))
    return found


def points(asked: argparse.Namespace, changed: list[Point]) -> list[Point]:
    """The simulations of a command: the base and each change, with each number of nodes."""
    found = []
    for point in [Point(asked), *changed]:
        for nodes in point.asked.nodes:
            each = copy.copy(point.asked)
            each.nodes = nodes
            if asked.scaling == "strong":
                each.tokens = max(1, point.asked.tokens * point.asked.nodes[0] // nodes)
            found.append(Point(each, point.change))
    return found


def name(asked: argparse.Namespace) -> str:
    """The name of the command's table of points; empty if it has one point."""
    return "scaling" if asked.scaling else "what-if" if asked.what_if else ""


def records(done: list[Point]) -> list[dict[str, Any]]:
    """A record for each point that ended. The first record with a number of nodes is the base for that number."""
    found: list[dict[str, Any]] = []
    first: dict[str, dict[str, Any]] = {}  # change -> the record of its fewest nodes
    for point in done:
        assert point.found is not None
        assert point.machine is not None
        facts, outcome, costs = point.facts(), point.found, point.machine.costs
        record = {
            "change": point.change or BASE,
            "nodes": point.asked.nodes,
            "ranks": point.ranks,
            "tokens": point.asked.tokens,
            "call_ms": facts["call_ms"][-1],
            "tokens_per_s": facts["tokens_per_s"],
            "expert": facts["shares"]["expert"],
            "idle": facts["shares"]["idle"],
            "wire": facts["shares"]["wire"],
            "rows_over_mean": facts["rows_of_busiest_over_mean"],
            "link": facts["busiest_link_share"],
            "puts": facts["puts_a_call"] / point.ranks,
            "decisions": facts["decisions_a_call"] / point.ranks,
            "decision_us": 1e-3 * (costs.decide + costs.peer * point.ranks),
            "protocol_kib": outcome.protocol_bytes / point.ranks / 1024,
            "binds": facts["binds"],
        }
        start = first.setdefault(point.change, record)
        record["efficiency"] = record["tokens_per_s"] / record["ranks"] / (start["tokens_per_s"] / start["ranks"])
        base = next((each for each in found if each["nodes"] == record["nodes"]), record)
        record["over_base"] = record["call_ms"] / base["call_ms"] - 1
        found.append(record)
    return found


def sheet(asked: argparse.Namespace, done: list[Point]) -> Sheet:
    """The table of a study, for a reader."""
    kind, many = name(asked), len({point.change for point in done}) > 1
    left_out = {key for other, keys in ONLY.items() if other != kind for key in keys}
    left_out -= {"over_base"} if many else set()
    title = f"{asked.scaling} scaling" if asked.scaling else "what if"
    columns = tuple(each for each in COLUMNS if each.keys not in left_out)
    notes = ["efficiency: tokens/s of a rank over that of the fewest nodes"] if asked.scaling else []
    notes += dict.fromkeys(f"on {counted(point.ranks, 'rank')} {point.note}" for point in done if point.note)
    return Sheet(f"{title}: {done[0].shape}", columns, records(done), notes)


def table(asked: argparse.Namespace, done: list[Point]) -> Table:
    """The table of a study for a results file, over changes and nodes. NaN: a point that did not end."""
    rows = records(done)
    changes, nodes = (list(dict.fromkeys(row[key] for row in rows)) for key in ("change", "nodes"))
    found = Table("simulate", name(asked), attributes={"shape": done[0].shape, "scaling": asked.scaling or "none"})
    found.dim("change", changes).dim("nodes", nodes, "1", "nodes")
    for variable, (key, factor, unit, meaning) in VARIABLES.items():
        values = np.full((len(changes), len(nodes)), np.nan)
        for row in rows:
            values[changes.index(row["change"]), nodes.index(row["nodes"])] = row[key] * factor
        found.add(variable, ("change", "nodes"), values, unit, meaning)
    return found
