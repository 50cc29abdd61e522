"""Tests on several MPI ranks: `@pytest.mark.ranks(n, timeout=120)`.

The pytest a person starts (the *outer* one) never runs the body of such a test. It starts `mpiexec -n n` of this file,
each rank of which runs an *inner* pytest of that one test id; there the body runs, and the fixture `comm` is
COMM_WORLD. A rank that fails says so in a file and takes the others down, so a failure never waits for the limit; a
rank that hangs writes its stacks just before the limit and is then killed. Only what the launch itself started is
killed, and only the failing ranks' output is shown.

Hypothesis works inside: all ranks draw the same examples (checked before each one), and the first falsifying example
ends the test, since shrinking on one rank would leave the others in the middle of a collective call.

It refuses to be a plugin for others: no fixtures per communicator, no scheduling of tests onto ranks of one long job.
"""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NoReturn

import pytest

FLAG = "ARISTOS_TEST_RANKS"  # set in an inner pytest: the folder of its launch
TIMEOUT = 120.0
GRACE = 1.0  # seconds a failed rank gives the others to fail by themselves and say why
STACKS = 2.0  # seconds before the limit at which hanging ranks write their stacks
SHOWN = 20_000  # characters shown of each failing rank
LAUNCHER_VARIABLES = ("PMI", "OMPI_", "PMIX_", "PRTE_", "HYD", "MPI_LOCAL")
ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def ranks_each(*counts: int, timeout: float = TIMEOUT) -> pytest.MarkDecorator:
    """Run a test once on each number of ranks; the test takes it as its argument `world`."""
    params = [pytest.param(n, marks=pytest.mark.ranks(n, timeout=timeout)) for n in counts]
    return pytest.mark.parametrize("world", params)


def inner_folder() -> Path | None:
    """The folder of the launch this process is a rank of; None in the outer pytest."""
    return Path(os.environ[FLAG]) if FLAG in os.environ else None


# ---- both: what pytest calls --------------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and the way Hypothesis draws: before any test module reads the default settings."""
    config.addinivalue_line("markers", "ranks(n, timeout=120): run the test under mpiexec on n ranks")
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
        suppress_health_check=list(hypothesis.HealthCheck),  # they go by the clock, which differs between ranks
    )
    settings.load_profile("aristos-ranks" if inner_folder() else "aristos")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the launch in the place of set-up and body of each marked test."""
    folder = inner_folder()
    for item in items:
        mark = item.get_closest_marker("ranks")
        if mark is None:
            continue
        if folder is None:
            n, timeout = read_mark(*mark.args, **mark.kwargs)
            item.setup = lambda: None  # type: ignore[method-assign]  # its fixtures belong to the ranks
            silence_health_checks(item)
            item.runtest = functools.partial(run_on_ranks, item, n, timeout)  # type: ignore[method-assign]
        else:
            guard_examples(item, folder)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Inner: tell the outer pytest how this rank's test ended."""
    report = yield
    folder = inner_folder()
    if folder is not None:
        if report.failed:
            fail(folder, f"in {report.when}:\n{report.longreprtext}")
        if report.skipped:
            xfail = getattr(report, "wasxfail", None)
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            save(folder, outcome="xfailed" if xfail is not None else "skipped", text=xfail or reason)
        elif report.when == "teardown" and not report_file(folder).exists():
            save(folder, outcome="passed", text="")
    return report


@pytest.fixture(scope="session")
def comm() -> Any:
    """COMM_WORLD of a test marked `ranks(n)`."""
    folder = inner_folder()
    if folder is None:
        pytest.fail("the fixture comm needs @pytest.mark.ranks(n) on the test", pytrace=False)
    from mpi4py import MPI

    n = read_job(folder)["n"]
    if MPI.COMM_WORLD.size != n:
        pytest.fail(
            f"mpiexec started {n} ranks but MPI sees {MPI.COMM_WORLD.size}: it belongs to another MPI library than "
            f"the one mpi4py loaded ({MPI.Get_library_version().splitlines()[0]})",
            pytrace=False,
        )
    return MPI.COMM_WORLD


# ---- outer: launch, watch, show -----------------------------------------------------------------------------------


def read_mark(n: int, timeout: float = TIMEOUT) -> tuple[int, float]:
    """The marker's arguments, checked."""
    if not isinstance(n, int) or n < 1 or timeout <= STACKS:
        raise pytest.UsageError(f"ranks(n, timeout) needs n >= 1 and timeout > {STACKS} s, got {n!r}, {timeout!r}")
    return n, float(timeout)


