"""Tests in other processes: `@pytest.mark.ranks(n, timeout=120, isolated=False)` and `@pytest.mark.uncompiled`.

The pytest that a user starts (the *outer* pytest) never runs the body of a test marked `ranks`. It moves these tests
after the others, sorts them by number of ranks, and starts one `mpiexec` for all tests of the same number
(rank_job.py). Every rank is an *inner* pytest, which runs one test after another at the request of the outer pytest
(rank_main.py). In the inner pytest the fixture `comm` is COMM_WORLD. Each test has its own time limit and its own
report. A test that fails or hangs ends its job, and the tests after it get a new one. A test marked `isolated=True` has
its own job; this is for tests that abort, kill ranks, close files of the process, or test this harness.

The tests of a file marked `uncompiled` run in the same way in one process without MPI, where Numba compiles nothing:
Numba decides that when it is imported.

Hypothesis works in the inner pytest: all ranks draw the same examples (checked before each one). The first falsifying
example ends the test, since shrinking on one rank would leave the others in the middle of a collective call.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FLAG = "ARISTOS_TEST_RANKS"  # set in an inner pytest: the folder of its job
BATCH = pytest.StashKey[Any]()  # the rank_job.Batch of a marked test, in the outer pytest
TIMEOUT = 120.0
STACKS = 2.0  # seconds before the limit at which hanging ranks write their stacks
LAUNCHER_VARIABLES = ("PMI", "OMPI_", "PMIX_", "PRTE_", "HYD", "MPI_LOCAL")
ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
for _variable in ONE_THREAD:  # set before a test imports NumPy: ranks, workers and BLAS threads share few cores
    os.environ.setdefault(_variable, "1")


def ranks_each(*counts: int, timeout: float = TIMEOUT, isolated: bool = False) -> pytest.MarkDecorator:
    """Run a test once on each number of ranks; the test takes it as its argument `world`."""
    params = [pytest.param(n, marks=pytest.mark.ranks(n, timeout=timeout, isolated=isolated)) for n in counts]
    return pytest.mark.parametrize("world", params)


def job_folder() -> Path | None:
    """The folder of the job that this process is a rank of; None in the outer pytest."""
    return Path(os.environ[FLAG]) if FLAG in os.environ else None


def number_of_ranks() -> int:
    """The number of ranks of this process's job; 0 in the outer pytest and in an uncompiled process."""
    folder = job_folder()
    return 0 if folder is None else int(json.loads((folder / "job.json").read_text())["n"])


def inner_folder() -> Path | None:
    """A folder that the ranks of the current test share, empty at its start; None in the outer pytest."""
    folder = job_folder()
    if folder is None:
        return None
    mine = folder / f"test-{(folder / 'command').read_text()}"
    mine.mkdir(exist_ok=True)
    return mine


def read_mark(n: int, timeout: float = TIMEOUT, isolated: bool = False) -> tuple[int, float, bool]:
    """Check and return the marker's arguments."""
    if not isinstance(n, int) or n < 1 or timeout <= STACKS:
        raise pytest.UsageError(f"ranks(n, timeout) needs n >= 1 and timeout > {STACKS} s, got {n!r}, {timeout!r}")
    return n, float(timeout), bool(isolated)


@functools.cache
def find_mpiexec() -> tuple[str, ...]:
    """The launcher with the flags its flavour needs; empty if there is none. The one beside python is preferred."""
    beside = Path(sys.executable).parent / "mpiexec"
    path = str(beside) if beside.exists() else shutil.which("mpiexec")
    if path is None:
        return ()
    version = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60).stdout
    if "Open MPI" in version:
        return (path, "--allow-run-as-root", "--oversubscribe", "--bind-to", "none")
    return (path,)


def rank_environment(folder: Path) -> dict[str, str]:
    """A rank's environment: one thread in libraries, one hash seed for all ranks, no variables of an outer launcher."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHER_VARIABLES)}
    env.update(dict.fromkeys(ONE_THREAD, "1"))
    env.update({FLAG: str(folder), "PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1"})
    env.setdefault("HYDRA_IFACE", "lo")  # the ranks share this machine: a host name need not resolve
    return env


# ---- what pytest calls, in the outer pytest and on the ranks ---------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers and Hypothesis's settings, before any test module reads the default settings."""
    config.addinivalue_line(
        "markers",
        "ranks(n, timeout=120, isolated=False): run the test under mpiexec on n ranks; timeout: in seconds;"
        " isolated: in a job of its own",
    )
    config.addinivalue_line(
        "markers", "uncompiled(timeout=600): run the file's tests in a process that compiles nothing"
    )
    try:
        import hypothesis
    except ImportError:
        return
    settings = hypothesis.settings
    settings.register_profile("aristos", deadline=None, print_blob=True)
    settings.register_profile(
        "aristos-ranks",
        deadline=None,
        derandomize=True,
        database=None,
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
        suppress_health_check=list(hypothesis.HealthCheck),  # health checks depend on time, which differs between ranks
    )
    settings.load_profile("aristos-ranks" if number_of_ranks() else "aristos")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In the outer pytest, move tests on ranks to the end. On ranks, guard Hypothesis's examples."""
    marked = [item for item in items if item.get_closest_marker("ranks")]
    if job_folder() is not None:
        for item in marked:
            guard_examples(item)
        return
    order = {item: read[::2] for item in marked if (read := mark_of(item))}
    items[:] = [item for item in items if item not in order] + sorted(marked, key=order.__getitem__)


