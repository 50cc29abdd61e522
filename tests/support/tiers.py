"""The pytest plugin behind `--tier`: which tests `make test` runs, and what the tests of each folder may cost.

A test belongs to the quick tier unless one of these holds: its folder has no quick budget in FOLDERS; it, or its file
by `pytestmark`, is marked `slow`; it runs on a number of ranks other than 2, or on isolated ranks. Everything else is
the tier `rest`. A new file is quick until it declares otherwise; a new folder needs a line in FOLDERS.

Tests of the tier `rest` in the files IN_TURN take turns: a run of a tier takes half of them, unless KERNELS=all.

Budgets are processor seconds of all processes of a test, so other work on the machine hardly counts. A run that
overruns one fails.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sweeps
from mpi import BATCH, job_folder, mark_of

TESTS = Path(__file__).resolve().parents[1]
SHOWN = 15
TURNS = 2  # so many runs take all tests of IN_TURN
TIERS = ("quick", "rest", "all")
PARTS = ("parallel", "serial")


@dataclass(frozen=True)
class Budget:
    """Processor seconds of a folder's tests: of the quick tier (0: none of them is quick) and of all tests.

    parallel: no test needs a quiet machine, so that workers of pytest-xdist share the files. Elsewhere a file or a test
    may be marked `parallel`.
    """

    quick: int
    all: int
    parallel: bool = False


FOLDERS = {
    "bench": Budget(90, 1100),
    "checkpoint": Budget(60, 150, parallel=True),
    "doctor": Budget(15, 80),
    "engine": Budget(40, 60, parallel=True),
    "explore": Budget(60, 700, parallel=True),
    "simulate": Budget(10, 300, parallel=True),
    "faults": Budget(0, 200, parallel=True),
    "fuzz": Budget(0, 60, parallel=True),
    "gpu": Budget(0, 900),
    "host": Budget(10, 20, parallel=True),
    "integrations": Budget(30, 900),
    "kernel_cache": Budget(50, 160, parallel=True),
    "kernels": Budget(90, 1150, parallel=True),
    "launch": Budget(0, 60, parallel=True),
    "launcher": Budget(10, 30, parallel=True),
    "layer": Budget(120, 700, parallel=True),
    "package": Budget(175, 600, parallel=True),
    "planner": Budget(100, 180, parallel=True),
    "primitives": Budget(10, 20, parallel=True),
    "ptxsim": Budget(0, 400, parallel=True),
    "report": Budget(70, 100, parallel=True),
    "results": Budget(40, 60, parallel=True),
    "substrate": Budget(40, 800, parallel=True),
    "topology": Budget(35, 60, parallel=True),
    "transport": Budget(10, 130, parallel=True),
}

LONG = (  # Workers start with these files, so that none runs alone at the end. Neighbours compile different code: one
    # process at a time compiles the code of a package.
    "bench/test_rehearsal.py",
    "kernels/test_isas.py",
    "kernels/test_cuda_compile.py",
    "explore/test_explore.py",
    "layer/test_element_types.py",
    "bench/test_bench_cuda.py",
    "launch/test_slurm.py",
    "bench/test_bench_run.py",
    "explore/test_all_schedules.py",
    "substrate/test_cuda_layer.py",
    "package/test_readme.py",
    "layer/test_training.py",
    "kernel_cache/test_cache.py",
    "layer/test_layer_properties.py",
    "explore/test_compiled.py",
    "faults/test_faults.py",
    "substrate/test_cuda_mpi.py",
    "substrate/test_waits.py",
    "layer/test_training_run.py",
    "bench/test_showing.py",
    "substrate/test_cuda_nodes.py",
    "simulate/test_simulation.py",
    "transport/test_rma.py",
)

# A run takes every second test of each of these files, and the next run takes the others: sweeps.py numbers the runs.
# Neighbours begin with different halves. The order makes the two runs equally long.
IN_TURN = (
    "bench/test_bench_command.py",
    "bench/test_bench_cuda.py",
    "bench/test_compare.py",
    "bench/test_decode.py",
    "bench/test_gpu_kit.py",
    "bench/test_long_soak.py",
    "bench/test_slow_links.py",
    "bench/test_rehearsal.py",
    "checkpoint/test_packed.py",
    "explore/test_plain_python.py",
    "faults/test_restarts.py",
    "kernel_cache/test_cache.py",
    "kernels/test_arm_emulated.py",
    "kernels/test_cpu_assembly.py",
    "kernels/test_cuda_gemm.py",
    "kernels/test_cuda_router.py",
    "kernels/test_cuda_scopes.py",
    "kernels/test_rounded_backward.py",
    "layer/test_cuda_moe.py",
    "layer/test_cuda_streams.py",
    "layer/test_element_types.py",
    "layer/test_exchange.py",
    "layer/test_layer_properties.py",
    "layer/test_training_run.py",
    "package/test_examples.py",
    "package/test_ranks_marker.py",
    "package/test_readme.py",
    "package/test_site.py",
    "package/test_train_lm.py",
    "package/test_tutorials.py",
    "planner/test_terms.py",
    "ptxsim/test_libcuda.py",
    "ptxsim/test_libcuda_order.py",
    "ptxsim/test_multicast.py",
    "ptxsim/test_plugin.py",
    "ptxsim/test_profile.py",
    "results/test_labelled.py",
    "simulate/test_counts.py",
    "simulate/test_simgrid.py",
    "substrate/test_cuda_layer.py",
    "substrate/test_cuda_mpi.py",
    "substrate/test_cuda_nodes.py",
    "substrate/test_waits.py",
    "transport/test_rma.py",
)

# The quick tier runs these folders and files last: the functions that they need compile while others run.
COMPILED = (
    "package/test_docstrings.py",
    "package/test_examples.py",
    "package/test_layer_page.py",
    "checkpoint",
    "kernels",
    "layer",
    "bench",
)


SLOW = re.compile(
    r"^pytestmark = (?:\[\s*)?(?:pytest\.mark\.\w+,\s*)*pytest\.mark\.slow\b", re.MULTILINE
)  # a file that needs it as a whole
RANKS = re.compile(r"mark\.ranks\b|ranks_each\b")
PARALLEL = re.compile(r"mark\.parallel\b")


@cache
def folder_at(path: Path) -> str | None:
    """The folder below tests/ that a file lies in; None for files elsewhere."""
    return path.relative_to(TESTS).parts[0] if path.is_relative_to(TESTS) else None


def folder_of(item: pytest.Item) -> str | None:
    """The folder below tests/ that a test lies in; None for files elsewhere."""
    return folder_at(item.path)


def compiled(item: pytest.Item) -> bool:
    """Whether a test lies in COMPILED."""
    folder = folder_of(item)
    return folder is not None and bool({folder, f"{folder}/{item.path.name}"} & set(COMPILED))


def may_hold(folder: str, text: str, tier: str | None, part: str | None) -> bool:
    """Whether a file with this text may have tests of the tier and the part. Other files need not be imported."""
    budget = FOLDERS.get(folder)
    if budget is None:
        return True  # `is_quick` will report what is wrong
    if tier == "quick" and (not budget.quick or SLOW.search(text)):
        return False
    if part == "serial":
        return not budget.parallel or bool(RANKS.search(text))
    return part is None or budget.parallel or bool(PARALLEL.search(text))


def is_quick(item: pytest.Item) -> bool:
    """Whether a test belongs to the quick tier."""
    folder = folder_of(item)
    if folder is not None and folder not in FOLDERS:
        raise pytest.UsageError(f"tests/{folder} has no budget: add it to FOLDERS in tests/support/tiers.py")
    if (folder is not None and not FOLDERS[folder].quick) or item.get_closest_marker("slow"):
        return False
    mark = mark_of(item)
    return mark is None or (mark[0] in (0, 2) and not mark[2])


def is_parallel(item: pytest.Item) -> bool:
    """Whether a test may run beside others. One on ranks may only if it is marked so itself."""
    if item.get_closest_marker("ranks"):
        return any(mark.name == "parallel" for mark in item.own_markers)
    folder = folder_of(item)
    return item.get_closest_marker("parallel") is not None or (folder is not None and FOLDERS[folder].parallel)


def waiting(items: list[pytest.Item]) -> set[pytest.Item]:
    """The tests of files in IN_TURN that the next run takes. Tests of the quick tier do not wait."""
    if sweeps.everything():
        return set()
    found = set()
    for place, file in enumerate(IN_TURN):
        slow = [item for item in items if item.path == TESTS / file and not is_quick(item)]
        found.update(slow[(sweeps.number() + place) % TURNS :: TURNS])
    return found


# ---- what pytest calls -----------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tier", choices=TIERS, help="tests that are quick, all others, or all (default)")
    parser.addoption("--part", choices=PARTS, help="tests that may run side by side, or the others")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: not part of the quick tier, `make test`")
    config.addinivalue_line("markers", "compiled: holds a time limit or computes much; `make coverage` leaves it out")
    config.addinivalue_line("markers", "parallel: needs no quiet machine; for tests of a folder that is not parallel")
    config.addinivalue_line("markers", "core: `make test-all` runs it on every MPI library")
    if job_folder() is None:
        config.pluginmanager.register(Costs(config), "aristos-costs")
    if (worker := getattr(config, "workerinput", None)) and [Path(each).resolve() for each in config.args] == [TESTS]:
        config.args[:] = folders_from(int(worker["workerid"][2:]) / worker["workercount"])


def folders_from(share: float) -> list[str]:
    """The folders below tests/, from this share of them on.

    The first worker that imports a file keeps its compiled assertions for the others. So each worker begins with other
    folders, and all of them sort their tests afterwards.
    """
    folders = [str(TESTS / folder) for folder in sorted(FOLDERS)]
    first = int(share * len(folders))
    return folders[first:] + folders[:first]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave files out whose tests would all be deselected: by the tier, by the part, or by `-m core`."""
    if not collection_path.match("test_*.py") or (folder := folder_at(collection_path)) is None:
        return None
    text = collection_path.read_text(encoding="utf-8")
    if config.getoption("-m") == "core" and "mark.core" not in text:
        return True
    return None if may_hold(folder, text, config.getoption("--tier"), config.getoption("--part")) else True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests of the other tier or part; long files come first where workers share them."""
    tier, part = config.getoption("--tier"), config.getoption("--part")
    kept, dropped = [], []
    later = waiting(items) if tier else set()
    for item in items:
        quick = is_quick(item)
        wanted = tier in (None, "all") or quick == (tier == "quick")
        wanted &= part is None or is_parallel(item) == (part == "parallel")
        wanted &= item not in later
        (kept if wanted else dropped).append(item)
    first = {str(TESTS / file): place for place, file in enumerate(LONG)} if part == "parallel" else {}

    def place(item: pytest.Item) -> tuple[bool, int, str]:
        return tier == "quick" and compiled(item), first.get(str(item.path), len(first)), str(item.path)

    items[:] = sorted(kept, key=place)
    if dropped:
        config.hook.pytest_deselected(items=dropped)


class Costs:
    """Measures the processor time of every test, and holds each folder to its budget."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.tests: dict[str, float] = defaultdict(float)
        self.over: list[str] = []

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self.before = processor_seconds(item)
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
        """Attach the cost to the report of the teardown, which workers of pytest-xdist send too."""
        report = yield
        if report.when == "teardown":
            seconds = processor_seconds(item) - self.before
            report.user_properties.append(("processor_seconds", seconds))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, seconds in report.user_properties:
            if name == "processor_seconds" and report.when == "teardown":
                self.tests[report.nodeid] += seconds

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workerinput"):  # a worker of pytest-xdist
            return
        for folder, spent in self.folders().items():
            if spent > self.budget(folder) and not sweeps.everything():
                over = f"tests/{folder} took {spent:.0f} s of processor time; its budget is {self.budget(folder)} s"
                self.over.append(over)
        if self.over and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def budget(self, folder: str) -> int:
        """A folder's budget for the tier that runs."""
        return FOLDERS[folder].quick if self.config.getoption("--tier") == "quick" else FOLDERS[folder].all

    def folders(self) -> dict[str, float]:
        """Seconds of each folder below tests/."""
        sums: dict[str, float] = defaultdict(float)
        for test, seconds in self.tests.items():
            path = self.config.rootpath / test.split("::")[0]
            if path.is_relative_to(TESTS):
                sums[path.relative_to(TESTS).parts[0]] += seconds
        return dict(sorted(sums.items()))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        write = terminalreporter.write_line
        if self.config.getoption("--tier") and self.tests:
            terminalreporter.section("processor seconds")
            for test, seconds in sorted(self.tests.items(), key=lambda pair: -pair[1])[:SHOWN]:
                write(f"{seconds:8.1f}  {test}")
            for folder, seconds in self.folders().items():
                write(f"{seconds:8.1f}  tests/{folder}, of {self.budget(folder)}")
            if self.config.getoption("--tier") != "quick" and not sweeps.everything():
                write(f"KERNELS={sweeps.number()} took half of the tests of files in IN_TURN (tests/support/tiers.py)")
        for line in self.over:
            write(f"ERROR: {line}; make its tests cheaper, or change FOLDERS in tests/support/tiers.py", red=True)


def processor_seconds(item: pytest.Item) -> float:
    """Processor seconds of this process and its children; for a test on ranks, those of its ranks."""
    batch = item.stash.get(BATCH, None)
    if batch is not None:
        return batch.spent.get(item, 0.0)
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