@functools.cache
def find_mpiexec() -> tuple[str, ...]:
    """The launcher with the flags its flavour needs; empty if there is none. The one beside python goes first."""
    beside = Path(sys.executable).parent / "mpiexec"
    path = str(beside) if beside.exists() else shutil.which("mpiexec")
    if path is None:
        return ()
    version = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60).stdout
    if "Open MPI" in version:
        return (path, "--allow-run-as-root", "--oversubscribe", "--bind-to", "none")
    return (path,)


def silence_health_checks(item: pytest.Item) -> None:
    """Hypothesis looks at a test's fixtures before it runs; in the outer pytest there are none to look at."""
    body: Any = getattr(item, "obj", None)
    if not hasattr(body, "hypothesis"):
        return
    from hypothesis import HealthCheck, settings

    body = getattr(body, "__func__", body)
    old = getattr(body, "_hypothesis_internal_use_settings", settings.default)
    body._hypothesis_internal_use_settings = settings(parent=old, suppress_health_check=list(HealthCheck))


def rank_environment(folder: Path) -> dict[str, str]:
    """One thread a library, the same hash seed on all ranks, nothing of a launcher around this one."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHER_VARIABLES)}
    env.update(dict.fromkeys(ONE_THREAD, "1"))
    env.update({FLAG: str(folder), "PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1"})
    env.setdefault("HYDRA_IFACE", "lo")  # the ranks share this machine: a host name need not resolve
    return env


def run_on_ranks(item: pytest.Item, n: int, timeout: float) -> None:
    """Run one test id under mpiexec and pass, skip or fail as its ranks did."""
    launcher = find_mpiexec()
    if not launcher:
        pytest.skip("no mpiexec beside python or on PATH: pip install mpich")
    folder = Path(tempfile.mkdtemp(prefix="aristos-ranks-"))
    try:
        config = item.config
        args = [item.nodeid, "--rootdir", str(config.rootpath), "-p", "no:cacheprovider", "-s", "-q"]
        if config.inipath is not None:
            args += ["-c", str(config.inipath)]
        job = {"n": n, "args": args, "root": str(config.rootpath), "deadline": time.monotonic() + timeout}
        (folder / "job.json").write_text(json.dumps(job))
        command = [*launcher, "-n", str(n), sys.executable, os.path.abspath(__file__)]
        code = launch(command, folder, job)
        conclude(folder, n, timeout, code)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def launch(command: list[str], folder: Path, job: dict[str, Any]) -> int | None:
    """Start the ranks in a session of their own; return mpiexec's exit code, None when the limit ended it."""
    with open(folder / "launcher.out", "wb") as out:
        process = subprocess.Popen(
            command,
            cwd=job["root"],
            env=rank_environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        failed_at = None
        try:
            while (code := process.poll()) is None:
                now = time.monotonic()
                if now > job["deadline"]:
                    return None
                if failed_at is None and any(r["outcome"] == "failed" for r in read_reports(folder).values()):
                    failed_at = now
                if failed_at is not None and now > failed_at + 5 * GRACE:
                    return 1  # MPI_Abort did not bring it down
                time.sleep(0.02)
            return code
        finally:
            end(process, folder)


def end(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Kill what this launch started and still runs: mpiexec's group, then ranks, which launchers put into their own."""
    for sig in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, sig)
            try:
                process.wait(3.0)
            except subprocess.TimeoutExpired:
                continue
    for file in folder.glob("rank-*.pid"):
        pid = int(file.read_text() or 0)
        if pid and is_ours(pid, folder):
            os.kill(pid, signal.SIGKILL)


def is_ours(pid: int, folder: Path) -> bool:
    """Whether the process of that number still is a rank of this launch: numbers are used again."""
    try:
        return f"{FLAG}={folder}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def read_reports(folder: Path) -> dict[int, dict[str, str]]:
    """What the ranks have said so far, by rank."""
    files = {int(f.stem.split("-")[1]): f for f in folder.glob("rank-*.json")}
    return {rank: json.loads(files[rank].read_text()) for rank in sorted(files)}


def conclude(folder: Path, n: int, timeout: float, code: int | None) -> None:
    """Pass, skip or fail: a failing rank's own words, else whoever crashed, else whoever did not finish."""
    reports = read_reports(folder)
    failed = [r for r, report in reports.items() if report["outcome"] == "failed"]
    silent = [r for r in range(n) if r not in reports]
    crashed = [r for r in silent if "Fatal Python error" in read_output(folder, r)]
    if failed:
        show(folder, failed, f"failed on {name(failed)} of {n}")
    if code is None:
        show(folder, silent or list(range(n)), f"no end within {timeout:g} s on {name(silent)} of {n}")
    if silent or code:
        show(folder, crashed or silent or list(range(n)), f"mpiexec ended with code {code}", launcher=True)
    outcomes = {report["outcome"] for report in reports.values()}
    if "xfailed" in outcomes:
        pytest.xfail(next(r["text"] for r in reports.values() if r["outcome"] == "xfailed"))
    if outcomes == {"skipped"}:
        pytest.skip(reports[0]["text"].removeprefix("Skipped: "))


def name(ranks: list[int]) -> str:
    """`rank 1`, `ranks 0, 2`, or `every rank` where none is to blame more than another."""
    if not ranks:
        return "every rank"
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))


