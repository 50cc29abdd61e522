"""The counters of each source line, of instructions that ran and their memory requests, as a table or as JSON."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import isa
from . import state as s
from .loader import Loader

CLASSES = (
    (100, "integer"),
    (200, "float"),
    (300, "convert"),
    (400, "move"),
    (500, "control"),
    (600, "memory"),
    (700, "barrier"),
    (800, "warp"),
    (900, "other"),
)

OPCODES = {
    isa.LD: "ld",
    isa.ST: "st",
    isa.ATOM: "atom",
    isa.CPASYNC: "cp.async",
    isa.LDMATRIX: "ldmatrix",
    isa.STMATRIX: "stmatrix",
    isa.MMA: "mma",
    isa.BAR: "bar",
    isa.WGMMA: "wgmma",
    **dict.fromkeys((isa.MBINIT, isa.MBINVAL, isa.MBARRIVE, isa.MBEXPECT, isa.MBWAIT, isa.MBCOPIES), "mbarrier"),
    isa.STASYNC: "st.async",
    **dict.fromkeys((isa.BULKLOAD, isa.BULKSTORE, isa.BULKCOMMIT, isa.BULKWAIT), "cp.async.bulk"),
}


def class_of(op: int) -> str:
    """The name in CLASSES of an opcode's class, such as "integer"."""
    return next(name for below, name in CLASSES if op < below)


class Profile:
    """The counters of everything that ran. docs/ptxsim.md defines each counter.

    lines: one dict for each source line. total: the sums over all lines. opcodes: for each opcode that moves data, the
    sums over its instructions.
    """

    def __init__(self, loader: Loader):
        rows: dict[tuple[str, int], dict[str, Any]] = {}
        self.opcodes = {name: empty("", 0) for name in OPCODES.values()}
        for program, (base, _) in zip(loader.programs, loader.bases):
            counts = loader.counts[base : base + len(program.code)]
            for at in np.flatnonzero(counts.any(axis=1)):
                key = program.lines[int(program.code[at, isa.LINE])]
                row = rows.setdefault(key, empty(*key))
                add(row, program.code[at], counts[at])
                if (op := int(program.code[at, isa.OP])) in OPCODES:
                    add(self.opcodes[OPCODES[op]], program.code[at], counts[at])
        self.opcodes = {name: finished(row) for name, row in self.opcodes.items()}
        self.lines = [finished(rows[key]) for key in sorted(rows)]
        self.total = total(self.lines)

    def line(self, number: int, file: str = "") -> dict[str, Any]:
        """The counters of a source line, all zero if the line did not run. file: the end of the file's path."""
        for row in self.lines:
            if row["line"] == number and row["file"].endswith(file):
                return row
        return finished(empty(file, number))

    def json(self) -> dict[str, Any]:
        """Everything as one JSON object."""
        return {"schema": "ptxsim/1", "total": self.total, "lines": self.lines, "opcodes": self.opcodes}

    def __str__(self) -> str:
        head = [name for name, _, _ in COLUMNS]
        rows = [head]
        for row in [*self.lines, {**self.total, "line": "all"}]:
            rows.append([form.format(row[key]) for _, key, form in COLUMNS])
        widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
        return "\n".join("  ".join(text.rjust(width) for text, width in zip(row, widths)) for row in rows)


COLUMNS = (
    ("line", "line", "{}"),
    ("instr.", "instructions", "{}"),
    ("lanes", "lanes_per_instruction", "{:.1f}"),
    ("split", "divergent_branches", "{}"),
    ("global", "global_requests", "{}"),
    ("sect/req", "sectors_per_request", "{:.2f}"),
    ("used", "bytes_efficiency", "{:.0%}"),
    ("bytes", "access_bytes", "{}"),
    ("shared", "shared_requests", "{}"),
    ("waves/req", "waves_per_request", "{:.2f}"),
    ("atomics", "atomics", "{}"),
    ("barriers", "barriers", "{}"),
    ("file", "file", "{}"),
)
COUNTED = (
    "instructions",
    "lanes",
    "global_requests",
    "sectors",
    "bytes_used",
    "ideal_sectors",
    "shared_requests",
    "waves",
    "ideal_waves",
    "divergent_branches",
    "barriers",
    "atomics",
    "access_bytes",
    "loads",
    "stores",
)


def empty(file: str, line: int) -> dict[str, Any]:
    """A source line's counters, all zero."""
    return {"file": file, "line": line, **dict.fromkeys(COUNTED, 0), "classes": {}}


def add(row: dict[str, Any], code: Any, counts: Any) -> None:
    """Add an instruction's counters to a row."""
    op = int(code[isa.OP])
    warps = int(counts[s.N_WARPS])
    row["instructions"] += warps
    row["lanes"] += int(counts[s.N_LANES])
    row["classes"][class_of(op)] = row["classes"].get(class_of(op), 0) + warps
    for name, field in (
        ("global_requests", s.N_REQUESTS),
        ("sectors", s.N_SECTORS),
        ("bytes_used", s.N_BYTES),
        ("ideal_sectors", s.N_IDEAL),
        ("shared_requests", s.N_SHARED),
        ("waves", s.N_WAVES),
        ("ideal_waves", s.N_IDEAL_WAVES),
        ("divergent_branches", s.N_SPLITS),
    ):
        row[name] += int(counts[field])
    row["access_bytes"] = max(row["access_bytes"], int(counts[s.N_WIDTH]))
    if op in (isa.BAR, isa.BARARRIVE, isa.BARRED, isa.GRIDSYNC, isa.WARPSYNC):
        row["barriers"] += warps
    if op == isa.ATOM:
        row["atomics"] += int(counts[s.N_LANES])
    if op in (isa.LD, isa.CPASYNC, isa.LDMATRIX, isa.BULKLOAD):
        row["loads"] += warps
    if op in (isa.ST, isa.STMATRIX, isa.BULKSTORE):
        row["stores"] += warps


def finished(row: dict[str, Any]) -> dict[str, Any]:
    """Add to a row the values that are computed from its counters, such as quotients. Returns the row."""
    row["lanes_per_instruction"] = row["lanes"] / row["instructions"] if row["instructions"] else 0.0
    row["sectors_per_request"] = row["sectors"] / row["global_requests"] if row["global_requests"] else 0.0
    row["bytes_efficiency"] = row["bytes_used"] / (32 * row["sectors"]) if row["sectors"] else 1.0
    row["bytes_moved"] = 32 * row["sectors"]
    row["coalesced"] = row["sectors"] <= row["ideal_sectors"]
    row["waves_per_request"] = row["waves"] / row["shared_requests"] if row["shared_requests"] else 0.0
    row["bank_conflicts"] = row["waves"] - row["ideal_waves"]
    return row


def total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One row with the sums of all rows' counters, and the largest `access_bytes`."""
    summed = empty("", 0)
    for row in rows:
        for name, value in summed.items():
            if name == "access_bytes":
                summed[name] = max(value, row[name])
            elif name not in ("file", "line", "classes"):
                summed[name] += row[name]
        for name, value in row["classes"].items():
            summed["classes"][name] = summed["classes"].get(name, 0) + value
    return finished(summed)
