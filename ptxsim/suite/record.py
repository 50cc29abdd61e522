"""A pytest plugin that runs each test on a new machine and records its outcome as one JSON line.

outcome: agrees (the test passed, and kernels ran), no_kernel (it passed, but no kernel ran), skipped (by the test
itself), differs (it failed), refused (the machine rejected something), driver (the test needs a CUDA driver or a tool
of the toolkit), time (the time limit has passed), expected (numba-cuda marks the test as failing). libraries: those
that the test's kernels link besides libdevice.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from .. import functions, linking
from ..errors import PtxsimError
from ..machine import Machine
from ..switch import enable, use

OUTPUT, LIMIT = "PTXSIM_SUITE_OUTPUT", "PTXSIM_SUITE_SECONDS"
WAITING = 3  # by the clock a test may take so many times its limit of CPU time
DRIVER_WORDS = (
    "libcuda",
    "CUDA driver",
    "cuda driver",
    "nvdisasm",
    "nvJitLink",
    "nvjitlink",
    "Error at driver init",
    "cuInit",
    "libnvJitLink",
    "cuobjdump",
    "cuobject",
    "NVML",
    "cuda.core",
)
DRIVER_FRAMES = re.compile(r"/cuda/(core|bindings|pathfinder)/|cuda[./](core|bindings)\b")


class TimeLimit(BaseException):
    """The time limit of a test has passed. This is a BaseException, because tests catch every Exception."""


class Recorder:
    """Writes outcomes, and notes what the current test has done so far."""

    def __init__(self) -> None:
        self.file = open(os.environ[OUTPUT], "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self.seconds = float(os.environ.get(LIMIT, "60"))
        self.running = False
        self.launches, self.libraries, self.reports = 0, set[str](), list[str]()
        launch, of_file = functions.MachineFunction.launch, linking.of_file

        def counted(*args: Any) -> None:
            self.launches += 1
            launch(*args)

        def noted(file: Any, cc: tuple[Any, ...]) -> str:
            self.libraries.add(os.path.basename(str(getattr(file, "name", file))))
            return of_file(file, cc)

        functions.MachineFunction.launch = counted  # type: ignore
        linking.of_file = noted

    def start(self) -> None:
        """Begin a test."""
        self.launches, self.libraries, self.reports = 0, set(), []
        self.began = time.perf_counter()

    def write(self, item: Any, outcome: str, why: str) -> None:
        """Write the line with a test's outcome."""
        line = {
            "module": item.module.__name__.removeprefix("numba.cuda.tests."),
            "test": item.nodeid.partition("::")[2],
            "outcome": outcome,
            "why": why[:300],
            "launches": self.launches,
            "libraries": sorted(self.libraries),
            "reports": self.reports[:3],
            "seconds": round(time.perf_counter() - self.began, 2),
        }
        self.file.write(json.dumps(line) + "\n")


def cause(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, its cause, the cause's cause, and so on."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def verdict(error: BaseException) -> tuple[str, str]:
    """(outcome, reason) of a failed test."""
    for one in cause(error):
        if isinstance(one, (TimeLimit, subprocess.TimeoutExpired)):
            return "time", first_line(one)
        if isinstance(one, PtxsimError):
            return "refused", first_line(one)
    for one in cause(error):
        frames = traceback_files(one)
        if type(one).__name__ in ("CudaSupportError", "NvvmSupportError", "NotSupportedError"):
            return "driver", first_line(one)
        if any(word in str(one) for word in DRIVER_WORDS) or (frames and DRIVER_FRAMES.search(frames[-1])):
            return "driver", first_line(one)
    return "differs", f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def traceback_files(error: BaseException) -> list[str]:
    """The files of an exception's traceback, outermost first."""
    files, at = [], error.__traceback__
    while at is not None:
        files.append(at.tb_frame.f_code.co_filename)
        at = at.tb_next
    return files


_recorder: list[Recorder] = []


def pytest_configure(config: Any) -> None:
    """Use a machine from the start, and open the file of outcomes."""
    os.environ["PTXSIM_SUITE_CHILD"] = "1"
    enable(devices=2)  # because signatures declared at import need a device
    _recorder.append(Recorder())


class Installed(pytest.Module):
    """A test module imported as part of numba.cuda, not by its path."""

    def _getobj(self) -> Any:
        parts = self.path.with_suffix("").parts
        at = len(parts) - parts[::-1].index("numba") - 1
        return importlib.import_module(".".join(parts[at:]))


def pytest_pycollect_makemodule(module_path: Any, parent: Any) -> Any:
    """Import test modules as parts of numba.cuda."""
    return Installed.from_parent(parent, path=module_path)


def pytest_collect_directory(path: Any, parent: Any) -> Any:
    """Collect folders without importing them as packages."""
    return pytest.Dir.from_parent(parent, path=path)  # not a Package, which would be imported by its path


@pytest.fixture(scope="class")
def initialize_from_pytest_config(request: Any) -> None:
    """Take the place of the fixture of this name in numba-cuda's conftest. The test classes need it."""
    if request.cls is not None:
        request.cls._dump_failed_filechecks = False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: Any) -> Iterator[None]:
    """Install the time limit around a test."""
    recorder = _recorder[0]
    recorder.start()

    def over(*_: Any) -> None:
        if recorder.running:
            raise TimeLimit(f"more than {recorder.seconds:.0f} s on a CPU, or {WAITING} times as long by the clock")

    before = signal.signal(signal.SIGPROF, over), signal.signal(signal.SIGALRM, over)
    try:
        return (yield)
    finally:
        signal.signal(signal.SIGPROF, before[0])
        signal.signal(signal.SIGALRM, before[1])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: Any) -> Iterator[None]:
    """Run a test on a new machine."""
    recorder = _recorder[0]
    machine = Machine(devices=2)
    recorder.running = True
    signal.setitimer(signal.ITIMER_PROF, recorder.seconds, 0.5)  # again and again, because subtests catch the exception
    signal.setitimer(signal.ITIMER_REAL, WAITING * recorder.seconds, 5)
    try:
        with use(machine):
            return (yield)
    finally:
        recorder.running = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        recorder.reports = [str(report) for report in machine.reports]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Generator[None, Any, Any]:
    """Write a test's outcome."""
    report = yield
    recorder = _recorder[0]
    if hasattr(report, "wasxfail"):
        if call.when == "call":
            recorder.write(item, "expected", str(report.wasxfail))
    elif report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        recorder.write(item, "skipped", reason.removeprefix("Skipped: "))
    elif report.failed and call.when != "teardown":
        recorder.write(item, *verdict(call.excinfo.value))
    elif call.when == "call":
        recorder.write(item, "agrees" if recorder.launches else "no_kernel", "")
    return report
