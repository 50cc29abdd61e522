"""Every kernel to PTX, cubin and machine code, on all cores: a process compiles one kernel for all architectures.

What a process keeps, it does not compile again: the device functions of a kernel are the same for each architecture.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ...primitives.offline import capability
from ...simt import limits
from .assemble import TARGETS, assemble, disassemble, tool, tool_version

PROCESSES = 8  # at most; each takes some 300 MB

Row = dict[str, Any]  # of report.json
Listing = Callable[[str], list[Any]]  # architecture -> catalogue.Kernel; by name, since processes send it to each other


def build_all(archs: Sequence[str], out: Path, listings: Sequence[Listing]) -> list[Row]:
    """NAME.ARCH.ptx, .cubin, .sass of every kernel, report.json and report.md; says on stderr how far it is.

    advice.json: what ptxas says of kernels, [{"kernel", "arch", "advice"}]; it should be empty.
    listings: functions of modules, each of which gives kernels of an architecture; no name is there twice.
    """
    for name in ("ptxas", "nvdisasm"):
        tool(name)  # better missed now than after the first kernel
    out.mkdir(parents=True, exist_ok=True)
    wanted = [(kernel.name, arch) for arch in archs for kernel in listed(arch, listings)]
    names = list(dict.fromkeys(name for name, _ in wanted))
    rows: dict[tuple[str, str], Row] = {}
    start = time.monotonic()
    count = min(len(os.sched_getaffinity(0)), PROCESSES, len(names))
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        # the biggest kernels are the last: they go first, so that no process is left alone with one
        jobs = {pool.submit(build, name, archs, out, listings): name for name in reversed(names)}
        try:
            for done in as_completed(jobs):
                rows |= {(row["kernel"], row["arch"]): row for row in done.result()}
                passed = time.monotonic() - start
                print(f"{len(rows)}/{len(wanted)} {jobs[done]}, {passed:.0f} s", file=sys.stderr, flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    ordered = [rows[key] for key in wanted]
    advice = [{name: row[name] for name in ("kernel", "arch", "advice")} for row in ordered if row["advice"]]
    (out / "advice.json").write_text(json.dumps(advice, indent=1) + "\n", encoding="utf-8")
    ordered = [{name: value for name, value in row.items() if name != "advice"} for row in ordered]
    (out / "report.json").write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    (out / "report.md").write_text(f"{compilers()}\n\n{table(ordered)}", encoding="utf-8")
    return ordered


def listed(arch: str, listings: Sequence[Listing]) -> list[Any]:
    """All kernels of an architecture, in the order of the listings."""
    return [kernel for listing in listings for kernel in listing(arch)]


def build(name: str, archs: Sequence[str], out: Path, listings: Sequence[Listing]) -> list[Row]:
    """One kernel for the architectures that have it; its rows of the report."""
    from .build import ptx

    rows = []
    for arch in archs:
        for kernel in listed(arch, listings):
            if kernel.name == name:
                rows.append(finish(kernel, arch, ptx(kernel, TARGETS[arch])[0], out))
    return rows


def finish(kernel: Any, arch: str, text: str, out: Path) -> Row:
    """Write NAME.ARCH.ptx, .cubin and .sass of one compiled kernel; its row of the report, and ptxas' advice."""
    target = TARGETS[arch]
    cc = capability(target)
    files = {kind: out / f"{kernel.name}.{arch}.{kind}" for kind in ("ptx", "cubin", "sass")}
    files["ptx"].write_text(text, encoding="utf-8")
    made = assemble(files["ptx"], files["cubin"], target)
    files["sass"].write_text(disassemble(files["cubin"]), encoding="utf-8")
    shared = made.shared_bytes + kernel.shared_bytes
    return {
        "kernel": kernel.name, "arch": arch, "registers": made.registers, "spill_bytes": made.spill_bytes,
        "shared_bytes": shared, "blocks_per_sm": limits.resident(limits.of(cc), kernel.threads, shared, made.registers),
        "advice": list(made.advice),
    }  # fmt: skip


def compilers() -> str:
    """Who made what the report is of."""
    return f"By numba-cuda {metadata.version('numba-cuda')} and ptxas {tool_version('ptxas').lstrip('V')}:"


def table(rows: Iterable[Row]) -> str:
    """The report as Markdown: a line a kernel, a number for every architecture it is for where they differ."""
    rows = list(rows)
    of: dict[str, list[Row]] = {}
    for row in rows:
        of.setdefault(row["kernel"], []).append(row)
    archs = ", ".join(dict.fromkeys(row["arch"] for row in rows))

    def cell(each: list[Row], field: str) -> str:
        values = [str(row[field]) for row in each]
        return values[0] if len(set(values)) == 1 else ", ".join(values)

    def named(name: str, each: list[Row]) -> str:
        own = ", ".join(row["arch"] for row in each)
        return name if own == archs else f"{name} ({own})"

    fields = ("registers", "spill_bytes", "shared_bytes", "blocks_per_sm")
    lines = [
        f"| kernel ({archs}) | registers | bytes spilled | shared memory, bytes | blocks on an SM |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {named(name, each)} | {' | '.join(cell(each, field) for field in fields)} |"
            for name, each in of.items()
        ),
    ]
    return "\n".join(lines) + "\n"
