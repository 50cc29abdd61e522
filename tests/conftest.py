"""What all tests share.

Plugins in support/: ranks (mpi.py), tiers and budgets (tiers.py), sweeps (sweeps.py), exit hooks (leftovers.py).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

pytest_plugins = ["mpi", "sweeps", "tiers", "leftovers"]

ROOT = Path(__file__).resolve().parent.parent


def pytest_report_header() -> list[str]:
    """Warn about a setting that can make tests on ranks that share cores hang."""
    from aristos.doctor.cores import autogroups  # after mpi.py: this imports NumPy

    fix = "sysctl kernel.sched_autogroup_enabled=0 (as root; docs/decisions.md, 21)"
    return [f"scheduler: autogroups are on, ranks may starve each other: {fix}"] if autogroups() else []


def pytest_collection_finish(session: pytest.Session) -> None:
    """Compile the CPU kernels during the first tests, if tests on ranks follow, or many tests that need kernels.

    The first worker starts a process that compiles. All workers lower their priority, since each would have to compile
    what that process has not compiled yet.
    """
    from mpi import job_folder
    from tiers import FOLDERS, folder_of

    if session.config.option.collectonly or job_folder() is not None:
        return
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    everything = {folder for folder, budget in FOLDERS.items() if budget.quick and budget.parallel}
    if everything <= {folder_of(item) for item in session.items} or any(map(needs_cpu_kernels, session.items)):
        from cases import start_compiling

        if worker in (None, "gw0"):
            start_compiling()
        if worker is not None:
            os.nice(5)


def needs_cpu_kernels(item: pytest.Item) -> bool:
    """Whether a test runs on ranks and may need CPU kernels. Tests in tests/gpu have no time to wait for them."""
    from tiers import folder_of

    return bool(item.get_closest_marker("ranks")) and folder_of(item) != "gpu"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let a test on ranks wait until its kernels are compiled."""
    from mpi import job_folder

    if job_folder() is None and needs_cpu_kernels(item):
        from cases import compile_once

        compile_once()


def pytest_sessionfinish() -> None:
    """End the compiling process, which still runs if the session was stopped early."""
    cases = sys.modules.get("cases")
    if cases is not None and cases.start_compiling.cache_info().currsize:
        cases.start_compiling().kill()


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference data beside the checkout; the test is skipped where there is none."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: its reference data is not part of the project")
    return folder
