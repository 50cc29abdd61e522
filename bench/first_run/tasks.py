"""The functions of the parts. Each runs in a process of its own, takes the part's words and returns the exit code.

0: right, 1: outputs were wrong, 4: an error, 7: right, but not finished in time. A function prints either lines or one
JSON document, in the form of `python -m aristos.bench --json`. It may raise errors.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from .parts import INCOMPLETE, NOTHING, SHAPE, WRONG

TESTS_FAILED = 6
LAYER_DTYPE = SHAPE[-1]  # the type of the rows in the report's layer
WAIT = 5.0  # the timeout of a layer's calls, in seconds
BACKEND = ("--backend", "cuda", "--json")
ROWS_PAST = 3  # rows of a product beyond a full tile
MARGIN = 6.0  # a part starts nothing new in its last seconds


def run_task(given: Any) -> int:
    """Run the task that child.py was given."""
    return TASKS[given.task](given)


def bench(given: Any) -> int:
    """Run a command line of `python -m aristos.bench`.

    The exit code is 1 only if a printed document shows wrong outputs; after an error it is 4, and the rows so far are
    printed.
    """
    import io

    from aristos.bench.main import main

    from . import unfinished

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main([*within(given.words, given.end), *BACKEND, "--timeout", str(WAIT), "--out", given.out])
    whole = printed.getvalue().lstrip().startswith("{")
    print(printed.getvalue(), "" if whole else unfinished.document(), sep="\n", flush=True)
    return code if code != WRONG or whole else 4


def within(words: Sequence[str], end: float) -> list[str]:
    """The words of a part, with `--seconds` lowered to what is left until `end` (on the monotonic clock)."""
    words, left = list(words), end - MARGIN - time.monotonic()
    at = words.index("--seconds") + 1
    words[at] = f"{max(1.0, min(float(words[at]), left)):.1f}"
    return words


def driver(given: Any) -> int:
    """The GPU and the driver, as one JSON document."""
    from . import machine

    print(json.dumps({"facts": machine.facts()}), flush=True)
    return 0


def kernels(given: Any) -> int:
    """Compile what is neither compiled ahead nor in the cache, on all cores."""
    from aristos.substrate.cuda.device import CudaDevice

    from . import compiling

    return compiling.fill(CudaDevice.find(0).arch, given.end - MARGIN)


def products(given: Any) -> int:
    """Check the tiles of all kinds against float64 on this GPU, those of 16 bits first, until little time is left."""
    from aristos.row_types import KINDS

    return check_products(layer_first(KINDS), lambda: time.monotonic() < given.end - MARGIN)


def layer_first(kinds: dict[str, str]) -> dict[str, str]:
    """The kinds by dtype, those of 16 bits first."""
    return dict(sorted(kinds.items(), key=lambda each: each[1] not in ("bf16", "f16")))


def check_products(kinds: dict[str, str], go_on: Callable[[], bool] = lambda: True) -> int:
    """Check every tile of some kinds against float64 on this GPU, and some rows' bits against those of the kind's first
    tile; prints a line per tile. kinds: by dtype. Returns the exit code.
    """
    from aristos.bench.gpu.clock import BenchGpu
    from aristos.bench.suites.gemm_gpu import OURS, Products
    from aristos.bench.world import World
    from aristos.kernels.cuda.gemm import tiles
    from aristos.row_types import ROW_TYPES

    gpu = BenchGpu(World())
    tally: Counter[str] = Counter()
    missed: set[str] = set()
    for dtype, kind in kinds.items():
        first = None
        for tile in tiles(kind, gpu.device.target):
            if not go_on():
                tally["not reached"] += 1
                missed.add(dtype)
                continue
            rows = tile.m + ROWS_PAST  # they make a full tile and a partial one
            work = Products(gpu, kind, 2, 320, 208, None, rows)
            error = work.error(work.calls(rows, tile)[OURS], rows)
            few = work.y.get()[:16].tobytes()  # outputs of the same rows of x, for every tile
            first = first or few
            said = "WRONG" if error > ROW_TYPES[dtype].error else "ok" if few == first else "OTHER BITS"
            tally[said] += 1
            print(f"{tile.name}: {error:.1e} {said}", flush=True)
    gpu.close()
    print(", ".join(f"{count} tiles {said}" for said, count in tally.items()), flush=True)
    if tally["WRONG"] or tally["OTHER BITS"]:
        return WRONG
    if LAYER_DTYPE in missed:
        print(f"the layer's {LAYER_DTYPE} tiles were not all reached", flush=True)
        return 4
    return INCOMPLETE if tally["not reached"] else 0


def tests(given: Any) -> int:
    """Run the tests of tests/gpu for one rank."""
    import pytest

    class OneRank:
        @staticmethod
        def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
            def ranks(item: Any) -> int:
                mark = item.get_closest_marker("ranks")
                return mark.args[0] if mark is not None else 1

            more = [item for item in items if ranks(item) > 1]
            items[:] = [item for item in items if ranks(item) == 1]
            config.hook.pytest_deselected(items=more)

    os.environ["ARISTOS_TEST_TIMEOUT"] = str(WAIT)
    code = int(pytest.main(["--no-header", "-rfE", "--tb=short", *(given.words or ["tests/gpu"])], [OneRank()]))
    return TESTS_FAILED if code == WRONG else NOTHING if code == NOTHING else code


def phases(given: Any) -> int:
    """Measure the workers' time in each phase, from the counters that the kernels keep."""
    from . import alone

    return _measured(given, alone.phases)


def _measured(given: Any, measure: Callable[[Any, Any, list[int]], dict[str, Any]]) -> int:
    """Run a function of alone.py on the shape of the report, and print its document."""
    from aristos.bench.command_line import parse
    from aristos.bench.context import Context
    from aristos.bench.gpu.clock import BenchGpu
    from aristos.bench.world import World

    asked = parse(["layer", *SHAPE, *given.words, *BACKEND, "--out", "none"])
    world = World(timeout=WAIT)
    gpu, context = BenchGpu(world), Context(world, asked, given.end - MARGIN - time.monotonic())
    sheet = measure(context, gpu, list(context.shape().tokens))
    gpu.close()
    ok = all(row["check"] == "ok" for row in sheet["rows"])
    print(json.dumps({"suites": {given.task: {"ok": ok, "tables": [sheet]}}}), flush=True)
    return 0 if ok else WRONG


def ncu(given: Any) -> int:
    """Profile two kernels under Nsight Compute."""
    from . import profiled

    return profiled.report(given)


def two_kernels(given: Any) -> int:
    """Run what `ncu` profiles: one bfloat16 product, and one call of the layer."""
    from . import profiled

    return profiled.two_kernels()


TASKS: dict[str, Callable[[Any], int]] = {
    each.__name__: each for each in (bench, driver, kernels, products, tests, phases, ncu, two_kernels)
}


def parsed(words: list[str]) -> argparse.Namespace:
    """The arguments of a task that another process starts."""
    return argparse.Namespace(task=words[0], words=words[1:], end=1e9, out="none", rehearse=False, fault="")


if __name__ == "__main__":
    sys.exit(run_task(parsed(sys.argv[1:])))