def pytest_collection_finish(session: pytest.Session) -> None:
    """In the outer pytest, replace the set-up and body of marked tests that are not deselected: jobs run them."""
    if job_folder() is not None:
        return
    import rank_job

    shared: dict[Any, rank_job.Batch] = {}
    for item in session.items:
        if (mark := mark_of(item)) is None:
            continue
        n, timeout, isolated = mark
        key = item if isolated else n or item.path
        batch = shared.setdefault(key, rank_job.Batch(n))
        batch.add(item, timeout)
        item.stash[BATCH] = batch
        item.setup = lambda: None  # type: ignore[method-assign]  # its fixtures belong to the other processes
        silence_health_checks(item)
        item.runtest = functools.partial(batch.run, item)  # type: ignore[method-assign]


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """In the outer pytest, end a job after its last test. A failure at its end is reported as an error of that test."""
    batch = item.stash.get(BATCH, None)
    if batch is not None and (nextitem is None or nextitem.stash.get(BATCH, None) is not batch):
        batch.finish()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In the outer pytest, kill the job that an interrupted session has left."""
    for item in getattr(session, "items", ()):
        if (batch := item.stash.get(BATCH, None)) is not None:
            batch.close()


def mark_of(item: pytest.Item) -> tuple[int, float, bool] | None:
    """(ranks, limit in seconds, whether isolated) of a test for other processes; 0 ranks: uncompiled."""
    if (mark := item.get_closest_marker("ranks")) is not None:
        return read_mark(*mark.args, **mark.kwargs)
    if (mark := item.get_closest_marker("uncompiled")) is not None:
        return 0, float(mark.kwargs.get("timeout", 5 * TIMEOUT)), False
    return None


@pytest.fixture(scope="session")
def comm() -> Any:
    """COMM_WORLD of a test marked `ranks(n)`."""
    n = number_of_ranks()
    if not n:
        pytest.fail("the fixture comm needs @pytest.mark.ranks(n) on the test", pytrace=False)
    from mpi4py import MPI

    if MPI.COMM_WORLD.size != n:
        pytest.fail(
            f"mpiexec started {n} ranks but MPI sees {MPI.COMM_WORLD.size}: it belongs to another MPI library than "
            f"the one mpi4py loaded ({MPI.Get_library_version().splitlines()[0]})",
            pytrace=False,
        )
    return MPI.COMM_WORLD


# ---- Hypothesis ------------------------------------------------------------------------------------------------------


def silence_health_checks(item: pytest.Item) -> None:
    """Make Hypothesis check no fixtures of a test: in the outer pytest it would find none."""
    body: Any = getattr(item, "obj", None)
    if not hasattr(body, "hypothesis"):
        return
    from hypothesis import HealthCheck, settings

    body = getattr(body, "__func__", body)
    old = getattr(body, "_hypothesis_internal_use_settings", settings.default)
    body._hypothesis_internal_use_settings = settings(parent=old, suppress_health_check=list(HealthCheck))


def guard_examples(item: pytest.Item) -> None:
    """Wrap the body of a Hypothesis test: all ranks must draw the same example, and the first failure ends the test."""
    handle = getattr(getattr(item, "obj", None), "hypothesis", None)
    if handle is None or hasattr(handle.inner_test, "guarded"):
        return
    import rank_main

    body: Callable[..., Any] = handle.inner_test
    fixtures = set(getattr(item, "fixturenames", ()))  # tmp_path and the like may differ between ranks

    @functools.wraps(body)
    def guarded(*args: Any, **drawn: Any) -> Any:
        from mpi4py import MPI

        example = ", ".join(f"{k}={v!r}" for k, v in drawn.items() if k not in fixtures)
        code = zlib.crc32(re.sub(r"\b0x[0-9a-fA-F]+", "", example).encode())
        if len(set(MPI.COMM_WORLD.allgather(code))) > 1:
            rank_main.fail(f"ranks drew different examples; this one: {example}")
        try:
            return body(*args, **drawn)
        except BaseException as error:
            control = type(error).__module__.startswith("hypothesis") or isinstance(error, pytest.skip.Exception)
            if control:  # assume() and a draw that ran out of data are not failures
                raise
            rank_main.fail(f"falsifying example: {example}\n{traceback.format_exc()}")

    guarded.guarded = True  # type: ignore[attr-defined]  # parametrized tests share one body
    handle.inner_test = guarded
