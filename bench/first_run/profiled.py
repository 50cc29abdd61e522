"""Runs two kernels under NVIDIA's profiler Nsight Compute (`ncu`), if it is installed and may read the counters."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .parts import ROOT

ROWS = 1024
LAYER = ("layer", "--preset", "mixtral-8x7b", "--scale", "4", "--tokens", str(ROWS), "--dtype", "bfloat16")
PLACES = ("/opt/nvidia/nsight-compute/*/ncu", "/usr/local/cuda*/bin/ncu", "/usr/local/NVIDIA-Nsight-Compute*/ncu")
METRICS = {
    "gpu__time_duration.sum": "time",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "SM, % of peak",
    "gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed": "memory, % of peak",
    "dram__bytes.sum": "bytes of DRAM",
    "launch__registers_per_thread": "registers",
}
MARGIN = 6.0  # seconds before the part's limit
NAMED = "gemm4gemm|persistent5layer"  # a pattern for the mangled names of products and persistent kernels
FORBIDDEN = "ERR_NVGPUCTRPERM"


def find() -> Path | None:
    """The profiler: on PATH, else the newest where NVIDIA's packages put it."""
    on_path = shutil.which("ncu")
    if on_path:
        return Path(on_path)
    found = sorted(path for place in PLACES for path in Path("/").glob(place.lstrip("/")) if os.access(path, os.X_OK))
    return found[-1] if found else None


def report(given: Any) -> int:
    """Profile the two kernels and print a document. A missing or forbidden profiler is a note in it, not an error."""
    path = find()
    if path is None:
        return _print([], "ncu was not found on PATH, below /opt/nvidia nor below /usr/local: no counters were read")
    words = [str(path), "--target-processes", "all", "--clock-control", "none", "--kernel-name-base", "mangled",
             "--kernel-name", f"regex:{NAMED}", "--launch-count", "2", "--metrics", ",".join(METRICS), "--csv",
             "--page", "raw", sys.executable, "-m", "first_run.tasks", "two_kernels"]  # fmt: skip
    try:
        done = subprocess.run(
            words,
            cwd=ROOT,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=given.end - MARGIN - time.monotonic(),
        )
    except subprocess.TimeoutExpired:
        return _print([], f"{path} did not end in time: no counters were read")
    except OSError as why:
        return _print([], f"{path} cannot be started ({why.strerror}): no counters were read")
    text = done.stdout + done.stderr
    if FORBIDDEN in text:
        return _print(
            [],
            f"{path} may not read the counters ({FORBIDDEN}): run as root, or load the driver's module "
            "with NVreg_RestrictProfilingToAdminUsers=0",
        )
    rows = parse(done.stdout)
    if not rows:
        last = (text.strip().splitlines() or ["no output"])[-1]
        return _print([], f"{path} gave no counters (exit code {done.returncode}): {last[:300]}")
    return _print(rows, "clocks are the GPU's own (--clock-control none); caches are flushed before each kernel")


def parse(text: str) -> list[dict[str, Any]]:
    """The rows of ncu's CSV, a kernel each, with the metrics' units in their names."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    table = list(csv.DictReader(lines))
    if len(table) < 2:
        return []
    units, *kernels = table
    rows = []
    for each in kernels:
        row: dict[str, Any] = {"kernel": each.get("Kernel Name", "?")[:60]}
        for metric, name in METRICS.items():
            if each.get(metric):
                row[f"{name} {units.get(metric) or ''}".strip()] = each[metric]
        rows.append(row)
    return rows


def _print(rows: list[dict[str, Any]], note: str) -> int:
    sheet = {"title": "two kernels under ncu", "rows": rows, "notes": [note]}
    print(json.dumps({"suites": {"ncu": {"ok": True, "tables": [sheet]}}}), flush=True)
    return 0


def two_kernels() -> int:
    """Run one bfloat16 product of the largest tile, and one call of a layer."""
    from aristos.bench.command_line import parse
    from aristos.bench.context import Context
    from aristos.bench.gpu.calls import Played
    from aristos.bench.gpu.clock import BenchGpu
    from aristos.bench.suites.gemm_gpu import OURS, Products
    from aristos.bench.workload import Workload, routed_call
    from aristos.bench.world import World
    from aristos.kernels.cuda.gemm import tiles

    from .tasks import WAIT

    world = World(timeout=WAIT)
    gpu = BenchGpu(world)
    work = Products(gpu, "bf16", 1, 4096, 4096, None, ROWS)
    work.calls(ROWS, tiles("bf16", gpu.device.target)[-1])[OURS]()
    gpu.device.synchronize(gpu.stream)
    context = Context(world, parse([*LAYER, "--backend", "cuda", "--out", "none"]), 1.0)
    whole = Workload(world, context.shape().cfg, 0)
    moe = whole.layer("fused", None, backend="cuda")
    Played(gpu, whole, moe, routed_call(context, whole, ROWS))()
    moe.synchronize()
    moe.close()
    gpu.close()
    return 0
