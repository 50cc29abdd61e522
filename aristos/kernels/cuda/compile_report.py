"""Compile every kernel to PTX, cubin and machine code on all cores, and report its resources.

Each process compiles one kernel for all architectures, so it compiles the kernel's device functions once.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from kernel_cache import sm_limits as limits
from kernel_cache.offline import capability

from ...errors import InputError
from .assemble import TARGETS, assemble, disassemble, tool, tool_version

NEW_NVVM = (10, 0)  # from this compute capability on, the compiler uses a newer NVVM library
PROCESSES = 8  # most processes; each takes about 300 MB

Row = dict[str, Any]  # one entry of report.json
Listing = Callable[[str], list[Any]]  # architecture -> catalogue.Kernels; a module's function, because it is pickled


def build_all(archs: Sequence[str], out: Path, listings: Sequence[Listing], pattern: str = "") -> list[Row]:
    """Write NAME.ARCH.ptx, .cubin and .sass of every kernel, report.json and report.md; print progress on stderr.

    The function also writes advice.json, ptxas's advice: [{"kernel", "arch", "advice"}]. The list should be empty.
    listings: functions of modules that return the kernels of an architecture; names must be unique.
    pattern: a regular expression; kernels without a match in NAME.ARCH are left out.
    """
    for name in ("ptxas", "nvdisasm"):
        tool(name)  # fail before the first kernel is compiled
    every = [(kernel.name, arch) for arch in archs for kernel in listed(arch, listings)]
    wanted = [(name, arch) for name, arch in every if re.search(pattern, f"{name}.{arch}")]
    if not wanted:
        raise InputError(
            f"--kernels must match NAME.ARCH of a kernel, got {pattern!r};"
            f" names are {', '.join(sorted(dict(every)))}, architectures {', '.join(archs)}"
        )
    out.mkdir(parents=True, exist_ok=True)
    names: dict[str, list[str]] = {}
    for name, arch in wanted:
        names.setdefault(name, []).append(arch)
    rows: dict[tuple[str, str], Row] = {}
    start = time.monotonic()
    count = min(len(os.sched_getaffinity(0)), PROCESSES, len(names))
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        # the largest kernels come last in the listings; they are started first, so that none runs alone at the end
        jobs = {pool.submit(build, name, names[name], out, listings): name for name in reversed(names)}
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
    """Compile one kernel for these architectures; returns its rows of the report.

    The compiler writes the same PTX for two architectures if both are on the same side of NEW_NVVM and the launch
    bounds are equal. Then the later architecture uses the PTX of the earlier one, and only ptxas runs again.
    """
    from .build import for_target, ptx

    rows, made = [], dict[tuple[bool, int], str]()
    for arch in archs:
        for kernel in listed(arch, listings):
            if kernel.name == name:
                target, same = TARGETS.get(arch, arch), (capability(arch) >= NEW_NVVM, kernel.blocks)
                if same not in made:
                    made[same] = ptx(kernel, target)[0]
                rows.append(finish(kernel, arch, for_target(made[same], target), out))
    return rows


def finish(kernel: Any, arch: str, text: str, out: Path) -> Row:
    """Write NAME.ARCH.ptx, .cubin and .sass of a compiled kernel; returns its row of the report with ptxas's advice."""
    target = TARGETS.get(arch, arch)
    cc = capability(target)
    files = {kind: out / f"{kernel.name}.{arch}.{kind}" for kind in ("ptx", "cubin", "sass")}
    files["ptx"].write_text(text, encoding="utf-8")
    made = assemble(files["ptx"], files["cubin"], target)
    files["sass"].write_text(disassemble(files["cubin"]), encoding="utf-8")
    shared = made.shared_bytes + kernel.shared_bytes
    return {
        "kernel": kernel.name,
        "arch": arch,
        "registers": made.registers,
        "spill_bytes": made.spill_bytes,
        "shared_bytes": shared,
        "blocks_per_sm": limits.resident(limits.limits_of(cc), kernel.threads, shared, made.registers),
        "advice": list(made.advice),
    }


def compilers() -> str:
    """A line that names the compilers and their versions."""
    return f"By numba-cuda {metadata.version('numba-cuda')} and ptxas {tool_version('ptxas').lstrip('V')}:"


def table(rows: Iterable[Row]) -> str:
    """The report as Markdown, with a line for each kernel. If values differ by architecture, a cell lists them."""
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
