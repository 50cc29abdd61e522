"""pytest plugin: the fixture `simt_machine`, and ARISTOS_SIMT=1 for tests that launch kernels as k[grid, block](...).

With ARISTOS_SIMT=1 each test runs on a machine of its own, and fails if the machine reports anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from .machine import Machine
from .switch import asked, enable, use


@pytest.fixture
def simt_machine() -> Iterator[Machine]:
    """A machine for kernels launched as k[grid, block](...); the test fails if any report is left at its end.

    A test that expects reports removes them: `simt_machine.reports.clear()`.
    """
    with use(Machine()) as machine:
        yield machine
    found = "\n".join(str(report) for report in machine.reports)
    if found:
        pytest.fail(f"the machine found:\n{found}", pytrace=False)


def pytest_configure(config: Any) -> None:
    """Use a machine from the start if the environment asks for it."""
    if asked():
        enable()  # signatures declared at import need a device


@pytest.fixture(autouse=True)
def _simt_switch(request: Any) -> Iterator[None]:
    if not asked() or "simt_machine" in request.fixturenames:
        yield
        return
    with use(Machine()) as machine:
        yield
    found = "\n".join(str(report) for report in machine.reports)
    if found:
        pytest.fail(f"the machine found:\n{found}", pytrace=False)
