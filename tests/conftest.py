"""What all tests share. The plugins lie in support/: ranks (mpi.py), tiers and budgets (tiers.py), exit hooks."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["mpi", "tiers", "leftovers"]

ROOT = Path(__file__).resolve().parent.parent


def pytest_report_header() -> list[str]:
    """What can make tests of ranks that share cores hang."""
    from aristos.doctor.cores import autogroups  # after mpi.py: this imports NumPy

    fix = "sysctl kernel.sched_autogroup_enabled=0 (as root; docs/decisions.md, 21)"
    return [f"scheduler: autogroups are on, ranks may starve each other: {fix}"] if autogroups() else []


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference data beside the checkout; the test is skipped where there is none."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: its reference data is not part of the project")
    return folder
