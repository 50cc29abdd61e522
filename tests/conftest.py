"""What all tests share: the `ranks` marker (see mpi.py), quiet libraries, and the folder of reference data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mpi import ONE_THREAD, comm, pytest_collection_modifyitems, pytest_configure, pytest_runtest_makereport

from aristos.doctor.cores import autogroups

__all__ = ["comm", "pytest_collection_modifyitems", "pytest_configure", "pytest_runtest_makereport"]

ROOT = Path(__file__).resolve().parent.parent

for _variable in ONE_THREAD:  # before a test imports NumPy: ranks, workers and BLAS threads share few cores
    os.environ.setdefault(_variable, "1")


def pytest_report_header() -> list[str]:
    """What can make tests of ranks that share cores hang."""
    fix = "sysctl kernel.sched_autogroup_enabled=0 (as root; docs/decisions.md, 21)"
    return [f"scheduler: autogroups are on, ranks may starve each other: {fix}"] if autogroups() else []


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference data beside the checkout; the test is skipped where there is none."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: its reference data is not part of the project")
    return folder