def read_output(folder: Path, rank: int) -> str:
    """Everything one rank wrote."""
    file = folder / f"rank-{rank}.out"
    return file.read_text(errors="replace") if file.exists() else ""


def show(folder: Path, ranks: list[int], why: str, launcher: bool = False) -> NoReturn:
    """Fail the outer test with the output of these ranks."""
    parts = [why]
    for rank in ranks:
        parts += [f"---- rank {rank} ----", read_output(folder, rank)[-SHOWN:] or "(no output)"]
    if launcher:
        parts += ["---- mpiexec ----", (folder / "launcher.out").read_text(errors="replace")[-SHOWN:]]
    pytest.fail("\n".join(parts), pytrace=False)


# ---- inner: one rank ----------------------------------------------------------------------------------------------


def read_job(folder: Path) -> dict[str, Any]:
    """What the outer pytest asked for."""
    return json.loads((folder / "job.json").read_text())


def my_rank() -> int:
    """This process's rank as the launcher says it, known before MPI is initialised."""
    for variable in ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID"):
        if variable in os.environ:
            return int(os.environ[variable])
    raise RuntimeError("no launcher variable tells this process its rank")


def report_file(folder: Path) -> Path:
    return folder / f"rank-{my_rank()}.json"


def save(folder: Path, outcome: str, text: str) -> None:
    """Write this rank's report so that a reader sees all of it or none."""
    aside = folder / f"rank-{my_rank()}.tmp"
    aside.write_text(json.dumps({"outcome": outcome, "text": text}))
    aside.replace(report_file(folder))


def fail(folder: Path, text: str) -> NoReturn:
    """Report a failure, give the other ranks a moment to report theirs, and take the job down."""
    print(text, flush=True)
    save(folder, outcome="failed", text=text)
    n, until = read_job(folder)["n"], time.monotonic() + GRACE
    while len(list(folder.glob("rank-*.json"))) < n and time.monotonic() < until:
        time.sleep(0.02)
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.COMM_WORLD.Abort(1)
    os._exit(1)


def guard_examples(item: pytest.Item, folder: Path) -> None:
    """Wrap the body of a Hypothesis test: all ranks must have drawn the same, and a failure ends it at once."""
    handle = getattr(getattr(item, "obj", None), "hypothesis", None)
    if handle is None:
        return
    body: Callable[..., Any] = handle.inner_test
    fixtures = set(getattr(item, "fixturenames", ()))  # tmp_path and the like may differ between ranks

    @functools.wraps(body)
    def guarded(*args: Any, **drawn: Any) -> Any:
        from mpi4py import MPI

        example = ", ".join(f"{k}={v!r}" for k, v in drawn.items() if k not in fixtures)
        code = zlib.crc32(re.sub(r"\b0x[0-9a-fA-F]+", "", example).encode())
        if len(set(MPI.COMM_WORLD.allgather(code))) > 1:
            fail(folder, f"ranks drew different examples; this one: {example}")
        try:
            return body(*args, **drawn)
        except BaseException as error:
            control = type(error).__module__.startswith("hypothesis") or isinstance(error, pytest.skip.Exception)
            if control:  # assume(), a draw that ran out: no failure
                raise
            fail(folder, f"falsifying example: {example}\n{traceback.format_exc()}")

    handle.inner_test = guarded


def main() -> int:
    """Be one rank: own output file, stacks shortly before the limit, then pytest."""
    folder = Path(os.environ[FLAG])
    job, rank = read_job(folder), my_rank()
    out = os.open(folder / f"rank-{rank}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    (folder / f"rank-{rank}.pid").write_text(str(os.getpid()))
    if sys.platform == "linux":  # a launcher that is killed takes its ranks along
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    faulthandler.dump_traceback_later(max(0.1, job["deadline"] - STACKS - time.monotonic()), exit=False)
    sys.path.insert(0, job["root"])  # as `python -m pytest` has it
    code = int(pytest.main(job["args"]))
    if code and not report_file(folder).exists():
        fail(folder, f"pytest ended with code {code}")
    faulthandler.cancel_dump_traceback_later()
    return code


if __name__ == "__main__":
    sys.exit(main())
