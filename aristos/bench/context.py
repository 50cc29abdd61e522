"""The input and the output of a suite.

`Context` holds the ranks, the options, a time budget and a callback for progress. `Result` holds raw times for the
file and sheets for the reader. This module prints nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..models import DEFAULT, Shape, matching, shape
from ..results import Table
from .measure import iterations
from .options import Options
from .ran import Ran
from .routing import Trace
from .world import World

VERDICTS = {True: "ok", False: "FAILED"}
WRONG_RIVAL = "wrong rival"  # marks a rival's row whose time is not compared; such a row does not make the suite fail


def counted(n: int, noun: str) -> str:
    """`1 rank`, `2 ranks`."""
    return f"{n} {noun}" + "s" * (n != 1)


@dataclass(frozen=True)
class Column:
    """A column of a sheet.

    keys: the names of the column's values in a record, units included, with spaces between them.
    form: a format specification.
    """

    keys: str
    title: str
    form: str = ""

    def text(self, record: dict[str, Any]) -> str:
        return " ".join(self._text(record.get(key)) for key in self.keys.split())

    def words(self, record: dict[str, Any]) -> bool:
        """Whether the column has words instead of numbers."""
        return any(isinstance(record.get(key), str) for key in self.keys.split())

    def _text(self, value: Any) -> str:
        if value is None or (isinstance(value, float) and np.isnan(value)):
            return "-"
        return format(value, self.form)


@dataclass
class Sheet:
    """A table for the reader. Its records also go to JSON, unchanged."""

    title: str
    columns: tuple[Column, ...]
    records: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every record has passed its check, apart from records of wrong rivals."""
        return all(record["check"] in (VERDICTS[True], WRONG_RIVAL) for record in self.records)


@dataclass
class Result:
    """A suite's outcome. ok: whether every output passed its check.

    ran: the kernels that ran, empty if the suite computes nothing.
    """

    ok: bool
    sheets: list[Sheet] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    ran: list[Ran] = field(default_factory=list)

    def name_kernels(self, isa: str) -> None:
        """Add the names of the kernels that ran to each sheet's title and to each table's attributes.

        If other kernels ran than were asked for, the suite has failed. isa: this process's instruction set, named for
        suites that compute nothing."""
        kernels = {name: list(dict.fromkeys(getattr(each, name) for each in self.ran)) for name in ("kind", "isa")}
        named = {"isa": ", ".join(kernels["isa"]) or isa}
        text = ", ".join([*kernels["kind"], named["isa"]])
        if self.ran:
            for name in ("dtype", "precision"):
                named[name] = ", ".join(dict.fromkeys(getattr(each, name) for each in self.ran))
        for sheet in self.sheets:
            sheet.title += f", {text}"
            sheet.notes += dict.fromkeys(each.wrong for each in self.ran if each.wrong)
        for table in self.tables:
            table.attributes |= named
        self.ok &= not any(each.wrong for each in self.ran)


@dataclass
class Context:
    """One suite's input. budget: the seconds that it may take. report(text, share): shows progress, share in 0..1."""

    world: World
    options: Options
    budget: float
    report: Callable[[str, float], None] = lambda text, share: None
    trace: Trace | None = None
    started: float = field(default_factory=time.monotonic)

    def shape(self) -> Shape:
        """The layer's shape according to the options. A trace, if there is one, sets experts and top-k."""
        o = self.options
        experts, top_k, preset = o.experts, o.top_k, o.preset or DEFAULT
        if self.trace is not None:
            top_k = self.trace.top_k
            preset = o.preset or matching(self.trace.experts, top_k) or DEFAULT
            experts = experts or max(self.trace.experts, self.world.size)
        made = shape(
            preset,
            self.world.size,
            scale=1 if o.backend == "cuda" and o.scale is None else o.scale,  # published widths fit a GPU
            tokens=o.tokens,
            hidden=o.hidden,
            ffn=o.ffn,
            experts=experts,
            top_k=top_k,
            activation=o.activation,  # type: ignore[arg-type]
            dtype=o.dtype or ("bfloat16" if o.backend == "cuda" else "float32"),
            precision=o.precision,
        )
        return replace(made, cfg=replace(made.cfg, levels=self.levels))

    @property
    def levels(self) -> int:
        """The levels of the wire: those of the options, but one level if all ranks are on one node."""
        return 1 if self.world.nodes.single else self.options.levels

    def iterations(self, calls: dict[str, Any], seconds: float) -> int:
        """Warm up, then return how many iterations of all calls to time: see `measure.iterations`. Collective."""
        return iterations(self.world, calls, seconds, warmup=self.options.warmup, asked=self.options.iters)

    def left(self) -> float:
        """Seconds left of the budget; the same on every rank. Collective."""
        return float(self.world.bcast(max(0.0, self.budget - (time.monotonic() - self.started))))


CHECK = Column("check", "check")
ERROR_AND_CHECK = (Column("error", "error", ".1e"), CHECK)  # the last columns where outputs have an error
CALLS_TO_CHECK = (Column("iterations", "calls", "d"), *ERROR_AND_CHECK)  # the last columns of most suites on CPUs
TURNS_TO_CHECK = (Column("turns", "turns", "d"), *ERROR_AND_CHECK)  # the last columns of most suites on GPUs


def time_columns(unit: str, form: str, *more: str) -> tuple[Column, ...]:
    """The columns of a median and of `more` ("p95", "p99"), as `Statistics.values_in` names them."""
    return tuple(Column(f"{name}_{unit}", f"{name}\n{unit}", form) for name in ("median", *more))


def ratio_columns(key: str, title: str, form: str) -> tuple[Column, ...]:
    """Three columns: the median of a ratio over turns, and its 5 and 95 % quantiles (`gpu.clock.ratio_values`)."""
    return Column(key, title, form), Column(f"{key}_low", "5 %", form), Column(f"{key}_high", "95 %", form)
