"""A pytest plugin with the fixture `simt_machine`, and --simt for tests that launch kernels as k[grid, block](...).

Load the plugin by `pytest -p ptxsim.plugin`, or by `pytest_plugins = ["ptxsim.plugin"]` in a conftest.py. With --simt
or with PTXSIM=1 in the environment, each test runs on a new machine, and fails if the machine has reports.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .machine import Machine


def pytest_addoption(parser: Any) -> None:
    group = parser.getgroup("ptxsim", "CUDA kernels without a GPU")
    group.addoption(
        "--simt",
        action="store_true",
        help="run CUDA kernels on the PTX machine, checked: a report fails the test. Also with PTXSIM=1",
    )
    group.addoption("--simt-seed", type=int, default=0, help="seed of the machine's schedule (%(default)s)")


def pytest_configure(config: Any) -> None:
    """Use a machine from the start of the run if the option or the environment asks for it."""
    if config.getoption("--simt") or os.environ.get("PTXSIM", "0") not in ("", "0"):
        from .switch import enable

        enable()  # because signatures declared at import need a device
        config.pluginmanager.register(EveryTest(), "ptxsim-every-test")


@pytest.fixture
def simt_machine(request: Any) -> Iterator[Machine]:
    """A machine for kernels launched as k[grid, block](...). If any report is left when the test ends, the test fails.

    A test that expects reports removes them: `simt_machine.reports.clear()`.
    """
    yield from one_test(request.config)


class EveryTest:
    """The part of the plugin that runs every test on a machine."""

    @pytest.fixture(autouse=True)
    def _simt_switch(self, request: Any) -> Iterator[Any]:
        if "simt_machine" in request.fixturenames:
            yield None
        else:
            yield from one_test(request.config)


def one_test(config: Any) -> Iterator[Machine]:
    """Use a new machine while a test runs, and fail the test if any report is left."""
    from .findings import lines
    from .machine import Machine
    from .switch import use

    with use(Machine(seed=config.getoption("--simt-seed"))) as machine:
        yield machine
    if machine.reports:
        pytest.fail("\n".join(["the machine found:", *lines(machine.reports)]), pytrace=False)
